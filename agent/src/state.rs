//! What can be seen of a running agent, for health and metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{serve::MAX_STREAMS, upstream::Upstream};

/// What can be seen of a running agent.
pub struct State {
    pub(crate) sessions: AtomicUsize,
    pub(crate) leaving: AtomicUsize,
    pub(crate) wanted: AtomicUsize,
    pub(crate) resumptions: AtomicU64,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) draining: CancellationToken,
}

impl State {
    /// An agent without a session.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self {
            sessions: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            wanted: AtomicUsize::new(1),
            resumptions: AtomicU64::new(0),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            upstream,
            draining: CancellationToken::new(),
        }
    }

    /// A session is up, and the agent means to keep it.
    pub fn ready(&self) -> bool {
        self.sessions() > 0 && !self.draining.is_cancelled()
    }

    /// How often a session went on over another connection.
    pub fn resumptions(&self) -> u64 {
        self.resumptions.load(Ordering::Relaxed)
    }

    /// Sessions that are up.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Sessions with a replica that is going: they serve what they have.
    pub fn leaving(&self) -> usize {
        self.leaving.load(Ordering::Relaxed)
    }

    /// How many sessions it means to have, to as many replicas.
    pub fn wanted(&self) -> usize {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Streams that are being served.
    pub fn streams(&self) -> usize {
        MAX_STREAMS.saturating_sub(self.streams.available_permits())
    }

    /// Connections to the API server, for short and for long-running requests.
    pub fn connections(&self) -> (usize, usize) {
        self.upstream.connections()
    }
}

/// Counts a session for as long as it lives.
pub(crate) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
