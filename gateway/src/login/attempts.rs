//! How often somebody may try to sign in.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};
use http::StatusCode;

use super::Refusal;

/// Tries for one user: 20 at once, then 10 a minute.
const USER: Quota = Quota::per_minute(count(10)).allow_burst(count(20));
/// Tries from one address: 100 at once, then 60 a minute. People share addresses.
const ADDRESS: Quota = Quota::per_minute(count(60)).allow_burst(count(100));
/// From this many names or addresses on, those that tried long ago are forgotten.
const MANY: usize = 10_000;

type Limiter<K, C> = RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// Counts tries.
#[derive(Debug)]
pub(super) struct Attempts<C: Clock = DefaultClock> {
    users: Limiter<String, C>,
    addresses: Limiter<IpAddr, C>,
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
            addresses: RateLimiter::dashmap_with_clock(ADDRESS, clock.clone()),
            clock,
        }
    }

    /// Counts a try. The address comes first: whoever has used that up takes nothing from a user.
    pub(super) fn count(&self, user: &str, client: IpAddr) -> Result<(), Refusal> {
        let now = self.clock.now();
        let wait = self
            .addresses
            .check_key(&network(client))
            .and_then(|()| self.users.check_key(&user.to_owned()))
            .map_err(|until| until.wait_time_from(now));
        if self.users.len() > MANY {
            self.users.retain_recent();
        }
        if self.addresses.len() > MANY {
            self.addresses.retain_recent();
        }
        wait.map_err(|wait| {
            let seconds = wait.as_secs() + 1;
            Refusal {
                retry_after: Some(seconds),
                ..Refusal::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "slow_down",
                    format!("too many attempts to sign in; try again in {seconds} seconds"),
                )
            }
        })
    }
}

/// Whoever has one IPv6 address has 2^64.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
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
}
