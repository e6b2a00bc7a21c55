//! Runs a session, over one connection after the other.

use std::{collections::HashMap, io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt as _, time::timeout};
use towline_proto::{
    handshake::{Accepted, Confirmation, HandshakeError, Hello},
    jws::PublicKey,
    names::Membership,
    session::{Connection, Phase, Session},
    tunnel,
    websocket::{End, WebSocketConnection},
};

use super::{Carrier, Resumption};
use crate::{
    app::Gateway,
    store::StoreError,
    tunnels::{Grants, RequestBody, Tunnel},
};

/// How long an agent has from the 101 to HTTP/2, and a connection from the 101 to its first byte.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection may be away before the membership is called disconnected.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// A connection that is about to be the session's.
pub(super) struct Upgraded {
    pub(super) upgrade: OnUpgrade,
    pub(super) carrier: Carrier,
}

impl Upgraded {
    async fn connection(self) -> Result<Box<dyn Connection>, hyper::Error> {
        let connection = TokioIo::new(self.upgrade.await?);
        Ok(match self.carrier {
            Carrier::Plain => Box::new(connection),
            Carrier::WebSocket => Box::new(WebSocketConnection::new(connection, End::Server).await),
        })
    }
}

/// What was agreed on for a new session.
pub(super) struct Beginning {
    pub(super) accepted: Accepted,
    /// What signed the proof.
    pub(super) signing: PublicKey,
    pub(super) hello: Hello,
    /// The key that is enrolled for the membership.
    pub(super) agent: PublicKey,
}

/// Why a session doesn't start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// The connection breaks, or isn't HTTP/2.
    #[error("the connection was lost")]
    Http(#[from] hyper::Error),
    /// It ends before the agent has shown whose hello it was.
    #[error("the connection was lost before its first bytes")]
    Lost(#[from] io::Error),
    /// The hello is somebody else's.
    #[error(transparent)]
    Confirmation(#[from] HandshakeError),
}

/// Runs a session from its first byte to its last.
pub(super) async fn run(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    upgraded: Upgraded,
    beginning: Beginning,
) {
    let carrier = upgraded.carrier;
    let Beginning {
        accepted,
        signing,
        hello,
        agent,
    } = beginning;
    let (membership, id) = (hello.membership.clone(), accepted.session.clone());
    let connect = async {
        let mut connection = upgraded.connection().await?;
        // Whoever replays an agent's hello gets no further.
        let mut said = [0; Confirmation::LENGTH];
        connection.read_exact(&mut said).await?;
        accepted.confirmation.check(&said)?;
        let session = Session::new(id.clone(), connection);
        let handle = session.handle();
        let (requests, connection) = tunnel::client()
            .handshake::<_, RequestBody>(TokioIo::new(session))
            .await?;
        // Whatever ate the 101 must not get requests.
        let mut phase = handle.phase();
        let _heard = phase.wait_for(|now| *now != Phase::New).await;
        Ok::<_, StartError>((handle, requests, connection))
    };
    let (handle, requests, connection) = match timeout(START_LIMIT, connect).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => {
            tracing::warn!(%client, %membership, error = &error as &dyn std::error::Error, "session did not start");
            return;
        }
        Err(_) => {
            tracing::warn!(%client, %membership, "session did not start within {START_LIMIT:?}");
            return;
        }
    };
    let grants = Grants::new(
        membership.clone(),
        id.clone(),
        Some(signing),
        Arc::clone(&gateway.keys),
        gateway.clock.clone(),
    );
    let tunnel = Tunnel::new(hello, accepted, agent, grants, handle, requests);
    let tunnel = Arc::new(tunnel);
    let closed = tunnel.closed().clone();
    let registered = gateway.tunnels.register(Arc::clone(&tunnel));
    tracing::info!(%client, %membership, session = id, ?carrier, agent = tunnel.hello().agent_version, host = tunnel.hello().host, "session up");
    gateway.replicas.note(&tunnel);
    // The key was looked at before the agent took its time to answer.
    if !is_enrolled(gateway, &tunnel).await {
        tracing::info!(%client, %membership, session = id, "the membership has another key by now");
        closed.cancel();
    }

    let mut over = pin!(outlive(gateway, &tunnel));
    let outcome = tokio::select! {
        biased;
        () = closed.cancelled() => Ok(()),
        outcome = connection => outcome,
        () = over.as_mut() => Ok(()),
    };
    // An agent that goes takes no more requests, and finishes what it has.
    tunnel.drain();
    gateway.replicas.note(&tunnel);
    tokio::select! {
        () = closed.cancelled() => {}
        () = over => {}
    }
    let reason = outcome
        .err()
        .map_or_else(|| "closed".to_owned(), |error| describe(&error));
    drop(registered);
    tracing::info!(%client, %membership, session = id, reason, "session over");
    gateway.replicas.note(&tunnel);
}

/// Goes on with a session over another connection.
pub(super) async fn resume(
    gateway: &Gateway,
    client: IpAddr,
    upgraded: Upgraded,
    resumption: Resumption,
) {
    let Resumption {
        tunnel,
        generation,
        position,
    } = resumption;
    let (membership, session) = (tunnel.membership(), tunnel.handle().id());
    let carrier = upgraded.carrier;
    let connection = match timeout(START_LIMIT, upgraded.connection()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%client, %membership, session, error = &error as &dyn std::error::Error, "connection did not start");
            return;
        }
        Err(_) => {
            tracing::info!(%client, %membership, session, "connection did not start within {START_LIMIT:?}");
            return;
        }
    };
    match tunnel.handle().attach(generation, connection, position) {
        Ok(replayed) => {
            tracing::info!(%client, %membership, session, ?carrier, generation, replayed, "session resumed");
            gateway.tunnels.resumed(replayed);
        }
        Err(error) => {
            tracing::info!(%client, %membership, session, generation, error = &error as &dyn std::error::Error, "session not resumed");
        }
    }
}

