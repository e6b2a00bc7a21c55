//! What outlives the process: users, projects, memberships, and hashes of tokens. SQLite or PostgreSQL through sqlx.
//!
//! One set of queries and migrations for both, checked at run time (`$1`, `BIGINT`, 1 and 0, no dialect). Writers take
//! turns and begin with the write lock, on PostgreSQL with one that all replicas share, so what one of them has read
//! holds until it has written. Users, policies and memberships are answered from memory (`cache`): a request costs no
//! SQL.
//!
//! [`Store::changes`] tells of every write that could take a right from somebody; whoever decides on what is stored
//! here subscribes before reading.

pub mod memberships;
pub mod policies;
pub mod projects;
pub mod quotas;
pub mod refresh;
pub mod replicas;
pub mod roles;
pub mod service_accounts;
pub mod sign_ins;
pub mod usage;
pub mod users;
pub mod workload_identity;

mod cache;
mod changes;
mod connect;
mod database;
mod error;

use std::{path::Path, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use sqlx::{Any, AnyConnection, AnyPool, Connection as _, Executor as _};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use towline_proto::{handshake::random_id, jws::PublicKey};

use crate::private;
use cache::Cache;
use changes::{Changes, Concern, Version};
use connect::Pools;

pub use changes::Kind;
pub use database::{Database, OFFLINE_LIMIT, Password, Postgres};
pub use error::StoreError;
pub use memberships::Row as MembershipRow;
pub use replicas::{Noted, ReplicaRow, SessionRow, State};
pub use usage::UsageRow;
pub use users::User;

/// How long anybody waits for an answer, whatever became of the database or the way to it.
const ANSWER: Duration = Duration::from_secs(15);

/// How long replicas that start at once wait for the one that brings the database to its form.
const MIGRATE: Duration = Duration::from_secs(60);

/// On PostgreSQL, the lock under which one writer of all replicas is at work: a number of this program's own.
const WRITER: &str = "SELECT pg_advisory_xact_lock(8390046702181572608)";

/// How often it is looked whether another process has written into the same file.
const FOLLOWED: Duration = Duration::from_secs(2);

/// What several queries are made in.
type Transaction = sqlx::Transaction<'static, Any>;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    pools: Pools,
    changes: Arc<Changes>,
    /// Hears of other replicas' writes, where there may be some.
    listener: Option<AbortOnDropHandle<()>>,
    /// Owns commits: they go on when whoever asked for them has gone away.
    commits: TaskTracker,
}

