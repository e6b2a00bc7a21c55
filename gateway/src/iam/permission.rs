//! Permissions: what a request through the gateway, or a call of the management API, needs.

use std::{fmt, str::FromStr};

use super::role::Role;

macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What a request needs, by what it does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Permission {
            $($(#[$doc])* $variant,)*
        }

        impl Permission {
            /// Every permission, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in policies and messages.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

permissions! {
    /// GET, HEAD, OPTIONS, watch, logs; asking about oneself.
    Get = "gateway.get",
    /// POST.
    Post = "gateway.post",
    /// PUT.
    Put = "gateway.put",
    /// PATCH.
    Patch = "gateway.patch",
    /// DELETE.
    Delete = "gateway.delete",
    /// Any upgrade: exec, attach, cp, port-forward.
    Stream = "gateway.stream",
    /// Fetching a kubeconfig.
    GenerateCredentials = "gateway.generateCredentials",
    /// Seeing that a project exists.
    ProjectsGet = "projects.get",
    /// Reading a project's policy.
    ProjectsGetIamPolicy = "projects.getIamPolicy",
    /// Replacing a project's policy.
    ProjectsSetIamPolicy = "projects.setIamPolicy",
    /// Seeing a membership.
    MembershipsGet = "memberships.get",
    /// Seeing all memberships of a project.
    MembershipsList = "memberships.list",
    /// Registering a membership, or giving it a new registration token.
    MembershipsCreate = "memberships.create",
    /// Changing a membership's labels.
    MembershipsUpdate = "memberships.update",
    /// Deleting a membership.
    MembershipsDelete = "memberships.delete",
    /// Reading a membership's policy.
    MembershipsGetIamPolicy = "memberships.getIamPolicy",
    /// Replacing a membership's policy.
    MembershipsSetIamPolicy = "memberships.setIamPolicy",
    /// Seeing a custom role.
    RolesGet = "roles.get",
    /// Seeing all custom roles of a project.
    RolesList = "roles.list",
    /// Making a custom role.
    RolesCreate = "roles.create",
    /// Changing a custom role, and so what its holders may.
    RolesUpdate = "roles.update",
    /// Deleting a custom role.
    RolesDelete = "roles.delete",
    /// Seeing a service account.
    ServiceAccountsGet = "serviceAccounts.get",
    /// Seeing all service accounts of a project.
    ServiceAccountsList = "serviceAccounts.list",
    /// Making a service account.
    ServiceAccountsCreate = "serviceAccounts.create",
    /// Changing a service account, and ending its tokens.
    ServiceAccountsUpdate = "serviceAccounts.update",
    /// Deleting a service account.
    ServiceAccountsDelete = "serviceAccounts.delete",
    /// Reading a service account's policy.
    ServiceAccountsGetIamPolicy = "serviceAccounts.getIamPolicy",
    /// Replacing a service account's policy.
    ServiceAccountsSetIamPolicy = "serviceAccounts.setIamPolicy",
    /// Getting a token of a service account, and so acting as it.
    ServiceAccountsGetAccessToken = "serviceAccounts.getAccessToken",
    /// Acting as a service account with a federated workload's own token.
    ServiceAccountsActAsWorkload = "serviceAccounts.actAsWorkload",
    /// Seeing a workload identity pool and its providers.
    WorkloadIdentityPoolsGet = "workloadIdentityPools.get",
    /// Seeing all workload identity pools of a project.
    WorkloadIdentityPoolsList = "workloadIdentityPools.list",
    /// Making a workload identity pool.
    WorkloadIdentityPoolsCreate = "workloadIdentityPools.create",
    /// Changing a workload identity pool, its providers included.
    WorkloadIdentityPoolsUpdate = "workloadIdentityPools.update",
    /// Deleting a workload identity pool.
    WorkloadIdentityPoolsDelete = "workloadIdentityPools.delete",
    /// Reading a workload identity pool's policy.
    WorkloadIdentityPoolsGetIamPolicy = "workloadIdentityPools.getIamPolicy",
    /// Replacing a workload identity pool's policy.
    WorkloadIdentityPoolsSetIamPolicy = "workloadIdentityPools.setIamPolicy",
    /// Seeing quotas and their use.
    QuotasGet = "quotas.get",
    /// Setting quotas.
    QuotasSet = "quotas.set",
    /// Reading the audit log.
    AuditList = "audit.list",
    /// Seeing everybody's streams; one's own need no permission.
    StreamsList = "streams.list",
    /// Asking what somebody else may, of IAM and of the cluster.
    IamExplain = "iam.explain",
}

impl Permission {
    /// The predefined roles that hold it, for the sentence that refuses.
    pub fn roles(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| role.permits(self))
    }

    /// What is done, without to what: `list`, `setIamPolicy`.
    pub fn verb(self) -> &'static str {
        let name = self.name();
        name.rsplit_once('.').map_or(name, |(_, verb)| verb)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A permission that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("permission {asked:?} does not exist; did you mean {nearest:?}?")]
pub struct UnknownPermission {
    asked: String,
    nearest: &'static str,
}

impl FromStr for Permission {
    type Err = UnknownPermission;

    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        let known = Self::ALL.iter().find(|known| known.name() == text);
        known.copied().ok_or_else(|| {
            let asked: String = text.chars().take(100).collect();
            let nearest = Self::ALL
                .iter()
                .map(|known| known.name())
                .min_by_key(|name| crate::nearest::distance(&asked, name))
                .unwrap_or_default();
            UnknownPermission { asked, nearest }
        })
    }
}

/// A set of permissions; what a role holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u64);

impl Permissions {
    /// No permission.
    pub const NONE: Self = Self(0);

    /// These.
    pub const fn of(permissions: &[Permission]) -> Self {
        let (mut bits, mut rest) = (0, permissions);
        while let [first, others @ ..] = rest {
            bits |= Self::bit(*first);
            rest = others;
        }
        Self(bits)
    }

    /// These and those.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without those.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether it is one of these.
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & Self::bit(permission) != 0
    }

    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        let all = Permission::ALL.iter().copied();
        all.filter(move |permission| self.contains(*permission))
    }

    const fn bit(permission: Permission) -> u64 {
        1 << (permission as u32)
    }
}

// One bit each.
const _: () = assert!(Permission::ALL.len() <= 64, "a wider set is needed");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for permission in Permission::ALL {
            assert_eq!(permission.name().parse(), Ok(*permission));
        }
        let error = "gateway.streams".parse::<Permission>().unwrap_err();
        assert!(error.to_string().contains("\"gateway.stream\"?"), "{error}");
    }

    #[test]
    fn a_set_holds_what_it_was_made_of() {
        let all = Permissions::of(Permission::ALL);
        assert_eq!(all.iter().count(), Permission::ALL.len());
        let some = Permissions::of(&[Permission::Get, Permission::IamExplain]);
        assert!(some.contains(Permission::IamExplain) && !some.contains(Permission::Post));
        assert!(!all.without(some).contains(Permission::Get));
        assert_eq!(all.without(some).and(some), all);
    }
}
