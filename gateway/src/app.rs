//! The only place that builds parts: configuration in, a running gateway out.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::handshake::{NoRandomness, random_id};

use crate::{
    admin,
    agents::SeenHellos,
    audit::{Audit, SinkError},
    authn::{
        people::{People, PeopleError},
        standing::Grounds,
        workload::Workloads,
    },
    clock::Clock,
    config::Config,
    drain,
    handed::Sockets,
    keys::Keys,
    live::Live,
    login,
    quota::Quotas,
    replicas::{self, Replicas, identity::Identity},
    server,
    slow::SlowReaders,
    store::{Store, StoreError},
    tls::{Certificate, CertificateError},
    tunnels::Tunnels,
};

/// Everything that a request may need.
#[derive(Debug)]
pub struct Gateway {
    /// What the operator asked for.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// What agents and callers check the public port's certificate against, in PEM; `None`: their system's own.
    pub certificate_authority: Option<String>,
    /// The gateway's own keys.
    pub keys: Arc<Keys>,
    /// Users, policies, memberships.
    pub store: Store,
    /// Issuers of people besides the gateway's own.
    pub people: Arc<People>,
    /// Issuers of workloads.
    pub workloads: Workloads,
    /// The gateway's running copies.
    pub replicas: Replicas,
    /// Agents' sessions.
    pub tunnels: Tunnels,
    /// What is in use.
    pub quotas: Quotas,
    /// What was done.
    pub audit: Audit,
    /// Streams in flight.
    pub live: Live,
    /// Answers on their way to readers.
    pub slow: SlowReaders,
    /// Hellos seen.
    pub hellos: SeenHellos,
    /// The embedded issuer's state.
    pub login: login::State,
    /// Answers by status.
    pub requests: admin::Requests,
    /// Owns sessions and upgraded streams.
    pub tasks: TaskTracker,
    /// Owns connections with other replicas.
    pub peers: TaskTracker,
    /// Owns the public port's connections.
    pub connections: TaskTracker,
    /// Cancelled when the gateway is told to end: it opens no new session.
    pub leaving: CancellationToken,
    /// Cancelled when the public port takes no more connections.
    pub closed: CancellationToken,
    /// Cancelled when the public port's connections are to end with what they have.
    pub drain: CancellationToken,
}

