//! Principals, roles, permissions, policies and what they decide; no storage.
//!
//! `permission` and `role` are the table of who may what; `policy` binds roles to the members of `principal` on a
//! `resource`, under a `condition`; `decision` says whether somebody may, and by which binding.

mod condition;
mod decision;
#[cfg(test)]
mod golden;
mod permission;
mod policy;
mod principal;
mod resource;
mod role;

pub use condition::{Attributes, Condition, InvalidCondition, MAX_EXPRESSION};
pub use decision::{By, Considered, Decision, PolicySet};
pub use permission::{Permission, Permissions, UnknownPermission};
pub use policy::{
    Binding, CompiledPolicy, CustomRoles, InvalidPolicy, MAX_CONDITIONS, MAX_MEMBERS, Policy,
};
pub use principal::{
    InvalidMember, MAX_NAME, Member, Pool, Principal, ServiceAccount, Which, Workload, is_attribute,
};
pub use resource::{InvalidResource, Resource};
pub use role::{CustomRole, InvalidRole, Role, RoleName};

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

#[cfg(test)]
mod tests {
    use super::*;

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
