//! The RBAC that lets people through to a cluster: whom the agent may impersonate, and what they may do there.
//!
//! Threat: a role of many names that a second run replaces, so that somebody is shut out, or stays in, unseen.
//! Decision: every name has objects of its own, whose names come from what they say: a run adds objects or writes the
//! same ones again, and changes none that another run made. `--revoke` finds a name's objects by a label.
//! Consequence: runs merge, in any order and from several files; nothing is taken away but by `--revoke`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

/// What the agent may impersonate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A user, by the name that RBAC sees.
    User(String),
    /// A group, by the name that RBAC sees.
    Group(String),
    /// A UID of whoever else is named.
    Uid(String),
    /// An extra of whoever else is named.
    Extra {
        /// In lower case.
        key: String,
        /// Any, where there is none.
        value: Option<String>,
    },
    /// A service account of the cluster, as the target of `kubectl --as`.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name there.
        name: String,
    },
    /// Everybody and everything but what the agent itself refuses.
    Anyone,
}

/// A role that people get in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleRef {
    /// `clusterrole/NAME`, in one namespace or in all.
    Cluster {
        /// Its name.
        name: String,
        /// Where it holds; everywhere, if there is none.
        namespace: Option<String>,
    },
    /// `role/NAME` in a namespace.
    Namespaced {
        /// Its name.
        name: String,
        /// Where it is.
        namespace: String,
    },
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Policy<'a> {
    /// The membership, for who reads the objects.
    pub membership: &'a str,
    /// Where the agent's service account is.
    pub agent_namespace: &'a str,
    /// Whom the agent may impersonate.
    pub names: &'a [Name],
    /// What users and groups may do.
    pub role: Option<&'a RoleRef>,
    /// With constrained impersonation (KEP-5284): the verbs that the agent may use as anybody.
    pub constrained: Option<&'a [String]>,
}

