//! What outlives the process: users, projects, memberships, and hashes of tokens. SQLite through sqlx.
//!
//! Queries are checked at run time and written so that PostgreSQL understands them too (`$1`, `BIGINT`, no
//! dialect). Writers take turns in this process and begin with the write lock, so none of them can fail half-way
//! because of another. Users, policies and memberships are answered from memory (`cache`): a request costs no SQL.
//!
//! [`Store::changes`] tells of every write that could take a right from somebody; whoever decides on what is stored
//! here subscribes before reading.

pub mod memberships;
pub mod policies;
pub mod projects;
pub mod quotas;
pub mod refresh;
pub mod roles;
pub mod service_accounts;
pub mod sign_ins;
pub mod users;
pub mod workload_identity;

mod cache;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::watch;

use crate::private;
use cache::Cache;

pub use memberships::Row as MembershipRow;
pub use users::User;

/// How long a writer waits for another process's write lock.
const BUSY: Duration = Duration::from_secs(5);

/// How long a query waits for a connection to the file.
const ACQUIRE: Duration = Duration::from_secs(10);

/// Connections that read at a time; requests read from memory.
const READERS: u32 = 4;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    reader: SqlitePool,
    writer: SqlitePool,
    cache: Cache,
}

/// The database didn't do what it was asked; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk that holds {} is full; nothing was changed", .0.display())]
    Full(PathBuf, #[source] sqlx::Error),
    /// Another process holds it.
    #[error("{} is locked by another process (a backup?); nothing was changed, try again", .0.display())]
    Locked(PathBuf, #[source] sqlx::Error),
    /// It can't be written.
    #[error("{} is read-only; nothing was changed", .0.display())]
    ReadOnly(PathBuf, #[source] sqlx::Error),
    /// It is no database, or a damaged one.
    #[error("{} is not a database that can be used; restore it from a backup", .0.display())]
    Damaged(PathBuf, #[source] sqlx::Error),
    /// It can't be opened or brought to this version.
    #[error("cannot open the database {}", .0.display())]
    Open(PathBuf, #[source] sqlx::Error),
    /// It was made by a newer version, or changed by hand.
    #[error("the database {} can't be brought to this version's form", .0.display())]
    Migrate(PathBuf, #[source] sqlx::migrate::MigrateError),
    /// A value in it is not what this program writes.
    #[error("{} holds what this program doesn't understand: {value}", .file.display())]
    Value {
        /// The database.
        file: PathBuf,
        /// What was found.
        value: String,
    },
    /// Anything else.
    #[error("the database {} failed", .0.display())]
    Other(PathBuf, #[source] sqlx::Error),
}

impl Store {
    /// Opens the database file, makes it if there is none, and brings it to this version's form.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite would make it with a mode that others may read, and its journals after its own.
        private::make_file(path)
            .map_err(|error| StoreError::Open(path.to_owned(), sqlx::Error::Io(error)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode NORMAL may lose the last commits with the power, and a redeemed token must not come back.
            .synchronous(SqliteSynchronous::Full);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE)
                // A full disk makes SQLite roll back by itself, and sqlx then believes for ever that a transaction
                // is open: such a connection is replaced.
                .before_acquire(|connection, _| {
                    Box::pin(async move { Ok(!connection.is_in_transaction()) })
                })
                .connect_lazy_with(options.clone())
        };
        Self::with(path, pool(READERS), pool(1)).await
    }

    /// A database that is gone with the process, for tests.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn in_memory() -> Result<Self, StoreError> {
        let open = |error| StoreError::Open(":memory:".into(), error);
        // With a name of its own, so that connections share it.
        let options = "sqlite::memory:"
            .parse::<SqliteConnectOptions>()
            .map_err(open)?
            .foreign_keys(true);
        // The database ends with its last connection, and the pool closes one when whoever waits for it goes away.
        std::mem::forget(
            SqliteConnection::connect_with(&options)
                .await
                .map_err(open)?,
        );
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        Self::with(Path::new(":memory:"), pool.clone(), pool).await
    }

    async fn with(file: &Path, reader: SqlitePool, writer: SqlitePool) -> Result<Self, StoreError> {
        let inner = Inner {
            file: file.to_owned(),
            reader,
            writer,
            cache: Cache::default(),
        };
        // A connection of its own first: what is wrong with the file is told better than by a migration.
        drop(
            inner
                .writer
                .acquire()
                .await
                .map_err(|error| match inner.error(error) {
                    StoreError::Other(file, source) => StoreError::Open(file, source),
                    other => other,
                })?,
        );
        sqlx::migrate!()
            .run(&inner.writer)
            .await
            .map_err(|error| StoreError::Migrate(inner.file.clone(), error))?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Changes with every write that concerns users, policies or memberships.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.cache.changes()
    }

    /// Has everything that was decided looked at again, because of a change elsewhere.
    pub(crate) fn look_again(&self) {
        self.cache().changed();
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(self.reader())
            .await
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    /// Writes what is left to write and closes the file.
    pub async fn close(&self) {
        self.inner.reader.close().await;
        self.inner.writer.close().await;
    }

    fn reader(&self) -> &SqlitePool {
        &self.inner.reader
    }

    fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    /// A transaction that holds the write lock from its beginning.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.inner
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|error| self.error(error))
    }

    /// Ends a transaction; what was remembered may be stale whatever comes of it.
    async fn commit(
        &self,
        transaction: Transaction<'static, Sqlite>,
        concern: Concern,
    ) -> Result<(), StoreError> {
        let result = transaction
            .commit()
            .await
            .map_err(|error| self.error(error));
        match concern {
            Concern::Rights => self.cache().changed(),
            Concern::Status => self.cache().forget(),
            Concern::Tokens => {}
        }
        result
    }

    fn error(&self, error: sqlx::Error) -> StoreError {
        self.inner.error(error)
    }

    fn value(&self, value: impl std::fmt::Display) -> StoreError {
        StoreError::Value {
            file: self.inner.file.clone(),
            value: value.to_string(),
        }
    }
}

impl Inner {
    /// Sorts by SQLite's primary result code.
    fn error(&self, error: sqlx::Error) -> StoreError {
        let file = self.file.clone();
        let code = error
            .as_database_error()
            .and_then(|error| error.code()?.parse::<u32>().ok())
            .unwrap_or_default();
        match code & 0xff {
            5 | 6 => StoreError::Locked(file, error),
            8 => StoreError::ReadOnly(file, error),
            13 => StoreError::Full(file, error),
            11 | 26 => StoreError::Damaged(file, error),
            _ => StoreError::Other(file, error),
        }
    }
}

/// What a write concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Concern {
    /// Users, policies, memberships: decisions are made again.
    Rights,
    /// A membership's state, on which nothing is decided.
    Status,
    /// Tokens and codes, which are never remembered.
    Tokens,
}

/// How a secret stands in the database: its SHA-256, base64url. The secrets are random, so nothing slower is needed.
fn hash(secret: &str) -> String {
    BASE64URL.encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}

/// Times fit: SQL's integers are signed.
fn sql(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

fn unix(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or_default()
}

#[cfg(test)]
mod tests;
