//! Whom the agent may name, as its role in the cluster says.
//!
//! The API server refuses a whole request for one group that the agent's role doesn't name, and people are in
//! groups that no cluster knows. So the agent sends those that its role names, which can only take rights
//! away from a caller, and leaves it to the API server where it doesn't know its role. With a caller's UID it is the
//! same.
//!
//! A role may name people in two ways: with the verb `impersonate`, or with `impersonate:user-info`, which API servers
//! with constrained impersonation (KEP-5284) take. One request is allowed in one way or in the other, never half and
//! half.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::ResourceRule;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::cluster::Cluster;

/// Between two looks at the role.
const REFRESH: Duration = Duration::from_secs(30);

/// Between two looks at least, however often the API server says no.
const AT_MOST: Duration = Duration::from_secs(2);

/// The verb of every version.
const IMPERSONATE: &str = "impersonate";

/// The verb of constrained impersonation, for whoever is no node and no service account.
const CONSTRAINED: &str = "impersonate:user-info";

/// The API group of UIDs and extras, and with constrained impersonation of all.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The names that a role has for one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    /// Whatever they are.
    Any,
    /// These.
    These(HashSet<String>),
}

impl Default for Names {
    fn default() -> Self {
        Self::These(HashSet::new())
    }
}

impl Names {
    fn have(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.contains(name),
        }
    }

    fn add(&mut self, names: Option<&[String]>) {
        match (names, &mut *self) {
            (None | Some([]), _) => *self = Self::Any,
            (Some(names), Self::These(own)) => own.extend(names.iter().cloned()),
            (Some(_), Self::Any) => {}
        }
    }

    fn are_none(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }
}

/// Whom a role names in one way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Nothing is known: it is left to the API server.
    unknown: bool,
    constrained: bool,
    users: Names,
    groups: Names,
    uids: Names,
    /// By key; `*` is every key.
    extra: Vec<(String, Names)>,
}

impl Rights {
    /// Whether a user may be named.
    pub fn user(&self, name: &str) -> bool {
        self.unknown || self.users.have(name)
    }

    /// Whether a group may be named.
    pub fn group(&self, name: &str) -> bool {
        self.unknown || self.groups.have(name)
    }

    /// Whether a UID may be named.
    pub fn uid(&self, uid: &str) -> bool {
        self.unknown || self.uids.have(uid)
    }

    /// Whether an extra may be set.
    pub fn extra(&self, key: &str, value: &str) -> bool {
        self.unknown
            || self
                .extra
                .iter()
                .any(|(own, values)| (own == key || own == "*") && values.have(value))
    }

    /// Whether these hold for constrained impersonation alone.
    pub const fn constrained(&self) -> bool {
        self.constrained
    }

    fn of(rules: &[ResourceRule], constrained: bool) -> Self {
        let (verb, people) = if constrained {
            (CONSTRAINED, AUTHENTICATION)
        } else {
            (IMPERSONATE, "")
        };
        let mut rights = Self {
            constrained,
            ..Self::default()
        };
        let has = |list: &[String], wanted: &str| {
            list.iter().any(|entry| entry == wanted || entry == "*")
        };
        for rule in rules.iter().filter(|rule| has(&rule.verbs, verb)) {
            let groups = rule.api_groups.as_deref().unwrap_or_default();
            let resources = rule.resources.as_deref().unwrap_or_default();
            let names = rule.resource_names.as_deref();
            if has(groups, people) && has(resources, "users") {
                rights.users.add(names);
            }
            if has(groups, people) && has(resources, "groups") {
                rights.groups.add(names);
            }
            if !has(groups, AUTHENTICATION) {
                continue;
            }
            if has(resources, "uids") {
                rights.uids.add(names);
            }
            for resource in resources {
                // `userextras/*` names the extra `*` and no other.
                let key = match resource.as_str() {
                    "*" => Some("*"),
                    resource => resource
                        .strip_prefix("userextras/")
                        .or_else(|| resource.strip_prefix("*/"))
                        .filter(|key| *key != "*"),
                };
                if let Some(key) = key {
                    let mut values = Names::default();
                    values.add(names);
                    rights.extra.push((key.to_owned(), values));
                }
            }
        }
        rights
    }

    fn are_none(&self) -> bool {
        self.users.are_none() && self.groups.are_none()
    }
}

/// What the agent's role says at the moment.
#[derive(Default)]
pub struct Role {
    rights: RwLock<Ways>,
    cluster: Option<Cluster>,
    looked: Mutex<Option<Instant>>,
}

/// Both ways in which it may name people.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ways {
    plain: Arc<Rights>,
    constrained: Arc<Rights>,
}

impl Default for Ways {
    fn default() -> Self {
        Self::of(&[])
    }
}

impl Ways {
    /// Rules come from RBAC. Other authorizers, which may allow more, don't tell theirs; then there is no rule
    /// here at all that lets the agent impersonate, and nothing is known.
    fn of(rules: &[ResourceRule]) -> Self {
        let plain = Rights::of(rules, false);
        let constrained = Rights::of(rules, true);
        let unknown = plain.are_none() && constrained.are_none();
        Self {
            plain: Arc::new(Rights { unknown, ..plain }),
            constrained: Arc::new(constrained),
        }
    }
}

