//! The agent as a Kubernetes manifest: one pod that may do nothing but impersonate whom it names.
//!
//! Threat: an agent's service account that may impersonate anyone is an administrator of the cluster, and so is
//! whoever holds the gateway.
//! Decision: the role names users and groups; none are named unless somebody names them, and naming all has a
//! flag of its own that says what it means. Secrets other than the agent's own are out of its reach.
//! Consequence: the cluster's owner can read in one ClusterRole whom the gateway can speak for.

use serde_json::{Value, json};

use crate::{
    cli::Impersonate,
    rbac::{self, AGENT, Name},
};

/// What a manifest is made from.
#[derive(Debug, Clone, Copy)]
pub struct Agent<'a> {
    /// The registration file's text.
    pub registration: &'a str,
    /// The agent's image.
    pub image: &'a str,
    /// Where it runs.
    pub namespace: &'a str,
    /// Whom it may impersonate.
    pub impersonate: &'a Impersonate,
    /// The identity providers that callers prove to it who they are with: an `AuthenticationConfiguration`.
    pub issuers: Option<&'a str>,
}

/// A manifest that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// An identity of the cluster's own.
    #[error("{0:?} belongs to Kubernetes itself and may not be impersonated; leave it out")]
    System(String),
    /// Nothing between two commas.
    #[error("a name in --impersonate-users or --impersonate-groups is empty")]
    Empty,
    /// Not what the agent reads.
    #[error("it is no AuthenticationConfiguration of Kubernetes: {0}")]
    Issuers(String),
    /// YAML can't say it.
    #[error("the manifest can't be written as YAML: {0}")]
    Yaml(String),
}

/// Refuses names that the agent would refuse.
///
/// # Errors
/// See [`ManifestError`].
pub fn check(impersonate: &Impersonate) -> Result<(), ManifestError> {
    for name in impersonate.users.iter().chain(&impersonate.groups) {
        if name.is_empty() {
            return Err(ManifestError::Empty);
        }
        if name.starts_with("system:") {
            return Err(ManifestError::System(name.clone()));
        }
    }
    Ok(())
}

/// Refuses what is no `AuthenticationConfiguration` at all; the agent says what is wrong within one.
///
/// # Errors
/// See [`ManifestError::Issuers`].
pub fn check_issuers(text: &str) -> Result<(), ManifestError> {
    let document: Value =
        serde_saphyr::from_str(text).map_err(|e| ManifestError::Issuers(e.to_string()))?;
    match document.get("kind").and_then(Value::as_str) {
        Some("AuthenticationConfiguration") => Ok(()),
        Some(other) => Err(ManifestError::Issuers(format!("its kind is {other:?}"))),
        None => Err(ManifestError::Issuers("it has no kind".to_owned())),
    }
}

/// What it means to name everybody.
pub const ANYONE: &str = "Warning: the agent may then act as any user and any group of the cluster. Whoever controls \
    the gateway, or gets at the agent's service account, is then an administrator of the cluster. Name users and \
    groups instead where you can.";

/// What whoever applies the manifest should know, if anything.
pub const fn meaning(impersonate: &Impersonate) -> Option<&'static str> {
    if impersonate.anyone {
        Some(ANYONE)
    } else if impersonate.users.is_empty() {
        Some(
            "The agent may impersonate no user yet, so nobody gets through: name them with --impersonate-users, \
             or with: towline memberships generate-gateway-rbac NAME --users … --apply",
        )
    } else {
        None
    }
}

/// The manifest as YAML.
///
/// # Errors
/// See [`ManifestError`].
pub fn render(agent: &Agent<'_>) -> Result<String, ManifestError> {
    check(agent.impersonate)?;
    yaml(&objects(agent))
}

/// Objects as YAML documents.
///
/// # Errors
/// YAML can't say them.
pub fn yaml(objects: &[Value]) -> Result<String, ManifestError> {
    // A line that is folded is hard to read in a certificate.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_multiple_with_options(objects, options)
        .map_err(|e| ManifestError::Yaml(e.to_string()))
}

