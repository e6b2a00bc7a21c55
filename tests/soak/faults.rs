//! What dies, in an order that a seed decides: the same seed, the same faults with the same targets.

use std::{fmt, time::Duration};

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every connection of a cluster's agents is reset.
    Reset,
    /// Every connection of a cluster's agents falls silent; new ones pass.
    BlackHole,
    /// A cluster's link loses packets.
    Loss,
    /// An agent is killed, and started again.
    KillAgent,
    /// An agent is told to end while another takes its place.
    ReplaceAgent,
    /// A replica is killed, and started again.
    KillReplica,
    /// A replica is told to end while another takes its place.
    ReplaceReplica,
    /// PostgreSQL ends as in a power cut, and starts again.
    Database,
    /// A cluster's API server is killed, and started again.
    ApiServer,
}

const KINDS: [Kind; 9] = [
    Kind::Reset,
    Kind::BlackHole,
    Kind::Loss,
    Kind::KillAgent,
    Kind::ReplaceAgent,
    Kind::KillReplica,
    Kind::ReplaceReplica,
    Kind::Database,
    Kind::ApiServer,
];

/// One fault that is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    /// What.
    pub kind: Kind,
    /// To which cluster or replica, from 0.
    pub target: usize,
    /// How long it lasts.
    pub lasts: Duration,
    /// How long all is left alone afterwards.
    pub pause: Duration,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            target,
            lasts,
            ..
        } = self;
        match kind {
            Kind::Database => write!(f, "{kind:?} for {lasts:?}"),
            Kind::KillReplica | Kind::ReplaceReplica => {
                write!(f, "{kind:?}, replica {target}, {lasts:?}")
            }
            _ => write!(f, "{kind:?}, cluster {target}, {lasts:?}"),
        }
    }
}

/// All faults of a seed: every kind once in each round, shuffled.
#[derive(Debug)]
pub(crate) struct Plan {
    numbers: Numbers,
    round: Vec<Kind>,
}

impl Plan {
    /// Those of this seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            numbers: Numbers(seed),
            round: Vec::new(),
        }
    }
}

impl Iterator for Plan {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let numbers = &mut self.numbers;
        if self.round.is_empty() {
            let mut left = KINDS.to_vec();
            while !left.is_empty() {
                let at = numbers.below(left.len());
                self.round.push(left.swap_remove(at));
            }
        }
        let kind = self.round.pop()?;
        let target = numbers.below(2);
        let milliseconds = match kind {
            Kind::Reset | Kind::ReplaceAgent | Kind::ReplaceReplica => 0..1,
            // Ten seconds until it is noticed.
            Kind::BlackHole => 12_000..14_000,
            Kind::Loss => 3_000..8_000,
            Kind::KillAgent | Kind::KillReplica | Kind::ApiServer => 0..4_000,
            Kind::Database => 3_000..15_000,
        };
        let lasts = milliseconds.start + numbers.below(milliseconds.len());
        let pause = 1_000 + numbers.below(5_000);
        let duration = |milliseconds: usize| Duration::from_millis(milliseconds as u64);
        Some(Planned {
            kind,
            target,
            lasts: duration(lasts),
            pause: duration(pause),
        })
    }
}

/// Numbers that look random and come of a seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(pub u64);

impl Numbers {
    /// The next one, of all there are.
    pub(crate) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next one below a bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() >> 33).unwrap_or_default() % bound.max(1)
    }

    /// Bytes that no buffer repeats.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_every_kind_comes() {
        let plan = |seed| Plan::new(seed).take(27).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        for kind in KINDS {
            let often = plan(7)
                .iter()
                .filter(|planned| planned.kind == kind)
                .count();
            assert_eq!(often, 3, "{kind:?}");
        }
    }
}
