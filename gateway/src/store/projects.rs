//! Projects and their policies.

use sqlx::{Row as _, Sqlite, Transaction};
use towline_proto::{handshake::random_id, names::Project};

use super::{Concern, Store, StoreError, sql, unix};
use crate::iam::{Binding, Member, Policy, Principal, Role};

/// Why a project isn't made, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// The name is taken.
    #[error("project {:?} already exists", .0.as_str())]
    Exists(Project),
    /// There is none of this name.
    #[error("project {:?} does not exist", .0.as_str())]
    Unknown(Project),
    /// Memberships are left in it.
    #[error("project {:?} still has {count} memberships; delete them first: towline memberships list --project {project}", .project.as_str())]
    NotEmpty {
        /// The project.
        project: Project,
        /// How many memberships.
        count: i64,
    },
    /// The policy has changed since it was read.
    #[error("the policy of project {:?} has changed since it was read; read it again and repeat the change", .0.as_str())]
    Etag(Project),
    /// Nobody would be left who may change the policy.
    #[error("the policy leaves project {:?} without an owner", .0.as_str())]
    NoOwner(Project),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// All projects with the time they were made, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn projects(&self) -> Result<Vec<(Project, u64)>, StoreError> {
        let rows = sqlx::query("SELECT name, created FROM projects ORDER BY name")
            .fetch_all(self.reader())
            .await
            .map_err(|error| self.error(error))?;
        rows.iter()
            .map(|row| {
                let name: String = row.try_get(0).map_err(|error| self.error(error))?;
                let created = row.try_get(1).map_err(|error| self.error(error))?;
                Ok((
                    name.parse().map_err(|error| self.value(error))?,
                    unix(created),
                ))
            })
            .collect()
    }

    /// Makes a project.
    ///
    /// # Errors
    /// See [`ProjectError`].
    pub async fn create_project(
        &self,
        project: &Project,
        owner: &Principal,
        now: u64,
    ) -> Result<(), ProjectError> {
        let mut transaction = self.begin().await?;
        let made = sqlx::query(
            "INSERT INTO projects (name, etag, created) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(project.as_str())
        .bind(self.etag()?)
        .bind(sql(now))
        .execute(&mut *transaction)
        .await
        .map_err(|error| self.error(error))?;
        if made.rows_affected() == 0 {
            return Err(ProjectError::Exists(project.clone()));
        }
        let bindings = [Binding {
            role: Role::Owner,
            members: vec![Member::Principal(owner.clone())],
        }];
        self.insert_bindings(&mut transaction, project, &bindings)
            .await?;
        Ok(self.commit(transaction, Concern::Rights).await?)
    }

    /// Deletes an empty project with its policy.
    ///
    /// # Errors
    /// See [`ProjectError`].
    pub async fn delete_project(&self, project: &Project) -> Result<(), ProjectError> {
        let mut transaction = self.begin().await?;
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM memberships WHERE project = $1")
            .bind(project.as_str())
            .fetch_one(&mut *transaction)
            .await
            .map_err(|error| self.error(error))?;
        if count > 0 {
            return Err(ProjectError::NotEmpty {
                project: project.clone(),
                count,
            });
        }
        let deleted = sqlx::query("DELETE FROM projects WHERE name = $1")
            .bind(project.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.error(error))?;
        if deleted.rows_affected() == 0 {
            return Err(ProjectError::Unknown(project.clone()));
        }
        Ok(self.commit(transaction, Concern::Rights).await?)
    }

    /// A project's policy; `None` when there is no such project. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn policy(&self, project: &Project) -> Result<Option<Policy>, StoreError> {
        let writes = match self.cache().recall::<Policy>(project) {
            Ok(policy) => return Ok(policy),
            Err(writes) => writes,
        };
        // Both in one transaction: an etag never goes with another's bindings.
        let mut transaction = self
            .reader()
            .begin()
            .await
            .map_err(|error| self.error(error))?;
        let policy = self.read_policy(&mut transaction, project).await?;
        drop(transaction);
        self.cache()
            .remember(project.clone(), policy.clone(), writes);
        Ok(policy)
    }

    /// Replaces a project's policy if `policy.etag` is that of the one in force; answers with the new etag in it.
    ///
    /// # Errors
    /// See [`ProjectError`].
    pub async fn set_policy(
        &self,
        project: &Project,
        policy: &Policy,
    ) -> Result<Policy, ProjectError> {
        if !policy
            .bindings
            .iter()
            .any(|binding| binding.role == Role::Owner && !binding.members.is_empty())
        {
            return Err(ProjectError::NoOwner(project.clone()));
        }
        let etag = self.etag()?;
        let mut transaction = self.begin().await?;
        let changed = sqlx::query("UPDATE projects SET etag = $3 WHERE name = $1 AND etag = $2")
            .bind(project.as_str())
            .bind(&policy.etag)
            .bind(&etag)
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.error(error))?;
        if changed.rows_affected() == 0 {
            return Err(match self.read_policy(&mut transaction, project).await? {
                None => ProjectError::Unknown(project.clone()),
                Some(_) => ProjectError::Etag(project.clone()),
            });
        }
        sqlx::query("DELETE FROM bindings WHERE project = $1")
            .bind(project.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.error(error))?;
        self.insert_bindings(&mut transaction, project, &policy.bindings)
            .await?;
        let stored = self
            .read_policy(&mut transaction, project)
            .await?
            .unwrap_or_default();
        self.commit(transaction, Concern::Rights).await?;
        Ok(stored)
    }

    async fn read_policy(
        &self,
        transaction: &mut Transaction<'static, Sqlite>,
        project: &Project,
    ) -> Result<Option<Policy>, StoreError> {
        let etag: Option<String> = sqlx::query_scalar("SELECT etag FROM projects WHERE name = $1")
            .bind(project.as_str())
            .fetch_optional(&mut **transaction)
            .await
            .map_err(|error| self.error(error))?;
        let Some(etag) = etag else { return Ok(None) };
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT role, member FROM bindings WHERE project = $1 ORDER BY position",
        )
        .bind(project.as_str())
        .fetch_all(&mut **transaction)
        .await
        .map_err(|error| self.error(error))?;
        let mut bindings: Vec<Binding> = Vec::new();
        for (role, member) in rows {
            let role: Role = role.parse().map_err(|error| self.value(error))?;
            let member: Member = member.parse().map_err(|error| self.value(error))?;
            match bindings.iter_mut().find(|binding| binding.role == role) {
                Some(binding) => binding.members.push(member),
                None => bindings.push(Binding {
                    role,
                    members: vec![member],
                }),
            }
        }
        Ok(Some(Policy { etag, bindings }))
    }

    async fn insert_bindings(
        &self,
        transaction: &mut Transaction<'static, Sqlite>,
        project: &Project,
        bindings: &[Binding],
    ) -> Result<(), StoreError> {
        let mut position: i64 = 0;
        // Loops, and no iterator of closures: one that lives across an await makes the callers' futures not `Send`.
        for binding in bindings {
            for member in &binding.members {
                sqlx::query(
                    "INSERT INTO bindings (project, role, member, position) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                )
                .bind(project.as_str())
                .bind(binding.role.name())
                .bind(member.to_string())
                .bind(position)
                .execute(&mut **transaction)
                .await
                .map_err(|error| self.error(error))?;
                position += 1;
            }
        }
        Ok(())
    }

    fn etag(&self) -> Result<String, StoreError> {
        random_id().map_err(|error| self.value(error))
    }
}
