//! What has a policy: a project, and some of the things in it.

use std::{fmt, str::FromStr};

use towline_proto::names::{Membership, Project};

use super::{
    permission::Permission,
    principal::{Pool, ServiceAccount},
};

/// What a policy is attached to. A project's policy holds for everything in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `projects/P`
    Project(Project),
    /// `projects/P/locations/L/memberships/M`
    Membership(Membership),
    /// `projects/P/serviceAccounts/NAME`
    ServiceAccount(ServiceAccount),
    /// `projects/P/locations/global/workloadIdentityPools/POOL`
    Pool(Pool),
}

impl Resource {
    /// The tenant it belongs to.
    pub const fn project(&self) -> &Project {
        match self {
            Self::Project(project) => project,
            Self::Membership(membership) => &membership.project,
            Self::ServiceAccount(account) => &account.project,
            Self::Pool(pool) => &pool.project,
        }
    }

    /// What reading its policy needs.
    pub const fn get_iam_policy(&self) -> Permission {
        match self {
            Self::Project(_) => Permission::ProjectsGetIamPolicy,
            Self::Membership(_) => Permission::MembershipsGetIamPolicy,
            Self::ServiceAccount(_) => Permission::ServiceAccountsGetIamPolicy,
            Self::Pool(_) => Permission::WorkloadIdentityPoolsGetIamPolicy,
        }
    }

    /// What replacing its policy needs.
    pub const fn set_iam_policy(&self) -> Permission {
        match self {
            Self::Project(_) => Permission::ProjectsSetIamPolicy,
            Self::Membership(_) => Permission::MembershipsSetIamPolicy,
            Self::ServiceAccount(_) => Permission::ServiceAccountsSetIamPolicy,
            Self::Pool(_) => Permission::WorkloadIdentityPoolsSetIamPolicy,
        }
    }
}

impl From<Project> for Resource {
    fn from(project: Project) -> Self {
        Self::Project(project)
    }
}

impl From<&Project> for Resource {
    fn from(project: &Project) -> Self {
        Self::Project(project.clone())
    }
}

impl From<&Membership> for Resource {
    fn from(membership: &Membership) -> Self {
        Self::Membership(membership.clone())
    }
}

impl From<&ServiceAccount> for Resource {
    fn from(account: &ServiceAccount) -> Self {
        Self::ServiceAccount(account.clone())
    }
}

impl From<&Pool> for Resource {
    fn from(pool: &Pool) -> Self {
        Self::Pool(pool.clone())
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project(project) => write!(f, "projects/{project}"),
            Self::Membership(membership) => membership.fmt(f),
            Self::ServiceAccount(ServiceAccount { name, project }) => {
                write!(f, "projects/{project}/serviceAccounts/{name}")
            }
            Self::Pool(pool) => pool.fmt(f),
        }
    }
}

/// A resource's name that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} has no policy: write projects/P, projects/P/locations/L/memberships/M, projects/P/serviceAccounts/NAME or \
     projects/P/locations/global/workloadIdentityPools/POOL"
)]
pub struct InvalidResource(String);

impl FromStr for Resource {
    type Err = InvalidResource;

    fn from_str(text: &str) -> Result<Self, InvalidResource> {
        let wrong = || InvalidResource(text.chars().take(200).collect());
        let segments: Vec<&str> = text.split('/').collect();
        match segments.as_slice() {
            ["projects", project] => project.parse().map(Self::Project).map_err(|_| wrong()),
            ["projects", project, "serviceAccounts", name] => {
                Ok(Self::ServiceAccount(ServiceAccount {
                    name: name.parse().map_err(|_| wrong())?,
                    project: project.parse().map_err(|_| wrong())?,
                }))
            }
            ["projects", _, "locations", _, "workloadIdentityPools", _] => {
                text.parse().map(Self::Pool).map_err(|_| wrong())
            }
            _ => text.parse().map(Self::Membership).map_err(|_| wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in [
            "projects/p",
            "projects/p/locations/global/memberships/edge",
            "projects/p/serviceAccounts/ci",
            "projects/p/locations/global/workloadIdentityPools/github",
        ] {
            let resource: Resource = text.parse().unwrap();
            assert_eq!(resource.to_string(), text);
            assert_eq!(resource.project().as_str(), "p");
        }
        for wrong in [
            "",
            "p",
            "projects/",
            "projects/P",
            "projects/p/",
            "projects/p/serviceAccounts/",
            "projects/p/locations/eu/workloadIdentityPools/github",
            "projects/p/locations/global/memberships/edge/x",
        ] {
            assert!(wrong.parse::<Resource>().is_err(), "{wrong}");
        }
    }
}
