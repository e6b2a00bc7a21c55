//! What was typed, as names that a cluster's RBAC knows.

use towline_proto::names::{PoolId, Project, ServiceAccountId};

use crate::{
    cli::GatewayRbac,
    rbac::{Name, RoleRef, TOLD},
};

/// The longest name, in bytes.
const MAX: usize = 512;

/// A name or role that can't be meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    /// Nobody is named.
    #[error("nobody is named; give --users, --groups, --cluster-service-accounts or --anyone")]
    Nobody,
    /// Nothing between two commas, or what no header can say.
    #[error(
        "{flag} has the name {name:?}: it is empty, longer than {MAX} bytes, has white space at an end, control \
         characters, or is a wildcard"
    )]
    Name {
        /// Where.
        flag: &'static str,
        /// What.
        name: String,
    },
    /// An identity of the cluster's own.
    #[error("{0:?} belongs to Kubernetes itself and may not be impersonated; leave it out")]
    System(String),
    /// A kind of principal that belongs elsewhere, or that no RBAC sees.
    #[error("{flag} has {name:?}: {right}")]
    Kind {
        /// Where.
        flag: &'static str,
        /// What.
        name: String,
        /// What would be right.
        right: &'static str,
    },
    /// Not a role.
    #[error(
        "--role {0:?} is none: write clusterrole/NAME, role/NAMESPACE/NAME, or role/NAME with --namespace NAMESPACE"
    )]
    Role(String),
}

/// All that is named.
pub(super) fn all(args: &GatewayRbac) -> Result<Vec<Name>, Invalid> {
    let mut names = Vec::new();
    if args.anyone {
        names.push(Name::Anyone);
    }
    for user in &args.users {
        names.push(self::user(user)?);
    }
    for group in &args.groups {
        names.push(self::group(group)?);
    }
    for uid in &args.uids {
        names.push(Name::Uid(plain("--uids", uid)?));
    }
    for extra in &args.extra {
        names.push(self::extra(extra)?);
    }
    for account in &args.cluster_service_accounts {
        names.push(service_account(account)?);
    }
    if names
        .iter()
        .all(|name| matches!(name, Name::Uid(_) | Name::Extra { .. }))
    {
        return Err(Invalid::Nobody);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The role, if one is meant.
pub(super) fn role(args: &GatewayRbac) -> Result<Option<RoleRef>, Invalid> {
    let Some(text) = &args.role else {
        return Ok(None);
    };
    let wrong = || Invalid::Role(text.clone());
    let is_name = |name: &str| {
        !name.is_empty()
            && !name
                .chars()
                .any(|c| c.is_control() || c.is_whitespace() || "/%".contains(c))
            && name != "."
            && name != ".."
    };
    let flag = args.namespace.as_ref().map(ToString::to_string);
    let (kind, rest) = text.split_once('/').ok_or_else(wrong)?;
    let (namespace, name) = match (kind, rest.split_once('/')) {
        ("role", Some((own, name))) if flag.as_ref().is_none_or(|flag| flag == own) => {
            (Some(own.to_owned()), name)
        }
        (_, None) => (flag, rest),
        _ => return Err(wrong()),
    };
    if !is_name(name) || namespace.as_deref().is_some_and(|own| !is_name(own)) {
        return Err(wrong());
    }
    let name = name.to_owned();
    match (kind, namespace) {
        ("clusterrole", namespace) => Ok(Some(RoleRef::Cluster { name, namespace })),
        ("role", Some(namespace)) => Ok(Some(RoleRef::Namespaced { name, namespace })),
        _ => Err(wrong()),
    }
}

fn user(text: &str) -> Result<Name, Invalid> {
    const FLAG: &str = "--users";
    let wrong = |right| Invalid::Kind {
        flag: FLAG,
        name: text.to_owned(),
        right,
    };
    let name = plain(FLAG, text)?;
    if text.starts_with("user:") {
        return Err(wrong("write the name without user:"));
    }
    if text.starts_with("group:") || text.starts_with("principalSet:") {
        return Err(wrong("a group belongs to --groups"));
    }
    if let Some(account) = text.strip_prefix("serviceAccount:") {
        let parts = account.split_once('@');
        let valid = parts.is_some_and(|(name, project)| {
            name.parse::<ServiceAccountId>().is_ok() && project.parse::<Project>().is_ok()
        });
        if !valid {
            return Err(wrong("write serviceAccount:NAME@PROJECT"));
        }
    }
    if let Some(rest) = text.strip_prefix("principal:")
        && !of_pool(rest, "subject/")
    {
        return Err(wrong(
            "write principal://projects/PROJECT/locations/global/workloadIdentityPools/POOL/subject/SUBJECT",
        ));
    }
    Ok(Name::User(name))
}

fn group(text: &str) -> Result<Name, Invalid> {
    const FLAG: &str = "--groups";
    let wrong = |right| Invalid::Kind {
        flag: FLAG,
        name: text.to_owned(),
        right,
    };
    let name = plain(FLAG, text)?;
    if text.starts_with("group:") {
        return Err(wrong("write the name without group:"));
    }
    if ["user:", "serviceAccount:", "principal:"]
        .iter()
        .any(|kind| text.starts_with(kind))
    {
        return Err(wrong("it is no group; name it with --users"));
    }
    if let Some(rest) = text.strip_prefix("principalSet:")
        && !of_pool(rest, "group/")
    {
        return Err(wrong(
            "of a pool, clusters see groups alone: principalSet://projects/PROJECT/locations/global/\
             workloadIdentityPools/POOL/group/GROUP; map attributes to groups in the provider",
        ));
    }
    Ok(Name::Group(name))
}

/// `//projects/P/locations/global/workloadIdentityPools/POOL/` and what it begins with, and something after it.
fn of_pool(text: &str, begins: &str) -> bool {
    let inner = || {
        let rest = text.strip_prefix("//projects/")?;
        let (project, rest) = rest.split_once("/locations/global/workloadIdentityPools/")?;
        let (pool, rest) = rest.split_once('/')?;
        let named = rest.strip_prefix(begins)?;
        Some(
            project.parse::<Project>().is_ok()
                && pool.parse::<PoolId>().is_ok()
                && !named.is_empty(),
        )
    };
    inner().unwrap_or(false)
}

fn extra(text: &str) -> Result<Name, Invalid> {
    const FLAG: &str = "--extra";
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(plain(FLAG, value)?)),
        None => (text, None),
    };
    let key = plain(FLAG, key)?;
    let wrong = |right| Invalid::Kind {
        flag: FLAG,
        name: text.to_owned(),
        right,
    };
    if key.to_lowercase() != key {
        return Err(wrong("keys of extras are in lower case"));
    }
    if TOLD.contains(&key.as_str()) {
        return Err(wrong("it is added wherever users are named"));
    }
    Ok(Name::Extra { key, value })
}

