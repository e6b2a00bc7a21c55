//! A session's frames: what arrives means the same however it is cut, and takes no more room than the window.

use std::{io::IoSlice, time::Duration};

use towline_proto::session::reliable::{Limits, Reliable, Violation};

const LIMITS: Limits = Limits {
    window: 8_192,
    unsent: 1_024,
};

/// What an end has come to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    violation: Option<Violation>,
    read: Vec<u8>,
    answers: Vec<u8>,
    ended: bool,
    position: u64,
}

/// An end that has sent some bytes, and is sent `pieces`.
fn outcome<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Outcome, Reliable) {
    let mut end = Reliable::new(LIMITS, Duration::ZERO);
    end.write(&[b'x'; 500]);
    transmitted(&mut end);
    let mut violation = None;
    for piece in pieces {
        if let Err(found) = end.receive(Duration::ZERO, piece) {
            violation = Some(found);
            break;
        }
    }
    let mut read = vec![0; LIMITS.window + 1];
    // A reader that asks for more than there can be gets no more than the window takes.
    let mut length = 0;
    loop {
        let got = end.read(Duration::ZERO, &mut read[length..]);
        length += got;
        if got == 0 {
            break;
        }
    }
    assert!(length <= LIMITS.window, "{length}");
    read.truncate(length);
    let outcome = Outcome {
        violation,
        read,
        ended: end.at_end(),
        position: end.position(),
        answers: transmitted(&mut end),
    };
    (outcome, end)
}

fn transmitted(end: &mut Reliable) -> Vec<u8> {
    let mut all = Vec::new();
    while end.has_outgoing() {
        let mut slices = [IoSlice::new(&[]); 6];
        let used = end.outgoing(Duration::ZERO, &mut slices);
        let bytes: Vec<u8> = slices[..used]
            .iter()
            .flat_map(|s| s.iter().copied())
            .collect();
        end.transmitted(bytes.len());
        all.extend(bytes);
    }
    all
}

/// The first byte says how the rest is cut, and from where the other end wants to go on.
pub(crate) fn frames(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    // More than the window at once would be refused at different places.
    let bytes = &bytes[..bytes.len().min(LIMITS.window)];
    let (whole, _) = outcome(std::iter::once(bytes));
    let (pieces, mut end) = outcome(bytes.chunks(usize::from(cut).max(1)));
    if whole.violation.is_none() {
        assert_eq!(pieces, whole);
    } else {
        assert_eq!(pieces.violation, whole.violation);
    }

    let unacknowledged = end.unacknowledged();
    end.detach();
    let position = u64::from(cut) * 4;
    match end.attach(Duration::ZERO, position) {
        Ok(again) => {
            assert!(again <= 500 && position <= 500, "{again} from {position}");
            assert!(500 - position <= unacknowledged as u64);
        }
        Err(violation) => assert!(
            position > 500 || position < 500 - unacknowledged as u64,
            "{violation}"
        ),
    }
}
