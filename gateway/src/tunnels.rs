//! The sessions that agents hold open, by membership, and how a request goes down one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Response};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use towline_proto::{
    assertion::SessionKey,
    body,
    handshake::{Accepted, Hello, ResumptionKey},
    jws::PublicKey,
    names::Membership,
    session::{Handle, Notice, Phase},
    tunnel,
};

use crate::{authn::Identity, error::Refused, quota::Lease, replicas::PassedOn};
use grants::Granted;
use shares::Shares;

pub(crate) use grants::Grants;
pub use message::RequestBody;
pub(crate) use message::{Answered, Message, Unanswered};
pub(crate) use shares::Place;

mod grants;
mod message;
mod repeatable;
mod shares;

/// How long ago an agent may have been here that is waited for; also how long after the gateway's own start agents are waited for.
const RECENT: Duration = Duration::from_secs(60);

/// Sessions that a membership may have here, those without a connection included.
pub const MAX_SESSIONS: usize = 32;

/// How long a session has to be without a connection before another may take its place.
const ABANDONED: Duration = Duration::from_secs(1);

/// One live session of a membership.
#[derive(Debug)]
pub struct Tunnel {
    hello: Hello,
    handle: Handle,
    /// The enrolled key of its agent.
    agent: PublicKey,
    resumption: ResumptionKey,
    key: SessionKey,
    grants: Grants,
    requests: SendRequest<RequestBody>,
    shares: Shares,
    draining: AtomicBool,
    closed: CancellationToken,
}

/// A request that is on its way, or the answer to it, with what it holds.
#[derive(Debug)]
pub struct Sent {
    /// The agent's answer.
    pub response: Response<Incoming>,
    /// What is written into the request's body, for an upgrade.
    pub outgoing: Option<body::Sender>,
    /// Held until the stream ends.
    pub held: Held,
}

/// A stream's place in its tunnel, which another replica has for it if the session is there, and its lease.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    _place: Option<Place>,
    /// Cancelled when the session is over.
    pub closed: CancellationToken,
}

impl Held {
    pub(crate) const fn new(lease: Lease, place: Option<Place>, closed: CancellationToken) -> Self {
        Self {
            lease,
            _place: place,
            closed,
        }
    }

    /// The lease that the stream runs on.
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }
}

impl Tunnel {
    /// A tunnel over an HTTP/2 connection that was just made on a session.
    pub(crate) fn new(
        hello: Hello,
        accepted: Accepted,
        agent: PublicKey,
        grants: Grants,
        handle: Handle,
        requests: SendRequest<RequestBody>,
    ) -> Self {
        Self {
            hello,
            handle,
            agent,
            resumption: accepted.resumption,
            key: accepted.key,
            grants,
            requests,
            shares: Shares::new(tunnel::MAX_STREAMS),
            draining: AtomicBool::new(false),
            closed: CancellationToken::new(),
        }
    }

    /// Cancelled when the session is over.
    pub const fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// It gets no new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new requests may go down it.
    pub(crate) fn is_open(&self) -> bool {
        self.handle.is_up() && !self.draining.load(Ordering::Relaxed) && !self.closed.is_cancelled()
    }

    /// Waits a moment for another connection, where it has lost one; whether it takes requests.
    pub(crate) async fn opened_within(&self, limit: Duration) -> bool {
        let mut phase = self.handle.phase();
        let up = phase.wait_for(|now| *now != Phase::Down);
        // Whatever comes of it.
        drop(tokio::time::timeout(limit, up).await);
        self.is_open()
    }

    /// Whose session it is.
    pub const fn membership(&self) -> &Membership {
        &self.hello.membership
    }

    /// What its agent told when it opened it.
    pub(crate) const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Gives the session other connections.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The enrolled key of the agent that opened it.
    pub const fn agent(&self) -> &PublicKey {
        &self.agent
    }

    /// The secret that other connections are asked for.
    pub const fn resumption(&self) -> &ResumptionKey {
        &self.resumption
    }

    /// Requests in it now.
    pub fn streams(&self) -> usize {
        self.shares.taken()
    }

    /// Sends down the tunnel what another replica has authorized, and waits for the answer's head.
    ///
    /// # Errors
    /// The session is over, or it is full.
    pub(crate) async fn pass(
        &self,
        passed: PassedOn,
    ) -> Result<(Response<Incoming>, Place), Unanswered> {
        let (principal, request) = passed.into_parts();
        let place = self.shares.take(&principal)?;
        let mut message = Message::passed_on(request);
        message.seal(&self.key)?;
        let answered = self.answered(message).await?;
        Ok((answered.response, place))
    }

