//! A session as tokio's I/O traits see it.

use std::{
    future::Future as _,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::BufMut as _;
use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use super::reliable::{Limits, Next, Reliable, Violation};

/// From how many bytes on a write goes to the connection before it is flushed: four TLS records.
const ENOUGH: usize = 64 * 1024;

/// How long the last word of a session may take to be acknowledged.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What can carry a session: TLS after a 101, or a WebSocket.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for C {}

/// How a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has its first connection, over which nothing has come yet.
    New,
    /// Something carries it.
    Up,
    /// Its connection was lost, and it waits for another.
    Down,
    /// It is over.
    Over,
}

/// What one end says of itself beside the stream; its last word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notice {
    /// It is going: whoever has work for it had better look for another. From an agent: it has done so.
    pub leaving: bool,
    /// From a gateway: how many replicas there are; 0 where it hasn't said.
    pub replicas: u32,
}

impl Notice {
    const LEAVING: u64 = 1 << 32;

    const fn to_word(self) -> u64 {
        let leaving = if self.leaving { Self::LEAVING } else { 0 };
        leaving | self.replicas as u64
    }

    /// What is not known yet is for those who know it.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    const fn from_word(word: u64) -> Self {
        Self {
            leaving: word & Self::LEAVING != 0,
            replicas: word as u32,
        }
    }
}

/// Why a session does not take a connection.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The session is over.
    #[error("the session is over")]
    Over,
    /// A newer connection came in between.
    #[error("a newer connection has taken the session")]
    Fenced,
    /// What the two ends say does not fit together; the session is over now.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// An agent's authenticated stream of bytes to a gateway. Dropping it ends it, and tells the other end.
pub struct Session(Arc<Shared>);

/// Gives a session connections, and knows how it is.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    id: String,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
    notice: watch::Sender<Notice>,
    wakers: Arc<Wakers>,
}

/// Who waits for the session. A connection wakes both: whoever polled it last may have done so for the other.
#[derive(Default)]
struct Wakers {
    read: AtomicWaker,
    write: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.read.wake();
        self.write.wake();
    }
}

struct State {
    stream: Reliable,
    connection: Option<Box<dyn Connection>>,
    generation: u64,
    started: Instant,
    /// Fires no later than the stream's deadline.
    timer: Pin<Box<Sleep>>,
    /// The connection holds bytes that it was not told to flush.
    unflushed: bool,
    /// Since the end was asked for: until when the other end may acknowledge it.
    closing: Option<Pin<Box<Sleep>>>,
    /// Why it is over.
    over: Option<String>,
    /// Why the last connection was lost, and when.
    lost: Option<(String, Instant)>,
    /// Something has come from the other end, and over this connection or the last.
    heard: bool,
    heard_here: bool,
    /// Why it ends with its connection.
    retired: Option<String>,
    /// Those who watch weren't told yet.
    changed: bool,
    waker: Waker,
}

impl Session {
    /// A session on its first connection.
    pub fn new(id: String, connection: impl Connection) -> Self {
        Self::with_limits(id, connection, Limits::default())
    }

    /// A session with bounds of its own, which must be the same at both ends.
    pub fn with_limits(id: String, connection: impl Connection, limits: Limits) -> Self {
        let wakers = Arc::new(Wakers::default());
        let started = Instant::now();
        let stream = Reliable::new(limits, Duration::ZERO);
        let first = started + stream.deadline().unwrap_or_default();
        Self(Arc::new(Shared {
            id,
            state: Mutex::new(State {
                stream,
                connection: Some(Box::new(connection)),
                generation: 0,
                started,
                timer: Box::pin(sleep_until(first)),
                unflushed: false,
                closing: None,
                over: None,
                lost: None,
                heard: false,
                heard_here: false,
                retired: None,
                changed: false,
                waker: Waker::from(Arc::clone(&wakers)),
            }),
            phase: watch::Sender::new(Phase::New),
            notice: watch::Sender::default(),
            wakers,
        }))
    }

    /// The id that both ends know it by.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// What gives it other connections.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.0))
    }
}

impl Handle {
    /// The id that both ends know the session by.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// How the session is, and when that changes.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Tells the other end how this one is, now and over every other connection.
    pub fn tell(&self, notice: Notice) {
        self.change(|state| {
            state.stream.tell(notice.to_word());
            state.transmit();
        });
    }

