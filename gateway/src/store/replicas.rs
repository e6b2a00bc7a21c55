//! The running copies of the gateway, the sessions that each holds, and the keys that each signs tokens with.

use std::collections::HashMap;

use sqlx::Row as _;
use towline_proto::{handshake::Hello, jws::PublicKey, names::Membership};

use crate::keys::Published;

use super::{Answered as _, Concern, Kind, Store, StoreError, Transaction, flag, sql, unix};

/// A replica as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Which.
    pub id: String,
    /// Where the others reach it; empty: not at all.
    pub address: String,
    /// Another whenever it has said that it lives.
    pub beat: u64,
    /// Whether it takes no new sessions.
    pub draining: bool,
}

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Which.
    pub id: String,
    /// Who holds it.
    pub replica: String,
    /// Whether it has a connection.
    pub up: bool,
}

/// How a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes requests.
    Up,
    /// It waits for a connection, or takes no more requests.
    Down,
    /// It has ended.
    Over,
}

/// A session to be noted.
#[derive(Debug, Clone, Copy)]
pub struct Noted<'a> {
    /// Which.
    pub session: &'a str,
    /// What its agent told.
    pub hello: &'a Hello,
    /// The agent's key.
    pub agent: PublicKey,
    /// How it is.
    pub state: State,
}

impl Store {
    /// Whether several gateways may share the database.
    pub fn is_shared(&self) -> bool {
        self.inner.database.is_shared()
    }

