//! Streams in flight, and those that ended last with the reason.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use towline_proto::names::{Membership, Project};

use crate::{audit::Record, clock::Clock};

/// How many ended streams are remembered.
const REMEMBERED: usize = 1_000;

/// One stream, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The request's id.
    pub request_id: String,
    /// Who, as policies name them.
    pub principal: String,
    /// Where.
    pub membership: Membership,
    /// The Kubernetes path without its query, which may hold a command line.
    pub path: String,
    /// The upgrade's protocol, or `watch` and the like.
    pub protocol: String,
    /// Since when, in Unix seconds.
    pub started: u64,
    /// Until when, in Unix seconds; 0 while it runs.
    pub ended: u64,
    /// Why it ended.
    pub reason: String,
}

/// The streams of this gateway.
#[derive(Debug, Clone)]
pub struct Live {
    clock: Clock,
    state: Arc<Mutex<State>>,
    idle: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<String, Stream>,
    ended: VecDeque<Stream>,
}

/// A running stream's entry. Dropped without [`Running::end`], it says that the caller went away.
#[derive(Debug)]
pub struct Running {
    live: Live,
    request_id: String,
    record: Record,
}

impl Live {
    /// No streams.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Arc::default(),
            idle: Arc::default(),
        }
    }

    /// Adds a stream whose record is written when it has ended; `started` is filled in.
    pub fn start(&self, stream: Stream, record: Record) -> Running {
        let request_id = stream.request_id.clone();
        let stream = Stream {
            started: self.clock.unix(),
            ..stream
        };
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .running
            .insert(request_id.clone(), stream);
        Running {
            live: self.clone(),
            request_id,
            record,
        }
    }

    /// Streams that run, of one project or all.
    pub fn running(&self, project: Option<&Project>) -> Vec<Stream> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .running
            .values()
            .filter(|stream| of(stream, project))
            .cloned()
            .collect()
    }

    /// Streams that ended last, of one project or all, the latest first.
    pub fn ended(&self, project: Option<&Project>) -> Vec<Stream> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .ended
            .iter()
            .filter(|stream| of(stream, project))
            .cloned()
            .collect()
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .running
            .len()
    }

    /// Resolves when no stream runs.
    pub async fn all_ended(&self) {
        loop {
            // Subscribed before looking, so that no end falls between.
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// A stream is over; nothing where it ended before.
    pub(crate) fn end(&self, request_id: &str, reason: &str) {
        let now = self.clock.unix();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = state.running.remove(request_id) {
            tracing::info!(request_id, principal = stream.principal, membership = %stream.membership, reason, "stream ended");
            state.ended.truncate(REMEMBERED - 1);
            state.ended.push_front(Stream {
                ended: now,
                reason: reason.to_owned(),
                ..stream
            });
            if state.running.is_empty() {
                self.idle.notify_waiters();
            }
        }
    }
}

fn of(stream: &Stream, project: Option<&Project>) -> bool {
    project.is_none_or(|project| stream.membership.project == *project)
}

impl Running {
    /// The request's id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// What an upgraded stream has carried, in bytes: from the caller and to the caller.
    pub fn carried(&self, received: u64, sent: u64) {
        self.record.received(received);
        self.record.sent(sent);
    }

    /// The stream is over.
    pub fn end(self, reason: &str) {
        self.record.ended(reason);
        self.live.end(&self.request_id, reason);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `end` there is nothing left to end.
        self.record.ended("the caller went away");
        self.live.end(&self.request_id, "the caller went away");
    }
}