fn objects(agent: &Agent<'_>) -> Vec<Value> {
    let namespace = agent.namespace;
    let account = json!([{"kind": "ServiceAccount", "name": AGENT, "namespace": namespace}]);
    let named = |name: &str| json!({"name": name, "namespace": namespace, "labels": labels()});
    let cluster_wide = |name: &str| json!({"name": name, "labels": labels()});
    // What is cluster-wide is told apart where a cluster has agents in several namespaces.
    let (agent_role, impersonate_role) = if namespace == DEFAULT_NAMESPACE {
        (AGENT.to_owned(), IMPERSONATE.to_owned())
    } else {
        (
            format!("{AGENT}-{namespace}"),
            format!("{IMPERSONATE}-{namespace}"),
        )
    };
    let bound = |role: &str, kind: &str| json!({"apiGroup": RBAC, "kind": kind, "name": role});
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": cluster_wide(namespace)}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(AGENT)}),
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": named(REGISTRATION),
            "type": "Opaque",
            "stringData": {"registration.yaml": agent.registration},
        }),
        // The key that the agent makes for itself; RBAC can't name what is yet to be created.
        json!({
            "apiVersion": RBAC_V1,
            "kind": "Role",
            "metadata": named(AGENT),
            "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                {
                    "apiGroups": [""],
                    "resources": ["secrets"],
                    "resourceNames": [KEY],
                    "verbs": ["get", "update", "patch"],
                },
            ],
        }),
        json!({
            "apiVersion": RBAC_V1,
            "kind": "RoleBinding",
            "metadata": named(AGENT),
            "roleRef": bound(AGENT, "Role"),
            "subjects": account,
        }),
        // The UID of kube-system is how the cluster is told from others.
        json!({
            "apiVersion": RBAC_V1,
            "kind": "ClusterRole",
            "metadata": cluster_wide(&agent_role),
            "rules": [{
                "apiGroups": [""],
                "resources": ["namespaces"],
                "resourceNames": ["kube-system"],
                "verbs": ["get"],
            }],
        }),
        json!({
            "apiVersion": RBAC_V1,
            "kind": "ClusterRoleBinding",
            "metadata": cluster_wide(&agent_role),
            "roleRef": bound(&agent_role, "ClusterRole"),
            "subjects": account,
        }),
    ];
    objects.push(json!({
        "apiVersion": RBAC_V1,
        "kind": "ClusterRole",
        "metadata": cluster_wide(&impersonate_role),
        "rules": impersonation(agent.impersonate),
    }));
    objects.push(json!({
        "apiVersion": RBAC_V1,
        "kind": "ClusterRoleBinding",
        "metadata": cluster_wide(&impersonate_role),
        "roleRef": bound(&impersonate_role, "ClusterRole"),
        "subjects": account,
    }));
    if let Some(issuers) = agent.issuers {
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named(ISSUERS),
            "data": {"issuers.yaml": issuers},
        }));
    }
    objects.push(deployment(agent));
    objects
}

