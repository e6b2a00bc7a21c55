//! The Event itself: which facts of a request are kept, and in what form.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use http::{HeaderMap, Method, Uri, header};
use serde::{Deserialize, Serialize};

use super::time;
use crate::authn::Identity;

/// The longest path that is kept, in bytes.
const MAX_URI: usize = 2_048;
/// The longest of other texts, in bytes.
const MAX_TEXT: usize = 1_024;
/// How many groups of one user are kept.
const MAX_GROUPS: usize = 100;

/// Parts of a query that hold no secret; of all others not even the name is kept.
const HARMLESS: [&str; 34] = [
    "allowWatchBookmarks",
    "container",
    "continue",
    "dryRun",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "follow",
    "force",
    "gracePeriodSeconds",
    "insecureSkipTLSVerifyBackend",
    "labelSelector",
    "limit",
    "limitBytes",
    "orphanDependents",
    "ports",
    "pretty",
    "previous",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "sinceSeconds",
    "sinceTime",
    "stderr",
    "stdin",
    "stdout",
    "stream",
    "tailLines",
    "timeout",
    "timeoutSeconds",
    "timestamps",
    "tty",
];

/// Annotations of an Event.
pub(super) mod annotation {
    /// The project that it concerns.
    pub(in crate::audit) const PROJECT: &str = "towline.dev/project";
    /// The membership's resource name.
    pub(in crate::audit) const MEMBERSHIP: &str = "towline.dev/membership";
    /// Who refused: `authentication`, `authorization`, `quota`, `tunnel`, `agent`, `gateway`.
    pub(in crate::audit) const LAYER: &str = "towline.dev/layer";
    /// Why it was refused, or why a stream ended.
    pub(in crate::audit) const REASON: &str = "towline.dev/reason";
    /// What let it pass.
    pub(in crate::audit) const DECISION: &str = "towline.dev/decision";
    /// The permission that it needed.
    pub(in crate::audit) const PERMISSION: &str = "towline.dev/permission";
    /// The principal, as policies name it.
    pub(in crate::audit) const PRINCIPAL: &str = "towline.dev/principal";
    /// Who acts as the principal, the one who signed in first.
    pub(in crate::audit) const DELEGATES: &str = "towline.dev/delegates";
    /// The upgrade's protocol, or `watch` and the like.
    pub(in crate::audit) const PROTOCOL: &str = "towline.dev/protocol";
    /// Bytes of the answer, or to the caller of a stream.
    pub(in crate::audit) const SENT: &str = "towline.dev/bytes-sent";
    /// Bytes from the caller of a stream.
    pub(in crate::audit) const RECEIVED: &str = "towline.dev/bytes-received";
    /// From the request to the end of the answer, in seconds.
    pub(in crate::audit) const DURATION: &str = "towline.dev/duration-seconds";
    /// How many of the caller's groups are not written here.
    pub(in crate::audit) const MORE_GROUPS: &str = "towline.dev/groups-not-recorded";
    /// How many of the caller's groups the agent did not send.
    pub(in crate::audit) const GROUPS_LEFT_OUT: &str = "towline.dev/groups-left-out";
}

/// An Event of `audit.k8s.io/v1`, level `Metadata`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    kind: Cow<'static, str>,
    api_version: Cow<'static, str>,
    level: Cow<'static, str>,
    /// The request's id.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: Cow<'static, str>,
    /// Path, and what of the query holds no secret.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Kubernetes' verb, or the method's name.
    pub verb: String,
    /// Who called.
    pub user: User,
    /// As whom, where `kubectl --as` asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<User>,
    /// Where from.
    #[serde(rename = "sourceIPs")]
    pub source_ips: Vec<String>,
    /// What the client calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Upon what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    /// The answer's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<ResponseStatus>,
    /// When the request came.
    pub request_received_timestamp: String,
    /// When this was written down.
    pub stage_timestamp: String,
    /// The rest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<Cow<'static, str>, String>,
}

/// `UserInfo` of `authentication.k8s.io/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name in the cluster.
    pub username: String,
    /// The UID in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The groups in the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Extra attributes in the cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request acts upon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "Kubernetes' own fields")]
