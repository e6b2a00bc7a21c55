//! Roles: named sets of permissions, the predefined ones and those that a project makes for itself.

use std::{fmt, str::FromStr};

use towline_proto::names::Project;

use super::permission::{Permission, Permissions};

/// A predefined role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Read through the gateway.
    GatewayReader,
    /// Also write.
    GatewayEditor,
    /// Also stream.
    GatewayAdmin,
    /// See what there is in the project.
    FleetViewer,
    /// Also register, label and delete memberships.
    FleetAdmin,
    /// Act as a service account.
    ServiceAccountTokenCreator,
    /// Act as a service account, for federated workloads.
    WorkloadIdentityUser,
    /// See who may do what and who did what.
    AuditViewer,
    /// Everything in the project, its policy included, but to act as its service accounts: they are somebody else.
    Owner,
}

const READER: Permissions = Permissions::of(&[
    Permission::Get,
    Permission::GenerateCredentials,
    Permission::ProjectsGet,
    Permission::MembershipsGet,
    Permission::MembershipsList,
]);

const EDITOR: Permissions = READER.and(Permissions::of(&[
    Permission::Post,
    Permission::Put,
    Permission::Patch,
    Permission::Delete,
]));

const VIEWER: Permissions = Permissions::of(&[
    Permission::ProjectsGet,
    Permission::MembershipsGet,
    Permission::MembershipsList,
    Permission::RolesGet,
    Permission::RolesList,
    Permission::ServiceAccountsGet,
    Permission::ServiceAccountsList,
    Permission::WorkloadIdentityPoolsGet,
    Permission::WorkloadIdentityPoolsList,
    Permission::QuotasGet,
    Permission::StreamsList,
]);

const ACT_AS: Permissions = Permissions::of(&[
    Permission::ServiceAccountsGetAccessToken,
    Permission::ServiceAccountsActAsWorkload,
]);

impl Role {
    /// Every predefined role.
    pub const ALL: [Self; 9] = [
        Self::GatewayReader,
        Self::GatewayEditor,
        Self::GatewayAdmin,
        Self::FleetViewer,
        Self::FleetAdmin,
        Self::ServiceAccountTokenCreator,
        Self::WorkloadIdentityUser,
        Self::AuditViewer,
        Self::Owner,
    ];

