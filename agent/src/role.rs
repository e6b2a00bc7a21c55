//! Which of a caller's groups the agent may name.
//!
//! The API server refuses a whole request for one group that the agent's role doesn't name, and people are in
//! groups that no cluster knows. So the agent sends those that its role names, which can only take rights
//! away from a caller, and leaves it to the API server where it doesn't know its role.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::ResourceRule;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::cluster::Cluster;

/// Between two looks at the role.
const REFRESH: Duration = Duration::from_secs(30);

/// Between two looks at least, however often the API server says no.
const AT_MOST: Duration = Duration::from_secs(2);

/// The groups that a role names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Groups {
    /// The role isn't known.
    #[default]
    Unknown,
    /// Whatever they are called.
    Any,
    /// These.
    Named(HashSet<String>),
}

/// What the agent's role says at the moment.
#[derive(Debug, Default)]
pub struct Role {
    groups: RwLock<Groups>,
    doubted: Notify,
}

impl Role {
    /// Whether a group may be named.
    pub fn names(&self, group: &[u8]) -> bool {
        match &*self.groups.read().unwrap_or_else(PoisonError::into_inner) {
            Groups::Unknown | Groups::Any => true,
            Groups::Named(named) => {
                std::str::from_utf8(group).is_ok_and(|group| named.contains(group))
            }
        }
    }

    /// The API server said no: the role may have changed.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Looks once.
    pub async fn refresh(&self, cluster: &Cluster) {
        let Some(rules) = cluster.own_rules().await else {
            return;
        };
        let found = groups(&rules);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if *groups != found {
            match &found {
                Groups::Unknown => {}
                Groups::Any => tracing::info!("the agent may impersonate any group"),
                Groups::Named(named) => tracing::info!(
                    groups = named.len(),
                    "the agent may impersonate some groups"
                ),
            }
            *groups = found;
        }
    }

    /// Looks again and again, for as long as it is polled.
    pub async fn follow(&self, cluster: &Cluster) {
        loop {
            sleep(AT_MOST).await;
            drop(timeout(REFRESH, self.doubted.notified()).await);
            self.refresh(cluster).await;
        }
    }
}

/// Rules come from RBAC. Other authorizers, which may allow more, don't tell theirs; then there is no rule
/// here at all that lets the agent impersonate, and nothing is known.
fn groups(rules: &[ResourceRule]) -> Groups {
    let has = |list: &Option<Vec<String>>, wanted: &str| {
        list.iter()
            .flatten()
            .any(|entry| entry == wanted || entry == "*")
    };
    let mut known = false;
    let mut named = HashSet::new();
    for rule in rules.iter().filter(|rule| {
        rule.verbs
            .iter()
            .any(|verb| verb == "impersonate" || verb == "*")
    }) {
        let core = has(&rule.api_groups, "");
        known |= core && has(&rule.resources, "users");
        if !core || !has(&rule.resources, "groups") {
            continue;
        }
        known = true;
        match rule.resource_names.as_deref() {
            None | Some([]) => return Groups::Any,
            Some(names) => named.extend(names.iter().cloned()),
        }
    }
    if known {
        Groups::Named(named)
    } else {
        Groups::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verb: &str, resource: &str, names: &[&str]) -> ResourceRule {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|entry| (*entry).to_owned())
                .collect::<Vec<_>>()
        };
        ResourceRule {
            api_groups: Some(strings(&[""])),
            resources: Some(strings(&[resource])),
            resource_names: (!names.is_empty()).then(|| strings(names)),
            verbs: strings(&[verb]),
        }
    }

    #[test]
    fn a_role_is_read_as_rbac_reads_it() {
        let named =
            |names: &[&str]| Groups::Named(names.iter().map(|name| (*name).to_owned()).collect());
        for (rules, expected) in [
            (vec![], Groups::Unknown),
            (vec![rule("get", "groups", &[])], Groups::Unknown),
            (vec![rule("impersonate", "users", &["alice"])], named(&[])),
            (
                vec![
                    rule("impersonate", "groups", &["a"]),
                    rule("impersonate", "groups", &["b"]),
                ],
                named(&["a", "b"]),
            ),
            (
                vec![
                    rule("impersonate", "groups", &["a"]),
                    rule("impersonate", "groups", &[]),
                ],
                Groups::Any,
            ),
            (vec![rule("*", "*", &[])], Groups::Any),
        ] {
            assert_eq!(groups(&rules), expected, "{rules:?}");
        }
        let mut elsewhere = rule("impersonate", "groups", &[]);
        elsewhere.api_groups = Some(vec!["example.com".into()]);
        assert_eq!(groups(&[elsewhere]), Groups::Unknown);
    }

    #[test]
    fn what_is_not_known_is_left_to_the_api_server() {
        let role = Role::default();
        assert!(role.names(b"dev"));
        *role.groups.write().unwrap() = Groups::Named(HashSet::from(["dev".to_owned()]));
        assert!(role.names(b"dev") && !role.names(b"ops"));
    }
}
