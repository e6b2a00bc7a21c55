//! A tunnel's places, and how they are shared.
//!
//! Threat: one caller's requests take all places of a tunnel, and everybody else is told that it is busy.
//! Decision: a principal may hold up to twice as many places as are free: alone two thirds, two of them two fifths
//! each. What is free shrinks with every one who takes much, and is never gone.
//! Consequence: whoever comes with little finds a place, however many others are there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{error::Refused, iam::Principal, quota::Exhausted};

/// The places of one tunnel.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    places: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    by: HashMap<Principal, usize>,
}

/// One place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Shares,
    principal: Principal,
}

impl Shares {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places,
            state: Arc::default(),
        }
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().taken
    }

    /// Takes one.
    ///
    /// # Errors
    /// 429: the caller has their share; 503: there is none left.
    pub(super) fn take(&self, principal: &Principal) -> Result<Place, Refused> {
        let mut state = self.lock();
        let free = self.places.saturating_sub(state.taken);
        if free == 0 {
            return Err(Refused::AgentBusy(format!(
                "{} requests are in its tunnel",
                self.places
            )));
        }
        let own = state.by.get(principal).copied().unwrap_or_default();
        if own >= free * 2 {
            return Err(Refused::Quota(Exhausted::AtATime {
                quota: "requests_in_tunnel",
                used: number(own),
                limit: number(own.min(free * 2)),
                holder: principal.to_string(),
            }));
        }
        state.taken += 1;
        state.by.insert(principal.clone(), own + 1);
        drop(state);
        Ok(Place {
            shares: self.clone(),
            principal: principal.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shares.lock();
        state.taken = state.taken.saturating_sub(1);
        if let Some(own) = state.by.get_mut(&self.principal) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                state.by.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Principal {
        Principal::User(name.to_owned())
    }

    fn all(shares: &Shares, name: &str) -> Vec<Place> {
        std::iter::from_fn(|| shares.take(&user(name)).ok()).collect()
    }

    #[test]
    fn whoever_takes_all_they_can_leaves_room_for_others() {
        let shares = Shares::new(900);
        let first = all(&shares, "first");
        assert_eq!(first.len(), 600);
        let refused = shares.take(&user("first")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "resource_exhausted: quota \"requests_in_tunnel\" exhausted (600 of 600 in use by user:first)"
        );
        let mut others: Vec<Vec<Place>> = Vec::new();
        for name in ["second", "third", "fourth", "fifth"] {
            let theirs = all(&shares, name);
            assert!(theirs.len() > 3, "{name}: {}", theirs.len());
            others.push(theirs);
        }
        drop(first);
        drop(others);
        assert_eq!(shares.taken(), 0);
        assert!(shares.lock().by.is_empty());
    }

    #[test]
    fn the_last_places_are_taken_one_by_one_and_then_it_is_busy() {
        let shares = Shares::new(3);
        let _one_each = ["a", "b", "c"].map(|name| shares.take(&user(name)).unwrap());
        let busy = shares.take(&user("d")).unwrap_err();
        assert!(matches!(busy, Refused::AgentBusy(_)), "{busy}");
    }
}
