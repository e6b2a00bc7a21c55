//! Which quotas there are, and how much of each a holder may use: values only.

use std::{collections::HashMap, fmt, str::FromStr};

use serde::Deserialize;

use crate::iam::Principal;

/// The most that a limit can be set to.
pub const MOST_LIMIT: u32 = 10_000_000;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quota {
    /// Requests in a minute, a tenth of them at once.
    RequestsPerMinute,
    /// Upgraded streams at a time.
    ActiveStreams,
    /// Watches, followed logs and proxied requests at a time.
    Watches,
}

/// A quota that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quota {0:?} is not one of requests_per_minute, active_streams, watches")]
pub struct InvalidQuota(String);

impl Quota {
    /// Every quota.
    pub const ALL: [Self; 3] = [Self::RequestsPerMinute, Self::ActiveStreams, Self::Watches];

    /// Its name in commands and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::ActiveStreams => "active_streams",
            Self::Watches => "watches",
        }
    }
}

impl FromStr for Quota {
    type Err = InvalidQuota;

    fn from_str(text: &str) -> Result<Self, InvalidQuota> {
        Self::ALL
            .into_iter()
            .find(|quota| quota.name() == text)
            .ok_or_else(|| InvalidQuota(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose budget a limit is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Whose {
    /// The whole project's.
    Project,
    /// Each principal's that has none of its own.
    EachPrincipal,
    /// One principal's.
    Principal(Principal),
}

/// A request that would have been over a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Too many at a time.
    #[error("quota \"{quota}\" exhausted ({used} of {limit} in use by {holder})")]
    AtATime {
        /// Which.
        quota: &'static str,
        /// In use now.
        used: u32,
        /// How many there may be.
        limit: u32,
        /// Whose they are: `user:alice`, `project:p`.
        holder: String,
    },
    /// Too many requests.
    #[error(
        "quota \"requests_per_minute\" exhausted ({holder} may make {limit} a minute, {burst} of them at once)"
    )]
    Requests {
        /// How many there may be in a minute.
        limit: u32,
        /// How many at once.
        burst: u32,
        /// Whose they are.
        holder: String,
        /// In how many seconds another may be made, where it is worth waiting for.
        retry_after: Option<u8>,
    },
}

/// What holds where a project has set nothing: the configuration's `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Requests of one principal in a minute.
    pub requests_per_minute_per_principal: u32,
    /// Requests of one project in a minute.
    pub requests_per_minute_per_project: u32,
    /// Upgraded streams of one principal at a time.
    pub streams_per_principal: u32,
    /// Upgraded streams of one project at a time.
    pub streams_per_project: u32,
    /// Watches, followed logs and proxied requests of one principal at a time.
    pub watches_per_principal: u32,
    /// Bytes that the gateway holds for callers who don't read, all together.
    pub slow_readers_bytes: u64,
    /// Connections of one source address at a time.
    pub connections_per_address: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            requests_per_minute_per_principal: 6_000,
            requests_per_minute_per_project: 60_000,
            streams_per_principal: 50,
            streams_per_project: 500,
            watches_per_principal: 5_000,
            slow_readers_bytes: 256 * 1024 * 1024,
            connections_per_address: 10_000,
        }
    }
}

/// What one holder may use of each quota; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits([Option<u32>; 3]);

impl Limits {
    pub(super) fn get(&self, quota: Quota) -> Option<u32> {
        let [requests, streams, watches] = self.0;
        match quota {
            Quota::RequestsPerMinute => requests,
            Quota::ActiveStreams => streams,
            Quota::Watches => watches,
        }
    }

    #[cfg(test)]
    pub(super) const fn of(requests: u32, streams: u32, watches: u32) -> Self {
        Self([Some(requests), Some(streams), Some(watches)])
    }
}

/// What a project has set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(HashMap<Whose, HashMap<Quota, u32>>);

impl Overrides {
    /// As they are stored.
    pub fn new(set: impl IntoIterator<Item = (Whose, Quota, u32)>) -> Self {
        let mut overrides: HashMap<Whose, HashMap<Quota, u32>> = HashMap::new();
        for (whose, quota, limit) in set {
            overrides.entry(whose).or_default().insert(quota, limit);
        }
        Self(overrides)
    }

    /// How many limits are set.
    pub fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_set(&self, whose: &Whose, quota: Quota) -> bool {
        self.set(whose, quota).is_some()
    }

    pub(super) fn principals(&self) -> impl Iterator<Item = &Principal> {
        self.0.keys().filter_map(|whose| match whose {
            Whose::Principal(principal) => Some(principal),
            Whose::Project | Whose::EachPrincipal => None,
        })
    }

    pub(super) fn of_project(&self, defaults: &Defaults) -> Limits {
        let set = |quota| self.set(&Whose::Project, quota);
        Limits([
            set(Quota::RequestsPerMinute).or(Some(defaults.requests_per_minute_per_project)),
            set(Quota::ActiveStreams).or(Some(defaults.streams_per_project)),
            set(Quota::Watches),
        ])
    }

    pub(super) fn of_each_principal(&self, defaults: &Defaults) -> Limits {
        let set = |quota| self.set(&Whose::EachPrincipal, quota);
        Limits([
            set(Quota::RequestsPerMinute).or(Some(defaults.requests_per_minute_per_principal)),
            set(Quota::ActiveStreams).or(Some(defaults.streams_per_principal)),
            set(Quota::Watches).or(Some(defaults.watches_per_principal)),
        ])
    }

    pub(super) fn of_principal(&self, defaults: &Defaults, principal: &Principal) -> Limits {
        let each = self.of_each_principal(defaults);
        // Mostly nothing is set for anybody, and then no key has to be made.
        if self.principals().next().is_none() {
            return each;
        }
        let whose = Whose::Principal(principal.clone());
        Limits(Quota::ALL.map(|quota| self.set(&whose, quota).or_else(|| each.get(quota))))
    }

    fn set(&self, whose: &Whose, quota: Quota) -> Option<u32> {
        self.0.get(whose)?.get(&quota).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_limit_holds() {
        let (alice, bob) = ("alice", "bob");
        let user = |name: &str| Principal::User(name.to_owned());
        let defaults = Defaults::default();
        let nothing = Overrides::default();
        assert_eq!(
            nothing.of_principal(&defaults, &user(alice)),
            Limits::of(6_000, 50, 5_000)
        );
        assert_eq!(
            nothing.of_project(&defaults),
            Limits([Some(60_000), Some(500), None])
        );
        let set = Overrides::new([
            (Whose::EachPrincipal, Quota::ActiveStreams, 10),
            (Whose::Principal(user(alice)), Quota::ActiveStreams, 20),
            (Whose::Principal(user(alice)), Quota::Watches, 7),
            (Whose::Project, Quota::Watches, 9),
        ]);
        assert_eq!(
            set.of_principal(&defaults, &user(alice)),
            Limits::of(6_000, 20, 7)
        );
        assert_eq!(
            set.of_principal(&defaults, &user(bob)),
            Limits::of(6_000, 10, 5_000)
        );
        assert_eq!(set.of_project(&defaults), Limits::of(60_000, 500, 9));
    }

    #[test]
    fn quotas_have_names() {
        for quota in Quota::ALL {
            assert_eq!(quota.name().parse(), Ok(quota));
        }
        assert_eq!(
            "streams".parse::<Quota>().unwrap_err().to_string(),
            "quota \"streams\" is not one of requests_per_minute, active_streams, watches"
        );
    }
}