    /// What the other end has said last, and when it says something else.
    pub fn told(&self) -> watch::Receiver<Notice> {
        self.0.notice.subscribe()
    }

    /// Whether something carries the session.
    pub fn is_up(&self) -> bool {
        *self.0.phase.borrow() == Phase::Up
    }

    /// Whether the session is over.
    pub fn is_over(&self) -> bool {
        *self.0.phase.borrow() == Phase::Over
    }

    /// Why the last connection was lost.
    pub fn lost(&self) -> Option<String> {
        let state = self.0.lock();
        state.lost.as_ref().map(|(reason, _)| reason.clone())
    }

    /// How long the session has been without a connection; none where it has one, or is over.
    pub fn down_for(&self) -> Option<Duration> {
        let state = self.0.lock();
        let down = state.over.is_none() && state.connection.is_none();
        let (_, since) = state.lost.as_ref().filter(|_| down)?;
        Some(since.elapsed())
    }

    /// Whether anything has come over the session's connection, or over the last that it had.
    pub fn carried_anything(&self) -> bool {
        self.0.lock().heard_here
    }

    /// The session gets no other connection: it ends with the one it has, or at once where it has none.
    pub fn retire(&self, reason: &str) {
        self.change(|state| {
            state.retired.get_or_insert_with(|| reason.to_owned());
            if state.connection.is_none() {
                state.end(reason);
            }
        });
    }

    /// The number of the connection that carries the session now, or did.
    pub fn generation(&self) -> u64 {
        self.0.lock().generation
    }

    /// Takes the session from its connection, for the one numbered `generation`; how far the session has come.
    ///
    /// # Errors
    /// The session is over, or a newer connection than that was here.
    pub fn fence(&self, generation: u64) -> Result<u64, ResumeError> {
        self.change(|state| {
            if state.over.is_some() || state.retired.is_some() {
                return Err(ResumeError::Over);
            }
            if generation <= state.generation {
                return Err(ResumeError::Fenced);
            }
            state.generation = generation;
            if state.connection.is_some() {
                state.lose("another connection takes over");
            }
            if state.over.is_some() {
                return Err(ResumeError::Over);
            }
            Ok(state.stream.position())
        })
    }

    /// Goes on over the connection for which [`Handle::fence`] was called; the other end has come to `position`. How
    /// many bytes are sent again.
    ///
    /// # Errors
    /// See [`ResumeError`].
    pub fn attach(
        &self,
        generation: u64,
        connection: impl Connection,
        position: u64,
    ) -> Result<u64, ResumeError> {
        self.change(|state| {
            if state.over.is_some() {
                return Err(ResumeError::Over);
            }
            if generation != state.generation {
                return Err(ResumeError::Fenced);
            }
            let replayed = state.stream.attach(state.now(), position);
            let replayed = replayed.inspect_err(|violation| state.end(&violation.to_string()))?;
            state.connection = Some(Box::new(connection));
            state.heard_here = false;
            state.changed = true;
            state.reset_timer();
            Ok(replayed)
        })
    }

    /// Ends the session, whose reader and writer are told why.
    pub fn end(&self, reason: &str) {
        self.change(|state| state.end(reason));
    }

    /// Changes the session, and tells whoever watches it, reads or writes.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock();
        let outcome = change(&mut state);
        self.0.tell(&mut state);
        drop(state);
        self.0.wakers.wake_by_ref();
        outcome
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.0.id).finish()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.0.id).finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who watch how the session is.
    fn tell(&self, state: &mut State) {
        if let Some(word) = state.stream.noticed() {
            let notice = Notice::from_word(word);
            self.notice.send_if_modified(|known| {
                let news = *known != notice;
                *known = notice;
                news
            });
        }
        if std::mem::take(&mut state.changed) {
            self.phase
                .send_replace(match (&state.over, &state.connection) {
                    (Some(_), _) => Phase::Over,
                    (None, None) => Phase::Down,
                    (None, Some(_)) if !state.heard => Phase::New,
                    (None, Some(_)) => Phase::Up,
                });
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // As far as it goes at once. An agent that isn't told so asks for another connection and is told then; a
        // gateway keeps the session for a while.
        state.stream.finish();
        state.transmit();
        state.end("the session was closed");
        self.0.tell(&mut state);
    }
}

