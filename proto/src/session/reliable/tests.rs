//! Two ends, and connections between them that deliver late, in parts, or not at all.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Small, so that every bound is met.
const LIMITS: Limits = Limits {
    window: 4_000,
    unsent: 1_000,
};

/// Two ends, `0` and `1`, and what is on its way to each.
struct Pair {
    now: Duration,
    ends: [Reliable; 2],
    way: [VecDeque<u8>; 2],
    /// Nothing that is written arrives.
    cut: bool,
    written: [Vec<u8>; 2],
    read: [Vec<u8>; 2],
    ended: [bool; 2],
    told: [Option<u64>; 2],
    noticed: [Option<u64>; 2],
    resumptions: u32,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        Self {
            now: Duration::ZERO,
            ends: [(); 2].map(|()| Reliable::new(limits, Duration::ZERO)),
            way: [VecDeque::new(), VecDeque::new()],
            cut: false,
            written: [Vec::new(), Vec::new()],
            read: [Vec::new(), Vec::new()],
            ended: [false; 2],
            told: [None; 2],
            noticed: [None; 2],
            resumptions: 0,
        }
    }

    fn write(&mut self, end: usize, count: usize) {
        let from = self.written[end].len();
        let bytes: Vec<u8> = (from..from + count)
            .map(|n| u8::try_from((n * 7 + n / 251 + end) % 256).unwrap())
            .collect();
        let taken = self.ends[end].write(&bytes);
        self.written[end].extend(&bytes[..taken]);
    }

    /// Puts up to `count` bytes on their way.
    fn transmit(&mut self, end: usize, mut count: usize) {
        while count > 0 {
            let mut slices = [IoSlice::new(&[]); 5];
            let used = self.ends[end].outgoing(self.now, &mut slices);
            let bytes: Vec<u8> = slices[..used]
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .take(count)
                .collect();
            if bytes.is_empty() {
                assert!(!self.ends[end].has_outgoing());
                return;
            }
            self.ends[end].transmitted(bytes.len());
            count -= bytes.len();
            if !self.cut {
                self.way[1 - end].extend(bytes);
            }
        }
    }

    /// Bytes arrive whose connection says that it failed with them.
    fn fail(&mut self, end: usize) {
        let mut slices = [IoSlice::new(&[]); 5];
        let used = self.ends[end].outgoing(self.now, &mut slices);
        let bytes: Vec<u8> = slices[..used]
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        if !self.cut {
            let other = 1 - end;
            self.way[other].extend(bytes);
            self.deliver(other, usize::MAX);
        }
        self.cut();
        self.ends[end].detach();
    }

    /// Lets up to `count` bytes arrive.
    fn deliver(&mut self, end: usize, count: usize) {
        let count = count.min(self.way[end].len());
        let bytes: Vec<u8> = self.way[end].drain(..count).collect();
        self.ends[end].receive(self.now, &bytes).unwrap();
        self.noticed[end] = self.ends[end].noticed().or(self.noticed[end]);
    }

    fn tell(&mut self, end: usize, word: u64) {
        self.ends[end].tell(word);
        self.told[end] = Some(word);
    }

    /// Lets up to `count` bytes go from their way straight to the reader, where they may.
    fn pass(&mut self, end: usize, count: usize) {
        let count = count.min(self.ends[end].direct()).min(self.way[end].len());
        self.read[end].extend(self.way[end].drain(..count));
        self.ends[end].passed(self.now, count);
    }

    fn read(&mut self, end: usize, count: usize) {
        let mut into = vec![0; count];
        let got = self.ends[end].read(self.now, &mut into);
        self.read[end].extend(&into[..got]);
        self.ended[end] |= self.ends[end].at_end();
    }

    /// What is under way is lost, and neither end knows yet.
    fn cut(&mut self) {
        self.cut = true;
        self.way.iter_mut().for_each(VecDeque::clear);
    }

    fn resume(&mut self) {
        for end in &mut self.ends {
            end.detach();
        }
        self.way.iter_mut().for_each(VecDeque::clear);
        let positions = [self.ends[0].position(), self.ends[1].position()];
        self.ends[0].attach(self.now, positions[1]).unwrap();
        self.ends[1].attach(self.now, positions[0]).unwrap();
        self.cut = false;
        self.resumptions += 1;
    }

    /// Everything goes its way until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for end in 0..2 {
                self.transmit(end, 1_000);
                self.deliver(end, 1_000);
                self.read(end, 1_000);
            }
            let idle = |end: &Reliable| !end.has_outgoing() && !end.readable();
            if self.ends.iter().all(idle) && self.way.iter().all(VecDeque::is_empty) {
                return;
            }
        }
        panic!("it does not settle");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize),
    Transmit(usize, usize),
    Deliver(usize, usize),
    Pass(usize, usize),
    Read(usize, usize),
    Finish(usize),
    /// One end is ready for another connection that doesn't come.
    Fence(usize),
    Fail(usize),
    Tell(usize, u64),
    Cut,
    Resume,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let end = || 0_usize..2;
    let count = || prop_oneof![1_usize..30, 1_usize..3_000];
    prop_oneof![
        6 => (end(), count()).prop_map(|(e, n)| Step::Write(e, n)),
        6 => (end(), count()).prop_map(|(e, n)| Step::Transmit(e, n)),
        6 => (end(), count()).prop_map(|(e, n)| Step::Deliver(e, n)),
        2 => (end(), count()).prop_map(|(e, n)| Step::Pass(e, n)),
        4 => (end(), count()).prop_map(|(e, n)| Step::Read(e, n)),
        1 => end().prop_map(Step::Finish),
        1 => end().prop_map(Step::Fence),
        1 => end().prop_map(Step::Fail),
        1 => (end(), 0_u64..3).prop_map(|(e, w)| Step::Tell(e, w)),
        1 => Just(Step::Cut),
        2 => Just(Step::Resume),
        1 => (0_u64..9_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_byte_arrives_once_and_in_order(steps in prop::collection::vec(step(), 1..200)) {
        let mut pair = Pair::new(LIMITS);
        for step in steps {
            match step {
                Step::Write(end, count) => pair.write(end, count),
                Step::Transmit(end, count) => pair.transmit(end, count),
                Step::Deliver(end, count) => pair.deliver(end, count),
                Step::Pass(end, count) => pair.pass(end, count),
                Step::Read(end, count) => pair.read(end, count),
                Step::Finish(end) => pair.ends[end].finish(),
                Step::Fail(end) => pair.fail(end),
                Step::Tell(end, word) => pair.tell(end, word),
                Step::Fence(end) => {
                    pair.cut();
                    pair.ends[end].detach();
                }
                Step::Cut => pair.cut(),
                Step::Resume => pair.resume(),
                Step::Wait(milliseconds) => {
                    pair.now += Duration::from_millis(milliseconds);
                    for end in &mut pair.ends {
                        end.tick(pair.now);
                    }
                }
            }
            for end in &pair.ends {
                prop_assert!(end.unacknowledged() <= LIMITS.window);
                prop_assert!(end.inbox.len() <= LIMITS.window);
            }
        }
        pair.resume();
        for end in &mut pair.ends {
            end.finish();
        }
        pair.settle();
        for end in 0..2 {
            prop_assert!(pair.read[end] == pair.written[1 - end]);
            prop_assert!(pair.ended[end], "the end arrives, too");
            prop_assert!(pair.ends[end].finished());
            prop_assert_eq!(pair.ends[end].unacknowledged(), 0);
            prop_assert_eq!(pair.noticed[end], pair.told[1 - end], "the last word counts");
        }
    }

    #[test]
    fn nothing_that_arrives_does_harm(
        frames in prop::collection::vec((0_u8..7, any::<u64>(), 0_usize..100), 0..20),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut end = Reliable::new(LIMITS, Duration::ZERO);
        end.write(&[0; 500]);
        for (kind, number, data) in frames {
            let number = if number % 2 == 0 { number } else { ((data as u64) << 32) | end.received };
            let mut frame = vec![kind];
            frame.extend(number.to_be_bytes());
            frame.extend(vec![7; data]);
            if end.receive(Duration::ZERO, &frame).is_err() {
                break;
            }
            prop_assert!(end.inbox.len() <= LIMITS.window);
        }
        let _violated = end.receive(Duration::ZERO, &bytes);
        prop_assert!(end.inbox.len() <= LIMITS.window);
    }
}

#[test]
fn who_is_not_read_stops_at_the_window_and_goes_on_later() {
    let mut pair = Pair::new(LIMITS);
    for _ in 0..20 {
        pair.write(0, 1_000);
        pair.transmit(0, 10_000);
        pair.deliver(1, 10_000);
    }
    assert_eq!(pair.written[0].len(), LIMITS.window);
    assert_eq!(pair.ends[0].room(), 0);
    // What has arrived and isn't used makes no room, whatever else is said.
    pair.now += PING_AFTER;
    assert!(pair.ends[0].tick(pair.now));
    for end in [0, 1] {
        pair.transmit(end, 1_000);
        pair.deliver(1 - end, 1_000);
    }
    assert_eq!(pair.ends[0].room(), 0);
    // The other way is as free as before, and so are acknowledgements on it.
    pair.write(1, 500);
    pair.transmit(1, 1_000);
    pair.deliver(0, 1_000);
    pair.read(0, 1_000);
    assert_eq!(pair.read[0].len(), 500);
    pair.settle();
    assert_eq!(pair.read[1], pair.written[0]);
    assert!(pair.ends[0].room() > 0);
}

#[test]
fn what_is_not_on_a_connection_is_bounded_by_itself() {
    let mut pair = Pair::new(LIMITS);
    pair.write(0, 3_000);
    assert_eq!(pair.written[0].len(), LIMITS.unsent);
    pair.transmit(0, 10_000);
    pair.write(0, 3_000);
    assert_eq!(pair.written[0].len(), 2 * LIMITS.unsent);
}

#[test]
fn a_silent_connection_is_dead_within_ten_seconds() {
    let mut pair = Pair::new(LIMITS);
    pair.write(0, 100);
    pair.settle();
    pair.cut();
    let heard = pair.now;
    loop {
        let deadline = pair.ends[0].deadline().unwrap();
        assert!(deadline > pair.now || deadline == Duration::ZERO);
        pair.now = deadline;
        if !pair.ends[0].tick(pair.now) {
            break;
        }
        assert!(pair.ends[0].has_outgoing(), "it asks");
        pair.transmit(0, 100);
    }
    assert_eq!(pair.now - heard, PING_AFTER + PING_LIMIT);
}

#[test]
fn an_idle_connection_that_answers_lives_on() {
    let mut pair = Pair::new(LIMITS);
    for _ in 0..1_000 {
        pair.now = pair
            .ends
            .iter()
            .filter_map(Reliable::deadline)
            .min()
            .unwrap();
        for end in 0..2 {
            assert!(pair.ends[end].tick(pair.now));
        }
        pair.settle();
    }
    assert!(pair.now > Duration::from_secs(4_000));
}

#[test]
fn time_that_passed_unseen_is_no_death() {
    let mut pair = Pair::new(LIMITS);
    // A process that was stopped for a minute asks before it judges.
    pair.now += Duration::from_secs(60);
    assert!(pair.ends[0].tick(pair.now));
    pair.settle();
    pair.now += PING_LIMIT;
    assert!(pair.ends[0].tick(pair.now));
}

#[test]
fn slow_data_is_acknowledged_every_second() {
    let mut pair = Pair::new(Limits::default());
    for _ in 0..20 {
        pair.write(0, 1_000);
        pair.transmit(0, 10_000);
        pair.now += Duration::from_millis(500);
        pair.deliver(1, 10_000);
        pair.read(1, 10_000);
        pair.transmit(1, 1_000);
        pair.deliver(0, 1_000);
        assert!(pair.ends[0].tick(pair.now));
        assert!(pair.ends[0].unacknowledged() <= 2_000);
    }
}

#[test]
fn what_cannot_be_ends_the_session() {
    let frame = |kind: u8, number: u64| {
        let mut frame = vec![kind];
        frame.extend(number.to_be_bytes());
        frame
    };
    let on = |prepared: &dyn Fn(&mut Reliable), frame: &[u8]| {
        let mut end = Reliable::new(LIMITS, Duration::ZERO);
        prepared(&mut end);
        end.receive(Duration::ZERO, frame)
    };
    let nothing = |_: &mut Reliable| {};
    let ended = |end: &mut Reliable| end.receive(Duration::ZERO, &frame(FIN, 0)).unwrap();
    let number = |named| Violation::Number {
        named,
        acknowledged: 0,
        sent: 0,
    };
    assert_eq!(on(&nothing, &frame(9, 0)), Err(Violation::Type(9)));
    assert_eq!(on(&nothing, &frame(DATA, 0)), Err(Violation::Length(0)));
    assert_eq!(
        on(&nothing, &frame(DATA, 70_000 << 32)),
        Err(Violation::Length(70_000))
    );
    assert_eq!(
        on(&nothing, &frame(DATA, 1 << 32 | 5)),
        Err(Violation::Place(0))
    );
    assert_eq!(
        on(&nothing, &frame(DATA, 5_000 << 32)),
        Err(Violation::Window)
    );
    assert_eq!(on(&nothing, &frame(FIN, 1)), Err(Violation::Place(0)));
    assert_eq!(on(&ended, &frame(DATA, 1 << 32)), Err(Violation::AfterEnd));
    for kind in [ACK, PING, PONG] {
        assert_eq!(on(&nothing, &frame(kind, 1)), Err(number(1)));
    }

    let mut end = Reliable::new(LIMITS, Duration::ZERO);
    end.detach();
    assert_eq!(end.attach(Duration::ZERO, 1), Err(number(1)));
}

#[test]
fn a_word_is_said_once_on_each_connection() {
    let mut pair = Pair::new(LIMITS);
    pair.tell(0, 7);
    pair.tell(0, 7);
    assert_eq!(pair.noticed[1], None);
    pair.settle();
    assert_eq!(pair.noticed[1].take(), Some(7));
    pair.tell(0, 7);
    assert!(!pair.ends[0].has_outgoing(), "it was said");
    // Lost with the connection.
    pair.cut();
    pair.tell(0, 8);
    pair.transmit(0, 1_000);
    pair.resume();
    pair.settle();
    assert_eq!(pair.noticed[1].take(), Some(8));
    // Half of it, and said again as a whole.
    pair.tell(0, 9);
    pair.transmit(0, 4);
    pair.deliver(1, 4);
    pair.resume();
    pair.settle();
    assert_eq!(pair.noticed[1], Some(9));
    assert!(pair.read[1].is_empty());
}

#[test]
fn an_idle_stream_holds_no_memory() {
    let mut pair = Pair::new(Limits::default());
    pair.write(0, 100_000);
    pair.settle();
    pair.now += PING_AFTER;
    for end in &mut pair.ends {
        end.tick(pair.now);
    }
    pair.settle();
    for end in &pair.ends {
        assert_eq!(end.unacknowledged(), 0);
        assert!(end.replay.is_empty() && end.inbox.is_empty());
    }
}
