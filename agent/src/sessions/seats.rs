//! Which replicas an agent has sessions with, which of those stay, and whether one more is wanted.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::{sync::watch, task::Id, time::Instant};
use towline_proto::session::{Handle, Notice};

use super::SHORT;
use crate::state::State;

/// Sessions that an agent means to have where there are replicas enough.
const WANTED: usize = 2;

/// Sessions that it has at most, those with replicas that are going included.
const MAX_SESSIONS: usize = 16;

/// How long a session may be without a connection and still count, where there are other replicas: a connection that was
/// merely cut is replaced sooner, and one of a replica that is gone never is.
const LOST_FOR_LONG: Duration = Duration::from_secs(1);

/// When to look without a reason.
const FAR: Duration = Duration::from_secs(3600);

/// An agent's sessions.
#[derive(Debug, Default)]
pub(super) struct Seats(HashMap<Id, Seat>);

/// One session, as far as it matters to the others.
#[derive(Debug)]
struct Seat {
    handle: Handle,
    told: watch::Receiver<Notice>,
    replica: String,
    /// As the proof said.
    replicas: u32,
    since: Instant,
    /// What was known of it when it was looked at last.
    known: Notice,
    answered: bool,
    /// It was without a connection for long when it was looked at last.
    lost: bool,
}

impl Seat {
    fn leaving(&self) -> bool {
        self.told.borrow().leaving
    }

    fn replicas(&self) -> u32 {
        match self.told.borrow().replicas {
            0 => self.replicas,
            told => told,
        }
    }

    fn lost_at(&self) -> Option<Instant> {
        let down = self.handle.down_for()?;
        Instant::now().checked_sub(down)
    }

    /// New requests will go on coming over it.
    fn stays(&self, alone: bool) -> bool {
        !self.leaving() && !self.handle.is_over() && (alone || !self.lost_for_long())
    }

    fn lost_for_long(&self) -> bool {
        let lost = self.lost_at();
        lost.is_some_and(|at| at.elapsed() >= LOST_FOR_LONG)
    }
}

impl Seats {
    /// A session that was just opened at a replica, one of so many.
    pub(super) fn add(&mut self, id: Id, handle: Handle, replica: String, replicas: u32) {
        let seat = Seat {
            told: handle.told(),
            handle,
            replica,
            replicas,
            since: Instant::now(),
            known: Notice {
                leaving: false,
                replicas,
            },
            answered: false,
            lost: false,
        };
        self.0.insert(id, seat);
    }

    /// A session is over; whether it was meant to stay.
    pub(super) fn remove(&mut self, id: Id) -> bool {
        self.0.remove(&id).is_none_or(|seat| !seat.leaving())
    }

    /// Answers replicas that are going, once there is a session with another. Whether there is news of replicas.
    pub(super) fn look(&mut self, state: &State) -> bool {
        let alone = self.alone();
        let elsewhere = self
            .0
            .values()
            .any(|seat| seat.stays(alone) && seat.handle.is_up());
        let mut news = false;
        for seat in self.0.values_mut() {
            let now = *seat.told.borrow();
            if now != std::mem::replace(&mut seat.known, now) {
                let session = seat.handle.id();
                tracing::info!(
                    session,
                    replica = seat.replica,
                    leaving = now.leaving,
                    replicas = now.replicas,
                    "the gateway's replicas"
                );
                // One that says so at once may do it the next time, too.
                news |= seat.since.elapsed() > SHORT;
            }
            let lost = seat.lost_for_long();
            // Nobody else was needed before.
            news |= lost && !std::mem::replace(&mut seat.lost, lost);
            if now.leaving && elsewhere && !std::mem::replace(&mut seat.answered, true) {
                let session = seat.handle.id();
                tracing::info!(
                    session,
                    replica = seat.replica,
                    "there is another session, this one finishes what it has"
                );
                seat.handle.tell(Notice {
                    leaving: true,
                    replicas: 0,
                });
            }
        }
        let leaving = self.0.values().filter(|seat| seat.leaving());
        state.leaving.store(leaving.count(), Ordering::Relaxed);
        state.wanted.store(self.wanted(), Ordering::Relaxed);
        self.make_room();
        news
    }

    /// Whether one more session is to be opened.
    pub(super) fn wants_another(&self) -> bool {
        let alone = self.alone();
        let staying = self.0.values().filter(|seat| seat.stays(alone));
        let replicas: HashSet<&str> = staying.map(|seat| seat.replica.as_str()).collect();
        replicas.len() < self.wanted()
    }

    /// Whether new requests come over any of them.
    pub(super) fn any_staying(&self) -> bool {
        let alone = self.alone();
        self.0.values().any(|seat| seat.stays(alone))
    }

    /// Where there is no need for another session, the latest first.
    pub(super) fn replicas(&self) -> Vec<String> {
        let mut seats: Vec<&Seat> = self.0.values().collect();
        seats.sort_by_key(|seat| std::cmp::Reverse(seat.since));
        seats.into_iter().map(|seat| seat.replica.clone()).collect()
    }

    /// When a session that waits for a connection will have done so for long.
    pub(super) fn next_look(&self) -> Instant {
        let now = Instant::now();
        let lost = self.0.values().filter_map(Seat::lost_at);
        let due = lost.map(|at| at + LOST_FOR_LONG).filter(|due| *due > now);
        due.min().unwrap_or(now + FAR)
    }

    /// Whether there is one replica only, as far as those say that stay.
    fn alone(&self) -> bool {
        let staying = self.0.values().filter(|seat| !seat.leaving());
        staying.map(Seat::replicas).max().unwrap_or_default() <= 1
    }

    fn wanted(&self) -> usize {
        if self.alone() { 1 } else { WANTED }
    }

    /// Whoever drains for the hundredth time while streams of the first go on has to give some up.
    fn make_room(&self) {
        let there = || self.0.values().filter(|seat| !seat.handle.is_over());
        if there().count() < MAX_SESSIONS {
            return;
        }
        let leaving = there().filter(|seat| seat.leaving());
        if let Some(oldest) = leaving.min_by_key(|seat| seat.since) {
            let session = oldest.handle.id();
            tracing::warn!(
                session,
                "too many sessions with replicas that are going, ending the oldest"
            );
            oldest.handle.end("the agent has too many sessions");
        }
    }
}
