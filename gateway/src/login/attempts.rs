//! How often somebody may try to sign in.
//!
//! Threat: somebody tries all passwords of a user, from as many addresses as they have; or uses up the user's tries, so
//! that the user can't sign in.
//! Decision: tries are counted by address, and by user. From an address where a user has signed in before they have
//! tries of their own there, and one-time codes, which nobody guesses, are counted by address alone.
//! Consequence: who has ever signed in, and who has a code, gets in whatever strangers try.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::{Clock, DefaultClock, Reference as _},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};
use http::StatusCode;

use super::Refusal;
use crate::{iam::Principal, server::network};

/// Tries for one user: 20 at once, then 10 a minute.
const USER: Quota = Quota::per_minute(count(10)).allow_burst(count(20));
/// Tries from one address: 100 at once, then 60 a minute. People share addresses.
const ADDRESS: Quota = Quota::per_minute(count(60)).allow_burst(count(100));
/// Failed exchanges of tokens from one address: 100 at once, then 60 a minute.
const FAILURES: Quota = Quota::per_minute(count(60)).allow_burst(count(100));
/// Exchanges of one principal: 1,200 at once, then 600 a minute; a script may want a token for each cluster.
const EXCHANGES: Quota = Quota::per_minute(count(600)).allow_burst(count(1200));
/// From this many names or addresses on, those that tried long ago are forgotten.
const MANY: usize = 10_000;

const TOO_MANY_SIGN_INS: &str = "too many attempts to sign in";

/// What a limiter says.
type Counted<C> = Result<(), NotUntil<<C as Clock>::Instant>>;

type Limiter<K, C> = RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// Counts tries.
#[derive(Debug)]
pub(super) struct Attempts<C: Clock = DefaultClock> {
    users: Limiter<String, C>,
    /// Of users at addresses where they have signed in before.
    familiar: Limiter<(String, IpAddr), C>,
    signed_in: Mutex<HashSet<(String, IpAddr)>>,
    addresses: Limiter<IpAddr, C>,
    failures: Limiter<IpAddr, C>,
    /// Addresses that have failed too often, until when.
    barred: Mutex<HashMap<IpAddr, C::Instant>>,
    principals: Limiter<String, C>,
    clock: C,
}

impl Default for Attempts {
    fn default() -> Self {
        Self::with(DefaultClock::default())
    }
}

impl<C: Clock + Clone> Attempts<C> {
    fn with(clock: C) -> Self {
        Self {
            users: RateLimiter::dashmap_with_clock(USER, clock.clone()),
            familiar: RateLimiter::dashmap_with_clock(USER, clock.clone()),
            signed_in: Mutex::default(),
            addresses: RateLimiter::dashmap_with_clock(ADDRESS, clock.clone()),
            failures: RateLimiter::dashmap_with_clock(FAILURES, clock.clone()),
            barred: Mutex::default(),
            principals: RateLimiter::dashmap_with_clock(EXCHANGES, clock.clone()),
            clock,
        }
    }

    /// Counts a try with a password. The address comes first: whoever has used that up takes nothing from a user.
    pub(super) fn count(&self, user: &str, client: IpAddr) -> Result<(), Refusal> {
        let here = (user.to_owned(), network(client));
        let familiar = self
            .signed_in
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&here);
        let counted = self.addresses.check_key(&here.1).and_then(|()| {
            if familiar {
                self.familiar.check_key(&here)
            } else {
                self.users.check_key(&here.0)
            }
        });
        if self.users.len() > MANY {
            self.users.retain_recent();
        }
        if self.familiar.len() > MANY {
            self.familiar.retain_recent();
        }
        self.forget_addresses();
        self.told(counted, TOO_MANY_SIGN_INS)
    }

    /// Counts a try with a one-time code, or with nothing.
    pub(super) fn count_code(&self, client: IpAddr) -> Result<(), Refusal> {
        let counted = self.addresses.check_key(&network(client));
        self.forget_addresses();
        self.told(counted, TOO_MANY_SIGN_INS)
    }

    /// Remembers where a user has signed in.
    pub(super) fn succeeded(&self, user: &str, client: IpAddr) {
        let mut signed_in = self
            .signed_in
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // It is known again with the next sign-in.
        if signed_in.len() >= MANY {
            signed_in.clear();
        }
        signed_in.insert((user.to_owned(), network(client)));
    }

    fn forget_addresses(&self) {
        if self.addresses.len() > MANY {
            self.addresses.retain_recent();
        }
    }

    /// Whether an address may try to exchange a token: not while it has failed too often.
    pub(super) fn may_exchange(&self, client: IpAddr) -> Result<(), Refusal> {
        let now = self.clock.now();
        let barred = self.barred.lock().unwrap_or_else(PoisonError::into_inner);
        match barred.get(&network(client)) {
            Some(until) if *until > now => Err(slow_down(
                until.duration_since(now).into(),
                "too many tokens were refused",
            )),
            _ => Ok(()),
        }
    }

    /// Counts an exchange that failed.
    pub(super) fn failed_exchange(&self, client: IpAddr) {
        let (client, now) = (network(client), self.clock.now());
        let counted = self.failures.check_key(&client);
        if self.failures.len() > MANY {
            self.failures.retain_recent();
        }
        if let Err(until) = counted {
            let mut barred = self.barred.lock().unwrap_or_else(PoisonError::into_inner);
            if barred.len() >= MANY {
                barred.retain(|_, until| *until > now);
            }
            if barred.len() < MANY {
                barred.insert(client, until.earliest_possible());
            }
        }
    }

    /// Counts an exchange by somebody who is known.
    pub(super) fn exchanges(&self, principal: &Principal) -> Result<(), Refusal> {
        let counted = self.principals.check_key(&principal.to_string());
        if self.principals.len() > MANY {
            self.principals.retain_recent();
        }
        self.told(counted, "too many exchanges of tokens")
    }

    fn told(&self, counted: Counted<C>, why: &str) -> Result<(), Refusal> {
        counted.map_err(|until| slow_down(until.wait_time_from(self.clock.now()), why))
    }
}

