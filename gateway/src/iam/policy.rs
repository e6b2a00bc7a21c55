//! Policies: who holds which role, as they are set and as they are decided on.
//!
//! Threat: a policy that gives more than it says.
//! Decision: nothing is given but by a binding that is understood as a whole. A policy that is stored and can't be
//! read any more, a role that is gone and a condition that fails give nothing, and are logged.
//! Consequence: bindings only ever add; there is no order among them, and no level takes from another.

use std::collections::{BTreeMap, HashMap};

use super::{
    condition::{Compiled, Condition},
    permission::{Permission, Permissions},
    principal::{Member, Principal},
    resource::Resource,
    role::{CustomRole, Role, RoleName},
};
use crate::authn::Identity;

/// Members in all bindings of a policy.
pub const MAX_MEMBERS: usize = 20_000;
/// Bindings with a condition in a policy: what a decision may cost at most.
pub const MAX_CONDITIONS: usize = 100;

/// Who holds a role, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// What they hold.
    pub role: RoleName,
    /// Who they are.
    pub members: Vec<Member>,
    /// When they hold it; always where there is none.
    pub condition: Option<Condition>,
}

impl Binding {
    /// A binding that always holds.
    pub fn new(role: impl Into<RoleName>, members: Vec<Member>) -> Self {
        Self {
            role: role.into(),
            members,
            condition: None,
        }
    }
}

/// The bindings on a resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Changes with every change.
    pub etag: String,
    /// In the order they were set.
    pub bindings: Vec<Binding>,
}

/// Why a policy may not be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// A binding for nobody.
    #[error("the binding of {0} has no members")]
    NoMembers(RoleName),
    /// More than [`MAX_MEMBERS`].
    #[error("the policy has {0} members in its bindings; {MAX_MEMBERS} may be: use groups")]
    TooManyMembers(usize),
    /// More than [`MAX_CONDITIONS`].
    #[error("the policy has {0} bindings with a condition; {MAX_CONDITIONS} may be")]
    TooManyConditions(usize),
    /// Another project's role.
    #[error("role {role} is not one of project {project}")]
    ForeignRole {
        /// What was named.
        role: CustomRole,
        /// Whose policy it is.
        project: String,
    },
    /// See [`super::InvalidCondition`].
    #[error("the binding of {role}: {source}")]
    Condition {
        /// Whose binding.
        role: RoleName,
        /// What is wrong.
        source: super::InvalidCondition,
    },
}