impl Store {
    /// Opens the database, makes it if it is a file that isn't there, and brings it to this version's form.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        if let Database::Sqlite(path) = database {
            // SQLite would make it with a mode that others may read, and its journals after its own.
            private::make_file(path)
                .map_err(|error| StoreError::Open(database.clone(), error.into()))?;
        }
        let (pools, first) = Pools::open(database).await?;
        Self::with(database.clone(), pools, first).await
    }

    /// Opens a SQLite file.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        Self::open(&Database::Sqlite(path.to_owned())).await
    }

    /// A database that is gone with the process, for tests.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn in_memory() -> Result<Self, StoreError> {
        let (database, pools, first) = Pools::in_memory().await?;
        Self::with(database, pools, first).await
    }

    async fn with(
        database: Database,
        pools: Pools,
        mut first: AnyConnection,
    ) -> Result<Self, StoreError> {
        migrate(&database, &mut first).await?;
        // It may say that it wants to be closed in its own time; what it did is done.
        drop(first.close().await);
        let changes = Arc::new(Changes::new(Cache::new(database.offline_limit())));
        let listener = database.is_shared().then(|| {
            let listen = changes::listen(database.clone(), pools.clone(), Arc::clone(&changes));
            own(listen)
        });
        Ok(Self {
            inner: Arc::new(Inner {
                database,
                pools,
                changes,
                listener,
                commits: TaskTracker::new(),
            }),
        })
    }

    /// Changes with every write that concerns users, policies or memberships.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.notified(Kind::Rights)
    }

    /// Changes with every write of this kind, here or at another replica, and when one may have been missed. The
    /// value means nothing. Whoever acts on what is stored subscribes before reading.
    pub fn notified(&self, kind: Kind) -> watch::Receiver<u64> {
        self.inner.changes.subscribe(kind)
    }

    /// Has everything that was decided looked at again, because of a change elsewhere.
    pub(crate) fn look_again(&self) {
        self.inner.changes.happened(&Concern::Everything);
    }

    /// Whether what is remembered may be used: that of a database that others write to isn't when nothing was heard
    /// of it for longer than [`OFFLINE_LIMIT`] or what the configuration has in its place.
    pub fn is_believed(&self) -> bool {
        self.cache().is_believed()
    }

    /// For how long the database has been out of reach, as far as is known.
    pub fn away(&self) -> Option<Duration> {
        self.inner.changes.away()
    }

    /// Has everything looked at again when another process has written into the same SQLite file, until this is closed:
    /// two have it open while one gateway follows another on a machine.
    pub(crate) async fn follow_file(&self) {
        let reader = &self.inner.pools.reader;
        let follow = async {
            loop {
                let mut known = None;
                // It tells of other connections' commits, so it has to be the same one each time.
                if let Ok(mut connection) = reader.acquire().await {
                    let mut version = async || {
                        sqlx::query_scalar::<_, i64>("PRAGMA data_version")
                            .fetch_one(&mut *connection)
                            .await
                    };
                    while let Ok(version) = version().await {
                        if known.replace(version) != Some(version) {
                            self.look_again();
                        }
                        tokio::time::sleep(FOLLOWED).await;
                    }
                }
                tokio::time::sleep(FOLLOWED).await;
            }
        };
        tokio::select! {
            () = reader.close_event() => {}
            () = follow => {}
        }
    }

    /// Makes sure that a shared database is that of the gateway with this root key, and of no other. A new one becomes
    /// that.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], and see there.
    pub async fn belongs_to(&self, root: PublicKey) -> Result<(), StoreError> {
        if !self.is_shared() {
            return Ok(());
        }
        let own = root.to_string();
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO installation (id, root) VALUES (1, $1) ON CONFLICT DO NOTHING")
            .bind(&own)
            .execute(&mut *transaction)
            .answered(self)
            .await?;
        let found: String = sqlx::query_scalar("SELECT root FROM installation WHERE id = 1")
            .fetch_one(&mut *transaction)
            .answered(self)
            .await?;
        self.commit(transaction, Concern::Tokens).await?;
        if found == own {
            return Ok(());
        }
        let database = self.inner.database.clone();
        Err(StoreError::Foreign {
            database,
            found,
            own,
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1")
            .execute(self.reader()?)
            .answered(self)
            .await?;
        Ok(())
    }

    /// Writes what is left to write and closes the connections.
    pub async fn close(&self) {
        if let Some(listener) = &self.inner.listener {
            listener.abort();
        }
        self.inner.commits.close();
        self.inner.commits.wait().await;
        self.inner.pools.close().await;
    }

    fn reader(&self) -> Result<&AnyPool, StoreError> {
        self.in_reach()?;
        Ok(&self.inner.pools.reader)
    }

    /// Nobody waits for a server of which it is known that it doesn't answer.
    fn in_reach(&self) -> Result<(), StoreError> {
        match self.away() {
            None => Ok(()),
            Some(since) => {
                let database = self.inner.database.clone();
                Err(StoreError::StillAway(database, since.as_secs()))
            }
        }
    }

    fn cache(&self) -> &Cache {
        &self.inner.changes.cache
    }

    /// A transaction that holds the write lock from its beginning.
    async fn begin(&self) -> Result<Transaction, StoreError> {
        self.in_reach()?;
        let (begin, lock) = match self.inner.database {
            Database::Sqlite(_) => ("BEGIN IMMEDIATE", None),
            // What the server has for a default is not known.
            Database::Postgres(_) => (
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
                Some(WRITER),
            ),
        };
        let writer = &self.inner.pools.writer;
        let mut transaction = writer.begin_with(begin).answered(self).await?;
        if let Some(lock) = lock {
            transaction.execute(lock).answered(self).await?;
        }
        Ok(transaction)
    }

    /// A transaction on a connection of its own kind, which waits for no other writer on a shared database.
    async fn unordered(&self, pool: &AnyPool) -> Result<Transaction, StoreError> {
        self.in_reach()?;
        let begin = match self.inner.database {
            Database::Sqlite(_) => "BEGIN IMMEDIATE",
            Database::Postgres(_) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        };
        pool.begin_with(begin).answered(self).await
    }

    /// A transaction whose queries all see the same state.
    async fn snapshot(&self) -> Result<Transaction, StoreError> {
        let begin = match self.inner.database {
            Database::Sqlite(_) => "BEGIN",
            Database::Postgres(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        self.reader()?.begin_with(begin).answered(self).await
    }

    /// Ends a transaction; what was remembered may be stale whatever comes of it, or of whoever waits for it.
    async fn commit(
        &self,
        mut transaction: Transaction,
        concern: Concern,
    ) -> Result<(), StoreError> {
        let version = match concern.kind() {
            Some(kind) if self.is_shared() => {
                let mark = random_id().map_err(|error| self.value(error))?;
                let told = Changes::tell(&mut transaction, (kind, &concern), mark);
                told.answered(self).await?
            }
            _ => Version::default(),
        };
        let (database, changes) = (self.inner.database.clone(), Arc::clone(&self.inner.changes));
        let committing = self.inner.commits.spawn(async move {
            let result = timeout(ANSWER, transaction.commit())
                .await
                .unwrap_or(Err(sqlx::Error::PoolTimedOut));
            match result {
                Ok(()) => changes.wrote(&concern, version),
                Err(_) => changes.happened(&concern),
            }
            result.map_err(|error| StoreError::of_commit(&database, error))
        });
        committing
            .await
            .unwrap_or_else(|_| Err(self.error(sqlx::Error::WorkerCrashed)))
    }

    fn error(&self, error: sqlx::Error) -> StoreError {
        StoreError::of(&self.inner.database, error)
    }

    fn value(&self, value: impl std::fmt::Display) -> StoreError {
        StoreError::Value {
            database: self.inner.database.clone(),
            value: value.to_string(),
        }
    }
}

/// Brings the database to this version's form. On PostgreSQL, sqlx holds a lock while it does.
async fn migrate(database: &Database, connection: &mut AnyConnection) -> Result<(), StoreError> {
    let failed = |error| StoreError::Migrate(database.clone(), error);
    if database.is_shared() {
        // The others wait for the lock, and no table has so many rows that a minute isn't enough. That what is made is
        // there already is no news.
        connection
            .execute("SET statement_timeout = '60s'; SET client_min_messages = warning")
            .await
            .map_err(|error| failed(error.into()))?;
    }
    timeout(
        MIGRATE,
        sqlx::migrate!().run_direct(None, connection, false),
    )
    .await
    .unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
    .map_err(failed)
}

/// A query, which is answered within [`ANSWER`] or fails in this program's words.
trait Answered<T>: Future<Output = Result<T, sqlx::Error>> + Send + Sized {
    fn answered(self, store: &Store) -> impl Future<Output = Result<T, StoreError>> + Send
    where
        T: Send,
    {
        async move {
            timeout(ANSWER, self)
                .await
                .unwrap_or(Err(sqlx::Error::PoolTimedOut))
                .map_err(|error| store.error(error))
        }
    }
}

impl<T, F: Future<Output = Result<T, sqlx::Error>> + Send> Answered<T> for F {}

/// A task that ends with the [`Store`] that owns it.
#[expect(clippy::disallowed_methods, reason = "aborted when its owner drops")]
fn own(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// How a secret stands in the database: its SHA-256, base64url. The secrets are random, so nothing slower is needed.
fn hash(secret: &str) -> String {
    BASE64URL.encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}

/// Times fit: SQL's integers are signed.
fn sql(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

/// By name as this program compares; each database sorts text in a way of its own.
fn sorted<T>(mut rows: Vec<T>, compare: impl FnMut(&T, &T) -> std::cmp::Ordering) -> Vec<T> {
    rows.sort_unstable_by(compare);
    rows
}

/// What is yes or no is stored as 1 or 0.
const fn flag(sql: i16) -> bool {
    sql != 0
}

fn unix(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or_default()
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
