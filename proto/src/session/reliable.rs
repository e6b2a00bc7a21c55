//! A reliable stream of bytes, each way, over connections that come and go. No I/O and no clock: bytes and time
//! are arguments.
//!
//! Every byte has a number. What was written stays in the replay buffer until the other end has *used* it, so the
//! bound of that buffer is the receiver's window, too: whoever reads a connection never has to stop, and an
//! acknowledgement can't stick behind data that nobody takes.
//!
//! On a connection travel frames with a head of nine octets, a type and a number:
//!
//! | frame | number | then |
//! | --- | --- | --- |
//! | `DATA` | length in the upper half, the lower half of its first byte's number in the lower | so many bytes |
//! | `ACK`, `PING`, `PONG` | how many bytes the sender has used so far | |
//! | `FIN` | how many bytes there were in all | |
//! | `NOTICE` | a word beside the stream | |
//!
//! A `FIN` counts as one more byte: it is acknowledged, and sent again where that doesn't come. Anything that can't
//! be ends the session ([`Violation`]), because a stream that is off by one byte is worse than none; so does a frame of
//! a type that isn't known, as both ends have agreed on a version before the first.
//!
//! Of `NOTICE`s the last one counts. It is said again on every connection, so that none is lost with one.

use std::{io::IoSlice, time::Duration};

use super::segments::Segments;

/// Octets of a frame's head.
const HEAD: usize = 9;

/// The most bytes in a frame: with its head, four full TLS records.
const MAX_PAYLOAD: usize = 4 * 16 * 1024 - HEAD;

/// How many used bytes are acknowledged at once while more come.
const ACK_EVERY: u64 = 1024 * 1024;

/// How long used bytes stay unacknowledged while more come, however slowly: the other end takes it as a sign of life.
const ACK_AFTER: Duration = Duration::from_secs(1);

/// How long a connection may be silent before it is asked for a sign of life.
pub const PING_AFTER: Duration = Duration::from_secs(5);

/// How long that may stay unanswered. With [`PING_AFTER`], a dead connection is known for one within 10 s.
pub const PING_LIMIT: Duration = Duration::from_secs(5);

const DATA: u8 = 0;
const ACK: u8 = 1;
const PING: u8 = 2;
const PONG: u8 = 3;
const FIN: u8 = 4;
const NOTICE: u8 = 5;

/// How much a session may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Written and not yet used by the other end: throughput is this per round trip. Both ends must agree on it.
    pub window: usize,
    /// Written and not yet on a connection: what a keystroke waits behind.
    pub unsent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 8 * 1024 * 1024,
            unsent: 256 * 1024,
        }
    }
}

/// What the other end said that can't be. The session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of a type that there isn't.
    #[error("a frame of unknown type {0}")]
    Type(u8),
    /// A frame's length is none.
    #[error("a frame of {0} bytes")]
    Length(u64),
    /// Data that isn't the next.
    #[error("data or an end at another place than byte {0}")]
    Place(u64),
    /// More than the window takes.
    #[error("more data than the window takes")]
    Window,
    /// Data after the end.
    #[error("data after the end")]
    AfterEnd,
    /// An acknowledgement, or a resumption, that names a byte that was never sent or was given back long ago.
    #[error("byte {named} is named, which is not between {acknowledged} and {sent}")]
    Number {
        /// What it named.
        named: u64,
        /// What it had said before.
        acknowledged: u64,
        /// What it can have got.
        sent: u64,
    },
}

/// What a connection's next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// So many more octets of a head.
    Head(usize),
    /// So many more bytes of data.
    Data(usize),
}

/// One end of the stream.
#[derive(Debug)]
pub struct Reliable {
    limits: Limits,
    attached: bool,

    /// Bytes `acknowledged..written`.
    replay: Segments,
    acknowledged: u64,
    /// The next byte for this connection.
    sent: u64,
    /// The first byte that no connection can have got.
    reached: u64,
    written: u64,
    fin: Fin,
    leaving: Leaving,
    pong_due: bool,
    ping_due: bool,
    ack_due: bool,
    notice: Option<u64>,
    notice_due: bool,

    /// Bytes `used..received`.
    inbox: Segments,
    used: u64,
    received: u64,
    /// What the other end was last told to be used, and when.
    told: (u64, Duration),
    arriving: Arriving,
    end_arrived: bool,
    end_used: bool,
    noticed: Option<u64>,