impl Policy {
    /// Checks what can be checked without a store.
    ///
    /// # Errors
    /// See [`InvalidPolicy`].
    pub fn check(&self, resource: &Resource) -> Result<(), InvalidPolicy> {
        let members = self.bindings.iter().map(|binding| binding.members.len());
        let members: usize = members.sum();
        if members > MAX_MEMBERS {
            return Err(InvalidPolicy::TooManyMembers(members));
        }
        let conditions = self.bindings.iter().filter_map(|b| b.condition.as_ref());
        let conditions = conditions.count();
        if conditions > MAX_CONDITIONS {
            return Err(InvalidPolicy::TooManyConditions(conditions));
        }
        for binding in &self.bindings {
            if binding.members.is_empty() {
                return Err(InvalidPolicy::NoMembers(binding.role.clone()));
            }
            if let RoleName::Custom(role) = &binding.role
                && role.project != *resource.project()
            {
                return Err(InvalidPolicy::ForeignRole {
                    role: role.clone(),
                    project: resource.project().to_string(),
                });
            }
            if let Some(condition) = &binding.condition {
                Compiled::new(&condition.expression).map_err(|source| {
                    InvalidPolicy::Condition {
                        role: binding.role.clone(),
                        source,
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Whether somebody owns it whatever happens: a person or a group of people, without a condition.
    pub fn has_owner(&self) -> bool {
        self.bindings.iter().any(|binding| {
            binding.role == RoleName::Predefined(Role::Owner)
                && binding.condition.is_none()
                && binding.members.iter().any(|member| {
                    matches!(
                        member,
                        Member::Principal(Principal::User(_)) | Member::Group(_)
                    )
                })
        })
    }
}

/// A policy that is ready to decide.
#[derive(Debug)]
pub struct CompiledPolicy {
    policy: Policy,
    resource: Resource,
    rules: Vec<Rule>,
    /// Rules by member, as policies write them; groups of people by name.
    members: HashMap<String, Vec<u32>>,
    groups: HashMap<String, Vec<u32>>,
}

#[derive(Debug)]
struct Rule {
    permissions: Permissions,
    condition: Holds,
}

/// When a rule holds.
#[derive(Debug)]
pub(super) enum Holds {
    Always,
    When(Compiled),
    /// A condition that doesn't compile any more.
    Never(String),
}

/// The custom roles of a project.
pub type CustomRoles = BTreeMap<CustomRole, Permissions>;

impl CompiledPolicy {
    /// Prepares a stored policy. What isn't understood gives nothing.
    pub fn new(resource: Resource, policy: Policy, roles: &CustomRoles) -> Self {
        let mut rules = Vec::with_capacity(policy.bindings.len());
        let mut members: HashMap<String, Vec<u32>> = HashMap::new();
        let mut groups: HashMap<String, Vec<u32>> = HashMap::new();
        for (at, binding) in (0..).zip(&policy.bindings) {
            let permissions = match &binding.role {
                RoleName::Predefined(role) => role.permissions(),
                RoleName::Custom(role) => roles.get(role).copied().unwrap_or_else(|| {
                    tracing::error!(%resource, %role, "a policy names a role that does not exist; it gives nothing");
                    Permissions::NONE
                }),
            };
            let condition = match &binding.condition {
                None => Holds::Always,
                Some(condition) => match Compiled::new(&condition.expression) {
                    Ok(compiled) => Holds::When(compiled),
                    Err(error) => {
                        tracing::error!(%resource, role = %binding.role, %error, "a stored condition is not understood; its binding gives nothing");
                        Holds::Never(error.to_string())
                    }
                },
            };
            rules.push(Rule {
                permissions,
                condition,
            });
            for member in &binding.members {
                let (index, key) = match member {
                    Member::Group(group) => (&mut groups, group.clone()),
                    other => (&mut members, other.to_string()),
                };
                let found = index.entry(key).or_default();
                if found.last() != Some(&at) {
                    found.push(at);
                }
            }
        }
        Self {
            policy,
            resource,
            rules,
            members,
            groups,
        }
    }

    /// As it is stored.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The rules that name this caller, each perhaps more than once.
    fn of<'a>(&'a self, caller: &'a Identity) -> impl Iterator<Item = u32> + 'a {
        let own = self.members.get(&caller.principal.to_string());
        let sets: Vec<&Vec<u32>> = match &caller.principal {
            Principal::User(_) => caller
                .groups
                .iter()
                .filter_map(|group| self.groups.get(group))
                .collect(),
            Principal::Workload(workload) => {
                let pool = &workload.pool;
                let set = format!("principalSet://{pool}/");
                let all = self.members.get(&format!("{set}*"));
                // A workload's groups stand as the sets that they are; another pool's would be none of its.
                let groups = caller
                    .groups
                    .iter()
                    .filter(|group| {
                        group
                            .strip_prefix(&set)
                            .is_some_and(|rest| rest.starts_with("group/"))
                    })
                    .filter_map(|group| self.members.get(group));
                let attributes = caller.attributes.iter().filter_map(|(name, value)| {
                    self.members.get(&format!("{set}attribute.{name}/{value}"))
                });
                all.into_iter().chain(groups).chain(attributes).collect()
            }
            Principal::ServiceAccount(_) => Vec::new(),
        };
        own.into_iter().chain(sets).flatten().copied()
    }

    /// The rules that give this caller the permission, if their conditions hold.
    pub(super) fn candidates<'a>(
        &'a self,
        caller: &'a Identity,
        permission: Permission,
    ) -> impl Iterator<Item = (usize, &'a Holds)> + 'a {
        self.of(caller).filter_map(move |at| {
            let at = usize::try_from(at).ok()?;
            let rule = self.rules.get(at)?;
            rule.permissions
                .contains(permission)
                .then_some((at, &rule.condition))
        })
    }

    /// One of its bindings.
    pub(super) fn binding(&self, at: usize) -> Option<&Binding> {
        self.policy.bindings.get(at)
    }

    /// What it is attached to.
    pub const fn resource(&self) -> &Resource {
        &self.resource
    }
}
