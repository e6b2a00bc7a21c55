//! Puts the agent together and keeps a session up until it is told to end.
//!
//! Nothing that the network does ends an agent: it dials again, forever. Told to end, it asks the gateway to
//! send new requests elsewhere, lets running streams finish up to the drain limit, and goes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::{
    handshake::{Facts, Opened, ResumptionKey, random_id},
    jws::KeyPair,
    registration::Registration,
    session::{Handle, Phase, Session},
    tunnel,
};

use crate::{
    backoff::Backoff,
    clock::GatewayClock,
    cluster::{self, Cluster, ClusterError},
    config::{Config, Enrolment, KeyPlace},
    dial::{Dialer, DialerError},
    enrol::{self, KeyError, RedeemError},
    guard::{
        AllowedSystem, Guard,
        end_to_end::{EndToEnd, InvalidFile},
    },
    health,
    open::{OpenError, Opener},
    role::Role,
    serve::{self, MAX_STREAMS, Reviews, Shared},
    upstream::{Upstream, UpstreamError, chain},
};

/// How long a facts' answer is good for.
const FACTS: Duration = Duration::from_secs(600);

/// A session that ended sooner shows that dialling at once does no good.
const SHORT: Duration = Duration::from_secs(1);

/// What streams that were cut at the drain limit get to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why an agent doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See there.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// See there.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// See there.
    #[error(transparent)]
    Dialer(#[from] DialerError),
    /// See there.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// See there.
    #[error(transparent)]
    Redeem(#[from] RedeemError),
    /// See there.
    #[error(transparent)]
    EndToEnd(#[from] InvalidFile),
    /// The address for health is taken.
    #[error("cannot listen on {0} (--health-listen)")]
    Health(SocketAddr, #[source] std::io::Error),
}

/// An agent that is put together and has not dialled yet.
pub struct App {
    opener: Opener,
    registration: Registration,
    cluster: Cluster,
    role: Arc<Role>,
    reviews: Arc<Reviews>,
    upstream: Arc<Upstream>,
    allowed: Arc<AllowedSystem>,
    end_to_end: Option<Arc<EndToEnd>>,
    drain_limit: Duration,
    key_is_new: bool,
    health: Option<TcpListener>,
    state: Arc<State>,
}

/// What can be seen of a running agent.
pub struct State {
    sessions: AtomicUsize,
    resumptions: AtomicU64,
    streams: Arc<Semaphore>,
    upstream: Arc<Upstream>,
    draining: CancellationToken,
}

impl State {
    /// A session is up, and the agent means to keep it.
    pub fn ready(&self) -> bool {
        self.sessions() > 0 && !self.draining.is_cancelled()
    }

    /// How often a session went on over another connection.
    pub fn resumptions(&self) -> u64 {
        self.resumptions.load(Ordering::Relaxed)
    }

    /// Sessions that are up.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Streams that are being served.
    pub fn streams(&self) -> usize {
        MAX_STREAMS.saturating_sub(self.streams.available_permits())
    }

    /// Connections to the API server, for short and for long-running requests.
    pub fn connections(&self) -> (usize, usize) {
        self.upstream.connections()
    }
}

/// Counts a session for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Redeems the registration's token and does nothing else.
///
/// # Errors
/// See [`StartError`]; where the network is at fault, it is tried again until `shutdown`.
pub async fn enrol(enrolment: Enrolment, shutdown: &CancellationToken) -> Result<(), StartError> {
    let (key, _) = match &enrolment.key {
        KeyPlace::File(path) => enrol::key_in_file(path)?,
        KeyPlace::Secret(name) => {
            let (kubeconfig, context) = (
                enrolment.kubeconfig.as_deref(),
                enrolment.context.as_deref(),
            );
            let cluster = Cluster::new(cluster::config(kubeconfig, context).await?)?;
            enrol::key_in_secret(name, &cluster).await?
        }
    };
    let Enrolment {
        registration,
        gateway,
        proxies,
        ..
    } = enrolment;
    let dialer = Dialer::new(
        gateway,
        registration.certificate_authority.as_deref(),
        proxies,
    )?;
    redeem(&dialer, &registration, &key, shutdown).await?;
    Ok(())
}

impl App {
    /// Finds the cluster and the key, and binds the health address.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn new(config: Config) -> Result<Self, StartError> {
        let Enrolment {
            registration,
            gateway,
            key,
            kubeconfig,
            context,
            proxies,
        } = config.enrolment;
        let end_to_end = config.end_to_end.map(|settings| {
            let membership = registration.membership.clone();
            EndToEnd::load(settings, membership, &registration.gateway)
        });
        let end_to_end = end_to_end.transpose()?.map(Arc::new);
        let dialer = Dialer::new(
            gateway,
            registration.certificate_authority.as_deref(),
            proxies,
        )?;
        let api_server = cluster::config(kubeconfig.as_deref(), context.as_deref()).await?;
        let upstream = Arc::new(Upstream::new(&api_server, TaskTracker::new()).await?);
        let cluster = Cluster::new(api_server)?;
        let health = match config.health {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|e| StartError::Health(address, e))?,
            ),
            None => None,
        };
        let (key, key_is_new) = match &key {
            KeyPlace::File(path) => enrol::key_in_file(path)?,
            KeyPlace::Secret(name) => enrol::key_in_secret(name, &cluster).await?,
        };
        let opener = Opener::new(
            dialer,
            key,
            registration.membership.clone(),
            registration.root_key,
        );
        let state = State {
            sessions: AtomicUsize::new(0),
            resumptions: AtomicU64::new(0),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            upstream: Arc::clone(&upstream),
            draining: CancellationToken::new(),
        };
        Ok(Self {
            opener,
            registration,
            role: Arc::new(Role::new(cluster.clone())),
            cluster,
            reviews: Arc::default(),
            upstream,
            allowed: Arc::new(config.allowed),
            end_to_end,
            drain_limit: config.drain_limit,
            key_is_new,
            health,
            state: Arc::new(state),
        })
    }

    /// Where health is told.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref()?.local_addr().ok()
    }

    /// What can be seen of it while it runs.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Runs until `shutdown`, and then until the streams are done or the drain limit is reached.
    ///
    /// # Errors
    /// The gateway refuses a new agent's token.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StartError> {
        let mut beside = JoinSet::new();
        if let Some(listener) = self.health.take() {
            beside.spawn(health::serve(listener, Arc::clone(&self.state)));
        }
        let upstream = Arc::clone(&self.upstream);
        beside.spawn(async move { upstream.maintain().await });
        // Before the first request, so that none is refused for a group that could have been left out.
        self.role.look().await;
        let role = Arc::clone(&self.role);
        beside.spawn(async move { role.follow().await });
        if let Some(end_to_end) = self.end_to_end.clone() {
            beside.spawn(async move { end_to_end.follow().await });
        }
        let draining = self.state.draining.clone();
        let signal = shutdown.clone();
        beside.spawn(async move {
            signal.cancelled().await;
            draining.cancel();
        });
        if self.key_is_new {
            tracing::info!(
                key = self.opener.key().public().id(),
                "made a key, redeeming the registration token"
            );
            redeem(
                self.opener.dialer(),
                &self.registration,
                self.opener.key(),
                &shutdown,
            )
            .await?;
        }
        self.sessions(&shutdown).await;
        Ok(())
    }

    async fn sessions(&self, shutdown: &CancellationToken) {
        let mut backoff = Backoff::default();
        let mut facts = KnownFacts::new();
        let mut may_redeem = !self.key_is_new && self.registration.token.is_some();
        while !shutdown.is_cancelled() {
            let opening = async {
                self.opener
                    .open(facts.fresh(&self.cluster).await, &[])
                    .await
            };
            let began = Instant::now();
            let opened = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                opened = opening => opened,
            };
            let mut tried = began.elapsed();
            match opened {
                Ok((opened, session)) => {
                    let began = Instant::now();
                    let reached = self.serve(opened, session, &facts.facts, shutdown).await;
                    backoff.ended(began.elapsed());
                    tried = Duration::ZERO;
                    // It is there, and has been waited for already.
                    if reached && began.elapsed() > SHORT && !shutdown.is_cancelled() {
                        continue;
                    }
                }
                Err(error) if error.refused() && may_redeem => {
                    // The key was stored, and the agent died before the token was redeemed; or the
                    // membership was made anew.
                    tracing::info!(error = %chain(&error), "the gateway does not take the key, redeeming the token");
                    may_redeem = self.redeem_again().await;
                }
                Err(error) => log_failure(&error),
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = sleep(backoff.wait(tried)) => {}
            }
        }
    }

    /// Whether it makes sense to redeem once more.
    async fn redeem_again(&self) -> bool {
        match enrol::redeem(self.opener.dialer(), &self.registration, self.opener.key()).await {
            Ok(()) => {
                tracing::info!("the gateway knows this agent's key now");
                true
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "the gateway does not know this agent's key");
                error.is_network()
            }
        }
    }

    /// Serves one session to its end, over one connection after the other; whether it ended because a gateway was reached
    /// that can't go on with it.
    async fn serve(
        &self,
        opened: Opened,
        session: Session,
        facts: &Facts,
        shutdown: &CancellationToken,
    ) -> bool {
        let handle = session.handle();
        let id = handle.id();
        let (key, grace) = (Arc::clone(&opened.resumption), opened.grace);
        let over = CancellationToken::new();
        let _ends_with_the_session = over.clone().drop_guard();
        let shared = Arc::new(Shared {
            guard: Guard::new(
                opened,
                self.registration.membership.clone(),
                Arc::clone(&self.allowed),
                self.end_to_end.clone(),
            ),
            upstream: Arc::clone(&self.upstream),
            role: Arc::clone(&self.role),
            reviews: Arc::clone(&self.reviews),
            streams: Arc::clone(&self.state.streams),
            joins: TaskTracker::new(),
            over: over.clone(),
        });
        let of_service = Arc::clone(&shared);
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = Arc::clone(&of_service);
            async move { Ok::<_, Infallible>(serve::request(&shared, request).await) }
        });
        let served = async {
            let connection = tunnel::server().serve_connection(TokioIo::new(session), service);
            // Dropped at the end of this, which ends the session.
            let mut connection = pin!(connection);
            tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    tracing::info!(session = id, limit = ?self.drain_limit, "draining");
                    connection.as_mut().graceful_shutdown();
                    if let Ok(ended) = timeout(self.drain_limit, connection.as_mut()).await {
                        ended
                    } else {
                        tracing::warn!(session = id, streams = self.state.streams(), "drain limit reached, cutting streams");
                        over.cancel();
                        timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
                    }
                }
            }
        };
        let session = Kept {
            handle: &handle,
            key: &key,
            grace,
            facts,
            clock: shared.guard.clock(),
        };
        let kept = self.keep(session, shutdown);
        let (ended, reached) = tokio::join!(served, kept);
        match ended {
            Ok(()) => tracing::info!(session = id, "session ended"),
            // A gateway that was told so may hang up first.
            Err(_) if shutdown.is_cancelled() => tracing::info!(session = id, "session ended"),
            Err(error) => tracing::warn!(session = id, error = %chain(&error), "session lost"),
        }
        reached
    }

    /// Gives a session another connection whenever it has lost one, until it is over; whether it is so because a
    /// gateway was reached that can't go on with it.
    async fn keep(&self, kept: Kept<'_>, shutdown: &CancellationToken) -> bool {
        let handle = kept.handle;
        let session = handle.id();
        let (mut phase, mut over) = (handle.phase(), handle.phase());
        let mut backoff = Backoff::default();
        let mut since = Instant::now();
        loop {
            let counted = Counted::new(&self.state.sessions);
            let ended = |now: &Phase| matches!(now, Phase::Down | Phase::Over);
            let Ok(Phase::Down) = phase.wait_for(ended).await.map(|now| *now) else {
                return false;
            };
            drop(counted);
            let reason = handle.lost();
            tracing::info!(session, reason, "connection lost, resuming");
            // A connection over which nothing came was as good as none, and isn't replaced at once.
            let mut wait = Duration::ZERO;
            if handle.carried_anything() {
                (since, backoff) = (Instant::now(), Backoff::default());
            } else {
                wait = backoff.wait(Duration::ZERO);
            }
            let resumed = async {
                sleep(wait).await;
                self.resume(&kept, &mut backoff).await
            };
            let unused = async {
                shutdown.cancelled().await;
                if self.state.streams() > 0 {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                _ = over.wait_for(|now| *now == Phase::Over) => return false,
                resumed = resumed => match resumed {
                    Ok(replayed) => {
                        tracing::info!(session, replayed, "session resumed");
                        self.state.resumptions.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        handle.end(&chain(&error));
                        return true;
                    }
                },
                () = sleep_until(since + kept.grace) => {
                    handle.end(&format!("nothing came within {:?}", kept.grace));
                }
                // Whoever ends doesn't wait for a gateway that has nothing more to ask.
                () = unused => handle.end("the agent ends"),
            }
        }
    }

    /// Tries until a session has a connection, or can't have one.
    async fn resume(&self, kept: &Kept<'_>, backoff: &mut Backoff) -> Result<u64, OpenError> {
        let Kept {
            handle,
            key,
            facts,
            clock,
            ..
        } = kept;
        loop {
            let began = Instant::now();
            match self.opener.resume(facts, handle, key, clock).await {
                Err(error) if !error.ends_session() => log_failure(&error),
                resumed => return resumed,
            }
            sleep(backoff.wait(began.elapsed())).await;
        }
    }
}