impl State {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn end(&mut self, reason: &str) {
        self.connection = None;
        self.changed |= self.over.is_none();
        self.over.get_or_insert_with(|| reason.to_owned());
    }

    fn lose(&mut self, reason: &str) {
        self.connection = None;
        self.changed = true;
        self.unflushed = false;
        self.lost = Some((reason.to_owned(), Instant::now()));
        self.stream.detach();
        if let Some(reason) = self.retired.clone() {
            self.end(&reason);
        } else if !self.heard {
            self.end(&format!(
                "it was lost before anything came over it: {reason}"
            ));
        }
    }

    /// Something came.
    const fn hear(&mut self) {
        self.changed |= !self.heard;
        self.heard = true;
        self.heard_here = true;
    }

    fn error(&self) -> Option<io::Error> {
        let reason = self.over.clone()?;
        Some(io::Error::new(io::ErrorKind::ConnectionAborted, reason))
    }

    fn reset_timer(&mut self) {
        if let Some(deadline) = self.stream.deadline() {
            let at = self.started + deadline;
            self.timer.as_mut().reset(at);
        }
    }

    /// Puts on the connection what it takes.
    fn transmit(&mut self) {
        let Self {
            stream,
            connection,
            started,
            waker,
            ..
        } = self;
        let Some(carrier) = connection else {
            return;
        };
        let cx = &mut Context::from_waker(waker);
        let mut failed = None;
        while stream.has_outgoing() {
            let mut slices = [IoSlice::new(&[]); 6];
            let used = stream.outgoing(started.elapsed(), &mut slices);
            let slices = slices.get(..used).unwrap_or_default();
            match Pin::new(&mut *carrier).poll_write_vectored(cx, slices) {
                Poll::Ready(Ok(0)) => {
                    failed = Some("it takes no more bytes".to_owned());
                    break;
                }
                Poll::Ready(Ok(count)) => {
                    stream.transmitted(count);
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => {
                    failed = Some(error.to_string());
                    break;
                }
                Poll::Pending => break,
            }
        }
        if self.unflushed && failed.is_none() {
            match Pin::new(carrier).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => failed = Some(error.to_string()),
                Poll::Pending => {}
            }
        }
        if let Some(reason) = failed {
            self.lose(&reason);
        }
    }

    /// Reads what the connection brings, until it has no more, or `into` has got some: data goes straight there
    /// where nothing is before it, and else into the inbox.
    fn receive(&mut self, mut into: Option<&mut ReadBuf<'_>>) {
        let mut scratch = [0; 4096];
        while let Some(connection) = &mut self.connection {
            let cx = &mut Context::from_waker(&self.waker);
            let carrier = Pin::new(connection);
            let direct = self.stream.direct();
            let outcome = match (&mut into, self.stream.next()) {
                (Some(buffer), Next::Data(_)) if direct > 0 => {
                    let part = &mut buffer.limit(direct);
                    match poll_read_buf(carrier, cx, part) {
                        Poll::Ready(Ok(count)) if count > 0 => {
                            self.stream.passed(self.started.elapsed(), count);
                            self.hear();
                            return;
                        }
                        other => other.map_ok(|_| None),
                    }
                }
                (_, Next::Head(left) | Next::Data(left)) => {
                    let room = left.min(scratch.len());
                    let mut part = ReadBuf::new(scratch.get_mut(..room).unwrap_or_default());
                    let read = carrier.poll_read(cx, &mut part);
                    let count = part.filled().len();
                    read.map_ok(|()| (count > 0).then_some(count))
                }
            };
            match outcome {
                Poll::Ready(Ok(Some(count))) => {
                    self.hear();
                    let now = self.started.elapsed();
                    let bytes = scratch.get(..count).unwrap_or_default();
                    if let Err(violation) = self.stream.receive(now, bytes) {
                        self.end(&violation.to_string());
                    }
                }
                Poll::Ready(Ok(None)) => self.lose("the other end closed it"),
                Poll::Ready(Err(error)) => {
                    let reason = error.to_string();
                    self.lose(&reason);
                }
                Poll::Pending => return,
            }
        }
    }