fn service_account(text: &str) -> Result<Name, Invalid> {
    const FLAG: &str = "--cluster-service-accounts";
    let wrong = |right| Invalid::Kind {
        flag: FLAG,
        name: text.to_owned(),
        right,
    };
    plain(FLAG, text)?;
    let is_name = |name: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        !name.is_empty() && name.chars().all(inner)
    };
    match text.split_once('/') {
        Some(("kube-system", _)) => Err(wrong("those of kube-system are not impersonated")),
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(Name::ServiceAccount {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err(wrong("write NAMESPACE/NAME")),
    }
}

/// A name that a header can say.
fn plain(flag: &'static str, name: &str) -> Result<String, Invalid> {
    if name.starts_with("system:") {
        return Err(Invalid::System(name.to_owned()));
    }
    if name.is_empty()
        || name.len() > MAX
        || name == "*"
        || name.trim() != name
        || name.chars().any(char::is_control)
    {
        return Err(Invalid::Name {
            flag,
            name: name.chars().take(200).collect(),
        });
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GatewayRbac,
    }

    fn typed(words: &str) -> GatewayRbac {
        let words = ["x", "prod"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{error}"))
            .args
    }

    const POOL: &str = "projects/p/locations/global/workloadIdentityPools/ci";

    #[test]
    fn names_are_those_that_rbac_sees() {
        let subject = format!("principal://{POOL}/subject/repo:org/app");
        let set = format!("principalSet://{POOL}/group/main");
        let args = typed(&format!(
            "--users bob,alice@example.com,serviceAccount:ci@p,{subject},bob --groups dev,{set} --uids 7 --extra a=b \
             --extra c --cluster-service-accounts ns/robot"
        ));
        let user = |name: &str| Name::User(name.to_owned());
        let extra = |key: &str, value: Option<&str>| Name::Extra {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!(
            all(&args).unwrap(),
            [
                user("alice@example.com"),
                user("bob"),
                user(&subject),
                user("serviceAccount:ci@p"),
                Name::Group("dev".into()),
                Name::Group(set),
                Name::Uid("7".into()),
                extra("a", Some("b")),
                extra("c", None),
                Name::ServiceAccount {
                    namespace: "ns".into(),
                    name: "robot".into()
                },
            ]
        );
    }

    #[test]
    fn what_nobody_may_be_or_nobody_is_gets_refused() {
        let set = format!("principalSet://{POOL}");
        for words in [
            "--users system:admin".to_owned(),
            "--groups system:masters".to_owned(),
            "--users alice,system:kube-scheduler".to_owned(),
            "--users alice,,bob".to_owned(),
            "--users *".to_owned(),
            "--users user:alice".to_owned(),
            "--users group:dev".to_owned(),
            "--groups group:dev".to_owned(),
            "--groups serviceAccount:ci@p".to_owned(),
            "--users serviceAccount:ci".to_owned(),
            "--users principal://elsewhere/subject/x".to_owned(),
            format!("--users principal://{POOL}/subject/"),
            format!("--users {set}/group/x"),
            format!("--groups {set}/attribute.repository/org"),
            format!("--groups {set}/*"),
            "--cluster-service-accounts kube-system/x".to_owned(),
            "--cluster-service-accounts robot".to_owned(),
            "--users a --extra Scopes=x".to_owned(),
            format!("--users a --extra {}", TOLD[1]),
            "--uids 7".to_owned(),
            String::new(),
        ] {
            assert!(all(&typed(&words)).is_err(), "{words}");
        }
    }

    #[test]
    fn a_role_is_named_in_three_ways() {
        let cluster = |namespace: Option<&str>| RoleRef::Cluster {
            name: "system:view".into(),
            namespace: namespace.map(str::to_owned),
        };
        let namespaced = RoleRef::Namespaced {
            name: "edit".into(),
            namespace: "ns".into(),
        };
        for (words, expected) in [
            ("--role clusterrole/system:view", cluster(None)),
            (
                "--role clusterrole/system:view --namespace ns",
                cluster(Some("ns")),
            ),
            ("--role role/edit --namespace ns", namespaced.clone()),
            ("--role role/ns/edit", namespaced.clone()),
            ("--role role/ns/edit --namespace ns", namespaced),
        ] {
            assert_eq!(role(&typed(words)).unwrap(), Some(expected), "{words}");
        }
        for words in [
            "--role view",
            "--role role/edit",
            "--role clusterrole/",
            "--role clusterrole/ns/view",
            "--role role/ns/edit --namespace other",
            "--role role/a/b/c",
            "--role other/x",
        ] {
            assert!(role(&typed(words)).is_err(), "{words}");
        }
    }
}