fn impersonation(impersonate: &Impersonate) -> Value {
    if impersonate.anyone {
        return rbac::rules(&Name::Anyone, false);
    }
    let rule = |resource: &str, names: &[String]| json!({"apiGroups": [""], "resources": [resource], "resourceNames": names, "verbs": ["impersonate"]});
    let mut rules = Vec::new();
    // An empty list of names would mean all of them.
    if !impersonate.users.is_empty() {
        rules.push(rule("users", &impersonate.users));
        // Who is behind a request stays known in them; whom `kubectl --as` may name is said elsewhere.
        for extra in rbac::told() {
            rules.extend(
                rbac::rules(&extra, false)
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
    }
    if !impersonate.groups.is_empty() {
        rules.push(rule("groups", &impersonate.groups));
    }
    Value::Array(rules)
}

fn deployment(agent: &Agent<'_>) -> Value {
    let key = format!("{}/{KEY}", agent.namespace);
    let health = format!("0.0.0.0:{HEALTH_PORT}");
    let mut args = vec![
        "run",
        "--registration",
        "/etc/towline/registration.yaml",
        "--key-secret",
        &key,
        "--health-listen",
        &health,
    ];
    let mut mounts =
        vec![json!({"name": "registration", "mountPath": "/etc/towline", "readOnly": true})];
    let mut volumes = vec![
        json!({"name": "registration", "secret": {"secretName": REGISTRATION, "defaultMode": 288}}),
    ];
    if agent.issuers.is_some() {
        args.extend(["--end-to-end", "/etc/towline-issuers/issuers.yaml"]);
        mounts.push(
            json!({"name": "issuers", "mountPath": "/etc/towline-issuers", "readOnly": true}),
        );
        volumes.push(json!({"name": "issuers", "configMap": {"name": ISSUERS}}));
    }
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": "health"}, "periodSeconds": 10, "failureThreshold": 3});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": AGENT, "namespace": agent.namespace, "labels": labels()},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector()},
            // The new one is connected before the old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                // Another registration begins another pod.
                "metadata": {"labels": labels(), "annotations": {"checksum/registration": checksum(agent.registration)}},
                "spec": {
                    "serviceAccountName": AGENT,
                    "terminationGracePeriodSeconds": 60,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "fsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "agent",
                        "image": agent.image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": args,
                        "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
                        "livenessProbe": probe("/livez"),
                        "readinessProbe": probe("/readyz"),
                        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "capabilities": {"drop": ["ALL"]},
                            "readOnlyRootFilesystem": true,
                        },
                        "volumeMounts": mounts,
                    }],
                    "volumes": volumes,
                },
            },
        },
    })
}