/// An object's `metadata`.
#[derive(Debug, Serialize)]
struct Metadata {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// The verbs of Kubernetes' API.
pub const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

impl Policy<'_> {
    /// The objects, in the order in which they are applied.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = Vec::new();
        if let Some(verbs) = self.constrained {
            objects.extend(self.pair("on", &verbs.join(","), &on(verbs), None, None));
        }
        if self.names.iter().any(|name| matches!(name, Name::User(_))) {
            for extra in told() {
                objects.extend(self.impersonation(&extra));
            }
        }
        for name in self.names {
            objects.extend(self.impersonation(name));
        }
        if let Some(role) = self.role {
            objects.extend(
                self.names
                    .iter()
                    .filter_map(|name| self.permission(name, role)),
            );
        }
        objects
    }

    /// What selects the objects of a name.
    pub fn selector(&self, name: &Name) -> String {
        format!("{MANAGED_BY}=towline,{PRINCIPAL}={}", self.hash(name, ""))
    }

    /// Kind, namespace and name of the binding of a role to a user or group.
    pub fn binding(
        &self,
        name: &Name,
        role: &RoleRef,
    ) -> Option<(&'static str, Option<String>, String)> {
        let (kind, plain) = name.kind_and_text();
        if !matches!(name, Name::User(_) | Name::Group(_)) {
            return None;
        }
        let hash = self.hash(name, &role.text());
        let object = format!("gateway-permission-{kind}-{}{hash}", slug(&plain));
        Some(match role {
            RoleRef::Cluster {
                namespace: None, ..
            } => ("ClusterRoleBinding", None, object),
            RoleRef::Cluster {
                namespace: Some(namespace),
                ..
            }
            | RoleRef::Namespaced { namespace, .. } => {
                ("RoleBinding", Some(namespace.clone()), object)
            }
        })
    }

    fn impersonation(&self, name: &Name) -> [Value; 2] {
        let constrained =
            self.constrained.is_some() && !matches!(name, Name::ServiceAccount { .. });
        let (kind, plain) = name.kind_and_text();
        let kind = if constrained {
            format!("constrained-{kind}")
        } else {
            kind.to_owned()
        };
        let namespace = match name {
            Name::ServiceAccount { namespace, .. } => Some(namespace.as_str()),
            _ => None,
        };
        self.pair(
            &kind,
            &plain,
            &rules(name, constrained),
            namespace,
            Some(name),
        )
    }

    /// A role and its binding to the agent's service account.
    fn pair(
        &self,
        kind: &str,
        plain: &str,
        rules: &Value,
        namespace: Option<&str>,
        name: Option<&Name>,
    ) -> [Value; 2] {
        let hash = match name {
            Some(name) => self.hash(name, ""),
            None => hash(&[self.agent_namespace, kind, plain]),
        };
        let object = format!("gateway-impersonate-{kind}-{}{hash}", slug(plain));
        let role = if namespace.is_some() {
            "Role"
        } else {
            "ClusterRole"
        };
        let metadata = self.metadata(&object, namespace, name);
        [
            json!({"apiVersion": RBAC_V1, "kind": role, "metadata": metadata, "rules": rules}),
            json!({
                "apiVersion": RBAC_V1,
                "kind": format!("{role}Binding"),
                "metadata": metadata,
                "roleRef": {"apiGroup": RBAC, "kind": role, "name": object},
                "subjects": [{"kind": "ServiceAccount", "name": AGENT, "namespace": self.agent_namespace}],
            }),
        ]
    }

    fn permission(&self, name: &Name, role: &RoleRef) -> Option<Value> {
        let (kind, namespace, object) = self.binding(name, role)?;
        let (subject, plain) = match name {
            Name::Group(group) => ("Group", group),
            Name::User(user) => ("User", user),
            _ => return None,
        };
        let (role_kind, role_name) = match role {
            RoleRef::Cluster { name, .. } => ("ClusterRole", name),
            RoleRef::Namespaced { name, .. } => ("Role", name),
        };
        Some(json!({
            "apiVersion": RBAC_V1,
            "kind": kind,
            "metadata": self.metadata(&object, namespace.as_deref(), Some(name)),
            "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role_name},
            "subjects": [{"apiGroup": RBAC, "kind": subject, "name": plain}],
        }))
    }

    fn metadata(&self, object: &str, namespace: Option<&str>, name: Option<&Name>) -> Metadata {
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut labels = BTreeMap::from([
            own(MANAGED_BY, "towline"),
            own("app.kubernetes.io/part-of", "towline"),
        ]);
        let mut annotations = BTreeMap::from([own("towline.dev/membership", self.membership)]);
        if let Some(name) = name {
            let (kind, plain) = name.kind_and_text();
            labels.insert(PRINCIPAL.to_owned(), self.hash(name, ""));
            annotations.insert(PRINCIPAL.to_owned(), format!("{kind}:{plain}"));
        }
        Metadata {
            name: object.to_owned(),
            namespace: namespace.map(str::to_owned),
            labels,
            annotations,
        }
    }

    fn hash(&self, name: &Name, more: &str) -> String {
        let (kind, plain) = name.kind_and_text();
        hash(&[self.agent_namespace, kind, &plain, more])
    }
}

impl Name {
    fn kind_and_text(&self) -> (&'static str, String) {
        match self {
            Self::User(name) => ("user", name.clone()),
            Self::Group(name) => ("group", name.clone()),
            Self::Uid(uid) => ("uid", uid.clone()),
            Self::Extra { key, value: None } => ("extra", key.clone()),
            Self::Extra {
                key,
                value: Some(value),
            } => ("extra", format!("{key}={value}")),
            Self::ServiceAccount { namespace, name } => {
                ("serviceaccount", format!("{namespace}/{name}"))
            }
            Self::Anyone => ("anyone", String::new()),
        }
    }
}

impl RoleRef {
    fn text(&self) -> String {
        match self {
            Self::Cluster { name, namespace } => {
                format!(
                    "clusterrole/{name}/{}",
                    namespace.as_deref().unwrap_or_default()
                )
            }
            Self::Namespaced { name, namespace } => format!("role/{name}/{namespace}"),
        }
    }
}

