//! Told apart: the cluster doesn't let the *agent* impersonate, or it doesn't let the caller do something.
//!
//! Both are a 403. The first is the operator's to repair, and its sentence, `User "…" cannot impersonate …`,
//! would be a riddle to the caller. Every other 403 passes byte by byte.
//!
//! An API server with constrained impersonation (KEP-5284) tries several ways and tells why the first of them failed,
//! which needn't be the one that was meant: then the agent's own role tells what is missing.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::timeout;
use towline_proto::body::Aborted;

use crate::{
    body::Boxed,
    guard::{Impersonation, ORIGINAL_USER, service_account},
    role::Role,
};

/// The longest body that is looked into, in bytes.
const LOOK: u64 = 8 * 1024;

/// How long a body may take to arrive before it passes unseen.
const PATIENCE: Duration = Duration::from_secs(5);

/// The agent's role lacks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "agent is not authorized to impersonate user {user:?}; in the cluster, the {role} gateway-impersonate lacks {rule}{run}"
)]
pub(super) struct Missing {
    user: String,
    /// Where the rule belongs: a ClusterRole or a Role.
    role: String,
    rule: String,
    run: String,
}

/// The answer as it is, or what the agent lacks.
pub(super) async fn inspect(
    response: Response<Boxed>,
    caller: &Impersonation,
    role: &Role,
) -> Result<Response<Boxed>, Missing> {
    let length = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    // The API server always says how long its own denial is.
    if response.status() != StatusCode::FORBIDDEN || length.is_none_or(|length: u64| length > LOOK)
    {
        return Ok(response);
    }
    let (head, mut body) = response.into_parts();
    let mut seen = VecDeque::new();
    let whole = timeout(PATIENCE, async {
        while let Some(frame) = body.frame().await {
            seen.push_back(frame);
        }
    })
    .await;
    if whole.is_ok() {
        let bytes: Vec<u8> = seen
            .iter()
            .flatten()
            .filter_map(Frame::data_ref)
            .flatten()
            .copied()
            .collect();
        if let Some(denied) = Denied::read(&String::from_utf8_lossy(&bytes))
            && denied.agent != caller.user()
        {
            role.look().await;
            return Err(denied.missing(caller, role));
        }
    }
    Ok(Response::from_parts(head, replay(seen, body)))
}

/// The frames that were seen, then the rest.
fn replay(seen: VecDeque<Result<Frame<Bytes>, Aborted>>, rest: Boxed) -> Boxed {
    let frames = futures_util::stream::unfold((seen, rest), |(mut seen, mut rest)| async move {
        let frame = match seen.pop_front() {
            Some(frame) => frame,
            None => rest.frame().await?,
        };
        Some((frame, (seen, rest)))
    });
    UnsyncBoxBody::new(StreamBody::new(frames))
}

/// What the API server says that somebody can't impersonate.
#[derive(Debug, PartialEq, Eq)]
struct Denied {
    agent: String,
    verb: String,
    group: String,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
}

impl Denied {
    /// JSON, protobuf and CBOR all hold the message as it is, but for JSON's escapes:
    /// `users "alice" is forbidden: User "system:serviceaccount:towline:towline-agent" cannot impersonate resource …`
    fn read(body: &str) -> Option<Self> {
        let text = body.replace("\\\"", "\"");
        let (before, after) = text.split_once("\" cannot impersonate")?;
        let (subject, agent) = before.rsplit_once("User \"")?;
        let (suffix, after) = after.split_once(' ')?;
        let verb = format!("impersonate{suffix}");
        let quoted = |text: &str, before: &str| {
            let (value, rest) = text.strip_prefix(before)?.split_once('"')?;
            Some((value.to_owned(), rest.to_owned()))
        };
        let (resource, after) =
            quoted(after, "resource \"").or_else(|| quoted(after, "path \""))?;
        let (group, after) = quoted(&after, " in API group \"").unwrap_or((String::new(), after));
        let namespace = quoted(&after, " in the namespace \"").map(|(namespace, _)| namespace);
        let name = subject
            .trim_end()
            .strip_suffix("\" is forbidden:")
            .and_then(|rest| rest.rsplit_once('"'))
            .map(|(_, name)| name.to_owned());
        Some(Self {
            agent: agent.to_owned(),
            verb,
            group,
            resource,
            namespace,
            name,
        })
    }

    fn missing(self, caller: &Impersonation, role: &Role) -> Missing {
        let user = caller.user().to_owned();
        let rights = role.beside(&user);
        // A way that the role doesn't take says nothing of what the other lacks.
        let told = self.verb == "impersonate" || rights.constrained();
        if !told {
            if let Some((namespace, name)) = service_account(&user) {
                let lacks = Self::plain("", "serviceaccounts", name, Some(namespace));
                return lacks.rule(user, caller.cluster());
            }
            if let Some((key, value)) = caller.extra_beyond(&rights).filter(|_| rights.user(&user))
            {
                let resource = format!("userextras/{key}");
                let lacks = Self::plain("authentication.k8s.io", &resource, value, None);
                return lacks.rule(user, caller.cluster());
            }
            return Self::plain("", "users", &user, None).rule(user, caller.cluster());
        }
        self.rule(user, caller.cluster())
    }

    fn plain(group: &str, resource: &str, name: &str, namespace: Option<&str>) -> Self {
        Self {
            agent: String::new(),
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
        }
    }

    fn rule(self, user: String, cluster: &str) -> Missing {
        let Self {
            verb,
            group,
            resource,
            namespace,
            name,
            ..
        } = self;
        // What is said to be impersonated *on* is any object, and the original user is anybody.
        let on = verb.starts_with("impersonate-on:");
        let original = resource.strip_prefix(EXTRA) == Some(ORIGINAL_USER);
        let name = name.filter(|_| !on && !original);
        let names = name
            .as_ref()
            .map_or_else(String::new, |name| format!(", resourceNames: [{name:?}]"));
        let rule = if resource.starts_with('/') {
            format!("{{nonResourceURLs: [{resource:?}], verbs: [{verb:?}]}}")
        } else {
            format!(
                "{{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [{verb:?}]{names}}}"
            )
        };
        let role = match &namespace {
            Some(namespace) if !on => format!("Role in {namespace}"),
            _ => "ClusterRole".to_owned(),
        };
        let word = |text: &str| {
            let plain = |c: char| c.is_alphanumeric() || "@._:/-=".contains(c);
            if text.chars().all(plain) {
                text.to_owned()
            } else {
                format!("'{}'", text.replace('\'', "'\\''"))
            }
        };
        let users = format!("--users {}", word(&user));
        let flags = match (resource.as_str(), name.as_deref(), &namespace) {
            ("users", Some(_), _) => Some(users),
            ("groups", Some(name), _) => Some(format!("--groups {}", word(name))),
            ("uids", Some(name), _) => Some(format!("{users} --uids {}", word(name))),
            ("serviceaccounts", Some(name), Some(namespace)) => {
                Some(format!("--cluster-service-accounts {namespace}/{name}"))
            }
            (resource, name, _) => resource.strip_prefix(EXTRA).map(|key| match name {
                Some(value) => format!("{users} --extra {}", word(&format!("{key}={value}"))),
                None => users,
            }),
        };
        let run = flags.map_or_else(String::new, |flags| {
            format!("; run: towline memberships generate-gateway-rbac {cluster} {flags} --apply")
        });
        Missing {
            user,
            role,
            rule,
            run,
        }
    }
}

/// What the resource of an extra begins with.
const EXTRA: &str = "userextras/";

#[cfg(test)]
mod tests;
