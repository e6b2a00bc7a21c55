//! Policies of projects and of what is in them, and the decisions that rest on them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use towline_proto::{handshake::random_id, names::Project};

use super::{Answered as _, Concern, Store, StoreError, Transaction, roles::parse_permissions};
use crate::iam::{
    Binding, CompiledPolicy, Condition, CustomRole, CustomRoles, InvalidPolicy, Policy, PolicySet,
    Resource, RoleName,
};

/// The etag of a policy that was never set.
const UNSET: &str = "none";

/// Why a policy isn't set.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It may not be.
    #[error(transparent)]
    Invalid(#[from] InvalidPolicy),
    /// There is nothing of this name.
    #[error("{0} does not exist")]
    Unknown(Resource),
    /// A role that the project doesn't have.
    #[error("role {0} does not exist; see: towline iam roles list --project {project}", project = .0.project)]
    NoRole(CustomRole),
    /// The policy has changed since it was read.
    #[error("the policy of {0} has changed since it was read; read it again and repeat the change")]
    Etag(Resource),
    /// Nobody would be left who may change the policy.
    #[error(
        "the policy leaves {0} without an owner; at least one user: or group: has to be owner without a condition"
    )]
    NoOwner(Resource),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A binding as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    role: String,
    members: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    condition: Option<StoredCondition>,
}

#[derive(Serialize, Deserialize)]
struct StoredCondition {
    title: String,
    description: String,
    expression: String,
}

