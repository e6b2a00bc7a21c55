//! How long to wait before the next dial.
//!
//! Fast while an outage is young, so that people barely notice a restarted gateway; slow once it is old, so
//! that thousands of agents don't hammer one that comes back.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait while an outage is young.
const LONGEST_YOUNG: Duration = Duration::from_secs(3);

/// The longest wait ever.
const LONGEST: Duration = Duration::from_secs(30);

/// How long an outage is young.
const YOUNG: Duration = Duration::from_secs(5 * 60);

/// A session that lived as long was a good one: the waits begin anew.
const GOOD: Duration = Duration::from_secs(10);

/// The waits between dials.
#[derive(Debug)]
pub struct Backoff {
    last_seen: Instant,
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            last_seen: Instant::now(),
            next: FIRST,
        }
    }
}

impl Backoff {
    /// A session ended that lived for `lived`.
    pub fn ended(&mut self, lived: Duration) {
        if lived > GOOD {
            *self = Self::default();
        } else {
            // However short: what comes now is another outage, and a young one.
            self.last_seen = Instant::now();
        }
    }

    /// The next wait after a try that took `tried`: between half of what is due and all of it, less the try
    /// itself. A try that hung for long has been wait enough.
    pub fn wait(&mut self, tried: Duration) -> Duration {
        let longest = if self.last_seen.elapsed() < YOUNG {
            LONGEST_YOUNG
        } else {
            LONGEST
        };
        let due = self.next.min(longest);
        self.next = (due * 2).min(LONGEST);
        jittered(due).saturating_sub(tried).max(jittered(FIRST))
    }
}

/// Between half of a time and all of it, so that agents don't come all at once.
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + random_fraction() / 2.0)
}

/// Evenly from 0 to 1; without randomness the waits have no jitter, and go on.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_to_three_seconds_then_to_thirty() {
        let mut backoff = Backoff::default();
        for due in [100, 200, 400, 800, 1600, 3000, 3000] {
            let wait = backoff.wait(Duration::ZERO).as_millis();
            assert!((due / 2..=due).contains(&wait), "{wait} for {due}");
        }
        tokio::time::advance(YOUNG).await;
        for due in [6000, 12_000, 24_000, 30_000, 30_000] {
            let wait = backoff.wait(Duration::ZERO).as_millis();
            assert!((due / 2..=due).contains(&wait), "{wait} for {due}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_session_resets_and_a_short_one_does_not() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.wait(Duration::ZERO);
        }
        backoff.ended(Duration::from_secs(9));
        assert!(backoff.wait(Duration::ZERO) >= LONGEST_YOUNG / 2);
        backoff.ended(Duration::from_secs(11));
        assert!(backoff.wait(Duration::ZERO) <= FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_keeps_dying_is_tried_as_one_that_has_just_died() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(60)).await;
            backoff.ended(Duration::from_millis(100));
            assert!(backoff.wait(Duration::ZERO) <= LONGEST_YOUNG);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_hung_has_been_wait_enough() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            assert!(backoff.wait(Duration::from_secs(10)) <= FIRST);
        }
    }

    #[test]
    fn jitter_differs() {
        let fractions: Vec<f64> = (0..8).map(|_| random_fraction()).collect();
        assert!(fractions.iter().all(|f| (0.0..=1.0).contains(f)));
        assert!(fractions.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