    heard: Duration,
    pinged: Option<Duration>,
}

/// Our own end of the stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Fin {
    wanted: bool,
    /// On this connection.
    sent: bool,
    /// On any.
    reached: bool,
    acknowledged: bool,
}

/// What has been begun on this connection: heads, and the bytes that the last of them announces.
#[derive(Debug, Default)]
struct Leaving {
    heads: [u8; 2 * HEAD],
    length: usize,
    done: usize,
    payload: usize,
}

/// What has arrived of a frame.
#[derive(Debug, Default)]
struct Arriving {
    head: [u8; HEAD],
    have: usize,
    data: usize,
}

impl Reliable {
    /// A new stream on its first connection, which is there at `now`.
    pub fn new(limits: Limits, now: Duration) -> Self {
        Self {
            limits,
            attached: true,
            replay: Segments::default(),
            acknowledged: 0,
            sent: 0,
            reached: 0,
            written: 0,
            fin: Fin::default(),
            leaving: Leaving::default(),
            pong_due: false,
            ping_due: false,
            ack_due: false,
            notice: None,
            notice_due: false,
            inbox: Segments::default(),
            used: 0,
            received: 0,
            told: (0, now),
            arriving: Arriving::default(),
            end_arrived: false,
            end_used: false,
            noticed: None,
            heard: now,
            pinged: None,
        }
    }

    // --- to the other end ---