    async fn answered(&self, message: Message) -> Result<Answered, Unanswered> {
        let answered = message.send(&self.requests, &self.closed).await;
        if matches!(answered, Err(Unanswered::NotTaken)) {
            // Its agent goes: the next finds another session.
            self.drain();
        }
        answered
    }

    /// Sends an authorized request down the tunnel, in its caller's name, and waits for the answer's head.
    ///
    /// # Errors
    /// The session is over or going, or it is full.
    pub(crate) async fn send(
        &self,
        mut message: Message,
        identity: &Arc<Identity>,
    ) -> Result<(Answered, Place), Unanswered> {
        let place = self.shares.take(&identity.principal)?;
        let granted = self.grants.of(identity)?;
        message.grant(granted);
        message.seal(&self.key)?;
        let answered = self.answered(message).await?;
        Ok((answered, place))
    }
}

fn text(value: &str) -> Result<HeaderValue, Refused> {
    HeaderValue::from_str(value).map_err(|error| Refused::Header(error.to_string()))
}

/// The live sessions of every membership.
#[derive(Debug, Clone)]
pub struct Tunnels {
    state: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
    resumed: Arc<Resumed>,
    started: Instant,
}

/// What went on over another connection.
#[derive(Debug, Default)]
struct Resumed {
    sessions: AtomicU64,
    replayed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    live: HashMap<Membership, Vec<Arc<Tunnel>>>,
    lost: HashMap<Membership, Instant>,
    /// What agents are told of this replica and the others.
    notice: Notice,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            arrived: Arc::default(),
            resumed: Arc::default(),
            started: Instant::now(),
        }
    }
}

/// A session's entry; dropping it takes the session out.
#[derive(Debug)]
pub struct Registered {
    tunnels: Tunnels,
    tunnel: Arc<Tunnel>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.tunnel.closed.cancel();
        // Answers that are under way have no other end than the connection's.
        self.tunnel.handle.retire("the session was closed");
        let mut state = self.tunnels.lock();
        let membership = self.tunnel.membership();
        if let Some(live) = state.live.get_mut(membership) {
            live.retain(|other| !Arc::ptr_eq(other, &self.tunnel));
            if live.is_empty() {
                state.live.remove(membership);
                state.lost.insert(membership.clone(), Instant::now());
            }
        }
    }
}

impl Tunnels {
    /// Adds a session. Those that wait for a connection of an agent that has begun anew meanwhile wait no longer.
    pub fn register(&self, tunnel: Arc<Tunnel>) -> Registered {
        let mut state = self.lock();
        state.lost.remove(tunnel.membership());
        state.lost.retain(|_, since| since.elapsed() < RECENT);
        let live = state.live.entry(tunnel.membership().clone()).or_default();
        let abandoned: Vec<Handle> = live
            .iter()
            .filter(|other| {
                !other.handle.is_up()
                    && !tunnel.hello.host.is_empty()
                    && other.hello.host == tunnel.hello.host
                    && other.hello.process != tunnel.hello.process
            })
            .map(|other| other.handle.clone())
            .collect();
        live.push(Arc::clone(&tunnel));
        let notice = state.notice;
        tunnel.handle.tell(notice);
        drop(state);
        for handle in abandoned {
            handle.end("its agent has started anew");
        }
        self.arrived.notify_waiters();
        Registered {
            tunnels: self.clone(),
            tunnel,
        }
    }

