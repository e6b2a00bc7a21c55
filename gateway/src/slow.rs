//! Answers that nobody reads, of which the gateway holds only so many.
//!
//! Threat: an answer whose reader stalls holds a stream's window here and at the agent, and its share of the
//! tunnel's. One caller with a few hundred of them takes a gigabyte, and from 512 on everybody's tunnel.
//! Decision: over [`MOST`] of them in the whole gateway, the principal that has most loses its oldest.
//! Consequence: who stalls many answers stalls their own; a slow reader alone is never cut.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;
use towline_proto::body::{Aborted, FromTunnel};

use crate::{live::Live, tunnels::Held};

/// Stalled answers in the whole gateway: some 300 MiB.
pub const MOST: usize = 128;

/// How long nobody has asked for more of an answer until it counts as stalled.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why an answer was cut, for those who look for it.
const REASON: &str = "the caller did not read it, and held more such answers than anybody else";

/// Every answer on its way, and since when nobody has asked for more of it.
#[derive(Debug, Clone)]
pub struct SlowReaders {
    started: Instant,
    answers: Arc<Mutex<Answers>>,
    cut: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Answers {
    next: u64,
    on_their_way: HashMap<u64, Arc<Answer>>,
}

#[derive(Debug)]
struct Answer {
    principal: String,
    request_id: String,
    /// When the last frame was handed on, in milliseconds; 0 while the reader waits for the cluster.
    idle_since: AtomicU64,
    body: Mutex<Option<(FromTunnel<Incoming>, Held)>>,
}

impl Default for SlowReaders {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            answers: Arc::default(),
            cut: Arc::default(),
        }
    }
}

impl SlowReaders {
    /// Hands an answer's body on for as long as it may be held.
    pub fn hand_on(&self, body: Incoming, held: Held, request_id: &str) -> HandedOn {
        let answer = Arc::new(Answer {
            principal: held.lease().permit().identity().principal.to_string(),
            request_id: request_id.to_owned(),
            idle_since: AtomicU64::new(0),
            body: Mutex::new(Some((FromTunnel(body), held))),
        });
        let mut answers = lock(&self.answers);
        let id = answers.next;
        answers.next += 1;
        answers.on_their_way.insert(id, Arc::clone(&answer));
        drop(answers);
        HandedOn {
            readers: self.clone(),
            id,
            answer,
        }
    }

    /// How many answers were cut.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Cuts what is too much, for as long as it is polled.
    pub async fn bound(self, live: Live) {
        let mut tick = tokio::time::interval(PATIENCE / 2);
        loop {
            tick.tick().await;
            for answer in self.too_many() {
                // Dropping the body resets its stream, and what was held comes free at both ends.
                drop(lock(&answer.body).take());
                self.cut.fetch_add(1, Ordering::Relaxed);
                live.end(&answer.request_id, REASON);
                tracing::info!(
                    request_id = answer.request_id,
                    principal = answer.principal,
                    "cut: {REASON}"
                );
            }
        }
    }

    fn too_many(&self) -> Vec<Arc<Answer>> {
        let limit = self.now().saturating_sub(millis(PATIENCE));
        let mut stalled: Vec<(u64, Arc<Answer>)> = lock(&self.answers)
            .on_their_way
            .iter()
            .filter(|(_, answer)| {
                let idle_since = answer.idle_since.load(Ordering::Relaxed);
                (1..=limit).contains(&idle_since) && lock(&answer.body).is_some()
            })
            .map(|(id, answer)| (*id, Arc::clone(answer)))
            .collect();
        let excess = stalled.len().saturating_sub(MOST);
        if excess == 0 {
            return Vec::new();
        }
        stalled.sort_unstable_by_key(|(id, _)| *id);
        let mut by_principal: HashMap<String, VecDeque<Arc<Answer>>> = HashMap::new();
        for (_, answer) in stalled {
            by_principal
                .entry(answer.principal.clone())
                .or_default()
                .push_back(answer);
        }
        let oldest_of_most = || {
            by_principal
                .values_mut()
                .max_by_key(|theirs| theirs.len())?
                .pop_front()
        };
        std::iter::from_fn(oldest_of_most).take(excess).collect()
    }

    /// Milliseconds, never 0.
    fn now(&self) -> u64 {
        millis(self.started.elapsed()).max(1)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer's body on its way to a reader; made by [`SlowReaders::hand_on`].
#[derive(Debug)]
pub struct HandedOn {
    readers: SlowReaders,
    id: u64,
    answer: Arc<Answer>,
}

impl Drop for HandedOn {
    fn drop(&mut self) {
        lock(&self.readers.answers).on_their_way.remove(&self.id);
    }
}

impl HttpBody for HandedOn {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let polled = match &mut *lock(&self.answer.body) {
            Some((body, _)) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(Some(Err(Aborted(REASON.to_owned())))),
        };
        let idle_since = match &polled {
            Poll::Ready(Some(Ok(_))) => self.readers.now(),
            _ => 0,
        };
        self.answer.idle_since.store(idle_since, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.answer.body)
            .as_ref()
            .is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.answer.body)
            .as_ref()
            .map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}
