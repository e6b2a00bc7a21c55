//! What somebody may do on a cluster, and why: IAM's answer, and RBAC's, asked through the agent.
//!
//! Threat: a question about somebody is a request in their name.
//! Decision: it is made of a permit of its own kind, which needs `iam.explain` and sends one
//! `SelfSubjectAccessReview` and nothing else ([`authz::review`], [`assert::review`]). It is taken from the asker's
//! budget, and the log says who asked about whom.
//! Consequence: whoever the agent may not impersonate can't be asked about; the answer says so.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::time::timeout;
use towline_proto::{handshake::random_id, names::Membership, wire};

use crate::{
    app::Gateway,
    assert, audit,
    authn::Identity,
    authz,
    error::Refused,
    forward,
    iam::{Attributes, Considered, Permission, Resource},
    route,
    store::StoreError,
    target::RequestInfo,
};

/// The longest answer that a review may have, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How long the cluster has to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// What the cluster says.
#[derive(Debug)]
pub(crate) enum ClusterAnswer {
    Allowed(String),
    Denied(String),
    NotAsked(String),
}

/// The question in the form of a request. The version of a group's API decides nothing.
///
/// # Errors
/// A sentence that says which field is wrong.
pub(crate) fn question(
    verb: &str,
    resource: &str,
    subresource: &str,
    namespace: &str,
    name: &str,
) -> Result<(RequestInfo, Permission), String> {
    for (field, value) in [
        ("resource", resource),
        ("subresource", subresource),
        ("namespace", namespace),
        ("name", name),
    ] {
        let path = field == "resource" && value.starts_with('/');
        let wrong = |c: char| c.is_control() || c.is_whitespace() || (c == '/' && !path);
        if value.len() > 1_024 || value.contains(wrong) {
            return Err(format!("{field}: {value:?} is none"));
        }
    }
    let stream = matches!(subresource, "exec" | "attach" | "portforward");
    let permission = match verb {
        _ if stream && matches!(verb, "get" | "create") => Permission::Stream,
        "get" | "list" | "watch" | "head" | "options" => Permission::Get,
        "create" | "post" => Permission::Post,
        "update" | "put" => Permission::Put,
        "patch" => Permission::Patch,
        "delete" | "deletecollection" => Permission::Delete,
        other => {
            return Err(format!(
                "verb: {other:?} is not one of get, list, watch, create, update, patch, delete, deletecollection"
            ));
        }
    };
    if resource.starts_with('/') {
        let info = RequestInfo {
            path: resource.to_owned(),
            verb: verb.to_owned(),
            ..RequestInfo::default()
        };
        return Ok((info, permission));
    }
    if resource.is_empty() {
        return Err(
            "resource: write pods, deployments.apps, or a path such as /healthz".to_owned(),
        );
    }
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let base = if group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{group}/v1")
    };
    let mut path = base;
    if !namespace.is_empty() {
        path += &format!("/namespaces/{namespace}");
    }
    for part in [resource, name, subresource] {
        if !part.is_empty() {
            path += &format!("/{part}");
        }
    }
    let info = RequestInfo {
        path,
        verb: verb.to_owned(),
        is_resource: true,
        api_group: group.to_owned(),
        api_version: "v1".to_owned(),
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        name: name.to_owned(),
    };
    Ok((info, permission))
}

/// IAM's answer: the bindings that give the permission, or would if their conditions held.
///
/// # Errors
/// See [`StoreError`].
pub(crate) async fn iam(
    gateway: &Gateway,
    subject: &Identity,
    membership: &Membership,
    permission: Permission,
    request: &RequestInfo,
) -> Result<Vec<Considered>, StoreError> {
    let resource = Resource::from(membership);
    let policies = gateway.store.policies_for(&resource).await?;
    let row = gateway.store.membership(membership).await?;
    let none = BTreeMap::new();
    let attributes = Attributes {
        resource: &resource,
        labels: row.as_ref().map_or(&none, |row| &row.labels),
        request,
        now: gateway.clock.unix(),
    };
    Ok(policies
        .map(|policies| policies.consider(subject, permission, &attributes))
        .unwrap_or_default())
}

/// RBAC's answer, from the cluster itself.
///
/// # Errors
/// The asker may not ask, or has asked too much.
pub(crate) async fn cluster(
    gateway: &Gateway,
    asker: Arc<Identity>,
    subject: Identity,
    membership: &Membership,
    request: &RequestInfo,
) -> Result<ClusterAnswer, Refused> {
    // That of the call, whose record says who asked; so the API server's own record leads to it.
    let mut request_id = random_id().map_err(|error| Refused::Internal(error.to_string()))?;
    audit::current(|record| request_id = record.id());
    tracing::info!(
        request_id, %membership, asker = %asker.principal, subject = %subject.principal, verb = request.verb,
        resource = request.resource, path = request.path, "explained"
    );
    let permit = authz::review(gateway, asker, subject, membership).await?;
    let lease = gateway.quotas.lease(permit).await?;
    let outbound = assert::review(lease, review(request), request_id)?;
    let answered = timeout(LIMIT, async {
        let sent = route::send(gateway, outbound).await?;
        let (head, body) = sent.response.into_parts();
        if let Some(code) = head.headers.get(wire::REFUSAL) {
            return Err(forward::refusal(code, body).await);
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Refused::Cluster(error.to_string()))?;
        Ok((head.status, body.to_bytes()))
    })
    .await;
    Ok(match answered {
        Err(_) => ClusterAnswer::NotAsked(format!("the cluster gave no answer in {LIMIT:?}")),
        Ok(Err(refused)) => ClusterAnswer::NotAsked(refused.to_string()),
        Ok(Ok((status, body))) => read(status, &body),
    })
}

