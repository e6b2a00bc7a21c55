//! Which replica holds which session, as the database has it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use towline_proto::names::Membership;

use super::elsewhere::Elsewhere;
use crate::{
    clock::Clock,
    keys::Keys,
    store::{SessionRow, Store},
};

/// How long what was read is believed if nobody says that it has changed.
const BELIEVED: Duration = Duration::from_secs(5);

/// How long what was read is believed even though some session, somewhere, has changed: a storm of changes is one.
const TOGETHER: Duration = Duration::from_millis(50);

/// How long a request waits for the database's answer, where there is another.
const READ: Duration = Duration::from_millis(1500);

/// How long a session that took nothing isn't asked again: one that has lost its connection has another in a moment.
pub(crate) const DOUBTED: Duration = Duration::from_millis(250);

/// How many memberships are remembered; then all are forgotten.
const MOST: usize = 10_000;

/// What is known of sessions that others hold.
#[derive(Debug)]
pub(super) struct Directory {
    own: String,
    store: Store,
    keys: Arc<Keys>,
    clock: Clock,
    known: Mutex<HashMap<Membership, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    /// The number of changes before it was read.
    version: u64,
    read: Instant,
    sessions: Vec<Arc<Elsewhere>>,
    /// Those that took nothing, and when.
    doubted: HashMap<String, Instant>,
}

impl Directory {
    pub(super) fn new(own: String, store: Store, (keys, clock): (Arc<Keys>, Clock)) -> Self {
        Self {
            own,
            store,
            keys,
            clock,
            known: Mutex::default(),
        }
    }

    /// A membership's sessions at other replicas: those with a connection first. What was read last is the answer while
    /// the database doesn't give one.
    pub(super) async fn sessions(&self, membership: &Membership) -> Vec<Arc<Elsewhere>> {
        if !self.store.is_shared() {
            return Vec::new();
        }
        let version = *self.store.sessions_changed().borrow();
        let before = self.lock().get(membership).cloned();
        if let Some(known) = &before {
            let changed = known.version != version;
            let since = known.read.elapsed();
            if since < if changed { TOGETHER } else { BELIEVED } {
                return known.sessions.clone();
            }
        }
        let (before, doubted) = before
            .map(|known| (known.sessions, known.doubted))
            .unwrap_or_default();
        let rows = match timeout(READ, self.store.sessions_of(membership)).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                tracing::debug!(%membership, error = &error as &dyn std::error::Error, "not known who holds its sessions");
                return before;
            }
            Err(_) => {
                tracing::debug!(%membership, "not known within {READ:?} who holds its sessions");
                return before;
            }
        };
        let sessions: Vec<Arc<Elsewhere>> = rows
            .into_iter()
            .filter(|row| row.replica != self.own)
            .map(|row| self.session(membership, row, &before))
            .collect();
        let known = Known {
            version,
            read: Instant::now(),
            sessions: sessions.clone(),
            doubted,
        };
        let mut all = self.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(membership.clone(), known);
        sessions
    }

    /// A session took nothing, whatever stands in the database.
    pub(super) fn doubt(&self, membership: &Membership, session: &str) {
        if let Some(known) = self.lock().get_mut(membership) {
            known.doubted.retain(|_, since| since.elapsed() < DOUBTED);
            known.doubted.insert(session.to_owned(), Instant::now());
        }
    }

    /// Whether a session took nothing a moment ago.
    pub(super) fn is_doubted(&self, membership: &Membership, session: &str) -> bool {
        let known = self.lock();
        let doubted = known.get(membership).map(|known| &known.doubted);
        doubted
            .and_then(|doubted| doubted.get(session))
            .is_some_and(|since| since.elapsed() < DOUBTED)
    }

    /// The same as before where it is, with the grants that were signed for it.
    fn session(
        &self,
        membership: &Membership,
        row: SessionRow,
        before: &[Arc<Elsewhere>],
    ) -> Arc<Elsewhere> {
        before
            .iter()
            .find(|known| known.is(&row))
            .cloned()
            .unwrap_or_else(|| {
                let (keys, clock) = (Arc::clone(&self.keys), self.clock.clone());
                Arc::new(Elsewhere::new(membership.clone(), row, keys, clock))
            })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Membership, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