    /// Resolves when a session begins or goes on.
    pub(crate) fn arrived(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// Whether a membership may have one more session here. Where it has all it may, one that waits for a connection
    /// has to go.
    pub fn room(&self, membership: &Membership) -> bool {
        let state = self.lock();
        let live = state.live.get(membership);
        let handles = live.into_iter().flatten().map(|tunnel| &tunnel.handle);
        let there: Vec<&Handle> = handles.filter(|handle| !handle.is_over()).collect();
        if there.len() < MAX_SESSIONS {
            return true;
        }
        // One that has been without for a moment only is about to go on.
        let down = there
            .into_iter()
            .filter_map(|handle| Some((handle.down_for()?, handle.clone())))
            .filter(|(down, _)| *down > ABANDONED)
            .max_by_key(|(down, _)| *down);
        drop(state);
        down.inspect(|(_, handle)| handle.end("its membership has too many sessions"))
            .is_some()
    }

    /// All sessions that are held here.
    pub(crate) fn all(&self) -> Vec<Arc<Tunnel>> {
        self.lock().live.values().flatten().cloned().collect()
    }

    /// Tells every agent, now or when its session begins, how many replicas there are.
    pub fn tell_replicas(&self, replicas: u32) {
        self.tell(|notice| notice.replicas = replicas);
    }

    /// Tells every agent that this replica is going.
    pub fn tell_leaving(&self) {
        self.tell(|notice| notice.leaving = true);
    }

    fn tell(&self, change: impl FnOnce(&mut Notice)) {
        let mut state = self.lock();
        let before = state.notice;
        change(&mut state.notice);
        if state.notice != before {
            for tunnel in state.live.values().flatten() {
                tunnel.handle.tell(state.notice);
            }
        }
    }

    /// Resolves when every agent has said that it has a session with another replica; those whose session is over have
    /// none to say it over.
    pub async fn all_moved(&self) {
        for tunnel in self.all() {
            let mut told = tunnel.handle.told();
            tokio::select! {
                _ = told.wait_for(|notice| notice.leaving) => {}
                () = tunnel.closed.cancelled() => {}
            }
        }
    }

    /// A session of a membership by its id.
    pub fn session(&self, membership: &Membership, id: &str) -> Option<Arc<Tunnel>> {
        let state = self.lock();
        let live = state.live.get(membership)?;
        live.iter().find(|tunnel| tunnel.handle.id() == id).cloned()
    }

    /// A session goes on, and so many bytes were sent again.
    pub fn resumed(&self, replayed: u64) {
        self.resumed.sessions.fetch_add(1, Ordering::Relaxed);
        self.resumed.replayed.fetch_add(replayed, Ordering::Relaxed);
        self.arrived.notify_waiters();
    }

    /// How often sessions went on over another connection, and how many bytes were sent again.
    pub fn resumptions(&self) -> (u64, u64) {
        let Resumed { sessions, replayed } = &*self.resumed;
        (
            sessions.load(Ordering::Relaxed),
            replayed.load(Ordering::Relaxed),
        )
    }

    /// A membership's session with the fewest streams.
    pub(crate) fn best(&self, membership: &Membership) -> Option<Arc<Tunnel>> {
        let state = self.lock();
        let live = state.live.get(membership)?;
        live.iter()
            .filter(|tunnel| tunnel.is_open())
            .min_by_key(|tunnel| tunnel.streams())
            .cloned()
    }

    /// Whether a membership's agent was here a moment ago.
    pub(crate) fn expected(&self, membership: &Membership) -> bool {
        let state = self.lock();
        let lost = state.lost.get(membership);
        self.started.elapsed() < RECENT
            || lost.is_some_and(|since| since.elapsed() < RECENT)
            // A session that waits for a connection.
            || state.live.contains_key(membership)
    }

    /// How many sessions of a membership are up here.
    pub fn sessions(&self, membership: &Membership) -> usize {
        let state = self.lock();
        let live = state.live.get(membership);
        live.into_iter()
            .flatten()
            .filter(|tunnel| tunnel.is_open())
            .count()
    }

    /// How many requests are in a membership's sessions here.
    pub fn streams(&self, membership: &Membership) -> usize {
        let state = self.lock();
        let live = state.live.get(membership);
        live.map_or(0, |live| live.iter().map(|tunnel| tunnel.streams()).sum())
    }

    /// How many requests are in all sessions here.
    pub fn requests(&self) -> usize {
        let state = self.lock();
        let all = state.live.values().flatten();
        all.map(|tunnel| tunnel.streams()).sum()
    }

    /// How many sessions there are here in all, and how many of them wait for a connection.
    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        let all = || state.live.values().flatten();
        let down = all().filter(|tunnel| !tunnel.handle.is_up()).count();
        (all().count(), down)
    }

    /// Ends a membership's sessions; their streams end with them.
    pub fn close(&self, membership: &Membership, reason: &str) {
        let live = self.lock().live.remove(membership).unwrap_or_default();
        for tunnel in live {
            tracing::info!(%membership, session = tunnel.handle.id(), reason, "session closed");
            tunnel.closed.cancel();
        }
    }

    /// Ends every session.
    pub fn close_all(&self, reason: &str) {
        let all: Vec<Membership> = self.lock().live.keys().cloned().collect();
        for membership in all {
            self.close(&membership, reason);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
