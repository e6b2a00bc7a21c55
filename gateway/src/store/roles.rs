//! Roles that projects make for themselves.

use towline_proto::{handshake::random_id, names::Project};

use super::{Answered as _, Concern, Store, StoreError, Transaction, sorted, sql, unix};
use crate::iam::{CustomRole, Permission, Permissions};

/// How many a project may have.
pub const MAX_ROLES: i64 = 300;

/// A project's own role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRow {
    /// Its name.
    pub role: CustomRole,
    /// For people, in a line.
    pub title: String,
    /// For people.
    pub description: String,
    /// What it holds.
    pub permissions: Permissions,
    /// Changes with every change.
    pub etag: String,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
}

/// Why a role isn't made, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The name is taken.
    #[error("role {0} already exists")]
    Exists(CustomRole),
    /// There is none of this name.
    #[error("role {0} does not exist")]
    Unknown(CustomRole),
    /// There is no project of this name.
    #[error("project {:?} does not exist", .0.as_str())]
    NoProject(Project),
    /// A policy names it.
    #[error("role {role} is in use by the policy of {resource}; take it out there first")]
    InUse {
        /// The role.
        role: CustomRole,
        /// Whose policy names it.
        resource: String,
    },
    /// The role has changed since it was read.
    #[error("role {0} has changed since it was read; read it again and repeat the change")]
    Etag(CustomRole),
    /// More than [`MAX_ROLES`].
    #[error("project {0} has {MAX_ROLES} roles already, which is as many as there may be")]
    TooMany(Project),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Row = (String, String, String, String, String, i64);

impl Store {
    /// A project's own roles, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn roles(&self, project: &Project) -> Result<Vec<RoleRow>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT name, title, description, permissions, etag, created FROM roles WHERE project = $1",
        )
        .bind(project.as_str())
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let rows = rows.into_iter().map(|row| role_row(project, row)).collect();
        Ok(sorted(rows, |a: &RoleRow, b| a.role.id.cmp(&b.role.id)))
    }

    /// The role of this name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn role(&self, role: &CustomRole) -> Result<Option<RoleRow>, StoreError> {
        let roles = self.roles(&role.project).await?;
        Ok(roles.into_iter().find(|row| row.role == *role))
    }

    /// Makes a role; its etag is filled in.
    ///
    /// # Errors
    /// See [`RoleError`].
    pub async fn create_role(&self, row: &RoleRow) -> Result<RoleRow, RoleError> {
        let project = &row.role.project;
        let mut transaction = self.begin().await?;
        let there: Option<i64> = sqlx::query_scalar("SELECT 1 FROM projects WHERE name = $1")
            .bind(project.as_str())
            .fetch_optional(&mut *transaction)
            .answered(self)
            .await?;
        if there.is_none() {
            return Err(RoleError::NoProject(project.clone()));
        }
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM roles WHERE project = $1")
            .bind(project.as_str())
            .fetch_one(&mut *transaction)
            .answered(self)
            .await?;
        if count >= MAX_ROLES {
            return Err(RoleError::TooMany(project.clone()));
        }
        let etag = random_id().map_err(|error| self.value(error))?;
        let made = sqlx::query(
            "INSERT INTO roles (project, name, title, description, permissions, etag, created) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        )
        .bind(project.as_str())
        .bind(&row.role.id)
        .bind(&row.title)
        .bind(&row.description)
        .bind(names(row.permissions))
        .bind(&etag)
        .bind(sql(row.created))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(RoleError::Exists(row.role.clone()));
        }
        self.commit(transaction, Concern::Project(project.clone()))
            .await?;
        Ok(RoleRow {
            etag,
            ..row.clone()
        })
    }

    /// Replaces a role's title, description and permissions if `row.etag` is that of the one in force.
    ///
    /// # Errors
    /// See [`RoleError`].
    pub async fn update_role(&self, row: &RoleRow) -> Result<RoleRow, RoleError> {
        let etag = random_id().map_err(|error| self.value(error))?;
        let mut transaction = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE roles SET title = $4, description = $5, permissions = $6, etag = $7 \
             WHERE project = $1 AND name = $2 AND etag = $3",
        )
        .bind(row.role.project.as_str())
        .bind(&row.role.id)
        .bind(&row.etag)
        .bind(&row.title)
        .bind(&row.description)
        .bind(names(row.permissions))
        .bind(&etag)
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(if self.has_role(&mut transaction, &row.role).await? {
                RoleError::Etag(row.role.clone())
            } else {
                RoleError::Unknown(row.role.clone())
            });
        }
        self.commit(transaction, Concern::Project(row.role.project.clone()))
            .await?;
        Ok(RoleRow {
            etag,
            ..row.clone()
        })
    }

    /// Deletes a role that no policy names.
    ///
    /// # Errors
    /// See [`RoleError`].
    pub async fn delete_role(&self, role: &CustomRole) -> Result<(), RoleError> {
        let mut transaction = self.begin().await?;
        if !self.has_role(&mut transaction, role).await? {
            return Err(RoleError::Unknown(role.clone()));
        }
        let policies: Vec<(String, String)> =
            sqlx::query_as("SELECT resource, bindings FROM policies WHERE project = $1")
                .bind(role.project.as_str())
                .fetch_all(&mut *transaction)
                .answered(self)
                .await?;
        // As JSON writes it: a role's name has nothing to escape, and no other string can end in it and a quote.
        let named = format!("\"role\":\"{role}\"");
        if let Some((resource, _)) = policies
            .into_iter()
            .find(|(_, bindings)| bindings.contains(&named))
        {
            return Err(RoleError::InUse {
                role: role.clone(),
                resource,
            });
        }
        sqlx::query("DELETE FROM roles WHERE project = $1 AND name = $2")
            .bind(role.project.as_str())
            .bind(&role.id)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        Ok(self
            .commit(transaction, Concern::Project(role.project.clone()))
            .await?)
    }

    async fn has_role(
        &self,
        transaction: &mut Transaction,
        role: &CustomRole,
    ) -> Result<bool, StoreError> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM roles WHERE project = $1 AND name = $2")
                .bind(role.project.as_str())
                .bind(&role.id)
                .fetch_optional(&mut **transaction)
                .answered(self)
                .await?;
        Ok(found.is_some())
    }
}

fn role_row(project: &Project, row: Row) -> RoleRow {
    let (id, title, description, permissions, etag, created) = row;
    let role = CustomRole {
        project: project.clone(),
        id,
    };
    RoleRow {
        permissions: parse_permissions(&role, &permissions),
        role,
        title,
        description,
        etag,
        created: unix(created),
    }
}

fn names(permissions: Permissions) -> String {
    let names: Vec<&str> = permissions.iter().map(Permission::name).collect();
    names.join(" ")
}

/// A permission that isn't one any more gives nothing.
pub(super) fn parse_permissions(role: &CustomRole, text: &str) -> Permissions {
    text.split_whitespace()
        .fold(Permissions::NONE, |held, name| match name.parse() {
            Ok(permission) => held.and(Permissions::of(&[permission])),
            Err(error) => {
                tracing::error!(%role, %error, "a stored role holds what is no permission; that gives nothing");
                held
            }
        })
}