fn checksum(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn selector() -> Value {
    json!({"app.kubernetes.io/name": AGENT})
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": AGENT, "app.kubernetes.io/part-of": "towline"})
}

/// Where the agent runs unless another namespace is named.
pub const DEFAULT_NAMESPACE: &str = "towline";

const REGISTRATION: &str = "towline-agent-registration";
const KEY: &str = "towline-agent-key";
const ISSUERS: &str = "towline-agent-issuers";
/// The name that the gateway's message about a missing rule has.
const IMPERSONATE: &str = "gateway-impersonate";
const HEALTH_PORT: u16 = 8081;
const RBAC: &str = "rbac.authorization.k8s.io";
const RBAC_V1: &str = "rbac.authorization.k8s.io/v1";

#[cfg(test)]
mod tests {
    use super::*;

    fn named(users: &[&str], groups: &[&str]) -> Impersonate {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Impersonate {
            users: owned(users),
            groups: owned(groups),
            anyone: false,
        }
    }

    fn rendered(impersonate: &Impersonate) -> Vec<Value> {
        let agent = Agent {
            registration: "gateway: https://gw\ncertificateAuthority: |\n  -----BEGIN\n  yes\n",
            image: "agent:1",
            namespace: "towline",
            impersonate,
            issuers: None,
        };
        serde_saphyr::from_str_multiple(&render(&agent).unwrap()).unwrap()
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .unwrap()
    }

    #[test]
    fn the_text_says_what_was_meant() {
        let impersonate = named(&["alice"], &["dev"]);
        let objects = rendered(&impersonate);
        let secret = find(&objects, "Secret", REGISTRATION);
        assert_eq!(
            secret["stringData"]["registration.yaml"],
            "gateway: https://gw\ncertificateAuthority: |\n  -----BEGIN\n  yes\n"
        );
        let kinds: Vec<&str> = objects
            .iter()
            .filter_map(|object| object["kind"].as_str())
            .collect();
        assert_eq!(kinds[0], "Namespace", "applied in order");
        assert_eq!(kinds.len(), 10);
    }

    #[test]
    fn issuers_are_mounted_where_the_agent_looks() {
        let impersonate = named(&["alice"], &[]);
        let issuers =
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: []\n";
        check_issuers(issuers).unwrap();
        let agent = Agent {
            registration: "x",
            image: "agent:1",
            namespace: "towline",
            impersonate: &impersonate,
            issuers: Some(issuers),
        };
        let objects: Vec<Value> =
            serde_saphyr::from_str_multiple(&render(&agent).unwrap()).unwrap();
        let map = find(&objects, "ConfigMap", ISSUERS);
        assert_eq!(map["data"]["issuers.yaml"], issuers);
        let pod = &find(&objects, "Deployment", AGENT)["spec"]["template"]["spec"];
        let args = pod["containers"][0]["args"].as_array().unwrap();
        let file = args.iter().position(|arg| arg == "--end-to-end").unwrap() + 1;
        let mount = &pod["containers"][0]["volumeMounts"][1]["mountPath"];
        assert_eq!(
            args[file],
            format!("{}/issuers.yaml", mount.as_str().unwrap())
        );
        assert_eq!(pod["volumes"][1]["configMap"]["name"], ISSUERS);
        for (text, says) in [("kind: Pod", "\"Pod\""), ("a: b", "no kind"), ("{", "")] {
            let refused = check_issuers(text).unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn exactly_those_named_may_be_impersonated() {
        let objects = rendered(&named(&["alice", "bob"], &["dev"]));
        assert_eq!(
            find(&objects, "ClusterRole", IMPERSONATE)["rules"],
            json!([
                {"apiGroups": [""], "resources": ["users"], "resourceNames": ["alice", "bob"], "verbs": ["impersonate"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/towline.dev/original-user"], "verbs": ["impersonate"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/towline.dev/delegates"], "verbs": ["impersonate"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/authentication.kubernetes.io/credential-id"], "verbs": ["impersonate"]},
                {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"], "verbs": ["impersonate"]},
            ])
        );
        assert_eq!(
            find(&rendered(&named(&[], &[])), "ClusterRole", IMPERSONATE)["rules"],
            json!([])
        );
        let only_groups = rendered(&named(&[], &["dev"]));
        assert_eq!(
            find(&only_groups, "ClusterRole", IMPERSONATE)["rules"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn agents_in_other_namespaces_have_roles_of_their_own() {
        let impersonate = named(&["alice"], &[]);
        let agent = Agent {
            registration: "x",
            image: "agent:1",
            namespace: "other",
            impersonate: &impersonate,
            issuers: None,
        };
        let objects: Vec<Value> =
            serde_saphyr::from_str_multiple(&render(&agent).unwrap()).unwrap();
        for kind in ["ClusterRole", "ClusterRoleBinding"] {
            for name in ["towline-agent-other", "gateway-impersonate-other"] {
                find(&objects, kind, name);
            }
        }
    }

    #[test]
    fn the_agent_may_do_nothing_else() {
        for impersonate in [
            named(&["alice"], &["dev"]),
            Impersonate {
                anyone: true,
                ..Impersonate::default()
            },
        ] {
            for object in rendered(&impersonate) {
                for rule in object["rules"].as_array().into_iter().flatten() {
                    let verbs = rule["verbs"].as_array().unwrap();
                    let harmless = verbs.iter().all(|verb| *verb == "impersonate")
                        || rule["resourceNames"] == json!(["kube-system"])
                        || rule["resourceNames"] == json!([KEY])
                        || *verbs == [json!("create")] && object["kind"] == "Role";
                    assert!(harmless, "{rule}");
                }
            }
        }
    }

    #[test]
    fn what_is_kubernetes_own_is_refused_and_anyone_is_warned_of() {
        assert!(matches!(
            check(&named(&["system:admin"], &[])),
            Err(ManifestError::System(_))
        ));
        assert!(matches!(
            check(&named(&[], &["system:masters"])),
            Err(ManifestError::System(_))
        ));
        assert!(matches!(
            check(&named(&[""], &[])),
            Err(ManifestError::Empty)
        ));
        let anyone = Impersonate {
            anyone: true,
            ..Impersonate::default()
        };
        assert!(meaning(&anyone).unwrap().contains("administrator"));
        assert!(meaning(&named(&[], &[])).unwrap().contains("no user yet"));
        assert_eq!(meaning(&named(&["a"], &[])), None);
    }
}