/// The rules that let somebody impersonate a name.
pub(crate) fn rules(name: &Name, constrained: bool) -> Value {
    let (verb, people) = if constrained {
        ("impersonate:user-info", AUTHENTICATION)
    } else {
        ("impersonate", "")
    };
    let one = |group: &str, resource: &str, name: &str| json!([{"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": [verb]}]);
    match name {
        Name::User(user) => one(people, "users", user),
        Name::Group(group) => one(people, "groups", group),
        Name::Uid(uid) => one(AUTHENTICATION, "uids", uid),
        Name::Extra {
            key,
            value: Some(value),
        } => one(AUTHENTICATION, &format!("userextras/{key}"), value),
        Name::Extra { key, value: None } => json!([
            {"apiGroups": [AUTHENTICATION], "resources": [format!("userextras/{key}")], "verbs": [verb]},
        ]),
        Name::ServiceAccount { name, .. } => one("", "serviceaccounts", name),
        // RBAC has no wildcard for a subresource: every extra is every resource of the group.
        Name::Anyone if constrained => {
            json!([{"apiGroups": [AUTHENTICATION], "resources": ["*"], "verbs": [verb]}])
        }
        Name::Anyone => json!([
            {"apiGroups": [""], "resources": ["users", "groups", "serviceaccounts"], "verbs": [verb]},
            {"apiGroups": [AUTHENTICATION], "resources": ["*"], "verbs": [verb]},
        ]),
    }
}

/// What the agent may do as anybody. RBAC has no wildcard for the end of a verb.
fn on(verbs: &[String]) -> Value {
    let on = |verb: &str| format!("impersonate-on:user-info:{verb}");
    let allowed: Vec<String> = verbs.iter().map(|verb| on(verb)).collect();
    // Of other paths than the API's, the verb is HTTP's.
    let mut http: Vec<String> = Vec::new();
    for (verb, methods) in [
        ("get", &["get", "head", "options"][..]),
        ("create", &["post"]),
        ("update", &["put"]),
        ("patch", &["patch"]),
        ("delete", &["delete"]),
    ] {
        if verbs.iter().any(|allowed| allowed == verb) {
            http.extend(methods.iter().map(|method| on(method)));
        }
    }
    let mut rules = vec![
        json!({"apiGroups": ["*"], "resources": ["*"], "verbs": allowed}),
        // What callers ask about themselves changes nothing.
        json!({
            "apiGroups": ["authorization.k8s.io"],
            "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            "verbs": [on("create")],
        }),
        json!({"apiGroups": [AUTHENTICATION], "resources": ["selfsubjectreviews"], "verbs": [on("create")]}),
    ];
    if !http.is_empty() {
        rules.push(json!({"nonResourceURLs": ["*"], "verbs": http}));
    }
    Value::Array(rules)
}

/// A name's part that people recognize, with a dash after it.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()).take(40) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    if !slug.is_empty() && !slug.ends_with('-') {
        slug.push('-');
    }
    slug
}

/// Ten hexadecimal digits that two different names don't share.
fn hash(parts: &[&str]) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let digest = context.finish();
    let bytes = digest.as_ref().iter().take(5);
    bytes.fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// The extras that go with whoever is named, any value of them: they tell who is behind a request.
pub(crate) fn told() -> impl Iterator<Item = Name> {
    TOLD.into_iter().map(|key| Name::Extra {
        key: key.to_owned(),
        value: None,
    })
}

/// A caller who uses `--as`, whoever acts as a service account, and the token that somebody signed in with.
pub(crate) const TOLD: [&str; 3] = [
    ORIGINAL_USER,
    "towline.dev/delegates",
    "authentication.kubernetes.io/credential-id",
];
/// Extra in which the agent keeps a caller who uses `--as`.
const ORIGINAL_USER: &str = "towline.dev/original-user";
/// The agent's service account.
pub(crate) const AGENT: &str = "towline-agent";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const PRINCIPAL: &str = "towline.dev/principal";
const RBAC: &str = "rbac.authorization.k8s.io";
const RBAC_V1: &str = "rbac.authorization.k8s.io/v1";
const AUTHENTICATION: &str = "authentication.k8s.io";

#[cfg(test)]
mod tests;
