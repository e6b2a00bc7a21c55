//! `kubectl --as`: whether the cluster lets a caller be whom they ask to be.
//!
//! Threat: the agent may impersonate more than a caller may; it must not lend them that.
//! Decision: the caller's own rights decide, asked of the API server in the caller's name (a
//! `SelfSubjectAccessReview` under impersonation) for the user, the UID and every group and extra, with the verb
//! `impersonate`, as the API server itself asks where a caller reaches it directly. A yes is remembered for
//! [`REMEMBERED`], a no is not.
//! Consequence: whoever may use `--as` directly may use it here, and nobody else; the agent needs no right to ask.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use towline_proto::wire::Refusal;

use super::{Missing, denial};
use crate::{
    body::{Boxed, Upload, text},
    guard::{Impersonation, Permitted, Wanted, service_account},
    role::Role,
    upstream::{Outbound, SendError, Upstream},
};

/// How long a yes is good for.
const REMEMBERED: Duration = Duration::from_secs(10);

/// How many are remembered.
const ENTRIES: usize = 1024;

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Why a caller isn't somebody else.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// RBAC says no.
    #[error("{0}")]
    Rbac(String),
    /// The agent may not even name the caller.
    #[error(transparent)]
    Impersonation(#[from] Missing),
    /// There was no answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// There was one that says nothing.
    #[error("the API server did not say whether {0:?} may impersonate: {1}")]
    Silent(String, String),
}

impl Refused {
    pub(super) const fn refusal(&self) -> Refusal {
        match self {
            Self::Rbac(_) => Refusal::Rbac,
            Self::Impersonation(_) => Refusal::Impersonation,
            Self::Send(error) => error.refusal(),
            Self::Silent(..) => Refusal::Upstream,
        }
    }
}

/// The answers of the last seconds.
#[derive(Debug, Default)]
pub struct Reviews {
    /// Who may do what, and since when that is known.
    allowed: Mutex<HashMap<(String, String), Instant>>,
}

impl Reviews {
    /// Asks for each name.
    pub(super) async fn permit(
        &self,
        upstream: &Upstream,
        role: &Role,
        caller: &Impersonation,
        wanted: Wanted,
    ) -> Result<Permitted, Refused> {
        for attributes in attributes(&wanted) {
            let key = (caller.identity(), attributes.to_string());
            if self.remembers(&key) {
                continue;
            }
            ask(upstream, role, caller, &attributes).await?;
            self.remember(key);
        }
        Ok(wanted.permit())
    }

    fn remembers(&self, key: &(String, String)) -> bool {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed
            .get(key)
            .is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, key: (String, String)) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.len() >= ENTRIES {
            allowed.retain(|_, since| since.elapsed() < REMEMBERED);
        }
        if allowed.len() < ENTRIES {
            allowed.insert(key, Instant::now());
        }
    }
}

/// What the API server would check for a caller who reaches it directly.
fn attributes(wanted: &Wanted) -> Vec<Value> {
    let nested = wanted.nested();
    let core = |resource: &str, name: &str| json!({"verb": "impersonate", "resource": resource, "name": name});
    let authentication = |resource: &str, subresource: &str, name: &str| {
        json!({
            "verb": "impersonate", "group": "authentication.k8s.io", "resource": resource,
            "subresource": subresource, "name": name,
        })
    };
    let mut all = vec![match service_account(&nested.user) {
        Some((namespace, name)) => json!({
            "verb": "impersonate", "resource": "serviceaccounts", "namespace": namespace, "name": name,
        }),
        None => core("users", &nested.user),
    }];
    all.extend(nested.uid.iter().map(|uid| authentication("uids", "", uid)));
    all.extend(nested.groups.iter().map(|group| core("groups", group)));
    for (key, values) in &nested.extra {
        all.extend(
            values
                .iter()
                .map(|value| authentication("userextras", key, value)),
        );
    }
    all
}

#[derive(Deserialize)]
struct Answer {
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    allowed: bool,
    #[serde(default)]
    denied: bool,
    #[serde(default)]
    reason: String,
}

async fn ask(
    upstream: &Upstream,
    role: &Role,
    caller: &Impersonation,
    attributes: &Value,
) -> Result<(), Refused> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    });
    let silent = |why: &str| Refused::Silent(caller.user().to_owned(), why.to_owned());
    let asking = caller.asking(REVIEWS);
    let (upload, watch) = Upload::new(text(review.to_string()));
    let answered = timeout(PATIENCE, async {
        let body: Boxed = upload.boxed_unsync();
        let response = upstream.send(Outbound::from(&asking), body, watch).await?;
        let response = denial::inspect(response, &asking, role).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        Ok::<_, Refused>((head.status, body))
    });
    let (status, body) = answered.await.map_err(|_| silent("no answer in time"))??;
    let body = body.map_err(|_| silent("its answer broke off"))?.to_bytes();
    if status != StatusCode::CREATED {
        return Err(silent(&format!("it answered {}", status.as_u16())));
    }
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|_| silent("its answer is no review"))?;
    if answer.status.allowed && !answer.status.denied {
        return Ok(());
    }
    Err(Refused::Rbac(sentence(
        caller.user(),
        attributes,
        &answer.status.reason,
    )))
}

/// `user "alice" may not impersonate user "bob" in this cluster (RBAC): …`
fn sentence(caller: &str, attributes: &Value, reason: &str) -> String {
    let of = |key: &str| attributes[key].as_str().unwrap_or_default();
    let name = of("name");
    let (what, resource) = match of("resource") {
        "users" => (format!("user {name:?}"), "users".to_owned()),
        "groups" => (format!("group {name:?}"), "groups".to_owned()),
        "uids" => (format!("UID {name:?}"), "uids".to_owned()),
        "serviceaccounts" => (
            format!(
                "service account {:?}",
                format!("{}/{name}", of("namespace"))
            ),
            "serviceaccounts".to_owned(),
        ),
        _ => {
            let key = of("subresource");
            (
                format!("with extra {key:?} = {name:?}"),
                format!("userextras/{key}"),
            )
        }
    };
    let role = match of("namespace") {
        "" => "a ClusterRole".to_owned(),
        namespace => format!("a Role in {namespace}"),
    };
    let because = match reason {
        "" => String::new(),
        reason => format!("{reason}; "),
    };
    format!(
        "user {caller:?} may not impersonate {what} in this cluster (RBAC): {because}{role} bound to {caller:?} would \
         need {{apiGroups: [{:?}], resources: [{resource:?}], verbs: [\"impersonate\"], resourceNames: [{name:?}]}}",
        of("group")
    )
}
