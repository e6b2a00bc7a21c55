//! Memberships, the tokens that register them, and what their agents told.

use std::collections::BTreeMap;

use sqlx::{Row as _, any::AnyRow};
use towline_proto::{
    handshake::Hello,
    jws::PublicKey,
    names::{Membership, Project},
};

use super::{
    Answered as _, Concern, Store, StoreError, Transaction, flag, hash, sorted, sql, unix,
};

/// Labels of one membership.
pub const MAX_LABELS: usize = 64;

/// A membership as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub membership: Membership,
    /// The agent's key, once it is enrolled.
    pub public_key: Option<PublicKey>,
    /// UID of the cluster's `kube-system` namespace, empty until known.
    pub external_id: String,
    /// `gitVersion` of the API server, empty until known.
    pub kubernetes_version: String,
    /// The agent's version, empty until known.
    pub agent_version: String,
    /// Since when an agent is connected, in Unix seconds.
    pub connected_since: Option<u64>,
    /// Since when none is, in Unix seconds.
    pub disconnected_since: Option<u64>,
    /// Since when it exists, in Unix seconds.
    pub created: u64,
    /// For conditions, and for people.
    pub labels: BTreeMap<String, String>,
}

/// Why a membership isn't registered or deleted.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The name is taken.
    #[error("a membership with the same name already exists: {0}")]
    Exists(Membership),
    /// There is none of this name.
    #[error("membership {:?} not found in project {:?}", .0.id.as_str(), .0.project.as_str())]
    Unknown(Membership),
    /// There is no project of this name.
    #[error("project {:?} does not exist", .0.as_str())]
    NoProject(Project),
    /// More than [`MAX_LABELS`].
    #[error("the membership would have {0} labels; {MAX_LABELS} may be")]
    Labels(usize),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a registration token isn't redeemed.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// Unknown, used or expired: not told which.
    #[error("no valid registration token was found")]
    NoToken,
    /// The token is another membership's: somebody else has this name.
    #[error("a membership with the same name already exists")]
    Exists,
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The membership of this name. From memory, mostly.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn membership(&self, membership: &Membership) -> Result<Option<Row>, StoreError> {
        match self.cache().recall::<Row>(membership) {
            Ok(row) => Ok(row),
            Err(writes) => match self.look_up(membership, writes).await {
                // Whether an agent is connected, nobody knows then; all else is as it was.
                Err(error) if error.is_away() => self.cache().doubted(membership).ok_or(error),
                found => found,
            },
        }
    }

    /// The membership of this name, as decisions need it: whether agents are connected may be another by now. From
    /// memory, also where only that has changed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn enrolled(&self, membership: &Membership) -> Result<Option<Row>, StoreError> {
        match self.cache().recall::<Row>(membership) {
            Ok(row) => Ok(row),
            Err(writes) => match self.cache().doubted(membership) {
                Some(row) => Ok(row),
                None => self.look_up(membership, writes).await,
            },
        }
    }

    async fn look_up(
        &self,
        membership: &Membership,
        writes: u64,
    ) -> Result<Option<Row>, StoreError> {
        let found = sqlx::query(
            "SELECT project, location, name, public_key, external_id, kubernetes_version, agent_version, \
             connected_since, disconnected_since, created, labels FROM memberships \
             WHERE project = $1 AND location = $2 AND name = $3",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .fetch_optional(self.reader()?)
        .answered(self)
        .await?;
        let row = found.map(|row| self.row(&row)).transpose()?;
        self.cache()
            .remember(membership.clone(), row.clone(), writes);
        Ok(row)
    }

    /// The memberships of one project, or all, by name.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn memberships(&self, project: Option<&Project>) -> Result<Vec<Row>, StoreError> {
        let rows = sqlx::query(
            "SELECT project, location, name, public_key, external_id, kubernetes_version, agent_version, \
             connected_since, disconnected_since, created, labels FROM memberships \
             WHERE project = $1 OR $1 IS NULL",
        )
        .bind(project.map(Project::as_str))
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let rows = rows
            .iter()
            .map(|row| self.row(row))
            .collect::<Result<_, _>>()?;
        Ok(sorted(rows, |a: &Row, b| a.membership.cmp(&b.membership)))
    }

    /// Makes a membership with a registration token; with `renew` an existing one gets a new token.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn register(
        &self,
        membership: &Membership,
        renew: bool,
        token: &str,
        now: u64,
        expires: u64,
    ) -> Result<Row, MembershipError> {
        let mut transaction = self.begin().await?;
        let project: Option<i64> = sqlx::query_scalar("SELECT 1 FROM projects WHERE name = $1")
            .bind(membership.project.as_str())
            .fetch_optional(&mut *transaction)
            .answered(self)
            .await?;
        if project.is_none() {
            return Err(MembershipError::NoProject(membership.project.clone()));
        }
        match self.read_membership(&mut transaction, membership).await? {
            Some(_) if !renew => return Err(MembershipError::Exists(membership.clone())),
            None if renew => return Err(MembershipError::Unknown(membership.clone())),
            _ => {}
        }
        sqlx::query(
            "INSERT INTO memberships (project, location, name, key_used, external_id, kubernetes_version, \
             agent_version, created) VALUES ($1, $2, $3, 0, '', '', '', $4) ON CONFLICT DO NOTHING",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .bind(sql(now))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        // The token before is worth nothing from now on.
        self.execute_on(
            &mut transaction,
            "DELETE FROM registration_tokens WHERE project = $1 AND location = $2 AND name = $3",
            membership,
        )
        .await?;
        sqlx::query(
            "INSERT INTO registration_tokens (project, location, name, hash, expires) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .bind(hash(token))
        .bind(sql(expires))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        let row = self.read_membership(&mut transaction, membership).await?;
        self.commit(transaction, Concern::Project(membership.project.clone()))
            .await?;
        row.ok_or_else(|| MembershipError::Unknown(membership.clone()))
    }

    /// Binds a membership to an agent's key, once for each token; the same key may repeat it until it has connected.
    /// `true` when the key is a new one: sessions of the old key are to end.
    ///
    /// # Errors
    /// See [`RedeemError`].
    pub async fn redeem(
        &self,
        membership: &Membership,
        token: &str,
        key: PublicKey,
        now: u64,
    ) -> Result<bool, RedeemError> {
        let mut transaction = self.begin().await?;
        let found: Option<(String, String, String, Option<String>)> = sqlx::query_as(
            "SELECT project, location, name, redeemed_by FROM registration_tokens WHERE hash = $1 AND expires > $2",
        )
        .bind(hash(token))
        .bind(sql(now))
        .fetch_optional(&mut *transaction)
        .answered(self)
        .await?;
        let Some((project, location, name, redeemed_by)) = found else {
            return Err(RedeemError::NoToken);
        };
        if project != membership.project.as_str()
            || location != membership.location.as_str()
            || name != membership.id.as_str()
        {
            // Whoever holds a valid token may know what else there is; to claim another's name with it is refused.
            return Err(
                match self.read_membership(&mut transaction, membership).await? {
                    Some(_) => RedeemError::Exists,
                    None => RedeemError::NoToken,
                },
            );
        }
        if let Some(redeemed_by) = redeemed_by {
            let used: i16 = sqlx::query_scalar(
                "SELECT key_used FROM memberships WHERE project = $1 AND location = $2 AND name = $3",
            )
            .bind(project)
            .bind(location)
            .bind(name)
            .fetch_one(&mut *transaction)
            .answered(self)
            .await?;
            return if redeemed_by == key.to_string() && !flag(used) {
                Ok(false)
            } else {
                Err(RedeemError::NoToken)
            };
        }
        sqlx::query("UPDATE registration_tokens SET redeemed_by = $2 WHERE hash = $1")
            .bind(hash(token))
            .bind(key.to_string())
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        sqlx::query(
            "UPDATE memberships SET public_key = $4, key_used = 0 \
             WHERE project = $1 AND location = $2 AND name = $3",
        )
        .bind(project)
        .bind(location)
        .bind(name)
        .bind(key.to_string())
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        self.commit(transaction, Concern::Project(membership.project.clone()))
            .await?;
        Ok(true)
    }

    /// Changes a membership's labels; conditions are on them, so decisions are made again.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn change_labels(
        &self,
        membership: &Membership,
        change: impl FnOnce(&mut BTreeMap<String, String>) + Send,
    ) -> Result<Row, MembershipError> {
        let mut transaction = self.begin().await?;
        let row = self.read_membership(&mut transaction, membership).await?;
        let mut row = row.ok_or_else(|| MembershipError::Unknown(membership.clone()))?;
        change(&mut row.labels);
        if row.labels.len() > MAX_LABELS {
            return Err(MembershipError::Labels(row.labels.len()));
        }
        let labels = serde_json::to_string(&row.labels).map_err(|error| self.value(error))?;
        sqlx::query(
            "UPDATE memberships SET labels = $4 WHERE project = $1 AND location = $2 AND name = $3",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .bind(labels)
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        self.commit(transaction, Concern::Project(membership.project.clone()))
            .await?;
        Ok(row)
    }

    /// Deletes a membership with its tokens.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn delete_membership(&self, membership: &Membership) -> Result<(), MembershipError> {
        let mut transaction = self.begin().await?;
        let deleted = self
            .execute_on(
                &mut transaction,
                "DELETE FROM memberships WHERE project = $1 AND location = $2 AND name = $3",
                membership,
            )
            .await?;
        if deleted == 0 {
            return Err(MembershipError::Unknown(membership.clone()));
        }
        self.delete_policy(&mut transaction, &membership.into())
            .await?;
        Ok(self
            .commit(transaction, Concern::Project(membership.project.clone()))
            .await?)
    }

    /// Notes that an agent's session has begun and what it told; its registration token is used up for good. `false`
    /// where the membership has no agent of this key.
    pub(super) async fn agent_connected(
        &self,
        transaction: &mut Transaction,
        hello: &Hello,
        agent: PublicKey,
        now: u64,
    ) -> Result<bool, StoreError> {
        let membership = &hello.membership;
        // What an agent couldn't find out this time was perhaps known before.
        let known = sqlx::query(
            "UPDATE memberships SET key_used = 1, agent_version = $4, \
             kubernetes_version = CASE WHEN $5 = '' THEN kubernetes_version ELSE $5 END, \
             external_id = CASE WHEN $6 = '' THEN external_id ELSE $6 END, \
             connected_since = COALESCE(connected_since, $7), disconnected_since = NULL \
             WHERE project = $1 AND location = $2 AND name = $3 AND public_key = $8",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .bind(&hello.agent_version)
        .bind(&hello.kubernetes_version)
        .bind(&hello.external_id)
        .bind(sql(now))
        .bind(agent.to_string())
        .execute(&mut **transaction)
        .answered(self)
        .await?;
        if known.rows_affected() == 0 {
            return Ok(false);
        }
        self.execute_on(
            transaction,
            "DELETE FROM registration_tokens \
             WHERE project = $1 AND location = $2 AND name = $3 AND redeemed_by IS NOT NULL",
            membership,
        )
        .await?;
        Ok(true)
    }

    async fn read_membership(
        &self,
        transaction: &mut Transaction,
        membership: &Membership,
    ) -> Result<Option<Row>, StoreError> {
        let found = sqlx::query(
            "SELECT project, location, name, public_key, external_id, kubernetes_version, agent_version, \
             connected_since, disconnected_since, created, labels FROM memberships \
             WHERE project = $1 AND location = $2 AND name = $3",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .fetch_optional(&mut **transaction)
        .answered(self)
        .await?;
        found.map(|row| self.row(&row)).transpose()
    }

    async fn execute_on(
        &self,
        transaction: &mut Transaction,
        query: &'static str,
        membership: &Membership,
    ) -> Result<u64, StoreError> {
        let done = sqlx::query(query)
            .bind(membership.project.as_str())
            .bind(membership.location.as_str())
            .bind(membership.id.as_str())
            .execute(&mut **transaction)
            .answered(self)
            .await?;
        Ok(done.rows_affected())
    }

    fn row(&self, row: &AnyRow) -> Result<Row, StoreError> {
        let text = |column: usize| {
            row.try_get::<String, _>(column)
                .map_err(|error| self.error(error))
        };
        let time = |column: usize| {
            row.try_get::<Option<i64>, _>(column)
                .map(|time| time.map(unix))
                .map_err(|error| self.error(error))
        };
        let public_key: Option<String> = row.try_get(3).map_err(|error| self.error(error))?;
        Ok(Row {
            membership: Membership {
                project: text(0)?.parse().map_err(|error| self.value(error))?,
                location: text(1)?.parse().map_err(|error| self.value(error))?,
                id: text(2)?.parse().map_err(|error| self.value(error))?,
            },
            public_key: public_key
                .map(|key| key.parse())
                .transpose()
                .map_err(|error| self.value(error))?,
            external_id: text(4)?,
            kubernetes_version: text(5)?,
            agent_version: text(6)?,
            connected_since: time(7)?,
            disconnected_since: time(8)?,
            created: time(9)?.unwrap_or_default(),
            labels: serde_json::from_str(&text(10)?).map_err(|error| self.value(error))?,
        })
    }
}
