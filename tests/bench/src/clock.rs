//! The wall clock, for the times that events carry from one process to another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since 1970.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