/// What it takes to go on with a session.
struct Kept<'a> {
    handle: &'a Handle,
    key: &'a ResumptionKey,
    grace: Duration,
    facts: &'a Facts,
    clock: &'a GatewayClock,
}

/// The cluster's facts, asked again when they are old or were not all known.
struct KnownFacts {
    facts: Facts,
    asked: Option<Instant>,
}

impl KnownFacts {
    fn new() -> Self {
        let facts = Facts {
            host: host(),
            // Without randomness no session is opened anyway.
            process: random_id().unwrap_or_default(),
            ..Facts::default()
        };
        Self { facts, asked: None }
    }

    async fn fresh(&mut self, cluster: &Cluster) -> &Facts {
        let whole = !self.facts.external_id.is_empty() && !self.facts.kubernetes_version.is_empty();
        if !whole || self.asked.is_none_or(|asked| asked.elapsed() > FACTS) {
            let Facts { host, process, .. } = std::mem::take(&mut self.facts);
            self.facts = Facts {
                host,
                process,
                ..cluster.facts().await
            };
            self.asked = Some(Instant::now());
        }
        &self.facts
    }
}

/// The name of this machine or pod, empty where the system doesn't tell.
fn host() -> String {
    #[cfg(unix)]
    return rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    String::new()
}

async fn redeem(
    dialer: &Dialer,
    registration: &Registration,
    key: &KeyPair,
    shutdown: &CancellationToken,
) -> Result<(), RedeemError> {
    let mut backoff = Backoff::default();
    loop {
        match enrol::redeem(dialer, registration, key).await {
            Ok(()) => {
                tracing::info!(membership = %registration.membership, "the gateway knows this agent's key now");
                return Ok(());
            }
            Err(error) if error.is_network() && !shutdown.is_cancelled() => {
                tracing::warn!(error = %chain(&error), "the token is not redeemed yet");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(backoff.wait(Duration::ZERO)) => {}
        }
    }
}

fn log_failure(error: &OpenError) {
    if error.refused() {
        tracing::error!(error = %chain(error), "no session");
    } else {
        tracing::warn!(error = %chain(error), "no session");
    }
}