/// Why a gateway doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address can't be had.
    #[error("{field} = {address} can't be listened on")]
    Listen {
        /// The key in the configuration.
        field: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The public port's certificate.
    #[error("tls: the certificate can't be used")]
    Certificate(#[source] CertificateError),
    /// The certificate authority's file.
    #[error("certificate_authority = {path:?} can't be read")]
    CertificateAuthority {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file with other issuers.
    #[error(transparent)]
    People(#[from] PeopleError),
    /// The audit log.
    #[error("the audit log can't be written")]
    Audit(#[source] SinkError),
    /// The database.
    #[error("the database can't be used")]
    Store(#[source] StoreError),
    /// No name for this replica.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// Other replicas can't be reached.
    #[error("TLS with other replicas can't be set up")]
    Peers(#[from] rustls::Error),
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    public: SocketAddr,
    admin: SocketAddr,
    peer: Option<SocketAddr>,
    /// The public port's socket is not this process's own.
    handed_over: bool,
    loops: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Binds, then serves; returns when both listeners accept.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: Config,
        clock: Clock,
        keys: Arc<Keys>,
        store: Store,
    ) -> Result<Running, StartError> {
        Self::start_on(Sockets::default(), config, clock, keys, store).await
    }

    /// The same, on sockets that were bound by somebody else.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(
        sockets: Sockets,
        config: Config,
        clock: Clock,
        keys: Arc<Keys>,
        store: Store,
    ) -> Result<Running, StartError> {
        let handed_over = sockets.public.is_some();
        let certificate = match &config.tls {
            Some(tls) => Some(
                Certificate::load(&tls.certificate, &tls.key).map_err(StartError::Certificate)?,
            ),
            None => None,
        };
        let certificate_authority = match &config.certificate_authority {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|source| {
                StartError::CertificateAuthority {
                    path: path.clone(),
                    source,
                }
            })?),
            None => None,
        };
        let people = Arc::new(People::load(&config)?);
        let (audit, writer) = Audit::open(config.audit.clone(), clock.clone())
            .await
            .map_err(StartError::Audit)?;
        let (listener, public) = bind("listen", config.listen, sockets.public).await?;
        let (admin_listener, admin) =
            bind("admin_listen", config.admin_listen, sockets.admin).await?;
        let (peer_listener, peer) = match &config.peer {
            Some(peer) => {
                let (listener, bound) = bind("peer_listen", peer.listen, sockets.peer).await?;
                (Some((listener, peer.told(bound))), Some(bound))
            }
            None => (None, None),
        };
        let identity = Identity::new(random_id()?, Arc::clone(&keys), clock.clone());
        let told = peer_listener.as_ref().map(|(_, told)| told.clone());
        let parts = (store.clone(), Arc::clone(&keys), clock.clone());
        let replicas = Replicas::new(&identity, told, parts)?;
        store
            .belongs_to(keys.root())
            .await
            .map_err(StartError::Store)?;
        // Before anything is signed that others have to believe.
        replicas
            .join(&keys, clock.unix())
            .await
            .map_err(StartError::Store)?;
        let gateway = Arc::new(Self {
            quotas: Quotas::new(config.limits, store.clone(), replicas.id()),
            audit,
            live: Live::new(clock.clone()),
            slow: SlowReaders::new(config.limits.slow_readers_bytes),
            login: login::State::new(&config),
            workloads: Workloads::default(),
            config,
            clock,
            certificate_authority,
            keys,
            store,
            people,
            replicas,
            tunnels: Tunnels::default(),
            hellos: SeenHellos::default(),
            requests: admin::Requests::default(),
            tasks: TaskTracker::new(),
            peers: TaskTracker::new(),
            connections: TaskTracker::new(),
            leaving: CancellationToken::new(),
            closed: CancellationToken::new(),
            drain: CancellationToken::new(),
        });
        let mut loops = vec![
            own(server::run(
                Arc::clone(&gateway),
                listener,
                certificate.clone(),
            )),
            own(admin::run(Arc::clone(&gateway), admin_listener)),
            own(replicas::renew_keys(Arc::clone(&gateway))),
            own(Replicas::keep(Arc::clone(&gateway))),
            own(Replicas::say_sessions(Arc::clone(&gateway))),
            own(replicas::follow(Arc::clone(&gateway))),
            own(Replicas::tell_agents(Arc::clone(&gateway))),
            own(writer.run()),
            own(gateway.quotas.clone().forget_idle()),
            own({
                let serving = Arc::clone(&gateway);
                let others = move || serving.replicas.others();
                gateway.quotas.clone().share(others)
            }),
            own(Arc::clone(&gateway.people).watch(gateway.store.clone(), gateway.clock.clone())),
            own(gateway.slow.clone().bound(gateway.live.clone())),
        ];
        if handed_over && !gateway.store.is_shared() {
            // The one before this writes until it has drained, and the one after it before this has.
            let store = gateway.store.clone();
            loops.push(own(async move { store.follow_file().await }));
        }
        if let Some(certificate) = certificate {
            loops.push(own(certificate.watch()));
        }
        if let Some((listener, told)) = peer_listener {
            tracing::info!(address = told, "reached by other replicas");
            loops.push(own(replicas::listener::run(
                Arc::clone(&gateway),
                identity,
                listener,
            )));
        }
        tracing::info!(%public, %admin, replica = gateway.replicas.id(), url = %gateway.config.public_url, "gateway up");
        Ok(Running {
            gateway,
            public,
            admin,
            peer,
            handed_over,
            loops,
        })
    }
}

impl Gateway {
    /// What callers' standings are looked at against.
    pub(crate) fn grounds(&self) -> Grounds {
        Grounds {
            store: self.store.clone(),
            clock: self.clock.clone(),
            people: Arc::clone(&self.people),
        }
    }
}

/// A task that ends with the [`Running`] that owns it.
#[expect(clippy::disallowed_methods, reason = "aborted when its owner drops")]
fn own(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

async fn bind(
    field: &'static str,
    address: SocketAddr,
    given: Option<std::net::TcpListener>,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        field,
        address,
        source,
    };
    let listener = match given {
        Some(socket) => {
            socket.set_nonblocking(true).map_err(failed)?;
            TcpListener::from_std(socket).map_err(failed)?
        }
        None => TcpListener::bind(address).await.map_err(failed)?,
    };
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl Running {
    /// Where callers and agents connect.
    pub const fn public_address(&self) -> SocketAddr {
        self.public
    }

    /// Where health and metrics are.
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where other replicas connect.
    pub const fn peer_address(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The gateway itself.
    pub const fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Drains, as [`drain`](mod@drain) says.
    pub async fn drain(self) {
        drain::run(&self.gateway, self.handed_over).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.loops {
            task.abort();
        }
        self.gateway.closed.cancel();
        self.gateway.drain.cancel();
        self.gateway.tunnels.close_all("the gateway is gone");
    }
}
