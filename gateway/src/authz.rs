//! Whether they may: from a caller and a target to a permit.
//!
//! A permit is held for as long as its stream runs. It subscribes to changes before it decides, so that no
//! change falls between; [`Permit::revoked`] ends a stream whose permission is gone. A permission that rests on a
//! condition on the time is looked at again every few seconds; any other only when something was written.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use tokio::{sync::watch, time::timeout};
use towline_proto::names::Membership;

use crate::{
    app::Gateway,
    authn::{Caller, Identity},
    clock::Clock,
    error::Refused,
    iam::{Attributes, Decision, Permission, Principal, Resource},
    store::{MembershipRow, Store},
    target::{Kind, Place, RequestInfo, Target},
};

/// Where a cluster says what whoever asks may do.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// How long a permission outlives the time that its condition gives it.
const TIMED_RECHECK: Duration = Duration::from_secs(2);

/// Why a stream ends while the database is away for too long.
const UNKNOWN: &str = "the gateway has not heard from its database for so long that it can't know whether this is still allowed";

/// The right of one caller to one request. Made by [`permit`] and [`review`] alone.
#[derive(Debug)]
pub struct Permit {
    /// Who can be looked at again; nobody where one asks about another.
    caller: Option<Caller>,
    identity: Arc<Identity>,
    membership: Membership,
    target: Target,
    store: Store,
    clock: Clock,
    changes: watch::Receiver<u64>,
    decision: Decision,
    asker: Option<Arc<Identity>>,
}

/// Decides, and only then tells whether the membership exists.
///
/// # Errors
/// 403 in the same words whether the membership exists or not; 404 to whoever may do this in the whole project.
pub async fn permit(gateway: &Gateway, caller: Caller, target: Target) -> Result<Permit, Refused> {
    let store = gateway.store.clone();
    let clock = gateway.clock.clone();
    let changes = store.changes();
    let (identity, membership) = (caller.identity(), caller.membership());
    let decision = decide(&store, &clock, identity, membership, &target).await?;
    let known = store.enrolled(membership).await?;
    if known.is_none() {
        // A condition on labels holds or doesn't hold for what isn't there: that would tell which clusters there are.
        if decision.conditional() {
            return Err(forbidden(identity, &target, membership));
        }
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
        identity: Arc::clone(identity),
        membership: membership.clone(),
        caller: Some(caller),
        target,
        store,
        clock,
        changes,
        decision,
        asker: None,
    })
}

/// The right of `asker` to ask the cluster what `subject` may there: a permit in the subject's name for one request
/// and no other, a `SelfSubjectAccessReview`. [`crate::assert::review`] alone takes it.
///
/// # Errors
/// 403 where the asker lacks `iam.explain` on the membership.
pub async fn review(
    gateway: &Gateway,
    asker: Arc<Identity>,
    subject: Identity,
    membership: &Membership,
) -> Result<Permit, Refused> {
    let store = gateway.store.clone();
    let clock = gateway.clock.clone();
    let changes = store.changes();
    let info = RequestInfo::parse(&Method::POST, REVIEWS, "");
    let target = Target {
        place: Place::Named(membership.clone()),
        path: REVIEWS.to_owned(),
        kind: Kind::Short,
        permission: Permission::IamExplain,
        info,
    };
    let decision = decide(&store, &clock, &asker, membership, &target).await?;
    Ok(Permit {
        caller: None,
        identity: Arc::new(subject),
        membership: membership.clone(),
        target,
        store,
        clock,
        changes,
        decision,
        asker: Some(asker),
    })
}

async fn decide(
    store: &Store,
    clock: &Clock,
    identity: &Identity,
    membership: &Membership,
    target: &Target,
) -> Result<Decision, Refused> {
    let decision = on(
        store,
        clock,
        identity,
        &membership.into(),
        target.permission,
        &target.info,
    )
    .await?;
    if decision.allowed() {
        Ok(decision)
    } else {
        Err(forbidden(identity, target, membership))
    }
}