    /// Changes whenever it does who holds which session.
    pub fn sessions_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.notified(Kind::Sessions)
    }

    /// Adds a replica. Where the database is no other's, what one that died has left is removed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn replica_joins(&self, id: &str, address: &str, now: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        if !self.is_shared() {
            sqlx::query("DELETE FROM replicas")
                .execute(&mut *transaction)
                .answered(self)
                .await?;
            self.note_disconnected(&mut transaction, now).await?;
        }
        sqlx::query("INSERT INTO replicas (id, address, beat, draining) VALUES ($1, $2, 0, 0)")
            .bind(id)
            .bind(address)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        self.commit(transaction, Concern::Sessions).await
    }

    /// Notes that a replica lives. `true` when the others had taken it for dead, and its sessions with it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn replica_beats(
        &self,
        id: &str,
        address: &str,
        beat: u64,
        draining: bool,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.unordered(&self.inner.pools.beat).await?;
        let moved = sqlx::query("UPDATE replicas SET beat = $2, draining = $3 WHERE id = $1")
            .bind(id)
            .bind(sql(beat))
            .bind(i16::from(draining))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        let forgotten = moved.rows_affected() == 0;
        if forgotten {
            sqlx::query(
                "INSERT INTO replicas (id, address, beat, draining) VALUES ($1, $2, $3, $4)",
            )
            .bind(id)
            .bind(address)
            .bind(sql(beat))
            .bind(i16::from(draining))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        }
        self.commit(transaction, Concern::Tokens).await?;
        Ok(forgotten)
    }

    /// All that have a row, the dead included.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        let rows = sqlx::query("SELECT id, address, beat, draining FROM replicas")
            .fetch_all(self.reader()?)
            .answered(self)
            .await?;
        let row = |row: &sqlx::any::AnyRow| {
            Ok::<_, sqlx::Error>(ReplicaRow {
                id: row.try_get(0)?,
                address: row.try_get(1)?,
                beat: unix(row.try_get(2)?),
                draining: flag(row.try_get(3)?),
            })
        };
        let rows: Result<_, _> = rows.iter().map(row).collect();
        rows.map_err(|error| self.error(error))
    }

    /// Removes replicas with their sessions: those that have ended, or are gone.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn forget_replicas(&self, ids: &[String], now: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for id in ids {
            sqlx::query("DELETE FROM replicas WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .answered(self)
                .await?;
        }
        self.note_disconnected(&mut transaction, now).await?;
        self.commit(transaction, Concern::Sessions).await
    }

    /// Notes how sessions of one replica are, many at once. Of one that takes requests, what its agent told is noted,
    /// too, and its registration token is used up for good.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn note_sessions(
        &self,
        replica: &str,
        sessions: &[Noted<'_>],
        now: u64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for noted in sessions {
            let Membership {
                project,
                location,
                id,
            } = &noted.hello.membership;
            if noted.state == State::Up {
                // A membership that was deleted, or has another agent by now: the session is about to end.
                if self
                    .agent_connected(&mut transaction, noted.hello, noted.agent, now)
                    .await?
                {
                    sqlx::query(
                        "INSERT INTO sessions (id, replica, project, location, name, up) \
                         VALUES ($1, $2, $3, $4, $5, 1) ON CONFLICT (id) DO UPDATE SET up = 1",
                    )
                    .bind(noted.session)
                    .bind(replica)
                    .bind(project.as_str())
                    .bind(location.as_str())
                    .bind(id.as_str())
                    .execute(&mut *transaction)
                    .answered(self)
                    .await?;
                }
                continue;
            }
            let change = match noted.state {
                State::Over => "DELETE FROM sessions WHERE id = $1",
                _ => "UPDATE sessions SET up = 0 WHERE id = $1",
            };
            sqlx::query(change)
                .bind(noted.session)
                .execute(&mut *transaction)
                .answered(self)
                .await?;
            sqlx::query(
                "UPDATE memberships SET connected_since = NULL, disconnected_since = $4 \
                 WHERE project = $1 AND location = $2 AND name = $3 AND connected_since IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM sessions WHERE project = $1 AND location = $2 AND name = $3 AND up = 1)",
            )
            .bind(project.as_str())
            .bind(location.as_str())
            .bind(id.as_str())
            .bind(sql(now))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        }
        self.commit(transaction, Concern::Sessions).await
    }

    /// A membership's sessions at all replicas.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sessions_of(
        &self,
        membership: &Membership,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, replica, up FROM sessions WHERE project = $1 AND location = $2 AND name = $3",
        )
        .bind(membership.project.as_str())
        .bind(membership.location.as_str())
        .bind(membership.id.as_str())
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        let row = |row: &sqlx::any::AnyRow| {
            Ok::<_, sqlx::Error>(SessionRow {
                id: row.try_get(0)?,
                replica: row.try_get(1)?,
                up: flag(row.try_get(2)?),
            })
        };
        let rows: Result<_, _> = rows.iter().map(row).collect();
        rows.map_err(|error| self.error(error))
    }

    /// The sessions that stand as one replica's.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sessions_held(&self, replica: &str) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar("SELECT id FROM sessions WHERE replica = $1")
            .bind(replica)
            .fetch_all(self.reader()?)
            .answered(self)
            .await
    }

    /// Removes sessions that are over, whosever they were.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn forget_sessions(&self, ids: &[String], now: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for id in ids {
            sqlx::query("DELETE FROM sessions WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .answered(self)
                .await?;
        }
        self.note_disconnected(&mut transaction, now).await?;
        self.commit(transaction, Concern::Sessions).await
    }

    /// How many sessions of each membership have a connection, at all other replicas than one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sessions_elsewhere(
        &self,
        replica: &str,
    ) -> Result<HashMap<Membership, usize>, StoreError> {
        if !self.is_shared() {
            return Ok(HashMap::new());
        }
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
            "SELECT project, location, name, COUNT(*) FROM sessions WHERE up = 1 AND replica <> $1 \
             GROUP BY project, location, name",
        )
        .bind(replica)
        .fetch_all(self.reader()?)
        .answered(self)
        .await?;
        rows.into_iter()
            .map(|(project, location, name, count)| {
                let membership = Membership {
                    project: project.parse().map_err(|error| self.value(error))?,
                    location: location.parse().map_err(|error| self.value(error))?,
                    id: name.parse().map_err(|error| self.value(error))?,
                };
                Ok((membership, usize::try_from(count).unwrap_or_default()))
            })
            .collect()
    }

    /// Makes a signing key known to all replicas; those whose time is over are forgotten.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn publish_key(&self, key: &Published, now: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM signing_keys WHERE until <= $1")
            .bind(sql(now))
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        sqlx::query(
            "INSERT INTO signing_keys (id, chain, until) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(&key.id)
        .bind(key.chain.to_header())
        .bind(sql(key.until))
        .execute(&mut *transaction)
        .answered(self)
        .await?;
        self.commit(transaction, Concern::Sessions).await
    }

    /// The signing keys of all replicas: chain, and until when tokens may come that they signed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn signing_keys(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT chain, until FROM signing_keys")
            .fetch_all(self.reader()?)
            .answered(self)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(chain, until)| (chain, unix(until)))
            .collect())
    }

    /// Memberships that have no session with a connection any more.
    async fn note_disconnected(
        &self,
        transaction: &mut Transaction,
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE memberships SET connected_since = NULL, disconnected_since = $1 \
             WHERE connected_since IS NOT NULL AND NOT EXISTS (SELECT 1 FROM sessions \
             WHERE sessions.project = memberships.project AND sessions.location = memberships.location \
             AND sessions.name = memberships.name AND up = 1)",
        )
        .bind(sql(now))
        .execute(&mut **transaction)
        .answered(self)
        .await?;
        Ok(())
    }
}