impl Role {
    /// As the cluster tells.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster: Some(cluster),
            ..Self::default()
        }
    }

    /// One whose rules are these.
    pub fn of(rules: &[ResourceRule]) -> Self {
        Self {
            rights: RwLock::new(Ways::of(rules)),
            ..Self::default()
        }
    }

    /// Whom the agent may name beside this user.
    pub fn beside(&self, user: &str) -> Arc<Rights> {
        let ways = self.rights.read().unwrap_or_else(PoisonError::into_inner);
        if !ways.plain.user(user) && ways.constrained.user(user) {
            Arc::clone(&ways.constrained)
        } else {
            Arc::clone(&ways.plain)
        }
    }

    /// Looks again, unless somebody just did: the API server said no, so the role may have changed.
    pub async fn look(&self) {
        let Some(cluster) = &self.cluster else {
            return;
        };
        // One at a time; who comes second sees what the first has seen.
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|looked| looked.elapsed() < AT_MOST) {
            return;
        }
        *looked = Some(Instant::now());
        let Some(rules) = cluster.own_rules().await else {
            return;
        };
        let found = Ways::of(&rules);
        let mut rights = self.rights.write().unwrap_or_else(PoisonError::into_inner);
        if *rights != found {
            for rights in [&found.plain, &found.constrained] {
                log(rights);
            }
            *rights = found;
        }
    }

    /// Looks again and again, for as long as it is polled.
    pub async fn follow(&self) {
        loop {
            sleep(REFRESH).await;
            self.look().await;
        }
    }
}

fn log(rights: &Rights) {
    if rights.unknown || rights.are_none() {
        return;
    }
    let count = |names: &Names| match names {
        Names::Any => "any".to_owned(),
        Names::These(names) => names.len().to_string(),
    };
    tracing::info!(
        users = count(&rights.users),
        groups = count(&rights.groups),
        uids = count(&rights.uids),
        constrained = rights.constrained,
        "whom the agent may impersonate"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(group: &str, verb: &str, resource: &str, names: &[&str]) -> ResourceRule {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|&entry| entry.to_owned())
                .collect::<Vec<_>>()
        };
        ResourceRule {
            api_groups: Some(strings(&[group])),
            resources: Some(strings(&[resource])),
            resource_names: (!names.is_empty()).then(|| strings(names)),
            verbs: strings(&[verb]),
        }
    }

    fn plain(resource: &str, names: &[&str]) -> ResourceRule {
        rule("", "impersonate", resource, names)
    }

    #[test]
    fn a_role_is_read_as_rbac_reads_it() {
        let alice = plain("users", &["alice"]);
        for (rules, groups) in [
            (vec![], &["a", "b"][..]),
            (vec![rule("", "get", "groups", &[])], &["a", "b"]),
            (vec![alice.clone()], &[]),
            (vec![alice.clone(), plain("groups", &["a"])], &["a"]),
            (
                vec![
                    alice.clone(),
                    plain("groups", &["a"]),
                    plain("groups", &["b"]),
                ],
                &["a", "b"],
            ),
            (
                vec![alice.clone(), plain("groups", &["c"]), plain("groups", &[])],
                &["a", "b"],
            ),
            (vec![rule("*", "*", "*", &[])], &["a", "b"]),
            (
                vec![
                    alice.clone(),
                    rule("example.com", "impersonate", "groups", &[]),
                ],
                &[],
            ),
        ] {
            let rights = Role::of(&rules).beside("alice");
            let may: Vec<&str> = ["a", "b"]
                .into_iter()
                .filter(|group| rights.group(group))
                .collect();
            assert_eq!(may, groups, "{rules:?}");
        }
    }

    #[test]
    fn uids_and_extras_are_named_one_by_one() {
        let authentication = |resource, names| rule(AUTHENTICATION, "impersonate", resource, names);
        let role = Role::of(&[
            plain("users", &["alice"]),
            authentication("uids", &["7"]),
            authentication("userextras/scopes", &["read"]),
            authentication("userextras/*", &[]),
            authentication("userextras/towline.dev/original-user", &[]),
        ]);
        let rights = role.beside("alice");
        assert!(rights.uid("7") && !rights.uid("8"));
        assert!(rights.extra("scopes", "read") && !rights.extra("scopes", "write"));
        assert!(rights.extra("towline.dev/original-user", "{}") && !rights.extra("else", "x"));
    }

    #[test]
    fn one_request_goes_one_way() {
        let constrained = |resource, names| rule(AUTHENTICATION, CONSTRAINED, resource, names);
        let role = Role::of(&[
            plain("users", &["alice"]),
            plain("groups", &["a"]),
            constrained("users", &["alice", "bob"]),
            constrained("groups", &["b"]),
        ]);
        let (alice, bob) = (role.beside("alice"), role.beside("bob"));
        assert!(alice.group("a") && !alice.group("b") && !alice.constrained());
        assert!(bob.group("b") && !bob.group("a") && bob.constrained());
        assert!(!role.beside("carol").user("carol"));
    }
}
