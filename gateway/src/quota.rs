//! How much: from a permit to a lease.
//!
//! A caller's own budget comes before the project's, so that somebody who is about to be refused takes nothing
//! from anybody. A lease gives back what it took when it is dropped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;

use crate::{authz::Permit, error::Refused, target::Kind};

/// How many upgraded streams there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of one principal at a time.
    pub streams_per_principal: usize,
    /// Of one project at a time.
    pub streams_per_project: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_per_principal: 50,
            streams_per_project: 500,
        }
    }
}

/// What is in use.
#[derive(Debug, Clone, Default)]
pub struct Quotas {
    limits: Limits,
    streams: Arc<Mutex<HashMap<String, usize>>>,
}

/// A permit with what it may use. Made by [`Quotas::lease`] alone.
#[derive(Debug)]
pub struct Lease {
    permit: Permit,
    _streams: Vec<Held>,
}

impl Lease {
    /// The permit that it was given on.
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }
}

impl Quotas {
    /// Nothing in use.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            streams: Arc::default(),
        }
    }

    /// Takes what the permit's request needs.
    ///
    /// # Errors
    /// 429 with the quota's name and its use.
    pub fn lease(&self, permit: Permit) -> Result<Lease, Refused> {
        let mut streams = Vec::new();
        if matches!(permit.target().kind, Kind::Upgrade { .. }) {
            let principal = permit.identity().principal.to_string();
            let project = format!("project:{}", permit.membership().project);
            streams.push(self.hold(principal, self.limits.streams_per_principal)?);
            streams.push(self.hold(project, self.limits.streams_per_project)?);
        }
        Ok(Lease {
            permit,
            _streams: streams,
        })
    }

    fn hold(&self, holder: String, limit: usize) -> Result<Held, Refused> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let used = streams.entry(holder.clone()).or_insert(0);
        if *used >= limit {
            return Err(Refused::ActiveStreams {
                used: *used,
                limit,
                holder,
            });
        }
        *used += 1;
        Ok(Held {
            streams: Arc::clone(&self.streams),
            holder,
        })
    }

    /// Upgraded streams in use by `user:…` or `project:…`.
    pub fn streams(&self, holder: &str) -> usize {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(holder)
            .copied()
            .unwrap_or_default()
    }
}

/// One stream of one holder.
#[derive(Debug)]
struct Held {
    streams: Arc<Mutex<HashMap<String, usize>>>,
    holder: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = streams.get_mut(&self.holder) {
            *used -= 1;
            if *used == 0 {
                streams.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_and_what_is_dropped_comes_back() {
        let quotas = Quotas::new(Limits::default());
        let held = [0; 2].map(|_| quotas.hold("user:a".into(), 2).unwrap());
        let refused = quotas.hold("user:a".into(), 2).unwrap_err();
        assert_eq!(
            refused,
            Refused::ActiveStreams {
                used: 2,
                limit: 2,
                holder: "user:a".into()
            }
        );
        quotas.hold("user:b".into(), 2).unwrap();
        drop(held);
        assert_eq!(quotas.streams("user:a"), 0);
        quotas.hold("user:a".into(), 2).unwrap();
    }
}