pub struct ObjectRef {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// The answer's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseStatus {
    /// HTTP's.
    pub code: u16,
    /// Kubernetes' or OAuth's word for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whom the API server takes a caller without a credential for.
const ANONYMOUS: &str = "system:anonymous";

impl Event {
    /// What is known of a request before anything is done about it.
    pub(super) fn begin(
        id: &str,
        client: IpAddr,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: u64,
    ) -> Self {
        let now = time::format(now);
        Self {
            kind: "Event".into(),
            api_version: "audit.k8s.io/v1".into(),
            level: "Metadata".into(),
            audit_id: id.to_owned(),
            stage: "RequestReceived".into(),
            request_uri: redacted(uri),
            verb: bounded(&method.as_str().to_ascii_lowercase(), 32),
            user: User {
                username: ANONYMOUS.to_owned(),
                uid: None,
                groups: vec!["system:unauthenticated".to_owned()],
                extra: BTreeMap::new(),
            },
            impersonated_user: None,
            source_ips: vec![client.to_string()],
            user_agent: headers
                .get(header::USER_AGENT)
                .map(|agent| bounded(&String::from_utf8_lossy(agent.as_bytes()), MAX_TEXT)),
            object_ref: None,
            response_status: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: BTreeMap::new(),
        }
    }

    /// Nothing, in the place of one that is written.
    pub(super) const fn nothing() -> Self {
        Self {
            kind: Cow::Borrowed(""),
            api_version: Cow::Borrowed(""),
            level: Cow::Borrowed(""),
            audit_id: String::new(),
            stage: Cow::Borrowed(""),
            request_uri: String::new(),
            verb: String::new(),
            user: User {
                username: String::new(),
                uid: None,
                groups: Vec::new(),
                extra: BTreeMap::new(),
            },
            impersonated_user: None,
            source_ips: Vec::new(),
            user_agent: None,
            object_ref: None,
            response_status: None,
            request_received_timestamp: String::new(),
            stage_timestamp: String::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// Whether the caller showed no good credential.
    pub fn is_of_nobody(&self) -> bool {
        self.user.username == ANONYMOUS
    }

    /// The project that it concerns; empty where it concerns none.
    pub fn project(&self) -> &str {
        self.annotation(annotation::PROJECT)
    }

    /// An annotation, empty where there is none.
    pub fn annotation(&self, key: &str) -> &str {
        self.annotations.get(key).map_or("", String::as_str)
    }

    pub(super) fn annotate(&mut self, key: &'static str, value: &str) {
        self.annotations
            .insert(key.into(), bounded(value, MAX_TEXT));
    }

    pub(super) fn caller(&mut self, identity: &Identity) {
        let more = identity.groups.len().saturating_sub(MAX_GROUPS);
        if more > 0 {
            self.annotate(annotation::MORE_GROUPS, &more.to_string());
        }
        self.user = User {
            username: bounded(&identity.user, MAX_TEXT),
            uid: identity.uid.clone(),
            groups: identity.groups.iter().take(MAX_GROUPS).cloned().collect(),
            extra: identity.extra.clone(),
        };
        self.annotate(annotation::PRINCIPAL, &identity.principal.to_string());
        if !identity.delegates.is_empty() {
            let delegates: Vec<String> =
                identity.delegates.iter().map(ToString::to_string).collect();
            self.annotate(annotation::DELEGATES, &delegates.join(" "));
        }
    }
}

/// A path with what of its query holds no secret. A command that is executed may hold one, and so may anything that
/// isn't Kubernetes' own.
fn redacted(uri: &Uri) -> String {
    let path = bounded(uri.path(), MAX_URI);
    let Some(query) = uri.query() else {
        return path;
    };
    let mut kept: Vec<&str> = Vec::new();
    let (mut length, mut left_out) = (0, false);
    for pair in query.split('&') {
        let key = pair.split('=').next().unwrap_or_default();
        length += pair.len() + 1;
        if length <= MAX_URI && (HARMLESS.contains(&key) || key == "watch") {
            kept.push(pair);
        } else {
            left_out = true;
        }
    }
    if left_out {
        kept.push("redacted");
    }
    format!("{path}?{}", kept.join("&"))
}

pub(super) fn bounded(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_query_only_what_is_harmless_is_kept() {
        for (uri, kept) in [
            ("/api/v1/pods", "/api/v1/pods"),
            (
                "/api/v1/pods?watch=1&limit=5",
                "/api/v1/pods?watch=1&limit=5",
            ),
            (
                "/api/v1/namespaces/n/pods/p/exec?command=sh&command=-c&command=echo%20hunter2&stdin=true",
                "/api/v1/namespaces/n/pods/p/exec?stdin=true&redacted",
            ),
            ("/x?token=hunter2", "/x?redacted"),
            ("/x?hunter2", "/x?redacted"),
            ("/x?Limit=hunter2", "/x?redacted"),
        ] {
            assert_eq!(redacted(&uri.parse().unwrap()), kept);
        }
        let long = format!("/{}?limit={}", "a".repeat(5_000), "b".repeat(5_000));
        assert!(redacted(&long.parse().unwrap()).len() < MAX_URI + 50);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(bounded("äöü", 3), "ä…");
        assert_eq!(bounded("äöü", 6), "äöü");
    }
}