    /// Asks a silent connection for a sign of life, and gives up a dead one.
    fn watch_time(&mut self) {
        while self.connection.is_some() {
            let cx = &mut Context::from_waker(&self.waker);
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
            if !self.stream.tick(self.now()) {
                self.lose("nothing came for too long");
                return;
            }
            self.reset_timer();
            self.transmit();
        }
    }

    fn poll_read(&mut self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.error() {
            return Poll::Ready(Err(error));
        }
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if !self.stream.readable() {
            self.receive(Some(buffer));
        }
        if self.stream.readable() {
            let room = buffer.initialize_unfilled();
            let count = self.stream.read(self.started.elapsed(), room);
            buffer.advance(count);
        }
        let ended = self.stream.at_end();
        self.transmit();
        if buffer.filled().len() > before || ended {
            return Poll::Ready(Ok(()));
        }
        self.watch_time();
        self.error()
            .map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }

    fn poll_write(&mut self, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        // What there is no room for may find some once the connection has got what waits, or has brought
        // acknowledgements.
        for attempt in 0..3 {
            if let Some(error) = self.error() {
                return Poll::Ready(Err(error));
            }
            let mut taken = 0;
            for slice in slices {
                let count = self.stream.write(slice);
                taken += count;
                if count < slice.len() {
                    break;
                }
            }
            if taken > 0 {
                if self.stream.unsent() >= ENOUGH {
                    self.transmit();
                }
                return Poll::Ready(Ok(taken));
            }
            match attempt {
                0 => self.transmit(),
                1 => self.receive(None),
                // Whoever only writes has to answer pings, too, and to notice a dead connection.
                _ => {
                    self.transmit();
                    self.watch_time();
                }
            }
        }
        Poll::Pending
    }

    fn poll_flush(&mut self) -> Poll<io::Result<()>> {
        self.transmit();
        match self.error() {
            Some(error) => Poll::Ready(Err(error)),
            None if self.stream.has_outgoing() || self.unflushed => {
                self.watch_time();
                Poll::Pending
            }
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(&mut self) -> Poll<io::Result<()>> {
        self.stream.finish();
        self.transmit();
        // Nobody reads any more, and acknowledgements come behind data.
        self.receive(None);
        let mut nowhere = [0; 4096];
        while self.stream.read(self.started.elapsed(), &mut nowhere) > 0 {}
        let ended = self.stream.at_end();
        self.transmit();
        self.watch_time();
        let closing = self
            .closing
            .get_or_insert_with(|| Box::pin(sleep(LAST_WORD)));
        let cx = &mut Context::from_waker(&self.waker);
        let too_long = closing.as_mut().poll(cx).is_ready();
        let both = ended && self.connection.is_none();
        if !(self.over.is_some() || self.stream.finished() || both || too_long) {
            return Poll::Pending;
        }
        match &mut self.connection {
            Some(connection) if !too_long => {
                // The stream has come to its end, and how the connection ends changes nothing.
                let _closed = ready!(Pin::new(connection).poll_shutdown(cx));
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Session {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let shared = &*self.0;
        shared.wakers.read.register(cx.waker());
        let mut state = shared.lock();
        let was_full = state.stream.room() == 0;
        let polled = state.poll_read(buf);
        shared.tell(&mut state);
        if was_full && state.stream.room() > 0 {
            shared.wakers.write.wake();
        }
        polled
    }
}

impl AsyncWrite for Session {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.write(cx, |state| state.poll_write(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write(cx, State::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write(cx, State::poll_shutdown)
    }
}

impl Shared {
    fn write<T>(&self, cx: &Context<'_>, poll: impl FnOnce(&mut State) -> T) -> T {
        self.wakers.write.register(cx.waker());
        let mut state = self.lock();
        let news = |state: &State| {
            state.stream.readable() || state.stream.end_arrived() || state.over.is_some()
        };
        let had_news = news(&state);
        let polled = poll(&mut state);
        self.tell(&mut state);
        if !had_news && news(&state) {
            self.wakers.read.wake();
        }
        polled
    }
}

#[cfg(test)]
mod tests;
