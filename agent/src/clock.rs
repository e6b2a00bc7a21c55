//! What time it is: here, and at the gateway.
//!
//! The one place that reads the system's clock. Grants are checked against the *gateway's* time: what it signed
//! at the handshake, and how much has passed since by a clock that nobody sets.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

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
#[derive(Debug, Clone, Copy)]
pub struct GatewayClock {
    signed: u64,
    at: Instant,
}

impl GatewayClock {
    /// From the time that the gateway has just signed, in Unix seconds.
    pub fn new(signed: u64) -> Self {
        Self {
            signed,
            at: Instant::now(),
        }
    }

    /// Now at the gateway, in Unix seconds.
    pub fn now(&self) -> u64 {
        self.signed.saturating_add(self.at.elapsed().as_secs())
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
    }
}
