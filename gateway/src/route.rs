//! Which way a request goes: down a session that is held here, or to the replica that holds one.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use towline_proto::names::Membership;

use crate::{
    app::Gateway,
    assert::Outbound,
    error::Refused,
    replicas::{DOUBTED, Elsewhere, Peer},
    tunnels::{Answered, Held, Message, Sent, Tunnel, Unanswered},
};

/// How long a request waits for an agent that was here a moment ago.
const RECONNECT_WAIT: Duration = Duration::from_secs(5);

/// What looking may take beyond that, where others don't answer.
const SLACK: Duration = Duration::from_secs(3);

/// How long ago "a moment ago" may be, in seconds.
const RECENT: u64 = 60;

/// The way to a membership's cluster.
enum Route {
    /// Its agent has a session here.
    Here(Arc<Tunnel>),
    /// Another replica holds one.
    There {
        session: Arc<Elsewhere>,
        peer: Arc<Peer>,
    },
}

/// Sends an authorized request on its way and waits for the answer's head. One that a session at its end doesn't take
/// any more goes down another.
///
/// # Errors
/// 503: no agent, or it was lost; 429: its tunnel is full.
pub async fn send(gateway: &Gateway, outbound: Outbound) -> Result<Sent, Refused> {
    let (mut message, lease) = Message::new(outbound)?;
    let identity = lease.permit().identity();
    let deadline = Instant::now() + RECONNECT_WAIT;
    loop {
        let spare = message.spare();
        let membership = lease.permit().membership();
        // Looking for one takes no longer than waiting for one.
        let found = timeout_at(deadline + SLACK, to(gateway, membership, deadline)).await;
        let route = found.unwrap_or_else(|_| Err(Refused::NoAgent(membership.clone())))?;
        let (sent, closed) = match route {
            Route::Here(tunnel) => {
                let sent = tunnel.send(message, identity).await;
                let sent = sent.map(|(answered, place)| (answered, Some(place)));
                (sent, tunnel.closed().clone())
            }
            Route::There { session, peer } => {
                let replicas = &gateway.replicas;
                let sent = session.send(replicas, &peer, message, identity).await;
                (sent.map(|answered| (answered, None)), peer.closed.clone())
            }
        };
        match sent {
            Ok((Answered { response, outgoing }, place)) => {
                spare.answered();
                return Ok(Sent {
                    response,
                    outgoing,
                    held: Held::new(lease, place, closed),
                });
            }
            Err(Unanswered::NotTaken) if Instant::now() < deadline => match spare.again() {
                Some(again) => message = again,
                None => return Err(Refused::AgentLost),
            },
            Err(unanswered) => return Err(unanswered.into()),
        }
    }
}

/// The way to a membership: through this replica alone where it has a session; waits a few seconds for an agent that was
/// connected a moment ago.
///
/// # Errors
/// 503: no agent.
async fn to(
    gateway: &Gateway,
    membership: &Membership,
    deadline: Instant,
) -> Result<Route, Refused> {
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
                return Ok(Route::There { session, peer });
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
                // A session that goes on over another connection is no news to the database.
                () = sleep(DOUBTED), if gateway.store.is_shared() => {}
            }
        };
        if !expected || Instant::now() >= deadline || timeout_at(deadline, woken).await.is_err() {
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
