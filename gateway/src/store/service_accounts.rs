//! Service accounts.

use sqlx::{
    Any, Row as _,
    any::{AnyArguments, AnyRow},
    query::Query,
};
use towline_proto::{handshake::random_id, names::Project};

use super::{Answered as _, Concern, Store, StoreError, flag, sorted, sql, unix};
use crate::iam::{Principal, ServiceAccount};

/// How many a project may have.
pub const MOST: u32 = 1_000;

/// A service account as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub account: ServiceAccount,
    /// For people.
    pub display_name: String,
    /// Whether its tokens are refused.
    pub disabled: bool,
    /// Random; another one ends every token that was made before.
    pub generation: String,
    /// When that was, in Unix seconds.
    pub tokens_not_before: u64,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
}

/// Why a service account isn't made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceAccountError {
    /// The name is taken.
    #[error("service account {0} already exists")]
    Exists(ServiceAccount),
    /// There is none of this name.
    #[error("service account {0} does not exist")]
    Unknown(ServiceAccount),
    /// There is no project of this name.
    #[error("project {:?} does not exist", .0.as_str())]
    NoProject(Project),
    /// The project has as many as it may.
    #[error("project {:?} has {MOST} service accounts; delete one first", .0.as_str())]
    TooMany(Project),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The service account of this name. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn service_account(
        &self,
        account: &ServiceAccount,
    ) -> Result<Option<Account>, StoreError> {
        let writes = match self.cache().recall::<Account>(account) {
            Ok(known) => return Ok(known),
            Err(writes) => writes,
        };
        let found = sqlx::query(
            "SELECT project, name, display_name, disabled, generation, tokens_not_before, created \
             FROM service_accounts WHERE project = $1 AND name = $2",
        )
        .bind(account.project.as_str())
        .bind(account.name.as_str())
        .fetch_optional(self.reader()?)
        .answered(self)
        .await?;
        let found = found.map(|row| self.account(&row)).transpose()?;
        self.cache()
            .remember(account.clone(), found.clone(), writes);
        Ok(found)
    }

    /// A project's service accounts, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn service_accounts(&self, project: &Project) -> Result<Vec<Account>, StoreError> {
        let rows = sqlx::query(
            "SELECT project, name, display_name, disabled, generation, tokens_not_before, created \
             FROM service_accounts WHERE project = $1",
        )
        .bind(project.as_str())
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let rows = rows
            .iter()
            .map(|row| self.account(row))
            .collect::<Result<_, _>>()?;
        Ok(sorted(rows, |a: &Account, b| {
            a.account.name.cmp(&b.account.name)
        }))
    }

    /// Makes a service account.
    ///
    /// # Errors
    /// See [`ServiceAccountError`].
    pub async fn create_service_account(
        &self,
        account: &ServiceAccount,
        display_name: &str,
        now: u64,
    ) -> Result<(), ServiceAccountError> {
        let mut transaction = self.begin().await?;
        let project: Option<i64> = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM service_accounts WHERE project = $1) FROM projects WHERE name = $1",
        )
        .bind(account.project.as_str())
        .fetch_optional(&mut *transaction)
        .answered(self)
        .await?;
        match project {
            None => return Err(ServiceAccountError::NoProject(account.project.clone())),
            Some(count) if count >= i64::from(MOST) => {
                return Err(ServiceAccountError::TooMany(account.project.clone()));
            }
            Some(_) => {}
        }
        let made = sqlx::query(
            "INSERT INTO service_accounts \
             (project, name, display_name, disabled, generation, tokens_not_before, created) \
             VALUES ($1, $2, $3, 0, $4, $5, $5) ON CONFLICT DO NOTHING",
        )
        .bind(account.project.as_str())
        .bind(account.name.as_str())
        .bind(display_name)
        .bind(random_id().map_err(|error| self.value(error))?)
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(ServiceAccountError::Exists(account.clone()));
        }
        Ok(self
            .commit(transaction, Concern::Project(account.project.clone()))
            .await?)
    }

    /// Deletes a service account.
    ///
    /// # Errors
    /// See [`ServiceAccountError`].
    pub async fn delete_service_account(
        &self,
        account: &ServiceAccount,
    ) -> Result<(), ServiceAccountError> {
        let query = sqlx::query("DELETE FROM service_accounts WHERE project = $1 AND name = $2");
        self.change_account(account, query, true).await
    }

    /// Shuts a service account out, or lets it in again.
    ///
    /// # Errors
    /// See [`ServiceAccountError`].
    pub async fn set_service_account_disabled(
        &self,
        account: &ServiceAccount,
        disabled: bool,
    ) -> Result<(), ServiceAccountError> {
        let query = if disabled {
            "UPDATE service_accounts SET disabled = 1 WHERE project = $1 AND name = $2"
        } else {
            "UPDATE service_accounts SET disabled = 0 WHERE project = $1 AND name = $2"
        };
        self.change_account(account, sqlx::query(query), false)
            .await
    }

    /// Ends every token that was made for the account until now.
    ///
    /// # Errors
    /// See [`ServiceAccountError`].
    pub async fn revoke_service_account_tokens(
        &self,
        account: &ServiceAccount,
        now: u64,
    ) -> Result<(), ServiceAccountError> {
        let query = sqlx::query(
            "UPDATE service_accounts SET generation = $1, tokens_not_before = $2 \
             WHERE project = $3 AND name = $4",
        )
        .bind(random_id().map_err(|error| self.value(error))?)
        .bind(sql(now));
        self.change_account(account, query, false).await
    }

    /// Runs a query whose last two parameters are the project and the name; its policy goes with the account, and so do bindings that name it: another of the same
    /// name must not have them.
    async fn change_account(
        &self,
        account: &ServiceAccount,
        query: Query<'static, Any, AnyArguments>,
        deleted: bool,
    ) -> Result<(), ServiceAccountError> {
        let mut transaction = self.begin().await?;
        let mut concern = Concern::Project(account.project.clone());
        if deleted {
            // Policies of other projects may name it.
            concern = Concern::Everything;
            self.delete_policy(&mut transaction, &account.into())
                .await?;
            let member = Principal::ServiceAccount(account.clone()).to_string();
            self.strike_out(&mut transaction, &member).await?;
        }
        let changed = query
            .bind(account.project.as_str().to_owned())
            .bind(account.name.as_str().to_owned())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        if changed.rows_affected() == 0 {
            return Err(ServiceAccountError::Unknown(account.clone()));
        }
        Ok(self.commit(transaction, concern).await?)
    }

    fn account(&self, row: &AnyRow) -> Result<Account, StoreError> {
        let read = || {
            Ok::<_, sqlx::Error>((
                row.try_get::<String, _>(0)?,
                row.try_get::<String, _>(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
                row.try_get(6)?,
            ))
        };
        let (project, name, display_name, disabled, generation, tokens_not_before, created) =
            read().map_err(|error| self.error(error))?;
        Ok(Account {
            account: ServiceAccount {
                name: name.parse().map_err(|error| self.value(error))?,
                project: project.parse().map_err(|error| self.value(error))?,
            },
            display_name,
            disabled: flag(disabled),
            generation,
            tokens_not_before: unix(tokens_not_before),
            created: unix(created),
        })
    }
}
