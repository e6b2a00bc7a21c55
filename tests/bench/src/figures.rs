//! What a measurement says.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// All that was measured along one path.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Small GETs, by the number of callers.
    pub(crate) get: BTreeMap<usize, Spread>,
    /// A large list, all of it.
    pub(crate) list: Transfer,
    /// From a line into `kubectl exec -i` to the same line out of it.
    pub(crate) exec_echo: Spread,
    /// `kubectl cp` into the pod.
    pub(crate) copy_in: Transfer,
    /// `kubectl cp` out of the pod.
    pub(crate) copy_out: Transfer,
    /// Watches that were open at once.
    pub(crate) watches: usize,
    /// Resident memory of processes in KiB, by name.
    pub(crate) memory: BTreeMap<String, Memory>,
}

/// How long something took that was done often.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    /// Answers that were no success.
    pub(crate) failed: usize,
    pub(crate) per_second: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
}

/// How long an amount of bytes took: the median of some rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// Resident memory of a process, in KiB.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Before anything was measured.
    pub(crate) idle: u64,
    /// After all that moves bytes: what an allocator keeps.
    pub(crate) after_load: u64,
    pub(crate) with_watches: u64,
}

impl Spread {
    pub(crate) fn of(mut took: Vec<Duration>, failed: usize, whole: Duration) -> Self {
        took.sort_unstable();
        let at = |percent: usize| {
            let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
            took.get(place).map_or(0.0, |took| took.as_secs_f64() * 1e6)
        };
        Self {
            count: took.len(),
            failed,
            per_second: number(took.len()) / whole.as_secs_f64(),
            p50_micros: at(50),
            p99_micros: at(99),
        }
    }
}

impl Transfer {
    pub(crate) fn of(bytes: u64, mut rounds: Vec<Duration>) -> Self {
        rounds.sort_unstable();
        let median = rounds.get(rounds.len() / 2).copied().unwrap_or_default();
        Self {
            bytes,
            seconds: median.as_secs_f64(),
        }
    }

    pub(crate) fn mebibytes_per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        let bytes = self.bytes as f64;
        bytes / f64::from(1 << 20) / self.seconds
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure")]
const fn number(count: usize) -> f64 {
    count as f64
}
