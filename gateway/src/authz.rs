//! Whether they may: from a caller and a target to a permit.
//!
//! A permit is held for as long as its stream runs. It subscribes to changes before it decides, so that no
//! change falls between; [`Permit::revoked`] ends a stream whose permission is gone.

use std::sync::Arc;

use tokio::sync::watch;
use towline_proto::names::Membership;

use crate::{
    app::Gateway,
    authn::{Caller, Identity},
    error::Refused,
    iam::{Permission, Principal},
    store::{MembershipRow, Store},
    target::Target,
};

/// The right of one caller to one request. Made by [`permit`] alone.
#[derive(Debug)]
pub struct Permit {
    caller: Caller,
    target: Target,
    store: Store,
    changes: watch::Receiver<u64>,
}

/// Decides, and only then tells whether the membership exists.
///
/// # Errors
/// 403 in the same words whether the membership exists or not; 404 to whoever may do this in the whole project.
pub async fn permit(gateway: &Gateway, caller: Caller, target: Target) -> Result<Permit, Refused> {
    let store = gateway.store.clone();
    let changes = store.changes();
    decide(&store, &caller, target.permission).await?;
    let membership = caller.membership();
    let known = store
        .membership(membership)
        .await
        .map_err(|error| Refused::Internal(error.to_string()))?;
    if known.is_none() {
        let all = store
            .memberships(Some(&membership.project))
            .await
            .unwrap_or_default();
        return Err(Refused::NoMembership {
            nearest: nearest(membership, &all),
            membership: membership.clone(),
        });
    }
    Ok(Permit {
        caller,
        target,
        store,
        changes,
    })
}

async fn decide(store: &Store, caller: &Caller, permission: Permission) -> Result<(), Refused> {
    let identity = caller.identity();
    let membership = caller.membership();
    let policy = store
        .policy(&membership.project)
        .await
        .map_err(|error| Refused::Internal(error.to_string()))?;
    if policy.is_some_and(|policy| policy.permits(identity, permission)) {
        Ok(())
    } else {
        Err(Refused::Forbidden {
            principal: identity.principal.clone(),
            permission,
            resource: membership.to_string(),
        })
    }
}

impl Permit {
    /// Who holds it.
    pub const fn identity(&self) -> &Arc<Identity> {
        self.caller.identity()
    }

    /// The membership it is for.
    pub const fn membership(&self) -> &Membership {
        self.caller.membership()
    }

    /// What it is for.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Resolves with the reason when the permission, the user or the membership is gone.
    pub fn revoked(&self) -> impl Future<Output = String> + Send + 'static {
        let Self {
            caller,
            target,
            store,
            changes,
        } = self;
        let (caller, permission, store, mut changes) = (
            caller.clone(),
            target.permission,
            store.clone(),
            changes.clone(),
        );
        async move {
            loop {
                if let Err(reason) = still(&store, &caller, permission).await {
                    return reason;
                }
                if changes.changed().await.is_err() {
                    // The store is gone, and with it the gateway.
                    return "the gateway is shutting down".to_owned();
                }
            }
        }
    }
}

async fn still(store: &Store, caller: &Caller, permission: Permission) -> Result<(), String> {
    if let Principal::User(name) = &caller.identity().principal {
        match store.user(name).await {
            Ok(Some(user)) if user.disabled => return Err(format!("user {name:?} was disabled")),
            Ok(None) => return Err(format!("user {name:?} was deleted")),
            // A store that can't answer decides nothing about a stream that was permitted.
            Ok(Some(_)) | Err(_) => {}
        }
    }
    match decide(store, caller, permission).await {
        Ok(()) | Err(Refused::Internal(_)) => Ok(()),
        Err(refused) => Err(refused.to_string()),
    }
}

/// Up to three memberships' names that share most of their letters with what was asked for.
pub(crate) fn nearest(asked: &Membership, rows: &[MembershipRow]) -> Vec<String> {
    let asked = asked.id.as_str();
    let mut scored: Vec<(usize, &str)> = rows
        .iter()
        .map(|row| row.membership.id.as_str())
        .map(|name| (distance(asked, name), name))
        .collect();
    scored.sort_unstable();
    let near = asked.len().div_ceil(2).max(2);
    scored
        .into_iter()
        .filter(|(distance, _)| *distance <= near)
        .take(3)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Levenshtein's distance; both are DNS labels, so at most 63 by 63.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.bytes().zip(row.iter().skip(1).copied()) {
            let best = if x == y {
                diagonal
            } else {
                1 + diagonal.min(above).min(left)
            };
            diagonal = above;
            left = best;
            next.push(best);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, d) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("edge", "edge", 0),
            ("edge-1", "edge-2", 1),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        let name = |id: &str| -> Membership {
            format!("projects/p/locations/global/memberships/{id}")
                .parse()
                .unwrap()
        };
        let rows = ["prod-eu", "prod-us", "staging", "prd-eu"].map(|id| MembershipRow {
            membership: name(id),
            public_key: None,
            external_id: String::new(),
            kubernetes_version: String::new(),
            agent_version: String::new(),
            connected_since: None,
            disconnected_since: None,
            created: 0,
        });
        assert_eq!(
            nearest(&name("prod-eu"), &rows),
            ["prod-eu", "prd-eu", "prod-us"]
        );
        assert!(nearest(&name("x"), &rows).is_empty());
    }
}