    /// Takes bytes to send, as many as there is room for; how many those are.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.replay.push(bytes.get(..taken).unwrap_or_default());
        self.written += taken as u64;
        taken
    }

    /// How many bytes [`Reliable::write`] takes now.
    pub fn room(&self) -> usize {
        if self.fin.wanted {
            return 0;
        }
        let window = self.limits.window.saturating_sub(self.replay.len());
        window.min(self.limits.unsent.saturating_sub(self.unsent()))
    }

    /// Bytes that this connection hasn't got.
    pub fn unsent(&self) -> usize {
        length(self.written - self.sent)
    }

    /// Bytes that the other end hasn't used, as far as is known.
    pub const fn unacknowledged(&self) -> usize {
        self.replay.len()
    }

    /// Ends the stream to the other end after what was written.
    pub const fn finish(&mut self) {
        self.fin.wanted = true;
    }

    /// Whether the other end has used everything, the end included.
    pub const fn finished(&self) -> bool {
        self.fin.acknowledged
    }

    /// Tells the other end a word beside the stream, in place of any before.
    pub fn tell(&mut self, word: u64) {
        if self.notice.replace(word) != Some(word) {
            self.notice_due = true;
        }
    }

    /// Whether the connection has something to be written.
    pub fn has_outgoing(&self) -> bool {
        self.attached
            && (self.leaving.length > 0
                || self.pong_due
                || self.ping_due
                || self.ack_due
                || self.notice_due
                || self.sent < self.written
                || (self.fin.wanted && !self.fin.sent))
    }

    /// What is to be written to the connection next, in as many slices as `into` takes; how many those are.
    pub fn outgoing<'a>(&'a mut self, now: Duration, into: &mut [IoSlice<'a>]) -> usize {
        if self.leaving.length == 0 {
            self.begin(now);
        }
        let Leaving {
            heads,
            length: end,
            done,
            payload,
            ..
        } = &self.leaving;
        let Some((first, rest)) = into.split_first_mut() else {
            return 0;
        };
        let from = length(self.sent - self.acknowledged);
        match heads.get(*done..*end) {
            Some(head) if !head.is_empty() => {
                *first = IoSlice::new(head);
                1 + self.replay.slices(from, *payload, rest)
            }
            _ => self.replay.slices(from, *payload, into),
        }
    }

    /// So many bytes of [`Reliable::outgoing`] were written.
    pub fn transmitted(&mut self, count: usize) {
        let of_heads = count.min(self.leaving.length - self.leaving.done);
        self.leaving.done += of_heads;
        let of_data = (count - of_heads).min(self.leaving.payload);
        self.leaving.payload -= of_data;
        self.sent += of_data as u64;
        if self.leaving.done == self.leaving.length && self.leaving.payload == 0 {
            self.leaving = Leaving::default();
        }
    }

    /// Begins what is most due: a word on what was used, then data or the end.
    fn begin(&mut self, now: Duration) {
        if !self.attached {
            return;
        }
        if let Some(word) = self.notice
            && std::mem::take(&mut self.notice_due)
        {
            return self.leaving.head(NOTICE, word);
        }
        if self.pong_due || self.ping_due || self.ack_due {
            // Whichever it is, it says what was used. A ping that is due can wait for the next round.
            let kind = if std::mem::take(&mut self.pong_due) {
                PONG
            } else if std::mem::take(&mut self.ping_due) {
                PING
            } else {
                ACK
            };
            self.ack_due = false;
            let used = self.used + u64::from(self.end_used);
            self.told = (used, now);
            self.leaving.head(kind, used);
        }
        let unsent = self.unsent();
        if unsent > 0 {
            let payload = unsent.min(MAX_PAYLOAD);
            let number = (payload as u64) << 32 | (self.sent & 0xffff_ffff);
            self.leaving.head(DATA, number);
            self.leaving.payload = payload;
            // A connection that fails may have got all of it, whatever it said.
            self.reached = self.reached.max(self.sent + payload as u64);
        } else if self.fin.wanted && !self.fin.sent {
            self.leaving.head(FIN, self.written);
            // As with data, it counts as sent from its first octet on.
            (self.fin.sent, self.fin.reached) = (true, true);
        }
    }

    // --- from the other end ---

    /// What the connection's next bytes are.
    pub const fn next(&self) -> Next {
        match self.arriving.data {
            0 => Next::Head(HEAD - self.arriving.have),
            data => Next::Data(data),
        }
    }

    /// Takes bytes that the connection brought.
    ///
    /// # Errors
    /// See [`Violation`].
    pub fn receive(&mut self, now: Duration, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            match self.next() {
                Next::Data(left) => {
                    let (part, later) = bytes.split_at(left.min(bytes.len()));
                    self.inbox.push(part);
                    self.arrived(now, part.len());
                    bytes = later;
                }
                Next::Head(left) => {
                    let (part, later) = bytes.split_at(left.min(bytes.len()));
                    let have = self.arriving.have;
                    if let Some(room) = self.arriving.head.get_mut(have..have + part.len()) {
                        room.copy_from_slice(part);
                    }
                    self.arriving.have += part.len();
                    bytes = later;
                    if self.arriving.have == HEAD {
                        self.arriving.have = 0;
                        self.frame()?;
                    }
                    self.alive(now);
                }
            }
        }
        Ok(())
    }

    /// How many bytes of data may go from the connection straight to their reader ([`Reliable::passed`]).
    pub const fn direct(&self) -> usize {
        if self.inbox.is_empty() {
            self.arriving.data
        } else {
            0
        }
    }

    /// So many bytes went from the connection straight to their reader, at most [`Reliable::direct`].
    pub fn passed(&mut self, now: Duration, count: usize) {
        let count = count.min(self.direct());
        self.arrived(now, count);
        self.use_up(now, count);
    }

    /// Bytes for the reader; how many those are.
    pub fn read(&mut self, now: Duration, into: &mut [u8]) -> usize {
        let taken = self.inbox.take(into);
        self.use_up(now, taken);
        taken
    }

    /// Whether there is something to read.
    pub const fn readable(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Whether the other end has ended its stream and everything before that was read; the reader is told so.
    pub const fn at_end(&mut self) -> bool {
        let ended = self.end_arrived && self.inbox.is_empty();
        if ended && !self.end_used {
            self.end_used = true;
            self.ack_due = true;
        }
        ended
    }

    /// A word that came beside the stream since this was asked last, or was said again on another connection.
    pub const fn noticed(&mut self) -> Option<u64> {
        self.noticed.take()
    }

    /// Whether the other end has ended its stream.
    pub const fn end_arrived(&self) -> bool {
        self.end_arrived
    }

    fn arrived(&mut self, now: Duration, count: usize) {
        self.arriving.data -= count;
        self.received += count as u64;
        self.alive(now);
    }

    fn use_up(&mut self, now: Duration, count: usize) {
        self.used += count as u64;
        let (told, at) = self.told;
        let untold = self.used - told.min(self.used);
        if untold >= ACK_EVERY.min(self.limits.window as u64 / 4)
            || (untold > 0 && now.saturating_sub(at) >= ACK_AFTER)
        {
            self.ack_due = true;
        }
    }

    fn frame(&mut self) -> Result<(), Violation> {
        let [kind, number @ ..] = self.arriving.head;
        let number = u64::from_be_bytes(number);
        match kind {
            DATA => {
                let count = number >> 32;
                if self.end_arrived {
                    return Err(Violation::AfterEnd);
                }
                if number & 0xffff_ffff != self.received & 0xffff_ffff {
                    return Err(Violation::Place(self.received));
                }
                if count == 0 || count > MAX_PAYLOAD as u64 {
                    return Err(Violation::Length(count));
                }
                if self.received - self.used + count > self.limits.window as u64 {
                    return Err(Violation::Window);
                }
                self.arriving.data = length(count);
            }
            ACK | PONG => self.acknowledge(number)?,
            PING => {
                self.acknowledge(number)?;
                self.pong_due = true;
            }
            FIN if number == self.received => self.end_arrived = true,
            FIN => return Err(Violation::Place(self.received)),
            NOTICE => self.noticed = Some(number),
            other => return Err(Violation::Type(other)),
        }
        Ok(())
    }

    fn acknowledge(&mut self, number: u64) -> Result<(), Violation> {
        let end = u64::from(self.fin.sent);
        let known = self.acknowledged + u64::from(self.fin.acknowledged);
        self.check(number, known, self.sent + end)?;
        let used = number.min(self.written);
        self.replay.drop_front(length(used - self.acknowledged));
        self.acknowledged = used;
        self.fin.acknowledged |= number > self.written;
        Ok(())
    }

    const fn check(&self, named: u64, acknowledged: u64, sent: u64) -> Result<(), Violation> {
        if named < acknowledged || named > sent {
            return Err(Violation::Number {
                named,
                acknowledged,
                sent,
            });
        }
        Ok(())
    }

    // --- connections ---

    /// The connection is gone: what was under way on it is as if it had never been begun.
    pub fn detach(&mut self) {
        self.attached = false;
        self.leaving = Leaving::default();
        self.arriving = Arriving::default();
        self.sent = self.acknowledged;
        self.fin.sent = self.fin.acknowledged;
        (self.pong_due, self.ping_due) = (false, false);
        self.notice_due = self.notice.is_some();
        self.pinged = None;
    }

    /// How much of the other end's stream has arrived, its end included: what the other end goes on from.
    pub fn position(&self) -> u64 {
        self.received + u64::from(self.end_arrived)
    }

    /// There is another connection, and the other end's [`Reliable::position`] is `position`; how many bytes are sent
    /// again at most.
    ///
    /// # Errors
    /// [`Violation::Number`].
    pub fn attach(&mut self, now: Duration, position: u64) -> Result<u64, Violation> {
        let known = self.acknowledged + u64::from(self.fin.acknowledged);
        self.check(position, known, self.reached + u64::from(self.fin.reached))?;
        self.detach();
        self.attached = true;
        self.sent = position.min(self.written);
        self.fin.sent = position > self.written;
        // Acknowledgements that the last connection took along.
        self.ack_due = self.used > 0 || self.end_used;
        self.heard = now;
        Ok(self.reached - self.sent)
    }

    /// When [`Reliable::tick`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        self.attached.then(|| {
            self.pinged
                .map_or(self.heard + PING_AFTER, |pinged| pinged + PING_LIMIT)
        })
    }

    /// Looks at the time, once everything that the connection has brought was received. False: the connection is
    /// dead.
    pub fn tick(&mut self, now: Duration) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return true;
        }
        if self.pinged.is_some() {
            return false;
        }
        self.pinged = Some(now);
        self.ping_due = true;
        true
    }

    const fn alive(&mut self, now: Duration) {
        self.heard = now;
        self.pinged = None;
    }
}

impl Leaving {
    fn head(&mut self, kind: u8, number: u64) {
        let head = self.heads.get_mut(self.length..self.length + HEAD);
        if let Some([first, rest @ ..]) = head {
            *first = kind;
            rest.copy_from_slice(&number.to_be_bytes());
            self.length += HEAD;
        }
    }
}

/// A number of bytes that are in memory.
fn length(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
