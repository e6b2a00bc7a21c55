//! Puts the agent together and runs it until it is told to end.
//!
//! Nothing that the network does ends an agent: it dials again, forever. Told to end, it asks the gateway to
//! send new requests elsewhere, lets running streams finish up to the drain limit, and goes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Notify, task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::{jws::KeyPair, registration::Registration};

use crate::{
    backoff::Backoff,
    cluster::{self, Cluster, ClusterError},
    config::{Config, Enrolment, KeyPlace},
    dial::{Dialer, DialerError},
    enrol::{self, KeyError, RedeemError},
    guard::end_to_end::{EndToEnd, InvalidFile},
    health,
    open::Opener,
    role::Role,
    sessions::{self, Parts},
    state::State,
    upstream::{Upstream, UpstreamError, chain},
};

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
    parts: Arc<Parts>,
    key_is_new: bool,
    health: Option<TcpListener>,
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
        let state = Arc::new(State::new(Arc::clone(&upstream)));
        let parts = Parts {
            opener,
            registration,
            role: Arc::new(Role::new(cluster.clone())),
            cluster,
            reviews: Arc::default(),
            upstream,
            allowed: Arc::new(config.allowed),
            end_to_end,
            drain_limit: config.drain_limit,
            state,
            news: Notify::new(),
        };
        Ok(Self {
            parts: Arc::new(parts),
            key_is_new,
            health,
        })
    }

    /// Where health is told.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref()?.local_addr().ok()
    }

    /// What can be seen of it while it runs.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.parts.state)
    }

    /// Runs until `shutdown`, and then until the streams are done or the drain limit is reached.
    ///
    /// # Errors
    /// The gateway refuses a new agent's token.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StartError> {
        let parts = Arc::clone(&self.parts);
        let mut beside = JoinSet::new();
        if let Some(listener) = self.health.take() {
            beside.spawn(health::serve(listener, Arc::clone(&parts.state)));
        }
        let upstream = Arc::clone(&parts.upstream);
        beside.spawn(async move { upstream.maintain().await });
        // Before the first request, so that none is refused for a group that could have been left out.
        parts.role.look().await;
        let role = Arc::clone(&parts.role);
        beside.spawn(async move { role.follow().await });
        if let Some(end_to_end) = parts.end_to_end.clone() {
            beside.spawn(async move { end_to_end.follow().await });
        }
        let draining = parts.state.draining.clone();
        let signal = shutdown.clone();
        beside.spawn(async move {
            signal.cancelled().await;
            draining.cancel();
        });
        if self.key_is_new {
            tracing::info!(
                key = parts.opener.key().public().id(),
                "made a key, redeeming the registration token"
            );
            redeem(
                parts.opener.dialer(),
                &parts.registration,
                parts.opener.key(),
                &shutdown,
            )
            .await?;
        }
        let may_redeem = !self.key_is_new && parts.registration.token.is_some();
        sessions::keep(parts, may_redeem, shutdown).await;
        Ok(())
    }
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
