//! The way to other replicas: one connection to each, which all requests share.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::tunnel;

use super::identity::Identity;
use crate::tunnels::RequestBody;

/// How long a replica may take to answer a dial. One that is gone and doesn't say so costs as much.
const DIAL: Duration = Duration::from_secs(2);

/// After how long without a byte a replica is asked whether it lives, and how long it may think about it: all streams
/// between two replicas end with a connection.
const PING: Duration = Duration::from_secs(5);

/// How long a connection may leave bytes unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Why a replica isn't reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// What it calls itself can't be a name.
    #[error("replica {0:?} has no name that can be reached")]
    Name(String),
    /// No connection, or none with who was meant.
    #[error("replica {replica} at {address} is not reached")]
    Dial {
        /// Which.
        replica: String,
        /// Where it said that it is.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A connection for requests.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) requests: SendRequest<RequestBody>,
    /// Cancelled when the connection is gone.
    pub(crate) closed: CancellationToken,
}

/// Connections by replica, made when they are wanted; one dial at a time to each.
pub(super) struct Peers {
    requests: Arc<ClientConfig>,
    connections: Arc<ClientConfig>,
    tasks: TaskTracker,
    known: Mutex<HashMap<String, Slot>>,
}

type Slot = Arc<tokio::sync::Mutex<Tried>>;

/// What became of the last dial.
#[derive(Debug, Default)]
struct Tried {
    peer: Option<Arc<Peer>>,
    failed: Option<Instant>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peers")
    }
}

impl Peers {
    pub(super) fn new(identity: &Arc<Identity>) -> Result<Self, rustls::Error> {
        Ok(Self {
            requests: identity.client_config(b"h2")?.into(),
            connections: identity.client_config(b"http/1.1")?.into(),
            tasks: TaskTracker::new(),
            known: Mutex::default(),
        })
    }

    /// The connection for requests to a replica.
    pub(super) async fn peer(
        &self,
        replica: &str,
        address: &str,
    ) -> Result<Arc<Peer>, Unreachable> {
        let slot = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(replica.to_owned()).or_default())
        };
        let came = Instant::now();
        let mut slot = slot.lock().await;
        if let Some(peer) = &slot.peer
            && !peer.closed.is_cancelled()
        {
            return Ok(Arc::clone(peer));
        }
        // Who has waited for a dial that failed doesn't try it again.
        if slot.failed.is_some_and(|failed| failed >= came) {
            return Err(Unreachable::Dial {
                replica: replica.to_owned(),
                address: address.to_owned(),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        slot.failed = Some(Instant::now());
        let dialed = self.dial_for_requests(replica, address).await;
        slot.failed = dialed.is_err().then(Instant::now);
        let peer = dialed?;
        slot.peer = Some(Arc::clone(&peer));
        Ok(peer)
    }

    async fn dial_for_requests(
        &self,
        replica: &str,
        address: &str,
    ) -> Result<Arc<Peer>, Unreachable> {
        let failed = |source| Unreachable::Dial {
            replica: replica.to_owned(),
            address: address.to_owned(),
            source,
        };
        let stream = dial(&self.requests, replica, address).await?;
        let (requests, connection) = tunnel::client()
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        let closed = CancellationToken::new();
        let ends = closed.clone().drop_guard();
        let of = replica.to_owned();
        self.tasks.spawn(async move {
            let ended = connection.await;
            drop(ends);
            match ended {
                Ok(()) => tracing::debug!(replica = of, "the connection to a replica ended"),
                Err(error) => {
                    tracing::info!(replica = of, %error, "the connection to a replica was lost");
                }
            }
        });
        Ok(Arc::new(Peer { requests, closed }))
    }

    /// A connection that takes nothing more: the next request gets another.
    pub(super) async fn done_with(&self, replica: &str, peer: &Arc<Peer>) {
        let slot = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(replica).cloned()
        };
        if let Some(slot) = slot {
            let mut slot = slot.lock().await;
            if slot
                .peer
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, peer))
            {
                slot.peer = None;
            }
        }
    }

    /// A connection of its own to a replica, for HTTP/1.1.
    pub(super) async fn connection(
        &self,
        replica: &str,
        address: &str,
    ) -> Result<TlsStream<TcpStream>, Unreachable> {
        dial(&self.connections, replica, address).await
    }

    /// Ends what still runs over them.
    pub(super) fn close(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in known.values() {
            // Who holds it is about to dial, and has no stream yet.
            if let Ok(slot) = slot.try_lock()
                && let Some(peer) = &slot.peer
            {
                peer.closed.cancel();
            }
        }
    }

    /// Forgets replicas that are gone.
    pub(super) fn keep(&self, live: impl Fn(&str) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|replica, _| live(replica));
    }
}

/// For a connection between replicas, at both ends.
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PING).with_interval(PING))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

async fn dial(
    config: &Arc<ClientConfig>,
    replica: &str,
    address: &str,
) -> Result<TlsStream<TcpStream>, Unreachable> {
    let name = Identity::name(replica).ok_or_else(|| Unreachable::Name(replica.to_owned()))?;
    let dialing = async {
        let stream = TcpStream::connect(address).await?;
        configure(&stream)?;
        TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
    };
    timeout(DIAL, dialing)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| Unreachable::Dial {
            replica: replica.to_owned(),
            address: address.to_owned(),
            source,
        })
}
