//! Workload identity pools and their providers.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use sqlx::{
    Any, Row as _,
    any::{AnyArguments, AnyRow},
    query::Query,
};
use towline_proto::{handshake::random_id, names::Project};

use super::{Answered as _, Concern, Store, StoreError, flag, sorted, sql, unix};
use crate::{authn::workload::Provider, iam::Pool};

/// How many pools a project may have.
pub const MOST_POOLS: u32 = 50;

/// How many providers a project may have, in all of its pools.
pub const MOST_PROVIDERS: u32 = 100;

/// A pool as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Its name.
    pub pool: Pool,
    /// For people.
    pub display_name: String,
    /// Whether its workloads are refused.
    pub disabled: bool,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
}

/// How a provider reads tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// `iss`.
    pub issuer: String,
    /// One of them has to be in `aud`; the provider's own name when there are none.
    pub audiences: Vec<String>,
    /// `subject`, `groups`, `attribute.NAME`, each in CEL.
    pub mapping: BTreeMap<String, String>,
    /// In CEL; no condition when empty.
    pub condition: String,
    /// A JWK set, where nothing shall be fetched.
    pub jwks: Option<String>,
    /// Whether tokens are also good as bearer tokens.
    pub direct: bool,
}

/// A provider as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// Its name.
    pub provider: Provider,
    /// How it reads tokens.
    pub settings: Settings,
    /// Whether its workloads are refused.
    pub disabled: bool,
    /// Whether those of the whole pool are.
    pub pool_disabled: bool,
    /// Random; another one ends every token that came of it before.
    pub generation: String,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
}

/// All providers of a project.
pub type Providers = Arc<Vec<Arc<ProviderRow>>>;