/// Ends a session that has been without a connection for too long, says so of the membership earlier, and returns when
/// the session is over.
async fn outlive(gateway: &Arc<Gateway>, tunnel: &Arc<Tunnel>) {
    let grace = gateway.config.session_grace;
    let (membership, session) = (tunnel.membership(), tunnel.handle().id());
    let mut phase = tunnel.handle().phase();
    loop {
        let Ok(Phase::Down) = phase
            .wait_for(|now| *now != Phase::Up)
            .await
            .map(|now| *now)
        else {
            return;
        };
        let reason = tunnel.handle().lost();
        tracing::info!(%membership, session, reason, "connection lost");
        let up = async |phase: &mut tokio::sync::watch::Receiver<Phase>| {
            phase.wait_for(|now| *now != Phase::Down).await.is_ok()
        };
        if timeout(NOTICEABLE.min(grace), up(&mut phase)).await.is_ok() {
            continue;
        }
        gateway.replicas.note(tunnel);
        // It may have been up in between.
        while let Some(down) = tunnel.handle().down_for() {
            let left = grace.saturating_sub(down);
            if left.is_zero() {
                let reason = format!("no connection came within {grace:?}");
                tunnel.handle().end(&reason);
            } else if timeout(left, up(&mut phase)).await.is_ok() {
                break;
            }
        }
        if tunnel.handle().is_up() {
            gateway.replicas.note(tunnel);
        }
    }
}

/// Whether the membership still has the key of the session's agent; what isn't known is taken for yes.
async fn is_enrolled(gateway: &Gateway, tunnel: &Tunnel) -> bool {
    match gateway.store.membership(tunnel.membership()).await {
        Ok(row) => row.and_then(|row| row.public_key) == Some(*tunnel.agent()),
        Err(_) => true,
    }
}

/// Ends the sessions of memberships that were deleted, or registered anew for another key, through another replica.
pub(crate) async fn let_go(gateway: &Gateway) -> Result<(), StoreError> {
    // First the sessions: one that begins after the rows were read has looked for itself.
    let tunnels = gateway.tunnels.all();
    let enrolled: HashMap<Membership, Option<PublicKey>> = gateway
        .store
        .memberships(None)
        .await?
        .into_iter()
        .map(|row| (row.membership, row.public_key))
        .collect();
    for tunnel in tunnels {
        let membership = tunnel.membership();
        if enrolled.get(membership) != Some(&Some(*tunnel.agent())) {
            tracing::info!(%membership, session = tunnel.handle().id(), "its membership's key is another, or none");
            tunnel.closed().cancel();
        }
    }
    Ok(())
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
