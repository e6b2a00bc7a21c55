//! Projects and their policies.

use sqlx::Row as _;
use towline_proto::{handshake::random_id, names::Project};

use super::{Answered as _, Concern, Store, StoreError, sorted, sql, unix};
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
        let rows = sqlx::query("SELECT name, created FROM projects")
            .fetch_all(self.reader()?)
            .answered(self)
            .await?;
        let rows = rows
            .iter()
            .map(|row| {
                let name: String = row.try_get(0).map_err(|error| self.error(error))?;
                let created = row.try_get(1).map_err(|error| self.error(error))?;
                Ok::<(Project, u64), StoreError>((
                    name.parse().map_err(|error| self.value(error))?,
                    unix(created),
                ))
            })
            .collect::<Result<_, _>>()?;
        Ok(sorted(rows, |(a, _): &(Project, u64), (b, _)| a.cmp(b)))
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
            "INSERT INTO projects (name, created) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(project.as_str())
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(ProjectError::Exists(project.clone()));
        }
        let owner = Binding::new(Role::Owner, vec![Member::Principal(owner.clone())]);
        let etag = random_id().map_err(|error| self.value(error))?;
        self.write_policy(&mut transaction, &project.into(), &etag, &[owner])
            .await?;
        Ok(self
            .commit(transaction, Concern::Project(project.clone()))
            .await?)
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
            .answered(self)
            .await?;
        if count > 0 {
            return Err(ProjectError::NotEmpty {
                project: project.clone(),
                count,
            });
        }
        let deleted = sqlx::query("DELETE FROM projects WHERE name = $1")
            .bind(project.as_str())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        if deleted.rows_affected() == 0 {
            return Err(ProjectError::Unknown(project.clone()));
        }
        Ok(self
            .commit(transaction, Concern::Project(project.clone()))
            .await?)
    }

    /// A project's policy; `None` when there is no such project.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn policy(&self, project: &Project) -> Result<Option<Policy>, StoreError> {
        self.policy_of(&project.into()).await
    }
}
