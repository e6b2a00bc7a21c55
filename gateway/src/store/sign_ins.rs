//! Sign-ins: what an access token's `sid` names.
//!
//! Threat: a token outlives the sign-in that it came of; it grows with its owner's groups until no proxy lets it pass; a
//! tenant whose issuer makes as many names as it likes fills the disk.
//! Decision: every access token names a row here, which says who signed in and can be ended. A row ends with its
//! token; a principal and a project each have room for so many, and the oldest go. A revoked row stays until its
//! end, so that streams that began with it can be told from those whose token only ended.
//! Consequence: nothing here is a secret, and nothing here is a right: rights are looked up by name.

use std::sync::Arc;

use sqlx::{Row as _, any::AnyRow};

use super::{Answered as _, Concern, Store, StoreError, flag, sql, unix};
use crate::authn::standing::Standing;

/// How many sign-ins a principal may have at a time.
pub const MOST_OF_PRINCIPAL: u32 = 1_000;

/// How many sign-ins the workloads of a project's pools may have at a time.
pub const MOST_OF_REALM: u32 = 20_000;

/// The longest standing of a person, in bytes of JSON.
pub const MAX_STANDING: usize = 128 * 1024;

/// The longest standing of a workload, whose issuer a tenant may run himself.
pub const MAX_STANDING_OF_WORKLOAD: usize = 16 * 1024;

/// A sign-in as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignIn {
    /// What the token's `sid` says.
    pub id: String,
    /// The same for what was made of one another.
    pub family: String,
    /// Who signed in, and whom they act as.
    pub standing: Standing,
    /// Whether it was ended before its time.
    pub revoked: bool,
    /// When its token ends, in Unix seconds.
    pub expires: u64,
}