fn review(request: &RequestInfo) -> Bytes {
    let spec = if request.is_resource {
        json!({"resourceAttributes": {
            "verb": request.verb,
            "group": request.api_group,
            "resource": request.resource,
            "subresource": request.subresource,
            "namespace": request.namespace,
            "name": request.name,
        }})
    } else {
        json!({"nonResourceAttributes": {"verb": request.verb, "path": request.path}})
    };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": spec,
    });
    Bytes::from(review.to_string())
}

fn read(status: http::StatusCode, body: &[u8]) -> ClusterAnswer {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        text.chars()
            .filter(|c| !c.is_control())
            .take(1_000)
            .collect::<String>()
    };
    let told = answer.get("status").unwrap_or(&Value::Null);
    match told.get("allowed").and_then(Value::as_bool) {
        Some(true) if status.is_success() => {
            ClusterAnswer::Allowed(text(told.get("reason").unwrap_or(&Value::Null)))
        }
        Some(false) if status.is_success() => {
            let parts = ["reason", "evaluationError"]
                .map(|part| text(told.get(part).unwrap_or(&Value::Null)));
            let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            ClusterAnswer::Denied(parts.join("; "))
        }
        _ => {
            let message = text(answer.get("message").unwrap_or(&Value::Null));
            ClusterAnswer::NotAsked(format!("the API server answered {status}: {message}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn a_question_is_the_request_that_would_be_made() {
        for (question_, path, permission) in [
            (
                ("list", "pods", "", "", ""),
                "/api/v1/pods",
                Permission::Get,
            ),
            (
                ("create", "pods", "exec", "web", "p"),
                "/api/v1/namespaces/web/pods/p/exec",
                Permission::Stream,
            ),
            (
                ("get", "pods", "exec", "web", "p"),
                "/api/v1/namespaces/web/pods/p/exec",
                Permission::Stream,
            ),
            (
                ("get", "pods", "log", "web", "p"),
                "/api/v1/namespaces/web/pods/p/log",
                Permission::Get,
            ),
            (
                ("patch", "deployments.apps", "", "web", "d"),
                "/apis/apps/v1/namespaces/web/deployments/d",
                Permission::Patch,
            ),
            (("get", "/healthz", "", "", ""), "/healthz", Permission::Get),
            (
                ("deletecollection", "secrets", "", "web", ""),
                "/api/v1/namespaces/web/secrets",
                Permission::Delete,
            ),
        ] {
            let (verb, resource, subresource, namespace, name) = question_;
            let (info, needed) = question(verb, resource, subresource, namespace, name).unwrap();
            assert_eq!(
                (info.path.as_str(), needed),
                (path, permission),
                "{question_:?}"
            );
            assert_eq!(info.verb, verb);
        }
        for (verb, resource, namespace, says) in [
            ("exec", "pods", "", "get, list, watch"),
            ("get", "", "", "resource: "),
            ("get", "a/b", "", "resource: "),
            ("get", "pods", "a/b", "namespace: "),
            ("get", "pods", "a\nb", "namespace: "),
        ] {
            let error = question(verb, resource, "", namespace, "").unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn only_a_review_that_says_so_allows() {
        let of = |status: StatusCode, body: &str| match read(status, body.as_bytes()) {
            ClusterAnswer::Allowed(reason) => format!("allowed {reason}"),
            ClusterAnswer::Denied(reason) => format!("denied {reason}"),
            ClusterAnswer::NotAsked(reason) => format!("not asked {reason}"),
        };
        let created = StatusCode::CREATED;
        assert_eq!(
            of(
                created,
                r#"{"status": {"allowed": true, "reason": "RBAC: x"}}"#
            ),
            "allowed RBAC: x"
        );
        assert_eq!(of(created, r#"{"status": {"allowed": false}}"#), "denied ");
        for (status, body) in [
            (created, "{}"),
            (created, "no JSON"),
            (created, r#"{"status": {"allowed": "true"}}"#),
            (StatusCode::FORBIDDEN, r#"{"status": {"allowed": true}}"#),
            (
                StatusCode::FORBIDDEN,
                r#"{"status": "Failure", "message": "no"}"#,
            ),
        ] {
            assert!(of(status, body).starts_with("not asked"), "{status} {body}");
        }
    }
}
