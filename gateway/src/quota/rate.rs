//! Requests in a minute: one holder's bucket, whose last taking can be undone.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};
use tokio::time::Instant;

/// `tokio`'s clock, which tests pause, as the time since it was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elapsed(Instant);

impl Default for Elapsed {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Elapsed {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// When the bucket would be full, in nanoseconds since the limiter was made; [`NEVER`] before the first request.
#[derive(Debug, Clone)]
struct FullAt(Arc<AtomicU64>);

const NEVER: u64 = u64::MAX;

impl StateStore for FullAt {
    type Key = NotKeyed;

    /// Holders are locked by who asks, so nobody changes it in between.
    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let old = self.0.load(Ordering::Relaxed);
        let (taken, new) = f((old != NEVER).then_some(Nanos::new(old)))?;
        self.0.store(new.as_u64(), Ordering::Relaxed);
        Ok(taken)
    }
}

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    /// In a minute.
    pub(super) limit: u32,
    /// Of them at once.
    pub(super) burst: NonZeroU32,
}

impl From<u32> for Allowed {
    fn from(limit: u32) -> Self {
        Self {
            limit,
            burst: burst(limit),
        }
    }
}

/// One holder's bucket.
#[derive(Debug)]
pub(super) struct Rate {
    allowed: Allowed,
    full_at: FullAt,
    limiter: RateLimiter<NotKeyed, FullAt, Elapsed, NoOpMiddleware<Duration>>,
    clock: Elapsed,
    made: Duration,
    /// The minute that is counted, and what was taken in it and in the one before.
    minute: u64,
    this: u32,
    before: u32,
}

/// One taking, to be undone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before(u64);

impl Rate {
    pub(super) fn new(allowed: impl Into<Allowed>, clock: Elapsed) -> Self {
        let allowed = allowed.into();
        let full_at = FullAt(Arc::new(AtomicU64::new(NEVER)));
        let per_minute = NonZeroU32::new(allowed.limit).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(per_minute).allow_burst(allowed.burst);
        Self {
            allowed,
            limiter: RateLimiter::new(quota, full_at.clone(), clock),
            full_at,
            clock,
            made: clock.now(),
            minute: 0,
            this: 0,
            before: 0,
        }
    }

    /// Takes one request, of so many from now on. What was taken before is taken still.
    ///
    /// # Errors
    /// How long until there is another.
    pub(super) fn take(&mut self, allowed: impl Into<Allowed>) -> Result<Before, Duration> {
        let allowed = allowed.into();
        if allowed != self.allowed {
            let (minute, this, before) = (self.minute, self.this, self.before);
            // Every bucket is as long in time, so going back and forth gives nothing.
            let owed = self.owed();
            *self = Self {
                minute,
                this,
                before,
                ..Self::new(allowed, self.clock)
            };
            let owed = u64::try_from(owed.as_nanos()).unwrap_or(u64::MAX);
            if owed > 0 {
                self.full_at.0.store(owed, Ordering::Relaxed);
            }
        }
        let before = Before(self.full_at.0.load(Ordering::Relaxed));
        self.limiter
            .check()
            .map_err(|not_until| not_until.wait_time_from(self.clock.now()))?;
        self.turn();
        self.this = self.this.saturating_add(1);
        Ok(before)
    }

    /// How long the bucket takes to be full again.
    fn owed(&self) -> Duration {
        let full_at = self.full_at.0.load(Ordering::Relaxed);
        if full_at == NEVER {
            return Duration::ZERO;
        }
        let passed = self.clock.now().saturating_sub(self.made);
        Duration::from_nanos(full_at).saturating_sub(passed)
    }

    /// Undoes the last taking.
    pub(super) fn undo(&mut self, before: Before) {
        self.full_at.0.store(before.0, Ordering::Relaxed);
        self.this = self.this.saturating_sub(1);
    }

    /// Gives back one request that was taken earlier.
    pub(super) fn give_back(&mut self) {
        let one = Duration::from_secs(60) / self.allowed.limit.max(1);
        let one = u64::try_from(one.as_nanos()).unwrap_or(u64::MAX);
        let full_at = self.full_at.0.load(Ordering::Relaxed);
        if full_at != NEVER {
            self.full_at
                .0
                .store(full_at.saturating_sub(one), Ordering::Relaxed);
        }
        self.turn();
        self.this = self.this.saturating_sub(1);
    }

    /// How many were taken in the last 60 s, about: of the minute before, as much as is still in them.
    pub(super) fn in_last_minute(&mut self) -> u32 {
        self.turn();
        let into = u32::try_from(self.clock.now().as_millis() % 60_000).unwrap_or_default();
        let before = u64::from(self.before) * u64::from(60_000 - into) / 60_000;
        self.this
            .saturating_add(u32::try_from(before).unwrap_or(u32::MAX))
    }

    /// Whether a new bucket would be the same.
    pub(super) fn is_full(&self) -> bool {
        self.owed().is_zero()
    }

    fn turn(&mut self) {
        let minute = self.clock.now().as_secs() / 60;
        if minute != self.minute {
            self.before = if minute == self.minute + 1 {
                self.this
            } else {
                0
            };
            self.this = 0;
            self.minute = minute;
        }
    }
}

/// How many of a minute's requests may come at once: a tenth.
pub(super) fn burst(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit / 10).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(seconds: f64) {
        tokio::time::advance(Duration::from_secs_f64(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenth_at_once_and_the_rest_over_the_minute() {
        let mut rate = Rate::new(600, Elapsed::default());
        for _ in 0..60 {
            rate.take(600).unwrap();
        }
        let wait = rate.take(600).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        for _ in 0..600 {
            pass(0.1).await;
            rate.take(600).unwrap();
            rate.take(600).unwrap_err();
        }
        assert!((590..=660).contains(&rate.in_last_minute()));
        assert!(!rate.is_full());
        pass(6.0).await;
        assert!(rate.is_full());
        pass(120.0).await;
        assert_eq!(rate.in_last_minute(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_undone_or_given_back_can_be_taken_again() {
        let mut rate = Rate::new(10, Elapsed::default());
        let before = rate.take(10).unwrap();
        rate.take(10).unwrap_err();
        rate.undo(before);
        assert!(rate.is_full());
        rate.take(10).unwrap();
        pass(1.0).await;
        rate.give_back();
        rate.take(10).unwrap();
        rate.take(10).unwrap_err();
        assert_eq!(rate.in_last_minute(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_limit_holds_at_once() {
        let mut rate = Rate::new(10, Elapsed::default());
        rate.take(10).unwrap();
        rate.take(10).unwrap_err();
        // From then on, what was taken is taken still.
        let wait = rate.take(100).unwrap_err();
        assert!(wait <= Duration::from_secs_f64(0.6), "{wait:?}");
        for _ in 0..10 {
            pass(0.6).await;
            rate.take(100).unwrap();
        }
        assert_eq!(rate.in_last_minute(), 11);
        // Nor does going back and forth give any.
        for limit in [50, 100, 50, 100] {
            let wait = rate.take(limit).unwrap_err();
            assert!(wait <= Duration::from_secs_f64(1.2), "{wait:?}");
        }
    }
}
