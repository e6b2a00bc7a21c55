//! Bounded waits on conditions, and how long things took.

use std::{thread, time::Duration};

use tokio::time::Instant;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Measures from its making on.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins.
    #[expect(
        clippy::new_without_default,
        reason = "a default that runs would surprise"
    )]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits until `condition` gives something.
///
/// # Panics
/// When the bound passes first.
#[track_caller]
pub fn wait_for<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let since = Stopwatch::new();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            since.elapsed() < bound,
            "within {bound:?} this did not come about: {what}"
        );
        thread::sleep(LOOK);
    }
}

/// Waits until `condition` holds; see [`wait_for`].
///
/// # Panics
/// When the bound passes first.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, bound, || condition().then_some(()));
}
