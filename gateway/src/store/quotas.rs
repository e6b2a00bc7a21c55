//! Quotas that projects have set.

use std::sync::Arc;

use towline_proto::names::Project;

use super::{Answered as _, Concern, Store, StoreError};
use crate::quota::{Overrides, Quota, Whose};

/// How many limits a project may set: all of them are in memory while it is in use.
pub const MOST_OVERRIDES: usize = 1_000;

/// Why a quota isn't set.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// There is no such project.
    #[error("project {:?} does not exist", .0.as_str())]
    NoProject(Project),
    /// The project has set as many as it may.
    #[error(
        "project {:?} has set {MOST_OVERRIDES} limits, which is the most; unset one, or change the default of each principal",
        .0.as_str()
    )]
    TooMany(Project),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// What a project has set. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn quotas(&self, project: &Project) -> Result<Arc<Overrides>, StoreError> {
        let writes = match self.cache().recall::<Arc<Overrides>>(project) {
            Ok(overrides) => return Ok(overrides.unwrap_or_default()),
            Err(writes) => writes,
        };
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT holder, quota, quota_limit FROM quotas WHERE project = $1")
                .bind(project.as_str())
                .fetch_all(self.reader()?)
                .answered(self)
                .await?;
        let mut set = Vec::with_capacity(rows.len());
        for (holder, quota, limit) in rows {
            let whose = match holder.as_str() {
                PROJECT => Whose::Project,
                EACH => Whose::EachPrincipal,
                principal => {
                    Whose::Principal(principal.parse().map_err(|error| self.value(error))?)
                }
            };
            let quota: Quota = quota.parse().map_err(|error| self.value(error))?;
            set.push((
                whose,
                quota,
                u32::try_from(limit).map_err(|error| self.value(error))?,
            ));
        }
        let overrides = Arc::new(Overrides::new(set));
        self.cache()
            .remember(project.clone(), Some(Arc::clone(&overrides)), writes);
        Ok(overrides)
    }

    /// Sets a limit, or with `None` lets the default hold again. In force when this returns.
    ///
    /// # Errors
    /// See [`QuotaError`].
    pub async fn set_quota(
        &self,
        project: &Project,
        whose: &Whose,
        quota: Quota,
        limit: Option<u32>,
    ) -> Result<(), QuotaError> {
        let holder = match whose {
            Whose::Project => PROJECT.to_owned(),
            Whose::EachPrincipal => EACH.to_owned(),
            Whose::Principal(principal) => principal.to_string(),
        };
        let mut transaction = self.begin().await?;
        let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM projects WHERE name = $1")
            .bind(project.as_str())
            .fetch_optional(&mut *transaction)
            .answered(self)
            .await?;
        if known.is_none() {
            return Err(QuotaError::NoProject(project.clone()));
        }
        sqlx::query("DELETE FROM quotas WHERE project = $1 AND holder = $2 AND quota = $3")
            .bind(project.as_str())
            .bind(&holder)
            .bind(quota.name())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        if let Some(limit) = limit {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM quotas WHERE project = $1")
                .bind(project.as_str())
                .fetch_one(&mut *transaction)
                .answered(self)
                .await?;
            if usize::try_from(count).unwrap_or_default() >= MOST_OVERRIDES {
                return Err(QuotaError::TooMany(project.clone()));
            }
            sqlx::query(
                "INSERT INTO quotas (project, holder, quota, quota_limit) VALUES ($1, $2, $3, $4)",
            )
            .bind(project.as_str())
            .bind(&holder)
            .bind(quota.name())
            .bind(i64::from(limit))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        }
        Ok(self
            .commit(transaction, Concern::Project(project.clone()))
            .await?)
    }
}

const PROJECT: &str = "project";
const EACH: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iam::Principal;
    use crate::store::testing::{On, on_both};

    on_both! {
        what_is_set_holds_at_once_and_can_be_unset,
        a_project_sets_so_many_and_no_more,
    }

    async fn what_is_set_holds_at_once_and_can_be_unset(on: On) {
        let store = on.open().await;
        let (p, q): (Project, Project) = ("p".parse().unwrap(), "q".parse().unwrap());
        let alice = Principal::User("alice".into());
        store.create_project(&p, &alice, 0).await.unwrap();
        assert!(store.quotas(&p).await.unwrap().is_empty());
        let alices = Whose::Principal(alice);
        for whose in [Whose::Project, Whose::EachPrincipal, alices.clone()] {
            for limit in [7, 8] {
                store
                    .set_quota(&p, &whose, Quota::Watches, Some(limit))
                    .await
                    .unwrap();
            }
        }
        let all = [Whose::Project, Whose::EachPrincipal, alices.clone()];
        let set = Overrides::new(all.map(|whose| (whose, Quota::Watches, 8)));
        assert_eq!(*store.quotas(&p).await.unwrap(), set);
        assert!(store.quotas(&q).await.unwrap().is_empty());
        store
            .set_quota(&p, &alices, Quota::Watches, None)
            .await
            .unwrap();
        assert_eq!(store.quotas(&p).await.unwrap().len(), 2);
        let unknown = store
            .set_quota(&q, &Whose::Project, Quota::Watches, Some(1))
            .await;
        assert!(matches!(unknown, Err(QuotaError::NoProject(_))));
        // With the project they go, too.
        store.delete_project(&p).await.unwrap();
        assert!(store.quotas(&p).await.unwrap().is_empty());
    }

    async fn a_project_sets_so_many_and_no_more(on: On) {
        let store = on.open().await;
        let p: Project = "p".parse().unwrap();
        let owner = Principal::User("owner".into());
        store.create_project(&p, &owner, 0).await.unwrap();
        let set = async |number: usize| {
            let whose = Whose::Principal(Principal::User(format!("user-{number}")));
            store.set_quota(&p, &whose, Quota::Watches, Some(1)).await
        };
        for number in 0..MOST_OVERRIDES {
            set(number).await.unwrap();
        }
        assert!(matches!(
            set(MOST_OVERRIDES).await,
            Err(QuotaError::TooMany(_))
        ));
        set(0).await.unwrap();
    }
}
