//! What came of it: counts, what each lost stream is put down to, and what must be nothing.

use std::{collections::BTreeMap, fmt, time::Duration};

use tests::load::Counts;

use crate::{
    clients::{Outcome, Stream},
    rules::{Fault, What, explained, loss},
    scene::Held,
};

/// Everything that was seen.
#[derive(Debug)]
pub(crate) struct Report {
    pub seed: u64,
    pub lasted: Duration,
    pub faults: Vec<Fault>,
    pub streams: Vec<Stream>,
    /// Of callers at each cluster: in calm, and while things died.
    pub calls: [Vec<Counts>; 2],
    /// Those that were compared.
    pub bytes: u64,
    pub before: Vec<Held>,
    pub after: Vec<Held>,
    pub resumed: f64,
    /// Parts that ended as they shouldn't.
    pub wrong: Vec<String>,
}

impl Report {
    /// What must be nothing, each with what it is.
    fn checks(&self) -> Vec<(&'static str, Vec<String>)> {
        let told = |stream: &Stream, words: &str| {
            let Stream {
                kind,
                cluster,
                from,
                to,
                ..
            } = stream;
            let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
            format!("{kind:?}, cluster {cluster}, {from:.1} to {to:.1} s: {words}")
        };
        let of = |choose: &dyn Fn(&Outcome) -> Option<&String>| {
            let chosen = self.streams.iter();
            chosen
                .filter_map(|stream| Some(told(stream, choose(&stream.outcome)?)))
                .collect::<Vec<_>>()
        };
        let differ = of(&|outcome| match outcome {
            Outcome::Differs(words) => Some(words),
            _ => None,
        });
        let stalled = of(&|outcome| match outcome {
            Outcome::Stalled(words) => Some(words),
            _ => None,
        });
        let lost = self.streams.iter().filter_map(|stream| {
            let (what, words) = loss(stream)?;
            (!explained(what, &self.faults)).then(|| told(stream, words))
        });
        let mut failed = Vec::new();
        for (calm, calls) in self.calls.iter().enumerate() {
            for (cluster, counts) in calls.iter().enumerate() {
                for (at, words) in &counts.failed {
                    let faults = if calm == 0 { &[][..] } else { &self.faults[..] };
                    if !explained(What::Request(*at, cluster, words), faults) {
                        let at = at.as_secs_f64();
                        failed.push(format!("cluster {cluster}, {at:.1} s: {words}"));
                    }
                }
            }
        }
        vec![
            ("streams whose bytes differ", differ),
            (
                "streams lost otherwise than by a documented rule",
                lost.collect(),
            ),
            ("streams that stood still", stalled),
            (
                "requests failed otherwise than by a documented rule",
                failed,
            ),
            ("parts that ended as they shouldn't", self.wrong.clone()),
            ("parts that hold more than before", self.grown()),
        ]
    }

    fn grown(&self) -> Vec<String> {
        /// A connection or two that is just being made.
        const SLACK: usize = 3;
        /// Allocators keep some of what they once had.
        const KEPT: usize = 24 * 1024;
        let mut grown = Vec::new();
        for (before, after) in self.before.iter().zip(&self.after) {
            let more = after.files > before.files + SLACK
                || after.tasks > before.tasks + SLACK as f64
                || after.memory > before.memory * 3 / 2 + KEPT;
            if more {
                grown.push(format!("{before:?} became {after:?}"));
            }
        }
        grown
    }

    pub(crate) fn passed(&self) -> bool {
        self.checks().iter().all(|(_, found)| found.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "soak: seed {}, {:.0} s",
            self.seed,
            self.lasted.as_secs_f64()
        )?;
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fault in &self.faults {
            *kinds
                .entry(format!("{:?}", fault.planned.kind))
                .or_default() += 1;
        }
        writeln!(f, "faults: {} {kinds:?}", self.faults.len())?;
        let mut streams: BTreeMap<_, [usize; 4]> = BTreeMap::new();
        for stream in &self.streams {
            let place = match stream.outcome {
                Outcome::Done => 0,
                Outcome::Lost(_) => 1,
                Outcome::Refused(_) => 2,
                Outcome::Differs(_) | Outcome::Stalled(_) => 3,
            };
            streams.entry(stream.kind).or_default()[place] += 1;
        }
        for (kind, [done, lost, refused, bad]) in streams {
            writeln!(
                f,
                "{kind:?}: {done} done, {lost} lost, {refused} refused, {bad} wrong"
            )?;
        }
        let calls = self.calls.iter().flatten();
        let sum = |of: fn(&Counts) -> usize| calls.clone().map(of).sum::<usize>();
        let slowest = calls.clone().map(|counts| counts.slowest).max();
        writeln!(
            f,
            "requests: {} GETs, {} POSTs over {} connections, {} failed, the slowest took {:.1?}",
            sum(|counts| counts.gets),
            sum(|counts| counts.posts),
            sum(|counts| counts.connections),
            sum(|counts| counts.failed.len()),
            slowest.unwrap_or_default()
        )?;
        writeln!(f, "bytes compared: {}", self.bytes)?;
        writeln!(
            f,
            "resumptions by the agents that run now: {}",
            self.resumed
        )?;
        for (before, after) in self.before.iter().zip(&self.after) {
            writeln!(
                f,
                "{}: files {} then {}, tasks {} then {}, memory {} then {} KiB",
                after.name,
                before.files,
                after.files,
                before.tasks,
                after.tasks,
                before.memory,
                after.memory
            )?;
        }
        let checks = self.checks();
        for (what, found) in &checks {
            writeln!(f, "{what}: {}", found.len())?;
            for one in found {
                writeln!(f, "    {one}")?;
            }
        }
        let passed = checks.iter().filter(|(_, found)| found.is_empty()).count();
        write!(f, "{passed} passed, {} failed", checks.len() - passed)
    }
}
