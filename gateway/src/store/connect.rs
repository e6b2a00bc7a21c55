//! Connections: how one is set up, and when one is not used again.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sqlx::{
    AnyConnection, AnyPool, Connection as _, Executor as _,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
};
use tokio::time::timeout;
use url::Url;

use super::{Database, StoreError, database::IN_MEMORY};

/// Connections that read at a time; requests read from memory.
const READERS: u32 = 4;

/// Streams whose places are being taken at a time.
const CLAIMS: u32 = 4;

/// How long a query waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(10);

/// How long a server may take to show that a connection still works.
const PROBE: Duration = Duration::from_secs(2);

/// In WAL mode NORMAL may lose the last commits with the power, and a redeemed token must not come back. sqlx itself
/// turns foreign keys on and waits 5 seconds for another process's write lock.
const SQLITE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";

/// The server's own limits, so that a replica that froze or lost its network holds no lock for longer. A query takes
/// milliseconds; a writer waits for those of other replicas.
const POSTGRES: &str =
    "SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '10s'";

/// In a transaction that somebody left open, which a connection must never be in when it is handed out, its beginning
/// is another time than the statement's.
const PROBE_POSTGRES: &str = "SELECT transaction_timestamp() = statement_timestamp()";

/// Connections of one process to one database.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    /// For what reads.
    pub reader: AnyPool,
    /// One connection: writers take turns.
    pub writer: AnyPool,
    /// One connection that a replica says with that it lives, whatever else waits.
    pub beat: AnyPool,
    /// For places of streams, which wait for each other's and keep nobody else from reading.
    pub claims: AnyPool,
}

impl Pools {
    /// Pools that connect when somebody asks. The first connection is made beforehand and given, too: what is wrong with
    /// the database is told better by it than by a pool.
    pub(super) async fn open(database: &Database) -> Result<(Self, AnyConnection), StoreError> {
        install_default_drivers();
        let failed = |error| StoreError::Open(database.clone(), error);
        let url = database
            .connection_url()
            .map_err(|error| failed(error.into()))?;
        let options: AnyConnectOptions = url.as_str().parse().map_err(failed)?;
        let first = timeout(ACQUIRE, connect(database, &options))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
            .map_err(|error| match StoreError::of(database, error) {
                StoreError::Other(database, source) => StoreError::Open(database, source),
                other => other,
            })?;
        let pool = |connections| {
            let shared = database.is_shared();
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE)
                .test_before_acquire(false)
                .after_connect(move |connection, _| Box::pin(set_up(connection, shared)))
                .before_acquire(move |connection, _| Box::pin(can_be_used(connection, shared)))
                .connect_lazy_with(options.clone())
        };
        let pools = Self {
            reader: pool(READERS),
            writer: pool(1),
            beat: pool(1),
            claims: pool(CLAIMS),
        };
        Ok((pools, first))
    }

    /// For tests: one connection to a database of their own.
    pub(super) async fn in_memory() -> Result<(Database, Self, AnyConnection), StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        install_default_drivers();
        let database = Database::Sqlite(IN_MEMORY.into());
        let failed = |error| StoreError::Open(database.clone(), error);
        // With a name of its own, so that connections share it.
        let name = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = format!("sqlite:file%3Atowline-{name}?mode=memory&cache=shared");
        let options: AnyConnectOptions = url.parse().map_err(failed)?;
        // The database ends with its last connection, and the pool closes one when whoever waits for it goes away.
        std::mem::forget(
            AnyConnection::connect_with(&options)
                .await
                .map_err(failed)?,
        );
        let first = AnyConnection::connect_with(&options)
            .await
            .map_err(failed)?;
        let pool = AnyPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options);
        let pools = Self {
            reader: pool.clone(),
            beat: pool.clone(),
            claims: pool.clone(),
            writer: pool,
        };
        Ok((database, pools, first))
    }

    /// Connects as `url` says from now on: the password may be another.
    pub(super) fn set_url(&self, url: &Url) -> Result<(), sqlx::Error> {
        let options: AnyConnectOptions = url.as_str().parse()?;
        for pool in [&self.reader, &self.writer, &self.beat, &self.claims] {
            pool.set_connect_options(options.clone());
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        for pool in [&self.reader, &self.writer, &self.beat, &self.claims] {
            pool.close().await;
        }
    }
}

async fn connect(
    database: &Database,
    options: &AnyConnectOptions,
) -> Result<AnyConnection, sqlx::Error> {
    let mut connection = AnyConnection::connect_with(options).await?;
    set_up(&mut connection, database.is_shared()).await?;
    Ok(connection)
}

async fn set_up(connection: &mut AnyConnection, shared: bool) -> Result<(), sqlx::Error> {
    let settings = if shared { POSTGRES } else { SQLITE };
    connection.execute(settings).await?;
    Ok(())
}

/// A full disk makes SQLite roll back by itself, and sqlx then believes for ever that a transaction is open; on
/// PostgreSQL a `BEGIN` that nobody waited for opens one that sqlx doesn't know of. Such a connection is replaced, and
/// so is one that doesn't answer.
async fn can_be_used(connection: &mut AnyConnection, shared: bool) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        return Ok(false);
    }
    if !shared {
        return Ok(true);
    }
    let probe = sqlx::query_scalar(PROBE_POSTGRES).fetch_one(connection);
    timeout(PROBE, probe).await.unwrap_or(Ok(false))
}
