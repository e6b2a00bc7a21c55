//! Principals, roles, permissions and policies: values only, no decision and no storage.

mod principal;

use std::{fmt, str::FromStr};

pub use principal::{
    InvalidMember, MAX_NAME, Member, Pool, Principal, ServiceAccount, Which, Workload, is_attribute,
};

use crate::authn::Identity;

/// A name that may not be a local user's or group's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubject {
    /// Empty, too long, or with characters that no header carries as they are.
    #[error("{0:?} is no name: 1 to 253 printable characters, no white space at the ends")]
    Form(String),
    /// Another kind of principal, or the cluster's own.
    #[error(
        "{name:?} begins with {prefix:?}, which is another kind of principal's; choose a name that doesn't"
    )]
    Reserved {
        /// What was asked for.
        name: String,
        /// What it begins with.
        prefix: &'static str,
    },
}

/// Checks the name of a local user or group: no two principals of different kinds may reach one RBAC subject.
///
/// # Errors
/// See [`InvalidSubject`].
pub fn check_subject(name: &str) -> Result<(), InvalidSubject> {
    let formed = (1..=253).contains(&name.len())
        && name.trim() == name
        && !name.chars().any(char::is_control);
    if !formed {
        return Err(InvalidSubject::Form(name.chars().take(80).collect()));
    }
    let lower = name.to_ascii_lowercase();
    match ["system:", "serviceaccount:", "principal:", "principalset:"]
        .into_iter()
        .find(|p| lower.starts_with(p))
    {
        Some(prefix) => Err(InvalidSubject::Reserved {
            name: name.to_owned(),
            prefix,
        }),
        None => Ok(()),
    }
}

/// What a request needs, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// GET, HEAD, OPTIONS, watch, logs; asking about oneself.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
    /// Any upgrade: exec, attach, cp, port-forward.
    Stream,
    /// Fetching a kubeconfig.
    GenerateCredentials,
    /// Reading memberships and the policy.
    View,
    /// Registering and deleting memberships, changing the policy.
    Administer,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 9] = [
        Self::Get,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::Stream,
        Self::GenerateCredentials,
        Self::View,
        Self::Administer,
    ];

    /// Its name in policies and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "gateway.get",
            Self::Post => "gateway.post",
            Self::Put => "gateway.put",
            Self::Patch => "gateway.patch",
            Self::Delete => "gateway.delete",
            Self::Stream => "gateway.stream",
            Self::GenerateCredentials => "gateway.generateCredentials",
            Self::View => "memberships.get",
            Self::Administer => "memberships.administer",
        }
    }

    /// The roles that hold it, for the sentence that refuses.
    pub fn roles(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| role.permits(self))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a binding gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Read through the gateway.
    GatewayReader,
    /// Also write.
    GatewayEditor,
    /// Also stream.
    GatewayAdmin,
    /// Everything in the project, its policy included.
    Owner,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 4] = [
        Self::GatewayReader,
        Self::GatewayEditor,
        Self::GatewayAdmin,
        Self::Owner,
    ];

    /// Its name in policies and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GatewayReader => "gatewayReader",
            Self::GatewayEditor => "gatewayEditor",
            Self::GatewayAdmin => "gatewayAdmin",
            Self::Owner => "owner",
        }
    }

    /// Whether it holds a permission.
    pub const fn permits(self, permission: Permission) -> bool {
        match permission {
            Permission::Get | Permission::GenerateCredentials | Permission::View => true,
            Permission::Post | Permission::Put | Permission::Patch | Permission::Delete => {
                !matches!(self, Self::GatewayReader)
            }
            Permission::Stream => matches!(self, Self::GatewayAdmin | Self::Owner),
            Permission::Administer => matches!(self, Self::Owner),
        }
    }
}

/// A role that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("role {0:?} is not one of gatewayReader, gatewayEditor, gatewayAdmin, owner")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| InvalidRole(text.chars().take(200).collect()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who holds a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// What they hold.
    pub role: Role,
    /// Who they are.
    pub members: Vec<Member>,
}

/// A project's bindings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Changes with every change.
    pub etag: String,
    /// In the order they were set.
    pub bindings: Vec<Binding>,
}

impl Policy {
    /// Whether a binding gives the caller a role that holds `permission`.
    pub fn permits(&self, caller: &Identity, permission: Permission) -> bool {
        self.bindings.iter().any(|binding| {
            binding.role.permits(permission)
                && binding.members.iter().any(|member| caller.is(member))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_hold_what_the_table_says() {
        let table: Vec<String> = Permission::ALL
            .into_iter()
            .map(|p| {
                format!(
                    "{p}: {}",
                    p.roles().map(Role::name).collect::<Vec<_>>().join(" ")
                )
            })
            .collect();
        let all = "gatewayReader gatewayEditor gatewayAdmin owner";
        let write = "gatewayEditor gatewayAdmin owner";
        assert_eq!(
            table,
            [
                format!("gateway.get: {all}"),
                format!("gateway.post: {write}"),
                format!("gateway.put: {write}"),
                format!("gateway.patch: {write}"),
                format!("gateway.delete: {write}"),
                "gateway.stream: gatewayAdmin owner".to_owned(),
                format!("gateway.generateCredentials: {all}"),
                format!("memberships.get: {all}"),
                "memberships.administer: owner".to_owned(),
            ]
        );
    }

    #[test]
    fn nobody_holds_anything_by_default() {
        let alice = Identity::user("alice".into(), Vec::new());
        assert!(
            Permission::ALL
                .into_iter()
                .all(|p| !Policy::default().permits(&alice, p))
        );
    }

    #[test]
    fn local_names_reach_no_other_kind_of_principal() {
        for good in ["alice", "alice@example.com", "Ops Team", "oidc:alice"] {
            assert_eq!(check_subject(good), Ok(()), "{good}");
        }
        for bad in [
            "system:masters",
            "System:Admin",
            "serviceAccount:ci@p",
            "principal://x",
            "principalSet://x",
            "",
            " a",
            "a\nb",
        ] {
            assert!(check_subject(bad).is_err(), "{bad:?}");
        }
    }
}