/// Why a pool or provider isn't made or changed.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadIdentityError {
    /// The name is taken.
    #[error("{0} already exists")]
    Exists(String),
    /// There is none of this name.
    #[error("{0} does not exist")]
    Unknown(String),
    /// The project has as many as it may.
    #[error("project {:?} has {most} {what}; delete one first", .project.as_str())]
    TooMany {
        /// The project.
        project: Project,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: u32,
    },
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// A project's pools, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn pools(&self, project: &Project) -> Result<Vec<PoolRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT name, display_name, disabled, created FROM workload_pools WHERE project = $1",
        )
        .bind(project.as_str())
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let rows = rows
            .iter()
            .map(|row| {
                let read = || {
                    Ok::<_, sqlx::Error>((
                        row.try_get::<String, _>(0)?,
                        row.try_get(1)?,
                        row.try_get(2)?,
                        row.try_get(3)?,
                    ))
                };
                let (name, display_name, disabled, created) =
                    read().map_err(|error| self.error(error))?;
                Ok::<_, StoreError>(PoolRow {
                    pool: Pool {
                        project: project.clone(),
                        id: name.parse().map_err(|error| self.value(error))?,
                    },
                    display_name,
                    disabled: flag(disabled),
                    created: unix(created),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(sorted(rows, |a: &PoolRow, b| a.pool.id.cmp(&b.pool.id)))
    }

    /// All providers of a project. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn providers(&self, project: &Project) -> Result<Providers, StoreError> {
        let writes = match self.cache().recall::<Providers>(project) {
            Ok(known) => return Ok(known.unwrap_or_default()),
            Err(writes) => writes,
        };
        let rows = sqlx::query(
            "SELECT q.pool, q.name, q.settings, q.disabled, p.disabled, q.generation, q.created \
             FROM workload_providers q JOIN workload_pools p ON p.project = q.project AND p.name = q.pool \
             WHERE q.project = $1",
        )
        .bind(project.as_str())
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let providers: Result<Vec<_>, StoreError> = rows
            .iter()
            .map(|row| self.provider_of(project, row).map(Arc::new))
            .collect();
        let providers = sorted(providers?, |a, b| {
            let of =
                |row: &Arc<ProviderRow>| (row.provider.pool.id.clone(), row.provider.id.clone());
            of(a).cmp(&of(b))
        });
        let providers = Arc::new(providers);
        self.cache()
            .remember(project.clone(), Some(Arc::clone(&providers)), writes);
        Ok(providers)
    }

    /// The provider of this name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn provider(
        &self,
        provider: &Provider,
    ) -> Result<Option<Arc<ProviderRow>>, StoreError> {
        let all = self.providers(&provider.pool.project).await?;
        Ok(all.iter().find(|row| row.provider == *provider).cloned())
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn create_pool(
        &self,
        pool: &Pool,
        display_name: &str,
        now: u64,
    ) -> Result<(), WorkloadIdentityError> {
        let mut transaction = self.begin().await?;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM workload_pools WHERE project = $1")
                .bind(pool.project.as_str())
                .fetch_one(&mut *transaction)
                .answered(self)
                .await?;
        if count >= i64::from(MOST_POOLS) {
            return Err(WorkloadIdentityError::TooMany {
                project: pool.project.clone(),
                what: "workload identity pools",
                most: MOST_POOLS,
            });
        }
        let made = sqlx::query(
            "INSERT INTO workload_pools (project, name, display_name, disabled, created) \
             SELECT name, $2, $3, 0, $4 FROM projects WHERE name = $1 ON CONFLICT DO NOTHING",
        )
        .bind(pool.project.as_str())
        .bind(pool.id.as_str())
        .bind(display_name)
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(WorkloadIdentityError::Exists(pool.to_string()));
        }
        Ok(self
            .commit(transaction, Concern::Project(pool.project.clone()))
            .await?)
    }

    /// Deletes a pool with its providers.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn delete_pool(&self, pool: &Pool) -> Result<(), WorkloadIdentityError> {
        let query = sqlx::query("DELETE FROM workload_pools WHERE project = $1 AND name = $2")
            .bind(pool.project.as_str().to_owned())
            .bind(pool.id.as_str().to_owned());
        self.change_workloads(query, (&pool.project, pool), Some(pool))
            .await
    }

    /// Shuts a pool's workloads out, or lets them in again.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn set_pool_disabled(
        &self,
        pool: &Pool,
        disabled: bool,
    ) -> Result<(), WorkloadIdentityError> {
        let query =
            sqlx::query("UPDATE workload_pools SET disabled = $3 WHERE project = $1 AND name = $2")
                .bind(pool.project.as_str().to_owned())
                .bind(pool.id.as_str().to_owned())
                .bind(i16::from(disabled));
        self.change_workloads(query, (&pool.project, pool), None)
            .await
    }

    /// Makes a provider.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn create_provider(
        &self,
        provider: &Provider,
        settings: &Settings,
        disabled: bool,
        now: u64,
    ) -> Result<(), WorkloadIdentityError> {
        let Pool { project, id } = &provider.pool;
        let mut transaction = self.begin().await?;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM workload_providers WHERE project = $1")
                .bind(project.as_str())
                .fetch_one(&mut *transaction)
                .answered(self)
                .await?;
        if count >= i64::from(MOST_PROVIDERS) {
            return Err(WorkloadIdentityError::TooMany {
                project: project.clone(),
                what: "workload identity providers",
                most: MOST_PROVIDERS,
            });
        }
        let pool: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM workload_pools WHERE project = $1 AND name = $2")
                .bind(project.as_str())
                .bind(id.as_str())
                .fetch_optional(&mut *transaction)
                .answered(self)
                .await?;
        if pool.is_none() {
            return Err(WorkloadIdentityError::Unknown(provider.pool.to_string()));
        }
        let made = sqlx::query(
            "INSERT INTO workload_providers (project, pool, name, settings, disabled, generation, created) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        )
        .bind(project.as_str())
        .bind(id.as_str())
        .bind(provider.id.as_str())
        .bind(self.settings(settings)?)
        .bind(i16::from(disabled))
        .bind(random_id().map_err(|error| self.value(error))?)
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        if made.rows_affected() == 0 {
            return Err(WorkloadIdentityError::Exists(provider.to_string()));
        }
        Ok(self
            .commit(transaction, Concern::Project(project.clone()))
            .await?)
    }

    /// Replaces a provider's settings; tokens that came of it before end.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn update_provider(
        &self,
        provider: &Provider,
        settings: &Settings,
        disabled: bool,
    ) -> Result<(), WorkloadIdentityError> {
        let query = sqlx::query(
            "UPDATE workload_providers SET settings = $4, disabled = $5, generation = $6 \
             WHERE project = $1 AND pool = $2 AND name = $3",
        )
        .bind(provider.pool.project.as_str().to_owned())
        .bind(provider.pool.id.as_str().to_owned())
        .bind(provider.id.as_str().to_owned())
        .bind(self.settings(settings)?)
        .bind(i16::from(disabled))
        .bind(random_id().map_err(|error| self.value(error))?);
        self.change_workloads(query, (&provider.pool.project, provider), None)
            .await
    }

    /// Deletes a provider.
    ///
    /// # Errors
    /// See [`WorkloadIdentityError`].
    pub async fn delete_provider(&self, provider: &Provider) -> Result<(), WorkloadIdentityError> {
        let query = sqlx::query(
            "DELETE FROM workload_providers WHERE project = $1 AND pool = $2 AND name = $3",
        )
        .bind(provider.pool.project.as_str().to_owned())
        .bind(provider.pool.id.as_str().to_owned())
        .bind(provider.id.as_str().to_owned());
        self.change_workloads(query, (&provider.pool.project, provider), None)
            .await
    }

    /// The policy goes with a pool that is deleted.
    async fn change_workloads(
        &self,
        query: Query<'static, Any, AnyArguments>,
        (project, name): (&Project, &impl ToString),
        deleted: Option<&Pool>,
    ) -> Result<(), WorkloadIdentityError> {
        let (project, name) = (project.clone(), name.to_string());
        let mut transaction = self.begin().await?;
        if let Some(pool) = deleted {
            self.delete_policy(&mut transaction, &pool.into()).await?;
        }
        let changed = query.execute(&mut *transaction).answered(self).await?;
        if changed.rows_affected() == 0 {
            return Err(WorkloadIdentityError::Unknown(name));
        }
        Ok(self.commit(transaction, Concern::Project(project)).await?)
    }

    fn settings(&self, settings: &Settings) -> Result<String, StoreError> {
        serde_json::to_string(settings).map_err(|error| self.value(error))
    }

    fn provider_of(&self, project: &Project, row: &AnyRow) -> Result<ProviderRow, StoreError> {
        let read = || {
            Ok::<_, sqlx::Error>((
                row.try_get::<String, _>(0)?,
                row.try_get::<String, _>(1)?,
                row.try_get::<String, _>(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
                row.try_get(6)?,
            ))
        };
        let (pool, name, settings, disabled, pool_disabled, generation, created) =
            read().map_err(|error| self.error(error))?;
        Ok(ProviderRow {
            provider: Provider {
                pool: Pool {
                    project: project.clone(),
                    id: pool.parse().map_err(|error| self.value(error))?,
                },
                id: name.parse().map_err(|error| self.value(error))?,
            },
            settings: serde_json::from_str(&settings).map_err(|error| self.value(error))?,
            disabled: flag(disabled),
            pool_disabled: flag(pool_disabled),
            generation,
            created: unix(created),
        })
    }
}