/// The decision on any resource, as the store and the clock have it now.
pub(crate) async fn on(
    store: &Store,
    clock: &Clock,
    identity: &Identity,
    resource: &Resource,
    permission: Permission,
    request: &RequestInfo,
) -> Result<Decision, crate::store::StoreError> {
    let Some(policies) = store.policies_for(resource).await? else {
        return Ok(Decision::denied());
    };
    let row = match resource {
        Resource::Membership(membership) => store.enrolled(membership).await?,
        Resource::Project(_) | Resource::ServiceAccount(_) | Resource::Pool(_) => None,
    };
    let none = BTreeMap::new();
    Ok(policies.decide(
        identity,
        permission,
        &Attributes {
            resource,
            labels: row.as_ref().map_or(&none, |row| &row.labels),
            request,
            now: clock.unix(),
        },
    ))
}

fn forbidden(identity: &Identity, target: &Target, membership: &Membership) -> Refused {
    Refused::Forbidden {
        principal: identity.principal.clone(),
        permission: target.permission,
        resource: membership.to_string(),
    }
}

impl Permit {
    /// In whose name the request goes to the cluster.
    pub const fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Who asks what somebody else may: the permit is for that question alone.
    pub const fn asker(&self) -> Option<&Arc<Identity>> {
        self.asker.as_ref()
    }

    /// Who sent the request: whose budget it is taken from.
    pub fn sender(&self) -> &Principal {
        let sender = self.asker.as_ref().unwrap_or(&self.identity);
        &sender.principal
    }

    /// The membership it is for.
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What it is for.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// What it rests on.
    pub const fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Resolves with the reason when the permission, the user or the membership is gone.
    pub fn revoked(&self) -> impl Future<Output = String> + Send + 'static {
        let Self {
            caller,
            identity,
            membership,
            target,
            store,
            clock,
            changes,
            decision,
            asker: _,
        } = self;
        let (caller, identity, membership, target, store, clock, mut changes, mut timed) = (
            caller.clone(),
            Arc::clone(identity),
            membership.clone(),
            target.clone(),
            store.clone(),
            clock.clone(),
            changes.clone(),
            decision.timed(),
        );
        async move {
            loop {
                let mut unknown = false;
                match still(
                    &store,
                    &clock,
                    caller.as_ref(),
                    &identity,
                    &membership,
                    &target,
                )
                .await
                {
                    Ok(Some(rests)) => timed = rests,
                    // A store that can't answer decides nothing about a stream that was permitted, but not for ever.
                    Ok(None) if store.is_believed() => unknown = true,
                    Ok(None) => return UNKNOWN.to_owned(),
                    Err(reason) => return reason,
                }
                let changed = if timed || unknown {
                    match timeout(TIMED_RECHECK, changes.changed()).await {
                        Ok(changed) => changed,
                        Err(_) => continue,
                    }
                } else {
                    changes.changed().await
                };
                if changed.is_err() {
                    // The store is gone, and with it the gateway.
                    return "the gateway is shutting down".to_owned();
                }
            }
        }
    }
}

/// Whether the caller is still who they were, and may what they might, and whether that rests on the time; `None` where
/// the store can't tell.
async fn still(
    store: &Store,
    clock: &Clock,
    caller: Option<&Caller>,
    identity: &Arc<Identity>,
    membership: &Membership,
    target: &Target,
) -> Result<Option<bool>, String> {
    let (identity, timed) = match caller {
        Some(caller) => match caller.now().await? {
            Some(now) => now,
            None => return Ok(None),
        },
        None => (Arc::clone(identity), false),
    };
    match decide(store, clock, &identity, membership, target).await {
        Ok(decision) => Ok(Some(timed || decision.timed())),
        Err(Refused::Internal(_) | Refused::Away) => Ok(None),
        Err(refused) => Err(refused.to_string()),
    }
}

/// Up to three memberships' names that share most of their letters with what was asked for.
pub(crate) fn nearest(asked: &Membership, rows: &[MembershipRow]) -> Vec<String> {
    let names = rows.iter().map(|row| row.membership.id.as_str());
    crate::nearest::nearest(asked.id.as_str(), names)
}
