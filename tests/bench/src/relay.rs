//! What stands between a tunnel's two ends while its connections are cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
};

/// Passes on every connection to one address; dropping it cuts them.
pub(crate) struct Relay {
    pub(crate) port: u16,
    connections: Arc<Mutex<Vec<Connection>>>,
    /// Those that nothing goes through any more.
    silent: Vec<Connection>,
    _listener: JoinSet<()>,
}

struct Connection {
    /// Tells it to pass on nothing more, and stay.
    silence: oneshot::Sender<()>,
    _passing: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Arc::<Mutex<Vec<Connection>>>::default();
        let kept = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else {
                    continue;
                };
                let (silence, silenced) = oneshot::channel();
                let mut passing = JoinSet::new();
                passing.spawn(pass(near, far, silenced));
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Connection {
                        silence,
                        _passing: passing,
                    });
            }
        });
        Ok(Self {
            port,
            connections,
            silent: Vec::new(),
            _listener: tasks,
        })
    }

    /// Resets every connection.
    pub(crate) fn cut(&self) {
        drop(self.take());
    }

    /// Nothing passes on the connections that there are, and nobody is told.
    pub(crate) fn swallow(&mut self) {
        for connection in self.take() {
            let Connection { silence, _passing } = connection;
            // One that has ended needs no word.
            let _told = silence.send(());
            let (silence, _) = oneshot::channel();
            self.silent.push(Connection { silence, _passing });
        }
    }

    fn take(&self) -> Vec<Connection> {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut connections)
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, silenced: oneshot::Receiver<()>) {
    for side in [&near, &far] {
        // A connection that is dropped is reset.
        drop(SockRef::from(side).set_linger(Some(Duration::ZERO)));
        drop(side.set_nodelay(true));
    }
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        silenced = silenced => if silenced.is_ok() {
            std::future::pending::<()>().await;
        },
    }
}
