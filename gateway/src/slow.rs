//! Answers that nobody reads, of which the gateway holds only so many bytes.
//!
//! Threat: an answer whose reader stalls holds a stream's window here and at the agent, and its share of the
//! tunnel's. One caller with a few hundred of them takes a gigabyte, and from 512 on everybody's tunnel.
//! Decision: over a budget for the whole gateway, the principal that holds most loses its oldest. What an answer holds
//! is counted as what it can: the rest of it or its window, and what waits to be sent.
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
use towline_proto::{
    body::{Aborted, FromTunnel},
    tunnel,
};

use crate::{live::Live, tunnels::Held};

/// How long nobody has asked for more of an answer until it counts as stalled.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long it is while twice the budget is held: they come faster than patience lets them go.
const LITTLE_PATIENCE: Duration = Duration::from_millis(200);

/// How often is looked.
const TICK: Duration = Duration::from_millis(100);

/// Why an answer was cut, for those who look for it.
const REASON: &str = "the caller did not read it, and held more such answers than anybody else";

/// Every answer on its way, and since when nobody has asked for more of it.
#[derive(Debug, Clone)]
pub struct SlowReaders {
    budget: u64,
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
    /// Bytes handed on so far.
    handed_on: AtomicU64,
    body: Mutex<Option<(FromTunnel<Incoming>, Held)>>,
}

impl SlowReaders {
    /// No answers; `budget` is what those that nobody reads may hold, in bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            started: Instant::now(),
            answers: Arc::default(),
            cut: Arc::default(),
        }
    }

    /// Hands an answer's body on for as long as it may be held.
    pub fn hand_on(&self, body: Incoming, held: Held, request_id: &str) -> HandedOn {
        let answer = Arc::new(Answer {
            principal: held.lease().permit().identity().principal.to_string(),
            request_id: request_id.to_owned(),
            idle_since: AtomicU64::new(0),
            handed_on: AtomicU64::new(0),
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
        let mut tick = tokio::time::interval(TICK);
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

    /// Bytes that answers may hold which nobody has asked for more of for a moment.
    pub fn held(&self) -> u64 {
        let idle = self.idle(LITTLE_PATIENCE);
        idle.iter().map(|stalled| stalled.holds).sum()
    }

    fn too_many(&self) -> Vec<Arc<Answer>> {
        let mut stalled = self.idle(LITTLE_PATIENCE);
        let all: u64 = stalled.iter().map(|stalled| stalled.holds).sum();
        if all <= self.budget.saturating_mul(2) {
            stalled = self.idle(PATIENCE);
        }
        excess(stalled, self.budget)
    }

    /// Answers of which nobody has asked for more for so long, the oldest first.
    fn idle(&self, patience: Duration) -> Vec<Stalled<Arc<Answer>>> {
        let limit = self.now().saturating_sub(millis(patience));
        let mut idle: Vec<(u64, Arc<Answer>)> = lock(&self.answers)
            .on_their_way
            .iter()
            .filter(|(_, answer)| (1..=limit).contains(&answer.idle_since.load(Ordering::Relaxed)))
            .map(|(id, answer)| (*id, Arc::clone(answer)))
            .collect();
        idle.sort_unstable_by_key(|(id, _)| *id);
        idle.into_iter()
            .filter_map(|(_, answer)| {
                Some(Stalled {
                    holds: answer.holds()?,
                    principal: answer.principal.clone(),
                    what: answer,
                })
            })
            .collect()
    }

    /// Milliseconds, never 0.
    fn now(&self) -> u64 {
        millis(self.started.elapsed()).max(1)
    }
}

/// What is stalled, and how much it holds.
#[derive(Debug)]
struct Stalled<T> {
    principal: String,
    holds: u64,
    what: T,
}

/// What has to go so that the rest is within the budget; `stalled` has the oldest first.
fn excess<T>(stalled: Vec<Stalled<T>>, budget: u64) -> Vec<T> {
    let mut all: u64 = stalled.iter().map(|stalled| stalled.holds).sum();
    let mut by_principal: HashMap<String, (u64, VecDeque<Stalled<T>>)> = HashMap::new();
    for stalled in stalled {
        let (holds, theirs) = by_principal.entry(stalled.principal.clone()).or_default();
        *holds += stalled.holds;
        theirs.push_back(stalled);
    }
    let mut excess = Vec::new();
    while all > budget {
        let most = by_principal.values_mut().max_by_key(|(holds, _)| *holds);
        let Some((holds, Some(oldest))) = most.map(|(holds, theirs)| (holds, theirs.pop_front()))
        else {
            break;
        };
        *holds -= oldest.holds;
        all -= oldest.holds;
        excess.push(oldest.what);
    }
    excess
}

impl Answer {
    /// The most that it can hold; `None` once it was cut.
    fn holds(&self) -> Option<u64> {
        let window = u64::from(tunnel::STREAM_WINDOW);
        let rest = {
            let body = lock(&self.body);
            let (body, _) = body.as_ref()?;
            body.size_hint().upper().unwrap_or(window)
        };
        let buffer = u64::try_from(tunnel::SEND_BUFFER).unwrap_or(u64::MAX);
        Some(rest.min(window) + self.handed_on.load(Ordering::Relaxed).min(buffer))
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
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let length = u64::try_from(length).unwrap_or_default();
                self.answer.handed_on.fetch_add(length, Ordering::Relaxed);
                self.readers.now()
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stalled(all: &[(&str, u64)]) -> Vec<Stalled<usize>> {
        let numbered = all.iter().enumerate();
        numbered
            .map(|(what, (principal, holds))| Stalled {
                principal: (*principal).to_owned(),
                holds: *holds,
                what,
            })
            .collect()
    }

    #[test]
    fn who_holds_most_bytes_loses_the_oldest() {
        assert!(excess(stalled(&[("a", 50), ("b", 50)]), 100).is_empty());
        // Many small ones of a's are less than one large one of b's.
        let all = [("a", 1), ("a", 1), ("b", 60), ("a", 1), ("b", 50)];
        assert_eq!(excess(stalled(&all), 100), [2]);
        assert_eq!(excess(stalled(&all), 50), [2, 4]);
        assert_eq!(excess(stalled(&all), 2), [2, 4, 0]);
        assert_eq!(excess(stalled(&all), 0).len(), 5);
    }
}
