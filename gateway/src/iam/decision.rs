//! The decision: whether somebody holds a permission on a resource, and by which binding.

use std::{cell::OnceCell, sync::Arc};

use super::{
    condition::{Attributes, Variables},
    permission::Permission,
    policy::{Binding, CompiledPolicy, Holds},
    principal::Member,
    resource::Resource,
};
use crate::authn::Identity;

/// The policies that count for a resource: its own and its project's. Each adds to the other.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    levels: Vec<Arc<CompiledPolicy>>,
}

/// What was decided.
#[derive(Debug, Clone)]
pub struct Decision {
    by: Option<By>,
    timed: bool,
    conditional: bool,
}

/// The binding that a decision rests on.
#[derive(Debug, Clone)]
pub struct By {
    level: Arc<CompiledPolicy>,
    binding: usize,
}

/// A binding that could give the permission, with what its condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Where it is.
    pub resource: Resource,
    /// The binding without its members.
    pub role: super::RoleName,
    /// Which of its members means the caller.
    pub member: Option<Member>,
    /// Its condition and what that says: a value, or why it has none.
    pub condition: Option<(super::Condition, Result<bool, String>)>,
}

impl PolicySet {
    /// Of these policies.
    pub const fn new(levels: Vec<Arc<CompiledPolicy>>) -> Self {
        Self { levels }
    }

    /// Whether `caller` holds `permission`. Denied unless some binding gives it.
    pub fn decide(
        &self,
        caller: &Identity,
        permission: Permission,
        attributes: &Attributes<'_>,
    ) -> Decision {
        // Bindings that always hold come first: they cost nothing, and no stream has to look again.
        if let Some(by) = self.always(caller, permission) {
            return Decision {
                by: Some(by),
                timed: false,
                conditional: false,
            };
        }
        let variables = OnceCell::new();
        let mut timed = None;
        for level in &self.levels {
            for (binding, holds) in level.candidates(caller, permission) {
                let Holds::When(condition) = holds else {
                    continue;
                };
                let variables = variables.get_or_init(|| Variables::new(attributes));
                // One that fails gives nothing; that is an answer, not an error: labels may be missing.
                if condition.holds(variables) == Ok(true) {
                    let by = By {
                        level: Arc::clone(level),
                        binding,
                    };
                    if !condition.timed() {
                        return Decision {
                            by: Some(by),
                            timed: false,
                            conditional: true,
                        };
                    }
                    timed.get_or_insert(by);
                }
            }
        }
        Decision {
            timed: timed.is_some(),
            conditional: timed.is_some(),
            by: timed,
        }
    }

    fn always(&self, caller: &Identity, permission: Permission) -> Option<By> {
        self.levels.iter().find_map(|level| {
            let (binding, _) = level
                .candidates(caller, permission)
                .find(|(_, holds)| matches!(holds, Holds::Always))?;
            Some(By {
                level: Arc::clone(level),
                binding,
            })
        })
    }

    /// Every binding that could give the permission, the ones that do first.
    pub fn consider(
        &self,
        caller: &Identity,
        permission: Permission,
        attributes: &Attributes<'_>,
    ) -> Vec<Considered> {
        let variables = Variables::new(attributes);
        let mut found: Vec<Considered> = Vec::new();
        for level in &self.levels {
            for (at, holds) in level.candidates(caller, permission) {
                let Some(binding) = level.binding(at) else {
                    continue;
                };
                let value = match holds {
                    Holds::Always => Ok(true),
                    Holds::When(condition) => condition.holds(&variables),
                    Holds::Never(error) => Err(error.clone()),
                };
                let considered = Considered {
                    resource: level.resource().clone(),
                    role: binding.role.clone(),
                    member: binding.members.iter().find(|m| caller.is(m)).cloned(),
                    condition: binding
                        .condition
                        .clone()
                        .map(|condition| (condition, value)),
                };
                if !found.contains(&considered) {
                    found.push(considered);
                }
            }
        }
        found.sort_by_key(|considered| !considered.gives());
        found
    }
}

impl Considered {
    /// Whether it gives the permission.
    pub fn gives(&self) -> bool {
        self.condition
            .as_ref()
            .is_none_or(|(_, value)| *value == Ok(true))
    }
}

impl Decision {
    /// They may not.
    pub const fn denied() -> Self {
        Self {
            by: None,
            timed: false,
            conditional: false,
        }
    }

    /// Whether they may.
    pub const fn allowed(&self) -> bool {
        self.by.is_some()
    }

    /// By which binding.
    pub const fn by(&self) -> Option<&By> {
        self.by.as_ref()
    }

    /// Whether it has to be made again as time goes by: it rests on a condition that asks for the time.
    pub const fn timed(&self) -> bool {
        self.timed
    }

    /// Whether it rests on a condition.
    pub const fn conditional(&self) -> bool {
        self.conditional
    }
}

impl By {
    /// Where the binding is.
    pub fn resource(&self) -> &Resource {
        self.level.resource()
    }

    /// The binding.
    pub fn binding(&self) -> Option<&Binding> {
        self.level.binding(self.binding)
    }
}

#[cfg(test)]
mod tests;
