//! The wall clock, for what is written down or signed. Waits use `tokio::time`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where the time comes from.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The system.
    System,
    /// A number that tests move, in Unix seconds.
    Fixed(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands until it is moved.
    pub fn fixed(unix: u64) -> (Self, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(unix));
        (Self::Fixed(Arc::clone(&now)), now)
    }

    /// Now, in microseconds since 1970.
    pub fn micros(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
    }

    /// Now.
    pub fn now(&self) -> SystemTime {
        match self {
            #[expect(clippy::disallowed_methods, reason = "this is the clock")]
            Self::System => SystemTime::now(),
            Self::Fixed(now) => UNIX_EPOCH + Duration::from_secs(now.load(Ordering::SeqCst)),
        }
    }

    /// Now, in Unix seconds.
    pub fn unix(&self) -> u64 {
        self.now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}