    /// Its name in policies and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GatewayReader => "gatewayReader",
            Self::GatewayEditor => "gatewayEditor",
            Self::GatewayAdmin => "gatewayAdmin",
            Self::FleetViewer => "fleetViewer",
            Self::FleetAdmin => "fleetAdmin",
            Self::ServiceAccountTokenCreator => "serviceAccountTokenCreator",
            Self::WorkloadIdentityUser => "workloadIdentityUser",
            Self::AuditViewer => "auditViewer",
            Self::Owner => "owner",
        }
    }

    /// What it is for, in a line.
    pub const fn title(self) -> &'static str {
        match self {
            Self::GatewayReader => "Read clusters through the gateway",
            Self::GatewayEditor => "Read and change clusters through the gateway",
            Self::GatewayAdmin => "Also exec, attach, cp and port-forward",
            Self::FleetViewer => "See memberships, roles, accounts, quotas and streams",
            Self::FleetAdmin => "Also register, label and delete memberships",
            Self::ServiceAccountTokenCreator => "Act as a service account",
            Self::WorkloadIdentityUser => "Act as a service account, for federated workloads",
            Self::AuditViewer => "See who may do what, and who did what",
            Self::Owner => "Everything in the project, its policy included",
        }
    }

    /// What it holds.
    pub const fn permissions(self) -> Permissions {
        match self {
            Self::GatewayReader => READER,
            Self::GatewayEditor => EDITOR,
            Self::GatewayAdmin => EDITOR.and(Permissions::of(&[Permission::Stream])),
            Self::FleetViewer => VIEWER,
            Self::FleetAdmin => VIEWER.and(Permissions::of(&[
                Permission::MembershipsCreate,
                Permission::MembershipsUpdate,
                Permission::MembershipsDelete,
            ])),
            Self::ServiceAccountTokenCreator => Permissions::of(&[
                Permission::ServiceAccountsGet,
                Permission::ServiceAccountsGetAccessToken,
            ]),
            Self::WorkloadIdentityUser => Permissions::of(&[
                Permission::ServiceAccountsGet,
                Permission::ServiceAccountsActAsWorkload,
            ]),
            Self::AuditViewer => VIEWER.and(Permissions::of(&[
                Permission::ProjectsGetIamPolicy,
                Permission::MembershipsGetIamPolicy,
                Permission::ServiceAccountsGetIamPolicy,
                Permission::WorkloadIdentityPoolsGetIamPolicy,
                Permission::AuditList,
                Permission::IamExplain,
            ])),
            Self::Owner => Permissions::of(Permission::ALL).without(ACT_AS),
        }
    }

    /// Whether it holds a permission.
    pub const fn permits(self, permission: Permission) -> bool {
        self.permissions().contains(permission)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A role that a project made: `projects/P/roles/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomRole {
    /// Whose it is; no other's policies may name it.
    pub project: Project,
    /// 1 to 64 of letters, digits, `_`, `.` and `-`, the first a letter.
    pub id: String,
}

impl fmt::Display for CustomRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/roles/{}", self.project, self.id)
    }
}

impl FromStr for CustomRole {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let wrong = || InvalidRole(text.chars().take(200).collect());
        let rest = text.strip_prefix("projects/").ok_or_else(wrong)?;
        let (project, id) = rest.split_once("/roles/").ok_or_else(wrong)?;
        let formed = id.len() <= 64
            && id.starts_with(|first: char| first.is_ascii_alphabetic())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !formed {
            return Err(wrong());
        }
        Ok(Self {
            project: project.parse().map_err(|_| wrong())?,
            id: id.to_owned(),
        })
    }
}

/// What a binding gives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RoleName {
    /// One of [`Role::ALL`].
    Predefined(Role),
    /// A project's own.
    Custom(CustomRole),
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        Self::Predefined(role)
    }
}

/// A role that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "role {0:?} is not one of gatewayReader, gatewayEditor, gatewayAdmin, fleetViewer, fleetAdmin, \
     serviceAccountTokenCreator, workloadIdentityUser, auditViewer, owner, nor of the form projects/PROJECT/roles/ROLE \
     (a letter first, then letters, digits, _, . and -, 64 at most)"
)]
pub struct InvalidRole(String);

impl FromStr for RoleName {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        match Role::ALL.into_iter().find(|role| role.name() == text) {
            Some(role) => Ok(Self::Predefined(role)),
            None => text.parse().map(Self::Custom),
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Predefined(role) => role.fmt(f),
            Self::Custom(role) => role.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(RoleName::Predefined(role)));
        }
        for own in ["projects/p/roles/logReader", "projects/p/roles/a_b.c-d"] {
            let role: RoleName = own.parse().unwrap();
            assert_eq!(role.to_string(), own);
        }
        for wrong in [
            "gatewayGod",
            "Owner",
            "projects/p/roles/",
            "projects/P/roles/a",
            "projects/p/roles/a/b",
            "projects/p/roles/1a",
            "roles/owner",
            &format!("projects/p/roles/{}", "a".repeat(65)),
        ] {
            assert!(wrong.parse::<RoleName>().is_err(), "{wrong}");
        }
        let message = "gatewayGod".parse::<RoleName>().unwrap_err().to_string();
        for role in Role::ALL {
            assert!(message.contains(role.name()), "{message}");
        }
    }

    #[test]
    fn an_owner_acts_as_nobody_else() {
        assert!(!Role::Owner.permits(Permission::ServiceAccountsGetAccessToken));
        assert!(!Role::Owner.permits(Permission::ServiceAccountsActAsWorkload));
        let rest = Permission::ALL.len() - 2;
        assert_eq!(Role::Owner.permissions().iter().count(), rest);
    }

    #[test]
    fn only_owners_change_policies_and_roles() {
        for permission in Permission::ALL {
            if permission.verb() == "setIamPolicy" || permission.name().starts_with("roles.update")
            {
                assert_eq!(
                    permission.roles().collect::<Vec<_>>(),
                    [Role::Owner],
                    "{permission}"
                );
            }
        }
    }
}
