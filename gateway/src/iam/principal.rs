//! Who calls, and whom bindings name: the four kinds of principals and the sets that they are in.

use std::{fmt, str::FromStr};

use towline_proto::names::{PoolId, Project, ServiceAccountId};

/// The longest name of a user, group, subject or attribute's value, in bytes.
pub const MAX_NAME: usize = 512;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// A person: `user:NAME`.
    User(String),
    /// A project's own account: `serviceAccount:NAME@PROJECT`.
    ServiceAccount(ServiceAccount),
    /// A workload that another issuer vouches for: `principal://POOL/subject/SUBJECT`.
    Workload(Workload),
}

/// `NAME@PROJECT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// Its name in the project.
    pub name: ServiceAccountId,
    /// The tenant it belongs to.
    pub project: Project,
}

/// A workload identity pool: `projects/P/locations/global/workloadIdentityPools/POOL`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pool {
    /// The tenant it belongs to.
    pub project: Project,
    /// Its name in the project.
    pub id: PoolId,
}

/// A federated workload, known by its mapped subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// Where it is known.
    pub pool: Pool,
    /// What its provider maps to `subject`.
    pub subject: String,
}

/// Whom a binding names: a principal, or a set of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// One principal.
    Principal(Principal),
    /// People with this group: `group:NAME`.
    Group(String),
    /// Workloads of a pool: `principalSet://POOL/…`.
    Set {
        /// Where they are known.
        pool: Pool,
        /// Which of them.
        which: Which,
    },
}

/// Which workloads of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Which {
    /// `*`
    All,
    /// `group/GROUP`
    Group(String),
    /// `attribute.NAME/VALUE`
    Attribute {
        /// Without `attribute.`.
        name: String,
        /// As mapped.
        value: String,
    },
}

/// A member that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "member {0:?} is none: write user:NAME, group:NAME, serviceAccount:NAME@PROJECT, \
     principal://projects/PROJECT/locations/global/workloadIdentityPools/POOL/subject/SUBJECT, or \
     principalSet:// with the same and attribute.NAME/VALUE, group/GROUP or * in place of subject/SUBJECT"
)]
pub struct InvalidMember(String);

impl InvalidMember {
    fn of(text: &str) -> Self {
        Self(text.chars().take(200).collect())
    }
}

impl FromStr for Member {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        let wrong = || InvalidMember::of(text);
        if let Some(rest) = text.strip_prefix("principalSet://") {
            let (pool, rest) = split_pool(rest).ok_or_else(wrong)?;
            let which = match rest.split_once('/') {
                None if rest == "*" => Which::All,
                Some(("group", group)) if is_name(group) => Which::Group(group.to_owned()),
                Some((name, value)) if is_name(value) => match name.strip_prefix("attribute.") {
                    Some(name) if is_attribute(name) => Which::Attribute {
                        name: name.to_owned(),
                        value: value.to_owned(),
                    },
                    _ => return Err(wrong()),
                },
                _ => return Err(wrong()),
            };
            return Ok(Self::Set { pool, which });
        }
        match text.strip_prefix("group:") {
            Some(group) if is_name(group) => Ok(Self::Group(group.to_owned())),
            Some(_) => Err(wrong()),
            None => text.parse().map(Self::Principal),
        }
    }
}

impl FromStr for Principal {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        let wrong = || InvalidMember::of(text);
        if let Some(rest) = text.strip_prefix("principal://") {
            let (pool, rest) = split_pool(rest).ok_or_else(wrong)?;
            return match rest.strip_prefix("subject/") {
                Some(subject) if is_name(subject) => Ok(Self::Workload(Workload {
                    pool,
                    subject: subject.to_owned(),
                })),
                _ => Err(wrong()),
            };
        }
        match text.split_once(':') {
            Some(("user", name)) if is_name(name) => Ok(Self::User(name.to_owned())),
            Some(("serviceAccount", account)) => account
                .parse()
                .map(Self::ServiceAccount)
                .map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl FromStr for ServiceAccount {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        let wrong = || InvalidMember::of(text);
        let (name, project) = text.split_once('@').ok_or_else(wrong)?;
        Ok(Self {
            name: name.parse().map_err(|_| wrong())?,
            project: project.parse().map_err(|_| wrong())?,
        })
    }
}

impl FromStr for Pool {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        match split_pool(text) {
            Some((pool, "")) => Ok(pool),
            _ => Err(InvalidMember::of(text)),
        }
    }
}

/// A pool's resource name and what follows it, without the slash between.
fn split_pool(text: &str) -> Option<(Pool, &str)> {
    let rest = text.strip_prefix("projects/")?;
    let (project, rest) = rest.split_once('/')?;
    let rest = rest.strip_prefix("locations/global/workloadIdentityPools/")?;
    let (id, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let pool = Pool {
        project: project.parse().ok()?,
        id: id.parse().ok()?,
    };
    Some((pool, rest))
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.trim() == name
        && !name.chars().any(char::is_control)
}

/// Whether an attribute mapping may make an attribute of this name: `[a-z0-9_]{1,64}`.
pub fn is_attribute(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::ServiceAccount(account) => write!(f, "serviceAccount:{account}"),
            Self::Workload(workload) => workload.fmt(f),
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.project)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { project, id } = self;
        write!(
            f,
            "projects/{project}/locations/global/workloadIdentityPools/{id}"
        )
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "principal://{}/subject/{}", self.pool, self.subject)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(principal) => principal.fmt(f),
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Set { pool, which } => write!(f, "principalSet://{pool}/{which}"),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Group(group) => write!(f, "group/{group}"),
            Self::Attribute { name, value } => write!(f, "attribute.{name}/{value}"),
        }
    }
}

impl Principal {
    /// What a cluster's RBAC knows it by: a person's own name; the others as policies write them, so that no two
    /// principals of different kinds reach one RBAC subject.
    pub fn subject(&self) -> String {
        match self {
            Self::User(name) => name.clone(),
            Self::ServiceAccount(_) | Self::Workload(_) => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "projects/p/locations/global/workloadIdentityPools/ci";

    #[test]
    fn members_round_trip() {
        for text in [
            "user:a:b",
            "user:alice@example.com",
            "group:Ops Team",
            "serviceAccount:deployer@p",
            &format!("principal://{POOL}/subject/repo:org/app:ref:refs/heads/main"),
            &format!("principalSet://{POOL}/*"),
            &format!("principalSet://{POOL}/group/project:7"),
            &format!("principalSet://{POOL}/attribute.repository/org/app"),
        ] {
            let member: Member = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(member.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_member_is_refused() {
        for text in [
            "alice",
            "user:",
            "user:a\nb",
            "user: a",
            "group:",
            "serviceAccount:ci",
            "serviceAccount:ci@",
            "serviceAccount:C@p",
            "principal://elsewhere/subject/x",
            &format!("principal://{POOL}"),
            &format!("principal://{POOL}/subject/"),
            &format!("principal://{POOL}/attribute.a/b"),
            &format!("principalSet://{POOL}/subject/a"),
            &format!("principalSet://{POOL}/attribute./a"),
            &format!("principalSet://{POOL}/attribute.A-B/a"),
            &format!("principalSet://{POOL}/"),
        ] {
            assert!(text.parse::<Member>().is_err(), "{text:?}");
        }
        assert!("group:x".parse::<Principal>().is_err());
    }
}
