//! The record of one request, filled in by the stages and written when nobody holds it any more.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;
use towline_proto::names::{Membership, Project};

use super::{
    Audit, Event, ObjectRef,
    event::{ResponseStatus, User, annotation},
    time,
};
use crate::{
    assert::Outbound,
    authn::{Caller, Identity},
    authz::Permit,
    error::Refused,
    forward::GroupsLeftOut,
    iam::Principal,
    target::{Kind, Place, RequestInfo, Target},
};

tokio::task_local! {
    static CURRENT: Record;
}

/// Runs a call with `record` as the one that [`current`] speaks of.
pub async fn within<F: Future>(record: Record, call: F) -> F::Output {
    CURRENT.scope(record, call).await
}

/// Notes something in the record of the call that runs; nothing where none does. For doors that share their parts,
/// where the record would otherwise be handed through every function.
pub fn current(note: impl FnOnce(&Record)) {
    // No record: a test that calls a part by itself.
    let _noted = CURRENT.try_with(note);
}

/// One request's record; clones are the same record.
#[derive(Debug, Clone)]
pub struct Record(Arc<Open>);

#[derive(Debug)]
struct Open {
    audit: Audit,
    began: Instant,
    facts: Mutex<Facts>,
}

#[derive(Debug)]
struct Facts {
    event: Event,
    sent: Option<u64>,
    received: Option<u64>,
}

impl Record {
    pub(super) fn new(audit: Audit, event: Event) -> Self {
        Self(Arc::new(Open {
            audit,
            began: Instant::now(),
            facts: Mutex::new(Facts {
                event,
                sent: None,
                received: None,
            }),
        }))
    }

    /// The request's id.
    pub fn id(&self) -> String {
        self.lock().event.audit_id.clone()
    }

    /// What is asked for, before anybody knows whether it exists.
    pub fn target(&self, target: &Target) {
        if let Place::Named(membership) = &target.place {
            self.membership(membership);
        }
        let mut facts = self.lock();
        let protocol = match &target.kind {
            Kind::Short => None,
            Kind::LongRunning { watch: true } => Some("watch"),
            Kind::LongRunning { watch: false } => Some("long-running"),
            Kind::Upgrade { protocol } => Some(protocol.as_str()),
        };
        if let Some(protocol) = protocol {
            facts.event.annotate(annotation::PROTOCOL, protocol);
        }
        facts
            .event
            .annotate(annotation::PERMISSION, target.permission.name());
        let RequestInfo {
            verb,
            is_resource,
            api_group,
            api_version,
            namespace,
            resource,
            subresource,
            name,
            path: _,
        } = &target.info;
        facts.event.verb = super::event::bounded(verb, 64);
        facts.event.object_ref = is_resource.then(|| ObjectRef {
            resource: super::event::bounded(resource, 253),
            namespace: super::event::bounded(namespace, 253),
            name: super::event::bounded(name, 253),
            api_group: super::event::bounded(api_group, 253),
            api_version: super::event::bounded(api_version, 253),
            subresource: super::event::bounded(subresource, 253),
        });
    }

    /// Which membership it is for.
    pub fn membership(&self, membership: &Membership) {
        let mut facts = self.lock();
        facts
            .event
            .annotate(annotation::MEMBERSHIP, &membership.to_string());
        facts
            .event
            .annotate(annotation::PROJECT, membership.project.as_str());
    }

    /// Which project it concerns.
    pub fn project(&self, project: &Project) {
        self.lock()
            .event
            .annotate(annotation::PROJECT, project.as_str());
    }

    /// Who calls, at which membership.
    pub fn caller(&self, caller: &Caller) {
        self.identity(caller.identity());
        self.membership(caller.membership());
    }

    /// Who calls.
    pub fn identity(&self, identity: &Identity) {
        self.lock().event.caller(identity);
    }

    /// Who has just signed in.
    pub fn signed_in(&self, principal: &Principal) {
        let username = match principal {
            Principal::User(name) => name.clone(),
            Principal::ServiceAccount(account) => {
                self.project(&account.project);
                principal.to_string()
            }
            Principal::Workload(workload) => {
                self.project(&workload.pool.project);
                principal.to_string()
            }
        };
        let mut facts = self.lock();
        facts.event.user = User {
            username: super::event::bounded(&username, 1_024),
            uid: None,
            groups: Vec::new(),
            extra: Default::default(),
        };
        facts
            .event
            .annotate(annotation::PRINCIPAL, &principal.to_string());
    }