impl Store {
    /// A resource's own policy, an empty one where none was set; `None` when there is no such project.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn policy_of(&self, resource: &Resource) -> Result<Option<Policy>, StoreError> {
        let compiled = self.compiled(resource).await?;
        Ok(compiled.map(|compiled| compiled.policy().clone()))
    }

    /// The policies that count for a resource: its own and its project's; `None` when there is no such project.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn policies_for(&self, resource: &Resource) -> Result<Option<PolicySet>, StoreError> {
        let Some(project) = self
            .compiled(&Resource::Project(resource.project().clone()))
            .await?
        else {
            return Ok(None);
        };
        let mut levels = vec![project];
        if !matches!(resource, Resource::Project(_)) {
            levels.extend(self.compiled(resource).await?);
        }
        Ok(Some(PolicySet::new(levels)))
    }

    /// A policy ready to decide. From memory, mostly.
    async fn compiled(
        &self,
        resource: &Resource,
    ) -> Result<Option<Arc<CompiledPolicy>>, StoreError> {
        let writes = match self.cache().recall::<Arc<CompiledPolicy>>(resource) {
            Ok(policy) => return Ok(policy),
            Err(writes) => writes,
        };
        // All in one transaction: an etag never goes with another's bindings, nor a role with another's permissions.
        let mut transaction = self.snapshot().await?;
        let compiled = match self.read_policy(&mut transaction, resource).await? {
            Some(policy) => {
                let roles = self
                    .read_roles(&mut transaction, resource.project())
                    .await?;
                Some(Arc::new(CompiledPolicy::new(
                    resource.clone(),
                    policy,
                    &roles,
                )))
            }
            None => None,
        };
        drop(transaction);
        self.cache()
            .remember(resource.clone(), compiled.clone(), writes);
        Ok(compiled)
    }

    /// Replaces a resource's policy if `policy.etag` is that of the one in force; answers with the new etag in it.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub async fn set_policy_of(
        &self,
        resource: &Resource,
        policy: &Policy,
    ) -> Result<Policy, PolicyError> {
        if matches!(resource, Resource::Project(_)) && !policy.has_owner() {
            return Err(PolicyError::NoOwner(resource.clone()));
        }
        policy.check(resource)?;
        let mut transaction = self.begin().await?;
        if !self.exists(&mut transaction, resource).await? {
            return Err(PolicyError::Unknown(resource.clone()));
        }
        let roles = self
            .read_roles(&mut transaction, resource.project())
            .await?;
        for binding in &policy.bindings {
            if let RoleName::Custom(role) = &binding.role
                && !roles.contains_key(role)
            {
                return Err(PolicyError::NoRole(role.clone()));
            }
        }
        let current = self.read_etag(&mut transaction, resource).await?;
        if current.as_deref().unwrap_or(UNSET) != policy.etag {
            return Err(PolicyError::Etag(resource.clone()));
        }
        let etag = random_id().map_err(|error| self.value(error))?;
        self.write_policy(&mut transaction, resource, &etag, &policy.bindings)
            .await?;
        self.commit(transaction, Concern::Project(resource.project().clone()))
            .await?;
        Ok(Policy {
            etag,
            bindings: policy.bindings.clone(),
        })
    }

    /// Writes a policy, whatever was there before.
    pub(super) async fn write_policy(
        &self,
        transaction: &mut Transaction,
        resource: &Resource,
        etag: &str,
        bindings: &[Binding],
    ) -> Result<(), StoreError> {
        let bindings: Vec<Stored> = bindings.iter().map(stored).collect();
        let bindings = serde_json::to_string(&bindings).map_err(|error| self.value(error))?;
        sqlx::query(
            "INSERT INTO policies (resource, project, etag, bindings) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (resource) DO UPDATE SET etag = excluded.etag, bindings = excluded.bindings",
        )
        .bind(resource.to_string())
        .bind(resource.project().as_str())
        .bind(etag)
        .bind(bindings)
        .execute(&mut **transaction)
        .answered(self)
        .await?;
        Ok(())
    }

    /// Deletes a resource's policy with the resource: another of the same name must not have it.
    pub(super) async fn delete_policy(
        &self,
        transaction: &mut Transaction,
        resource: &Resource,
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM policies WHERE resource = $1")
            .bind(resource.to_string())
            .execute(&mut **transaction)
            .answered(self)
            .await?;
        Ok(())
    }

    /// Takes a member out of every policy.
    pub(super) async fn strike_out(
        &self,
        transaction: &mut Transaction,
        member: &str,
    ) -> Result<(), StoreError> {
        let naming: Vec<(String, String)> = sqlx::query_as(
            "SELECT resource, bindings FROM policies WHERE replace(bindings, $1, '') <> bindings",
        )
        .bind(member)
        .fetch_all(&mut **transaction)
        .answered(self)
        .await?;
        for (resource, bindings) in naming {
            let mut bindings: Vec<Stored> =
                serde_json::from_str(&bindings).map_err(|error| self.value(error))?;
            for binding in &mut bindings {
                binding.members.retain(|other| other != member);
            }
            bindings.retain(|binding| !binding.members.is_empty());
            let bindings = serde_json::to_string(&bindings).map_err(|error| self.value(error))?;
            sqlx::query("UPDATE policies SET etag = $2, bindings = $3 WHERE resource = $1")
                .bind(resource)
                .bind(random_id().map_err(|error| self.value(error))?)
                .bind(bindings)
                .execute(&mut **transaction)
                .answered(self)
                .await?;
        }
        Ok(())
    }

    /// Whether a policy may be attached to it.
    async fn exists(
        &self,
        transaction: &mut Transaction,
        resource: &Resource,
    ) -> Result<bool, StoreError> {
        let query = match resource {
            Resource::Project(project) => {
                sqlx::query_scalar("SELECT 1 FROM projects WHERE name = $1").bind(project.as_str())
            }
            Resource::Membership(membership) => sqlx::query_scalar(
                "SELECT 1 FROM memberships WHERE project = $1 AND location = $2 AND name = $3",
            )
            .bind(membership.project.as_str())
            .bind(membership.location.as_str())
            .bind(membership.id.as_str()),
            Resource::ServiceAccount(account) => sqlx::query_scalar(
                "SELECT 1 FROM service_accounts WHERE project = $1 AND name = $2",
            )
            .bind(account.project.as_str())
            .bind(account.name.as_str()),
            Resource::Pool(pool) => {
                sqlx::query_scalar("SELECT 1 FROM workload_pools WHERE project = $1 AND name = $2")
                    .bind(pool.project.as_str())
                    .bind(pool.id.as_str())
            }
        };
        let found: Option<i64> = query
            .fetch_optional(&mut **transaction)
            .answered(self)
            .await?;
        Ok(found.is_some())
    }

    async fn read_etag(
        &self,
        transaction: &mut Transaction,
        resource: &Resource,
    ) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT etag FROM policies WHERE resource = $1")
            .bind(resource.to_string())
            .fetch_optional(&mut **transaction)
            .answered(self)
            .await
    }

    async fn read_policy(
        &self,
        transaction: &mut Transaction,
        resource: &Resource,
    ) -> Result<Option<Policy>, StoreError> {
        let found: Option<(String, String)> =
            sqlx::query_as("SELECT etag, bindings FROM policies WHERE resource = $1")
                .bind(resource.to_string())
                .fetch_optional(&mut **transaction)
                .answered(self)
                .await?;
        let Some((etag, bindings)) = found else {
            let project: Option<i64> = sqlx::query_scalar("SELECT 1 FROM projects WHERE name = $1")
                .bind(resource.project().as_str())
                .fetch_optional(&mut **transaction)
                .answered(self)
                .await?;
            return Ok(project.map(|_| Policy {
                etag: UNSET.to_owned(),
                bindings: Vec::new(),
            }));
        };
        Ok(Some(Policy {
            etag,
            bindings: parse_bindings(resource, &bindings),
        }))
    }

    /// A project's own roles with what they hold.
    async fn read_roles(
        &self,
        transaction: &mut Transaction,
        project: &Project,
    ) -> Result<CustomRoles, StoreError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, permissions FROM roles WHERE project = $1")
                .bind(project.as_str())
                .fetch_all(&mut **transaction)
                .answered(self)
                .await?;
        let mut roles = BTreeMap::new();
        for (id, permissions) in rows {
            let role = CustomRole {
                project: project.clone(),
                id,
            };
            let permissions = parse_permissions(&role, &permissions);
            roles.insert(role, permissions);
        }
        Ok(roles)
    }
}

