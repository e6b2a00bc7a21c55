//! Which way a request goes: down a session that is held here, or to the replica that holds one.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use towline_proto::names::Membership;

use crate::{
    app::Gateway,
    assert::Outbound,
    error::Refused,
    replicas::{Elsewhere, Peer},
    tunnels::{Sent, Tunnel},
};

/// How long a request waits for an agent that was here a moment ago.
const RECONNECT_WAIT: Duration = Duration::from_secs(5);

/// How long ago "a moment ago" may be, in seconds.
const RECENT: u64 = 60;

/// The way to a membership's cluster.
#[derive(Debug)]
pub enum Route {
    /// Its agent has a session here.
    Here(Arc<Tunnel>),
    /// Another replica holds one.
    There(There),
}

/// A session of another replica's, and the connection to that one.
#[derive(Debug)]
pub struct There {
    session: Arc<Elsewhere>,
    peer: Arc<Peer>,
}

/// The way to a membership: through this replica alone where it has a session; waits a few seconds for an agent that was
/// connected a moment ago.
///
/// # Errors
/// 503: no agent.
pub async fn to(gateway: &Gateway, membership: &Membership) -> Result<Route, Refused> {
    let deadline = Instant::now() + RECONNECT_WAIT;
    let mut changed = gateway.store.sessions_changed();
    loop {
        // Subscribed before looking, so that no arrival falls between.
        let arrived = gateway.tunnels.arrived();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        changed.mark_unchanged();
        if let Some(tunnel) = gateway.tunnels.best(membership) {
            return Ok(Route::Here(tunnel));
        }
        let (others, mut expected) = gateway.replicas.sessions(membership).await;
        for session in others {
            if let Some(peer) = gateway.replicas.way(&session).await {
                return Ok(Route::There(There { session, peer }));
            }
        }
        expected = expected
            || gateway.tunnels.expected(membership)
            || was_connected(gateway, membership).await;
        let woken = async {
            tokio::select! {
                () = arrived => {}
                // Nothing more comes of a store that is gone.
                Ok(()) = changed.changed() => {}
            }
        };
        if !expected || timeout_at(deadline, woken).await.is_err() {
            return Err(Refused::NoAgent(membership.clone()));
        }
    }
}

/// Whether an agent was connected to some replica a moment ago.
async fn was_connected(gateway: &Gateway, membership: &Membership) -> bool {
    if !gateway.store.is_shared() {
        return false;
    }
    let Ok(Some(row)) = gateway.store.membership(membership).await else {
        return false;
    };
    let now = gateway.clock.unix();
    row.connected_since.is_some()
        || row
            .disconnected_since
            .is_some_and(|since| now.saturating_sub(since) < RECENT)
}

impl Route {
    /// Sends an authorized request on its way and waits for the answer's head.
    ///
    /// # Errors
    /// The session is over, or it is full.
    pub async fn send(&self, gateway: &Gateway, outbound: Outbound) -> Result<Sent, Refused> {
        match self {
            Self::Here(tunnel) => tunnel.send(outbound).await,
            Self::There(There { session, peer }) => {
                session.send(&gateway.replicas, peer, outbound).await
            }
        }
    }
}
