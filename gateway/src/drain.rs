//! How a gateway ends: nobody is cut off, and nothing new is refused, for as long as somebody else can take over.
//!
//! 1. Readiness goes off, and all else goes on: who stands in front notices, and sends what is new elsewhere.
//! 2. Agents are told, and open sessions elsewhere; callers are served all the while.
//! 3. The public port closes. HTTP/2's connections are told to make no more requests; one of HTTP/1.1 is closed with its
//!    next answer, as there is no other way to say it: a request may be on its way already, and whoever sent it can't
//!    know whether it was heard.
//! 4. Streams finish, up to a limit.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{app::Gateway, audit};

/// How long agents have to open a session elsewhere.
const MOVING: Duration = Duration::from_secs(10);

/// How often it is looked whether the last stream has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How often it is logged how many are left.
const TELL: Duration = Duration::from_secs(30);

/// What a session's end or the database may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What is not over yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Upgraded and long-running requests that came in here.
    pub streams: usize,
    /// Requests in sessions that are held here, those included that came in at other replicas.
    pub requests: usize,
    /// Connections on the public port.
    pub connections: usize,
}

impl Left {
    /// What is left of a gateway's work.
    pub fn of(gateway: &Gateway) -> Self {
        Self {
            streams: gateway.live.count(),
            requests: gateway.tunnels.requests(),
            connections: gateway.connections.len(),
        }
    }

    const fn is_nothing(self) -> bool {
        self.streams == 0 && self.requests == 0 && self.connections == 0
    }
}

/// Ends a gateway's work. `handed_over`: another process listens on the same socket, or will.
pub(crate) async fn run(gateway: &Gateway, handed_over: bool) {
    let (delay, limit) = (gateway.config.drain_delay, gateway.config.drain_limit);
    let others = handed_over || gateway.replicas.live() > 1;
    let Left {
        streams, requests, ..
    } = Left::of(gateway);
    tracing::info!(streams, requests, ?delay, ?limit, "draining");
    gateway.leaving.cancel();
    if timeout(LAST_WORDS, gateway.replicas.leave()).await.is_err() {
        tracing::warn!("the other replicas could not be told in time that this one is going");
    }
    if handed_over {
        // Whoever connects is the other's from now on.
        gateway.closed.cancel();
    } else if others {
        sleep(delay).await;
    }
    // Where there is nobody else, somebody may come once the port is free.
    gateway.tunnels.tell_leaving();
    if others && timeout(MOVING, gateway.tunnels.all_moved()).await.is_err() {
        tracing::warn!("some agents have no session elsewhere; theirs here goes on");
    }
    gateway.closed.cancel();
    gateway.drain.cancel();
    gateway.connections.close();
    finish(gateway, limit).await;

    gateway.tunnels.close_all("the gateway is shutting down");
    gateway.replicas.close();
    gateway.tasks.close();
    // A session notes its end in the store; nothing it waits for takes longer.
    if timeout(LAST_WORDS, gateway.tasks.wait()).await.is_err() {
        tracing::warn!("some sessions did not end in time");
    }
    gateway.replicas.part(gateway.clock.unix()).await;
    if timeout(audit::FLUSH, gateway.audit.flush()).await.is_err() {
        tracing::error!("some audit events could not be written in time");
    }
    gateway.store.close().await;
}

/// Waits until nothing is left, up to `limit`.
async fn finish(gateway: &Gateway, limit: Duration) {
    let end = Instant::now() + limit;
    let mut tell = Instant::now() + TELL;
    loop {
        let left = Left::of(gateway);
        let Left {
            streams,
            requests,
            connections,
        } = left;
        if left.is_nothing() {
            return;
        }
        let now = Instant::now();
        if now >= end {
            tracing::warn!(
                streams,
                requests,
                "the drain limit is over; streams are cut"
            );
            return;
        }
        if now >= tell {
            tell = now + TELL;
            tracing::info!(streams, requests, connections, for_at_most = ?(end - now), "still draining");
        }
        sleep(LOOK).await;
    }
}