fn stored(binding: &Binding) -> Stored {
    Stored {
        role: binding.role.to_string(),
        members: binding.members.iter().map(ToString::to_string).collect(),
        condition: binding.condition.as_ref().map(|condition| StoredCondition {
            title: condition.title.clone(),
            description: condition.description.clone(),
            expression: condition.expression.clone(),
        }),
    }
}

/// What isn't understood any more gives nothing: a binding, or all of them where the document is none.
fn parse_bindings(resource: &Resource, text: &str) -> Vec<Binding> {
    let bindings: Vec<serde_json::Value> = match serde_json::from_str(text) {
        Ok(bindings) => bindings,
        Err(error) => {
            tracing::error!(%resource, %error, "a stored policy is not understood; it gives nothing");
            return Vec::new();
        }
    };
    bindings
        .into_iter()
        .filter_map(|binding| {
            parse_binding(binding)
                .inspect_err(|error| {
                    tracing::error!(%resource, error, "a stored binding is not understood; it gives nothing");
                })
                .ok()
        })
        .collect()
}

fn parse_binding(binding: serde_json::Value) -> Result<Binding, String> {
    let stored: Stored = serde_json::from_value(binding).map_err(|error| error.to_string())?;
    Ok(Binding {
        role: stored.role.parse().map_err(|error| format!("{error}"))?,
        members: stored
            .members
            .iter()
            .map(|member| member.parse().map_err(|error| format!("{error}")))
            .collect::<Result<_, _>>()?,
        condition: stored.condition.map(|condition| Condition {
            title: condition.title,
            description: condition.description,
            expression: condition.expression,
        }),
    })
}