    /// As whom, where the caller asked to act as somebody else.
    pub fn outbound(&self, outbound: &Outbound) {
        let impersonated = outbound.nested().map(|nested| User {
            username: nested.user.clone(),
            uid: nested.uid.clone(),
            groups: nested.groups.clone(),
            extra: nested.extra.clone(),
        });
        self.lock().event.impersonated_user = impersonated;
    }

    /// Kubernetes' verb, or the method's name.
    pub fn verb(&self, verb: &str) {
        self.lock().event.verb = super::event::bounded(verb, 64);
    }

    /// Upon what.
    pub fn object(&self, object: ObjectRef) {
        self.lock().event.object_ref = Some(object);
    }

    /// The permission that it needed.
    pub fn permission(&self, permission: &str) {
        self.lock()
            .event
            .annotate(annotation::PERMISSION, permission);
    }

    /// What let it pass.
    pub fn permit(&self, permit: &Permit) {
        let Some(by) = permit.decision().by() else {
            return;
        };
        let mut decision = format!("policy of {}", by.resource());
        if let Some(binding) = by.binding() {
            decision = format!("{} in the {decision}", binding.role);
            if let Some(condition) = &binding.condition {
                decision = format!("{decision}, if {:?}", condition.title);
            }
        }
        self.lock().event.annotate(annotation::DECISION, &decision);
    }

    /// How many of the caller's groups the agent did not send.
    pub fn groups_left_out(&self, GroupsLeftOut(count): GroupsLeftOut) {
        if count > 0 {
            let count = count.to_string();
            self.lock()
                .event
                .annotate(annotation::GROUPS_LEFT_OUT, &count);
        }
    }

    /// Who refused, and why.
    pub fn refused(&self, refused: &Refused) {
        let (_, reason) = refused.status();
        let mut facts = self.lock();
        facts.event.annotate(annotation::LAYER, refused.layer());
        // The others have no words of the request's but names.
        let sentence = match refused {
            Refused::NotFound(_) => "the URL is no membership's".to_owned(),
            refused => refused.to_string(),
        };
        facts.event.annotate(annotation::REASON, &sentence);
        facts.event.response_status = Some(ResponseStatus {
            code: refused.status().0.as_u16(),
            reason: Some(reason.to_owned()),
        });
    }

    /// The answer's status, with the word for it that is no HTTP.
    pub fn answered(&self, status: StatusCode, reason: Option<&str>) {
        let mut facts = self.lock();
        if facts.event.response_status.is_none() {
            facts.event.response_status = Some(ResponseStatus {
                code: status.as_u16(),
                reason: reason.map(str::to_owned),
            });
        }
    }

    /// The answer goes on for as long as it pleases: a first Event says that it began.
    pub fn started(&self, status: StatusCode) {
        self.answered(status, None);
        let mut event = self.lock().event.clone();
        event.stage = "ResponseStarted".into();
        event.stage_timestamp = time::format(self.0.audit.inner.clock.micros());
        self.0.audit.write(event);
    }

    /// Why it ended; the first to know says it.
    pub fn ended(&self, reason: &str) {
        let mut facts = self.lock();
        if facts.event.annotation(annotation::REASON).is_empty() {
            facts.event.annotate(annotation::REASON, reason);
        }
    }

    /// Bytes to the caller.
    pub fn sent(&self, bytes: u64) {
        self.lock().sent = Some(bytes);
    }

    /// Bytes from the caller.
    pub fn received(&self, bytes: u64) {
        self.lock().received = Some(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        lock(&self.0.facts)
    }
}

fn lock(facts: &Mutex<Facts>) -> MutexGuard<'_, Facts> {
    facts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Open {
    fn drop(&mut self) {
        let facts = self.facts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (sent, received) = (facts.sent, facts.received);
        let mut event = std::mem::replace(&mut facts.event, Event::nothing());
        event.stage = if std::thread::panicking() {
            "Panic"
        } else {
            "ResponseComplete"
        }
        .into();
        event.stage_timestamp = time::format(self.audit.inner.clock.micros());
        if event.response_status.is_none() {
            // Nobody was told anything: the caller went away before there was an answer.
            event.response_status = Some(ResponseStatus {
                code: CLOSED,
                reason: None,
            });
            event.annotate(annotation::REASON, "the caller went away before the answer");
        }
        event.annotate(annotation::DURATION, &seconds(self.began.elapsed()));
        for (key, bytes) in [(annotation::SENT, sent), (annotation::RECEIVED, received)] {
            if let Some(bytes) = bytes {
                event.annotate(key, &bytes.to_string());
            }
        }
        self.audit.write(event);
    }
}

/// nginx's word for a caller who went away before there was an answer.
const CLOSED: u16 = 499;

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}
