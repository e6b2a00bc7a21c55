//! What time it is: here, and at the gateway.
//!
//! The one place that reads the system's clock. Grants are checked against the *gateway's* time: what it signed
//! at the handshake, and how much has passed since by a clock that nobody sets.

use std::{
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use crate::guard::lock;

/// Here.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn system_now() -> SystemTime {
    SystemTime::now()
}

/// Here, in Unix seconds.
pub fn unix_now() -> u64 {
    unix(system_now())
}

/// A time in Unix seconds.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The gateway's time since a handshake.
///
/// A session may outlive the machine's sleep, of which [`Instant`] knows nothing: every connection sets it anew.
#[derive(Debug)]
pub struct GatewayClock(Mutex<Signed>);

#[derive(Debug, Clone, Copy)]
struct Signed {
    time: u64,
    at: Instant,
}

impl GatewayClock {
    /// From the time that the gateway has just signed, in Unix seconds.
    pub fn new(signed: u64) -> Self {
        Self(Mutex::new(Signed::now(signed)))
    }

    /// Goes by another time that the gateway has just signed.
    pub fn set(&self, signed: u64) {
        *lock(&self.0) = Signed::now(signed);
    }

    /// Now at the gateway, in Unix seconds.
    pub fn now(&self) -> u64 {
        let Signed { time, at } = *lock(&self.0);
        time.saturating_add(at.elapsed().as_secs())
    }
}

impl Signed {
    fn now(time: u64) -> Self {
        Self {
            time,
            at: Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_gateways_time_goes_on() {
        let clock = GatewayClock::new(1_000);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(clock.now(), 1_061);
        clock.set(2_000);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), 2_005);
    }
}
