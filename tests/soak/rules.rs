//! Which faults may cost a stream or a request: what `docs/tunnel.md` and `docs/replicas.md` tell callers, and nothing
//! more.

use std::time::Duration;

use crate::{
    clients::{Outcome, Stream},
    faults::{Kind, Planned},
};

/// A fault that was.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// What, and to whom.
    pub planned: Planned,
    /// Since the soak began.
    pub from: Duration,
    /// Until all was as before, or what drains had ended.
    pub to: Duration,
}

/// Between a fault's end and the last that is seen of it.
const SOON: Duration = Duration::from_secs(5);

/// Without its agent a session is kept so long; its streams wait, and then end.
const GRACE: Duration = Duration::from_secs(60);

/// An API server that has started answers a while later.
const STARTS: Duration = Duration::from_secs(30);

/// How long an agent that was told to end waits for its streams.
const AGENT_DRAINS: Duration = Duration::from_secs(30);

/// What may be lost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// A stream that ran.
    Stream(&'a Stream),
    /// A request, or a stream that didn't begin: when it failed, at which cluster, and with which words.
    Request(Duration, usize, &'a str),
}

/// Whether one of the faults may have cost it.
pub(crate) fn explained(what: What<'_>, faults: &[Fault]) -> bool {
    faults.iter().any(|fault| fault.explains(what, faults))
}

impl Fault {
    fn explains(&self, what: What<'_>, faults: &[Self]) -> bool {
        let (from, to, cluster) = match what {
            What::Stream(stream) => (stream.from, stream.to, stream.cluster),
            What::Request(at, cluster, _) => (at, at, cluster),
        };
        // It was there while this happened, and ended within what this may take.
        let within =
            |late: Duration| to >= self.from && to <= self.to + late && from <= self.to + late;
        let here = self.planned.target == cluster;
        let is_stream = matches!(what, What::Stream(_));
        match self.planned.kind {
            // Whose client was connected to it, and whose session was held by it.
            Kind::KillReplica => within(SOON),
            // A process that is gone looks like a network that is.
            Kind::KillAgent => here && within(if is_stream { GRACE + SOON } else { SOON }),
            // Exec and the like, and watches, run through it.
            Kind::ApiServer => here && within(STARTS),
            // Who signs in, or is not known yet, is told so.
            Kind::Database => match what {
                What::Stream(_) => false,
                What::Request(_, _, words) => within(SOON) && words.contains("database"),
            },
            // An agent that is told to end lets streams go on so long.
            Kind::ReplaceAgent => {
                is_stream && here && within(SOON) && to >= self.from + AGENT_DRAINS
            }
            // One that is going and has lost its connection looks like a process that has started anew in its place.
            Kind::Reset | Kind::BlackHole => {
                let goes = |other: &&Self| matches!(other.planned.kind, Kind::ReplaceAgent if other.planned.target == cluster);
                let meanwhile = |other: &Self| other.from <= self.to && self.from <= other.to;
                is_stream && here && within(SOON) && faults.iter().filter(goes).any(meanwhile)
            }
            Kind::Loss | Kind::ReplaceReplica => false,
        }
    }
}

/// Of a stream that is over: whether it was lost or refused, as [`explained`] is asked.
pub(crate) fn loss(stream: &Stream) -> Option<(What<'_>, &str)> {
    match &stream.outcome {
        Outcome::Refused(words) => Some((
            What::Request(stream.to, stream.cluster, words),
            words.as_str(),
        )),
        Outcome::Lost(words) => Some((What::Stream(stream), words.as_str())),
        Outcome::Done | Outcome::Differs(_) | Outcome::Stalled(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fault(kind: Kind, target: usize, from: u64, to: u64) -> Fault {
        let planned = Planned {
            kind,
            target,
            lasts: seconds(to - from),
            pause: seconds(1),
        };
        Fault {
            planned,
            from: seconds(from),
            to: seconds(to),
        }
    }

    fn lost(cluster: usize, from: u64, to: u64) -> Stream {
        Stream {
            kind: clients::Kind::Exec,
            cluster,
            from: seconds(from),
            to: seconds(to),
            outcome: Outcome::Lost("cut".to_owned()),
        }
    }

    #[test]
    fn what_is_lost_needs_a_fault_that_may_take_it() {
        let stream = |cluster, from, to, faults: &[Fault]| {
            explained(What::Stream(&lost(cluster, from, to)), faults)
        };
        let killed = [fault(Kind::KillReplica, 0, 100, 102)];
        assert!(stream(0, 90, 100, &killed) && stream(1, 90, 105, &killed));
        assert!(!stream(0, 90, 99, &killed), "before it");
        assert!(!stream(0, 90, 120, &killed), "long after it");
        let agent = [fault(Kind::KillAgent, 1, 100, 102)];
        assert!(stream(1, 90, 150, &agent));
        assert!(!stream(0, 90, 101, &agent), "another cluster's");
        for kind in [
            Kind::Reset,
            Kind::BlackHole,
            Kind::Loss,
            Kind::Database,
            Kind::ReplaceReplica,
            Kind::ReplaceAgent,
        ] {
            assert!(!stream(0, 90, 101, &[fault(kind, 0, 100, 102)]), "{kind:?}");
        }
        let draining = [
            fault(Kind::ReplaceAgent, 0, 80, 120),
            fault(Kind::Reset, 0, 100, 100),
        ];
        assert!(stream(0, 70, 101, &draining));
        assert!(!stream(0, 70, 90, &draining), "before the cut");
        assert!(stream(0, 70, 115, &draining[..1]), "the drain limit");
    }

    #[test]
    fn a_request_fails_for_fewer_reasons() {
        let asked =
            |at, words, faults: &[Fault]| explained(What::Request(seconds(at), 0, words), faults);
        let away = [fault(Kind::Database, 0, 100, 110)];
        assert!(asked(105, "503: the database cannot be reached", &away));
        assert!(!asked(105, "reset", &away));
        assert!(!asked(150, "the database cannot be reached", &away));
        let agent = [fault(Kind::KillAgent, 0, 100, 101)];
        assert!(asked(103, "no agent", &agent) && !asked(120, "no agent", &agent));
        assert!(!asked(101, "reset", &[fault(Kind::Reset, 0, 100, 101)]));
    }
}
