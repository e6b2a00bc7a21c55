//! What is in use of quotas at each of several replicas. On PostgreSQL alone: who is alone counts in memory.

use towline_proto::names::Project;

use super::{Answered as _, Concern, Store, StoreError, Transaction, unix};
use crate::quota::Quota;

/// The holder that is the project itself.
const PROJECT: &str = "project";

/// What one holder uses of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Where.
    pub project: String,
    /// Who; `None`: the project itself.
    pub holder: Option<String>,
    /// Which quota.
    pub quota: String,
    /// How much.
    pub used: u64,
}

/// A place that would have been one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether the project has no more; otherwise its principal.
    pub of_project: bool,
    /// How many are taken, at all replicas.
    pub used: u64,
}

impl Store {
    /// Notes a place that is taken at this replica, unless there is none left at all of them together. Takings of one
    /// project come one after the other, at whichever replicas; `counts` is asked in turn, how many are taken here by
    /// the principal and by all, this one included.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn claim(
        &self,
        replica: &str,
        (project, holder, quota): (&Project, &str, Quota),
        limits: [Option<u32>; 2],
        counts: impl Fn() -> [u32; 2] + Send,
    ) -> Result<Result<(), Taken>, StoreError> {
        let mut transaction = self.turn(project).await?;
        let here = counts();
        let others: Vec<(String, i64)> = sqlx::query_as(
            "SELECT holder, CAST(SUM(used) AS BIGINT) FROM quota_usage \
             WHERE project = $1 AND quota = $2 AND holder IN ($3, $4) AND replica <> $5 GROUP BY holder",
        )
        .bind(project.as_str())
        .bind(quota.name())
        .bind(holder)
        .bind(PROJECT)
        .bind(replica)
        .fetch_all(&mut *transaction)
        .answered(self)
        .await?;
        for (at, who) in [holder, PROJECT].into_iter().enumerate() {
            let elsewhere = others.iter().find(|(holder, _)| holder == who);
            let elsewhere = elsewhere.map_or(0, |(_, used)| unix(*used));
            let (Some(Some(limit)), Some(here)) = (limits.get(at), here.get(at)) else {
                continue;
            };
            let used = elsewhere + u64::from(*here);
            if used > u64::from(*limit) {
                return Ok(Err(Taken {
                    of_project: at == 1,
                    used: used - 1,
                }));
            }
        }
        for (who, used) in [holder, PROJECT].into_iter().zip(here) {
            self.note_usage(&mut transaction, replica, (project, who, quota), used)
                .await?;
        }
        self.commit(transaction, Concern::Tokens).await?;
        Ok(Ok(()))
    }

    /// Notes what is in use at this replica of some quotas of a project's holders; `count` is asked in turn, for the
    /// holder and for the project.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn say_usage(
        &self,
        replica: &str,
        project: &Project,
        holders: &[(String, Quota)],
        count: impl Fn(&str, Quota) -> [u32; 2] + Send + Sync,
    ) -> Result<(), StoreError> {
        let mut transaction = self.turn(project).await?;
        for (holder, quota) in holders {
            let here = count(holder, *quota);
            for (who, used) in [holder, PROJECT].into_iter().zip(here) {
                self.note_usage(&mut transaction, replica, (project, who, *quota), used)
                    .await?;
            }
        }
        self.commit(transaction, Concern::Tokens).await
    }

    /// Notes how many requests each holder makes in a minute at this replica; of whom nothing is said, it is none.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn say_paces(&self, replica: &str, paces: &[UsageRow]) -> Result<(), StoreError> {
        let mut transaction = self.unordered(&self.inner.pools.claims).await?;
        sqlx::query("DELETE FROM quota_usage WHERE replica = $1 AND quota = $2")
            .bind(replica)
            .bind(Quota::RequestsPerMinute.name())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        for pace in paces {
            // A project that was just deleted has no usage.
            sqlx::query(
                "INSERT INTO quota_usage (project, holder, quota, replica, used) \
                 SELECT name, $2, $3, $4, $5 FROM projects WHERE name = $1",
            )
            .bind(&pace.project)
            .bind(pace.holder.as_deref().unwrap_or(PROJECT))
            .bind(Quota::RequestsPerMinute.name())
            .bind(replica)
            .bind(super::sql(pace.used))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        }
        self.commit(transaction, Concern::Tokens).await
    }

    /// How many requests holders make in a minute at the other replicas, all of those together.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn paces_elsewhere(&self, replica: &str) -> Result<Vec<UsageRow>, StoreError> {
        self.usage("quota = 'requests_per_minute'", replica, None)
            .await
    }

    /// What is in use of a project's quotas at the other replicas.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn usage_elsewhere(
        &self,
        replica: &str,
        project: &Project,
    ) -> Result<Vec<UsageRow>, StoreError> {
        self.usage("project = $2", replica, Some(project)).await
    }

    async fn usage(
        &self,
        which: &'static str,
        replica: &str,
        project: Option<&Project>,
    ) -> Result<Vec<UsageRow>, StoreError> {
        let query = format!(
            "SELECT project, holder, quota, CAST(SUM(used) AS BIGINT) FROM quota_usage \
             WHERE replica <> $1 AND {which} AND used > 0 GROUP BY project, holder, quota"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(replica);
        let rows: Vec<(String, String, String, i64)> = match project {
            Some(project) => query.bind(project.as_str()),
            None => query,
        }
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        Ok(rows
            .into_iter()
            .map(|(project, holder, quota, used)| UsageRow {
                project,
                holder: (holder != PROJECT).then_some(holder),
                quota,
                used: unix(used),
            })
            .collect())
    }

    async fn note_usage(
        &self,
        transaction: &mut Transaction,
        replica: &str,
        (project, holder, quota): (&Project, &str, Quota),
        used: u32,
    ) -> Result<(), StoreError> {
        let query = if used == 0 {
            "DELETE FROM quota_usage WHERE project = $1 AND holder = $2 AND quota = $3 AND replica = $4 AND 0 = $5"
        } else {
            "INSERT INTO quota_usage (project, holder, quota, replica, used) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (project, holder, quota, replica) DO UPDATE SET used = $5"
        };
        sqlx::query(query)
            .bind(project.as_str())
            .bind(holder)
            .bind(quota.name())
            .bind(replica)
            .bind(i64::from(used))
            .execute(&mut **transaction)
            .answered(self)
            .await?;
        Ok(())
    }

    /// A transaction that others on the same project wait for, and no other writer.
    async fn turn(&self, project: &Project) -> Result<Transaction, StoreError> {
        let mut transaction = self.unordered(&self.inner.pools.claims).await?;
        sqlx::query("SELECT 1 FROM projects WHERE name = $1 FOR NO KEY UPDATE")
            .bind(project.as_str())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        Ok(transaction)
    }
}
