//! HTTP/2 connections to the API server, as many as the streams need.
//!
//! kube-apiserver takes 100 streams on a connection. HTTP/2 parks the next one until another ends, which with
//! watches is never; and the usual pool of a client keeps to one connection. So connections are counted
//! here: a request takes a [`Slot`] on the fullest connection that has room (the others can drain and be
//! closed), and where there is no room a connection is dialled, one at a time.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http2::{Builder, Connection, SendRequest},
    },
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    time::{Instant, interval, timeout},
};
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;
use towline_proto::tunnel;

use super::connect::{Alpn, ConnectError, Connector};
use crate::{body::Boxed, guard::lock, tcp};

/// How long a connection without streams is kept.
const IDLE: Duration = Duration::from_secs(60);

/// Where a stream limit stands before the API server has told its own; no server tells this one.
const UNTOLD: usize = 0x5eed_5eed;

/// Between two pings on a connection to the API server, and how long one may stay unanswered.
const PING: Duration = Duration::from_secs(10);

/// Connections for one kind of requests.
pub(super) struct Pool {
    kind: &'static str,
    connector: Arc<Connector>,
    members: Mutex<Vec<Arc<Member>>>,
    dialing: tokio::sync::Mutex<()>,
    /// How many dials have failed, and the last failure: those who waited for that dial share it.
    failures: AtomicU64,
    failure: Mutex<Option<Arc<ConnectError>>>,
    tasks: TaskTracker,
}

struct Member {
    sender: SendRequest<Boxed>,
    generation: u64,
    limit: Arc<AtomicUsize>,
    active: AtomicUsize,
    idle_since: Mutex<Instant>,
    retired: AtomicBool,
}

/// The right to one stream on one connection.
pub(super) struct Slot {
    member: Arc<Member>,
}

impl Pool {
    pub(super) fn new(kind: &'static str, connector: Arc<Connector>, tasks: TaskTracker) -> Self {
        Self {
            kind,
            connector,
            members: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
            failure: Mutex::default(),
            tasks,
        }
    }

    /// A slot on a connection that has room, which is dialled if there is none.
    pub(super) async fn slot(&self) -> Result<Slot, Arc<ConnectError>> {
        loop {
            if let Some(slot) = self.pick() {
                return Ok(slot);
            }
            let failures = self.failures.load(Ordering::Acquire);
            let _one_at_a_time = self.dialing.lock().await;
            if let Some(slot) = self.pick() {
                return Ok(slot);
            }
            if self.failures.load(Ordering::Acquire) != failures
                && let Some(error) = lock(&self.failure).clone()
            {
                return Err(error);
            }
            match self.dial().await {
                Ok(member) => lock(&self.members).push(Arc::new(member)),
                Err(error) => {
                    let error = Arc::new(error);
                    *lock(&self.failure) = Some(Arc::clone(&error));
                    self.failures.fetch_add(1, Ordering::Release);
                    return Err(error);
                }
            }
        }
    }

    /// Open connections.
    pub(super) fn connections(&self) -> usize {
        lock(&self.members).len()
    }

    /// Closes connections that have been idle for long, are closed by the other side, or of old credentials.
    pub(super) fn reap(&self) {
        let generation = self.connector.generation();
        lock(&self.members).retain(|member| {
            let idle = member.active.load(Ordering::Relaxed) == 0
                && lock(&member.idle_since).elapsed() > IDLE;
            member.usable(generation) && !idle
        });
    }

    fn pick(&self) -> Option<Slot> {
        let generation = self.connector.generation();
        let mut members = lock(&self.members);
        // A member that is let go stays open for the streams that it has.
        members.retain(|member| member.usable(generation));
        let room = |member: &&Arc<Member>| {
            member.active.load(Ordering::Relaxed) < member.limit.load(Ordering::Relaxed)
        };
        let member = members
            .iter()
            .filter(room)
            .max_by_key(|member| member.active.load(Ordering::Relaxed))?;
        // Under the lock, so that no two take the last place.
        member.active.fetch_add(1, Ordering::Relaxed);
        Some(Slot {
            member: Arc::clone(member),
        })
    }

    async fn dial(&self) -> Result<Member, ConnectError> {
        let (stream, generation) = self.connector.connect(Alpn::H2).await?;
        let (sender, connection) = builder(&self.tasks)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http)?;
        let mut connection = Box::pin(connection);
        let told = timeout(tcp::CONNECT, settings(&mut connection)).await;
        let limit = Arc::new(AtomicUsize::new(told.map_err(|_| ConnectError::Silent)??));
        tracing::debug!(
            pool = self.kind,
            limit = limit.load(Ordering::Relaxed),
            "connected to the API server"
        );
        self.tasks
            .spawn(drive(connection, Arc::clone(&limit), self.kind));
        Ok(Member {
            sender,
            generation,
            limit,
            active: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            retired: AtomicBool::new(false),
        })
    }
}

impl Member {
    fn usable(&self, generation: u64) -> bool {
        !self.sender.is_closed()
            && !self.retired.load(Ordering::Relaxed)
            && self.generation == generation
    }
}

impl Slot {
    /// Sends a request; an error gives it back if nothing of it was sent.
    pub(super) async fn send(
        &self,
        request: Request<Boxed>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Boxed>>> {
        self.member.sender.clone().try_send_request(request).await
    }

    /// The connection takes no further requests.
    pub(super) fn retire(&self) {
        self.member.retired.store(true, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.member.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *lock(&self.member.idle_since) = Instant::now();
        }
    }
}

type Http2 = Connection<TokioIo<TlsStream<TcpStream>>, Boxed, Tracked>;

/// Waits for the API server's settings; its limit of streams.
///
/// Nothing wakes the connection's future when they arrive (another task reads them), so it is looked at.
async fn settings(connection: &mut std::pin::Pin<Box<Http2>>) -> Result<usize, ConnectError> {
    let mut tick = interval(Duration::from_millis(1));
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Err(
                    ended.map_or_else(ConnectError::Http, |()| ConnectError::Closed)
                ));
            }
            match connection.current_max_send_streams() {
                UNTOLD => {}
                limit => return Poll::Ready(Ok(limit)),
            }
            if tick.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

async fn drive(connection: std::pin::Pin<Box<Http2>>, limit: Arc<AtomicUsize>, kind: &'static str) {
    let mut connection = pin!(connection);
    let ended = poll_fn(|cx| {
        limit.store(connection.current_max_send_streams(), Ordering::Relaxed);
        connection.as_mut().poll(cx)
    })
    .await;
    match ended {
        Ok(()) => tracing::debug!(pool = kind, "a connection to the API server ended"),
        Err(error) => {
            tracing::debug!(pool = kind, error = %super::chain(&error), "a connection to the API server broke");
        }
    }
}

fn builder(tasks: &TaskTracker) -> Builder<Tracked> {
    let mut builder = Builder::new(Tracked(tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(tunnel::STREAM_WINDOW)
        .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
        .max_send_buf_size(tunnel::SEND_BUFFER)
        .max_header_list_size(2 * tunnel::MAX_HEADER_LIST)
        .initial_max_send_streams(UNTOLD)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true);
    builder
}

/// Runs hyper's tasks in the owner's tracker.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}