fn slow_down(wait: Duration, why: &str) -> Refusal {
    let seconds = wait.as_secs() + 1;
    Refusal {
        retry_after: Some(seconds),
        ..Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "slow_down",
            format!("{why}; try again in {seconds} seconds"),
        )
    }
}

const fn count(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn a_user_may_be_tried_so_often() {
        let clock = FakeRelativeClock::default();
        let attempts = Attempts::with(clock.clone());
        for n in 0..20u32 {
            attempts.count("alice", IpAddr::V4(n.into())).unwrap();
        }
        let refused = attempts.count("alice", IpAddr::V4(99.into())).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.retry_after, Some(7));
        attempts.count("bob", IpAddr::V4(99.into())).unwrap();
        clock.advance(Duration::from_secs(6));
        attempts.count("alice", IpAddr::V4(100.into())).unwrap();
        attempts.count("alice", IpAddr::V4(101.into())).unwrap_err();
    }

    #[test]
    fn strangers_do_not_keep_a_user_out() {
        let attempts = Attempts::with(FakeRelativeClock::default());
        let home = IpAddr::V4(1.into());
        attempts.succeeded("alice", home);
        for n in 0..100u32 {
            drop(attempts.count("alice", IpAddr::V4((n + 100).into())));
        }
        attempts.count("alice", IpAddr::V4(99.into())).unwrap_err();
        for _ in 0..20 {
            attempts.count("alice", home).unwrap();
        }
        // There are no more tries there than anywhere.
        attempts.count("alice", home).unwrap_err();
        attempts.count_code(IpAddr::V4(99.into())).unwrap();
        for _ in 0..100 {
            attempts.count_code(IpAddr::V4(2.into())).unwrap();
        }
        attempts.count_code(IpAddr::V4(2.into())).unwrap_err();
    }

    #[test]
    fn an_address_may_try_so_often_and_then_takes_nothing_from_users() {
        let attempts = Attempts::with(FakeRelativeClock::default());
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        for n in 0..100 {
            attempts.count(&n.to_string(), address).unwrap();
        }
        for _ in 0..100 {
            attempts
                .count("alice", "2001:db8::2".parse().unwrap())
                .unwrap_err();
        }
        attempts
            .count("alice", "2001:db8:0:1::1".parse().unwrap())
            .unwrap();
    }

    #[test]
    fn whoever_fails_too_often_waits_and_nobody_else() {
        let clock = FakeRelativeClock::default();
        let attempts = Attempts::with(clock.clone());
        let (hostile, other) = (IpAddr::V4(1.into()), IpAddr::V4(2.into()));
        for _ in 0..101 {
            attempts.may_exchange(hostile).unwrap();
            attempts.failed_exchange(hostile);
        }
        let refused = attempts.may_exchange(hostile).unwrap_err();
        assert_eq!(
            (refused.status, refused.retry_after),
            (StatusCode::TOO_MANY_REQUESTS, Some(2))
        );
        attempts.may_exchange(other).unwrap();
        clock.advance(Duration::from_secs(1));
        attempts.may_exchange(hostile).unwrap();
        attempts.failed_exchange(hostile);
        attempts.failed_exchange(hostile);
        attempts.may_exchange(hostile).unwrap_err();
    }

    #[test]
    fn a_principal_exchanges_so_often() {
        let attempts = Attempts::with(FakeRelativeClock::default());
        let user = |name: &str| Principal::User(name.into());
        for _ in 0..1_200 {
            attempts.exchanges(&user("alice")).unwrap();
        }
        let refused = attempts.exchanges(&user("alice")).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        attempts.exchanges(&user("bob")).unwrap();
    }
}