/// Why a sign-in isn't kept.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Too many groups, or too long ones.
    #[error(
        "the groups and attributes that the token was mapped to are {size} bytes long; {most} may be"
    )]
    TooLong {
        /// How long they are.
        size: usize,
        /// How long they may be.
        most: usize,
    },
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The sign-in of this id; `None` also when it is long over. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sign_in(&self, id: &str) -> Result<Option<Arc<SignIn>>, StoreError> {
        let id = id.to_owned();
        let writes = match self.cache().recall::<Arc<SignIn>>(&id) {
            Ok(known) => return Ok(known),
            Err(writes) => writes,
        };
        let found = sqlx::query(
            "SELECT id, family, standing, revoked, expires FROM sign_ins WHERE id = $1",
        )
        .bind(&id)
        .fetch_optional(self.reader()?)
        .answered(self)
        .await?;
        let found = found
            .map(|row| self.sign_in_of(&row).map(Arc::new))
            .transpose()?;
        // Not that there is none: whoever makes it next writes nothing that this memory hears of.
        if found.is_some() {
            self.cache().remember(id, found.clone(), writes);
        }
        Ok(found)
    }

    /// Keeps a sign-in until it ends; the oldest of a principal or project that has too many go.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn add_sign_in(&self, new: &SignIn, now: u64) -> Result<(), SignInError> {
        let standing = serde_json::to_string(&new.standing).map_err(|error| self.value(error))?;
        let principal = new.standing.base.principal().to_string();
        let realm = new.standing.base.realm().to_owned();
        let most = if realm.is_empty() {
            MAX_STANDING
        } else {
            MAX_STANDING_OF_WORKLOAD
        };
        if standing.len() > most {
            let size = standing.len();
            return Err(SignInError::TooLong { size, most });
        }
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM sign_ins WHERE expires <= $1")
            .bind(sql(now))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        sqlx::query(
            "INSERT INTO sign_ins (id, family, principal, realm, standing, revoked, created, expires) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&new.id)
        .bind(&new.family)
        .bind(&principal)
        .bind(&realm)
        .bind(&standing)
        .bind(i16::from(new.revoked))
        .bind(sql(now))
        .bind(sql(new.expires))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        for (query, oldest, whose, most) in [
            (
                "SELECT count(*) FROM sign_ins WHERE principal = $1",
                "DELETE FROM sign_ins WHERE id IN \
                 (SELECT id FROM sign_ins WHERE principal = $1 ORDER BY created, id LIMIT $2)",
                &principal,
                MOST_OF_PRINCIPAL,
            ),
            (
                "SELECT count(*) FROM sign_ins WHERE realm = $1 AND realm <> ''",
                "DELETE FROM sign_ins WHERE id IN \
                 (SELECT id FROM sign_ins WHERE realm = $1 ORDER BY created, id LIMIT $2)",
                &realm,
                MOST_OF_REALM,
            ),
        ] {
            let count: i64 = sqlx::query_scalar(query)
                .bind(whose)
                .fetch_one(&mut *transaction)
                .answered(self)
                .await?;
            if count > i64::from(most) {
                sqlx::query(oldest)
                    .bind(whose)
                    .bind(count - i64::from(most))
                    .execute(&mut *transaction)
                    .answered(self)
                    .await?;
            }
        }
        Ok(self.commit(transaction, Concern::Tokens).await?)
    }

    /// Ends a sign-in and all that was made of it; streams that began with them end, too.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn revoke_sign_in(&self, id: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let family: Option<String> =
            sqlx::query_scalar("SELECT family FROM sign_ins WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *transaction)
                .answered(self)
                .await?;
        let Some(family) = family else {
            return Ok(());
        };
        let concern = self.end_family(&mut transaction, family).await?;
        self.commit(transaction, concern).await
    }

    fn sign_in_of(&self, row: &AnyRow) -> Result<SignIn, StoreError> {
        let read = || {
            Ok::<_, sqlx::Error>((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get::<String, _>(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
            ))
        };
        let (id, family, standing, revoked, expires) = read().map_err(|error| self.error(error))?;
        Ok(SignIn {
            id,
            family,
            standing: serde_json::from_str(&standing).map_err(|error| self.value(error))?,
            revoked: flag(revoked),
            expires: unix(expires),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::authn::standing::{Base, Foreign};
    use crate::store::testing::{On, on_both};

    on_both! {
        a_sign_in_is_read_as_it_was_kept_and_ends_with_its_token,
        nobody_fills_the_disk,
    }

    const NOW: u64 = 1_800_000_000;

    fn sign_in(id: usize, principal: &str, groups: usize) -> SignIn {
        SignIn {
            id: format!("{id:06}"),
            family: "f".into(),
            standing: Standing {
                base: Base::Foreign(Box::new(Foreign {
                    principal: principal.parse().unwrap(),
                    uid: Some("1".into()),
                    groups: (0..groups).map(|n| format!("group-{n}")).collect(),
                    extra: BTreeMap::from([("example.org/a".into(), vec!["b".into()])]),
                    attributes: BTreeMap::new(),
                    issuer: "https://issuer.example".into(),
                    provider: None,
                })),
                chain: Vec::new(),
            },
            revoked: false,
            expires: NOW + 600,
        }
    }

    async fn a_sign_in_is_read_as_it_was_kept_and_ends_with_its_token(on: On) {
        let store = on.open().await;
        let kept = sign_in(1, "user:oidc:alice", 2_000);
        store.add_sign_in(&kept, NOW).await.unwrap();
        assert_eq!(
            store.sign_in("000001").await.unwrap().unwrap().as_ref(),
            &kept
        );
        assert_eq!(store.sign_in("000002").await.unwrap(), None);
        // What wasn't there is asked for again.
        store
            .add_sign_in(&sign_in(2, "user:oidc:alice", 0), NOW)
            .await
            .unwrap();
        assert!(store.sign_in("000002").await.unwrap().is_some());
        store.revoke_sign_in("000001").await.unwrap();
        for id in ["000001", "000002"] {
            assert!(store.sign_in(id).await.unwrap().unwrap().revoked, "{id}");
        }
        store
            .add_sign_in(&sign_in(3, "user:oidc:bob", 0), NOW + 600)
            .await
            .unwrap();
        store.look_again();
        assert_eq!(store.sign_in("000001").await.unwrap(), None);
        let pool = "projects/p/locations/global/workloadIdentityPools/ci";
        let job = format!("principal://{pool}/subject/job");
        for long in [sign_in(4, "user:oidc:bob", 20_000), sign_in(5, &job, 2_000)] {
            assert!(matches!(
                store.add_sign_in(&long, NOW).await,
                Err(SignInError::TooLong { .. })
            ));
        }
    }

    async fn nobody_fills_the_disk(on: On) {
        let store = on.open().await;
        let most = usize::try_from(MOST_OF_PRINCIPAL).unwrap();
        for id in 0..most + 2 {
            let sign_in = sign_in(id, "user:oidc:alice", 0);
            store
                .add_sign_in(&sign_in, NOW + u64::try_from(id).unwrap() / 10)
                .await
                .unwrap();
        }
        assert_eq!(store.sign_in("000001").await.unwrap(), None);
        assert!(store.sign_in("000002").await.unwrap().is_some());

        // A tenant's issuer makes as many names as it likes.
        let workload = |id: usize, project: &str| {
            let pool = format!("projects/{project}/locations/global/workloadIdentityPools/ci");
            sign_in(id, &format!("principal://{pool}/subject/{id}"), 0)
        };
        store
            .add_sign_in(&workload(900_000, "q"), NOW)
            .await
            .unwrap();
        let mut transaction = store.begin().await.unwrap();
        sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT 100001 UNION ALL SELECT i + 1 FROM n WHERE i < 100000 + $1) \
             INSERT INTO sign_ins SELECT i, i, i, 'p', '', 0, $2, $2 + 600 FROM n",
        )
        .bind(i64::from(MOST_OF_REALM))
        .bind(sql(NOW))
        .execute(&mut *transaction)
        .await
        .unwrap();
        store.commit(transaction, Concern::Tokens).await.unwrap();
        store
            .add_sign_in(&workload(800_000, "p"), NOW + 1)
            .await
            .unwrap();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM sign_ins WHERE realm = 'p'")
            .fetch_one(store.reader().unwrap())
            .await
            .unwrap();
        assert_eq!(left, i64::from(MOST_OF_REALM));
        assert!(store.sign_in("800000").await.unwrap().is_some());
        assert!(store.sign_in("900000").await.unwrap().is_some());
    }
}
