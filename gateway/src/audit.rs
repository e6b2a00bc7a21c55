//! What was done, by whom, and how it ended: one `audit.k8s.io/v1` Event per request, two per stream.
//!
//! Threat: something was done and nobody can say who it was; or the record itself gives away what it should protect.
//! Decision: a [`Record`] is made before anything else looks at a request, and writes itself when the last that holds
//! it is gone, whatever became of the request. It takes names from a request and never a header, a body or an unknown
//! part of a query. It is written off the request's path, through a queue with a bound; what happens when the queue
//! is full is the operator's choice ([`WhenFull`]).
//! Consequence: no way through the gateway leaves no record, and no slow disk stops a request that was let in.
//!
//! The audit ID is the request's id, and goes down the tunnel as `Audit-ID`, so the API server's own record has it too.

mod door;
mod event;
mod followed;
mod record;
pub mod search;
mod sink;
mod time;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::rand;
use http::{HeaderMap, HeaderName, Method, Uri};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use towline_proto::handshake::NoRandomness;

pub use door::recorded;
pub use event::{Event, ObjectRef};
pub use followed::Followed;
pub use record::{Record, current, within};
pub use sink::{File, SinkError, Webhook};

use crate::clock::Clock;
use sink::{Item, Sink};

/// Header in which the API server takes and tells the audit ID.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// How long events are gathered before they go to the sink: one write for many, where each would wake another thread.
const GATHER: Duration = Duration::from_millis(10);

/// How long the end of the gateway waits for the sink.
pub const FLUSH: Duration = Duration::from_secs(5);

/// Where events go, and what happens when that can't keep up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where events go.
    pub sink: SinkConfig,
    /// How many events wait for it.
    pub queue: usize,
    /// What happens when as many wait.
    pub when_full: WhenFull,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// Nowhere.
    None,
    /// Standard output, as JSON lines.
    Stdout,
    /// A file of JSON lines.
    File {
        /// Which.
        path: PathBuf,
        /// Its size in bytes, from which another is begun.
        max_bytes: u64,
        /// How many files there are, the one that is written included.
        max_files: u32,
    },
    /// POSTed as `EventList`, as kube-apiserver's webhook backend does.
    Webhook {
        /// Where to.
        url: url::Url,
        /// PEM file to check its certificate against; the system's authorities otherwise.
        certificate_authority: Option<PathBuf>,
        /// File with a bearer token for it.
        token_file: Option<PathBuf>,
    },
}

/// What happens to a request whose record has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is served, and that a record is missing is counted.
    Drop,
    /// It is refused with 503.
    Refuse,
}

/// The audit log.
#[derive(Debug, Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    config: Config,
    queue: mpsc::Sender<Item>,
    /// Writes that wait for room, where nothing may be lost.
    waiting: TaskTracker,
    counts: Counts,
}

/// What became of events.
#[derive(Debug, Default)]
pub struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Written to the sink.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lost: there was no room, or the sink did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// There is no room for a record, and without one nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log is full, and nothing is done without a record")]
pub struct NoRoom;

/// What writes; it runs for as long as it is polled.
pub struct Writer {
    audit: Audit,
    sink: Sink,
    queue: mpsc::Receiver<Item>,
}

/// A UUID (version 4) for a request, which is its audit ID too.
///
/// # Errors
/// The system has no randomness to give.
pub fn id() -> Result<String, NoRandomness> {
    let mut bytes = [0_u8; 16];
    rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    let random = u128::from_be_bytes(bytes);
    let version = (random & !(0xf << 76)) | (0x4 << 76);
    let variant = (version & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{variant:032x}");
    let part = |range| hex.get(range).unwrap_or_default();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    ))
}

impl Audit {
    /// Opens the sink.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub async fn open(config: Config, clock: Clock) -> Result<(Self, Writer), SinkError> {
        let sink = Sink::open(&config).await?;
        let (queue, received) = mpsc::channel(config.queue);
        let audit = Self {
            inner: Arc::new(Inner {
                clock,
                config,
                queue,
                waiting: TaskTracker::new(),
                counts: Counts::default(),
            }),
        };
        let writer = Writer {
            audit: audit.clone(),
            sink,
            queue: received,
        };
        Ok((audit, writer))
    }

    /// Begins the record of a request, before anything is done about it.
    ///
    /// # Errors
    /// There is no room, and the operator wants no request without a record.
    pub fn begin(
        &self,
        id: &str,
        client: IpAddr,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Record, NoRoom> {
        let full = self.inner.queue.capacity() == 0;
        if full && self.inner.config.when_full == WhenFull::Refuse {
            return Err(NoRoom);
        }
        let event = Event::begin(id, client, method, uri, headers, self.inner.clock.micros());
        Ok(Record::new(self.clone(), event))
    }

    /// Events written and lost.
    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// Where events go.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Waits until everything that was put in before is with the sink.
    pub async fn flush(&self) {
        self.inner.waiting.close();
        self.inner.waiting.wait().await;
        let (done, told) = oneshot::channel();
        if self.inner.queue.send(Item::Flush(done)).await.is_ok() {
            // The writer may end before it gets there.
            drop(told.await);
        }
    }

    fn write(&self, event: Event) {
        if self.inner.config.sink == SinkConfig::None {
            return;
        }
        let queue = &self.inner.queue;
        let used = queue.max_capacity().saturating_sub(queue.capacity());
        // Callers who are nobody don't fill it for everybody.
        if event.is_of_nobody() && used > queue.max_capacity() / 2 {
            self.inner.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Err(error) = self.inner.queue.try_send(Item::Event(Box::new(event))) else {
            return;
        };
        match (self.inner.config.when_full, error) {
            (WhenFull::Refuse, mpsc::error::TrySendError::Full(item))
                if tokio::runtime::Handle::try_current().is_ok() =>
            {
                // Let in while there was room: as many can wait here as requests run, and no more are let in.
                let queue = self.inner.queue.clone();
                self.inner
                    .waiting
                    .spawn(async move { drop(queue.send(item).await) });
            }
            _ => {
                self.inner.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Writer {
    /// Takes events to the sink.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, sink::MOST_AT_ONCE).await > 0 {
            let waited_for = |item: &Item| matches!(item, Item::Flush(_));
            if batch.len() < sink::MOST_AT_ONCE && !batch.iter().any(waited_for) {
                sleep(GATHER).await;
                while batch.len() < sink::MOST_AT_ONCE
                    && let Ok(item) = self.queue.try_recv()
                {
                    batch.push(item);
                }
            }
            let mut flushed = Vec::new();
            let events: Vec<Event> = batch
                .drain(..)
                .filter_map(|item| match item {
                    Item::Event(event) => Some(*event),
                    Item::Flush(done) => {
                        flushed.push(done);
                        None
                    }
                })
                .collect();
            let count = u64::try_from(events.len()).unwrap_or_default();
            let inner = &self.audit.inner;
            let keep = inner.config.when_full == WhenFull::Refuse;
            let counter = if self.sink.take(&events, keep).await {
                &inner.counts.written
            } else {
                &inner.counts.dropped
            };
            counter.fetch_add(count, Ordering::Relaxed);
            for done in flushed {
                // Whoever waited may be gone.
                let _told = done.send(());
            }
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
