//! What can go wrong with the database, in words for its operator, sorted by the database's own codes.

use std::io;

use super::Database;

/// The database didn't do what it was asked. Nothing was changed, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk that holds {0} is full; nothing was changed")]
    Full(Database, #[source] sqlx::Error),
    /// Another process holds it.
    #[error(
        "{0} is locked by another process (a backup, or another gateway that writes); nothing was changed, try again"
    )]
    Locked(Database, #[source] sqlx::Error),
    /// It can't be written.
    #[error("{0} is read-only; nothing was changed")]
    ReadOnly(Database, #[source] sqlx::Error),
    /// It is no database, or a damaged one.
    #[error("{0} is not a database that can be used; restore it from a backup")]
    Damaged(Database, #[source] sqlx::Error),
    /// Nothing answers there, or not in time.
    #[error("{0} can't be reached; nothing was changed, try again")]
    Away(Database, #[source] sqlx::Error),
    /// As [`StoreError::Away`], known from the last try to reach it.
    #[error("{0} has been out of reach for {1} s; nothing was changed, try again")]
    StillAway(Database, u64),
    /// The connection was lost while a change was being committed.
    #[error(
        "the connection to {0} was lost at the end of the change; whether it was made is not known, so look before you repeat it"
    )]
    Unknown(Database, #[source] sqlx::Error),
    /// It doesn't let this gateway in, or not do this.
    #[error("{0} refuses the gateway; look at its user, password and privileges")]
    Refused(Database, #[source] sqlx::Error),
    /// It can't be opened or brought to this version.
    #[error("cannot open {0}")]
    Open(Database, #[source] sqlx::Error),
    /// It was made by a newer version, or changed by hand.
    #[error("{0} can't be brought to this version's form")]
    Migrate(Database, #[source] sqlx::migrate::MigrateError),
    /// It is another gateway's.
    #[error(
        "{database} belongs to the gateway with root key {found}, and this one's is {own}; give all replicas the same keys/root.pub and keys/root.key, or this gateway another database"
    )]
    Foreign {
        /// The database.
        database: Database,
        /// The root key that it was made with.
        found: String,
        /// This gateway's.
        own: String,
    },
    /// A value in it is not what this program writes.
    #[error("{database} holds what this program doesn't understand: {value}")]
    Value {
        /// The database.
        database: Database,
        /// What was found.
        value: String,
    },
    /// Anything else.
    #[error("{0} failed")]
    Other(Database, #[source] sqlx::Error),
}

impl StoreError {
    /// Whether the database wasn't there to answer, or doesn't let the gateway in: the same may work soon.
    pub const fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Away(..)
                | Self::StillAway(..)
                | Self::Unknown(..)
                | Self::Locked(..)
                | Self::Open(..)
                | Self::Refused(..)
        )
    }

    /// Sorts by what the database said.
    pub(super) fn of(database: &Database, error: sqlx::Error) -> Self {
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .unwrap_or_default()
            .into_owned();
        let sort = match (&error, database) {
            (sqlx::Error::Database(_), Database::Sqlite(_)) => sqlite(&code),
            (sqlx::Error::Database(_), Database::Postgres(_)) => postgres(&code),
            // A certificate that isn't believed.
            (sqlx::Error::Io(error), Database::Postgres(_))
                if error.kind() == io::ErrorKind::InvalidData =>
            {
                Self::Open
            }
            (sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut, _) => Self::Away,
            (sqlx::Error::Tls(_) | sqlx::Error::Protocol(_), Database::Postgres(_)) => Self::Open,
            _ => Self::Other,
        };
        sort(database.clone(), error)
    }

    /// Of a COMMIT: only what the database itself refused was certainly not done.
    pub(super) fn of_commit(database: &Database, error: sqlx::Error) -> Self {
        match (&error, database) {
            (sqlx::Error::Database(_), _) | (_, Database::Sqlite(_)) => Self::of(database, error),
            (_, Database::Postgres(_)) => Self::Unknown(database.clone(), error),
        }
    }
}

type Sort = fn(Database, sqlx::Error) -> StoreError;

/// By SQLite's primary result code.
fn sqlite(code: &str) -> Sort {
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        5 | 6 => StoreError::Locked,
        8 => StoreError::ReadOnly,
        11 | 26 => StoreError::Damaged,
        13 => StoreError::Full,
        _ => StoreError::Other,
    }
}

/// By SQLSTATE.
fn postgres(code: &str) -> Sort {
    match code {
        "53100" => StoreError::Full,
        "25006" => StoreError::ReadOnly,
        // Waited too long for a lock, or a deadlock.
        "55P03" | "40001" | "40P01" => StoreError::Locked,
        // No such database, and no privilege.
        "3D000" | "42501" => StoreError::Refused,
        "XX001" | "XX002" => StoreError::Damaged,
        // Took too long, idle for too long, too many connections; shutting down, crashed or starting.
        "57014" | "25P03" | "53300" | "57P01" | "57P02" | "57P03" | "57P05" => StoreError::Away,
        _ => match code.get(..2) {
            Some("08") => StoreError::Away,
            Some("28") => StoreError::Refused,
            _ => StoreError::Other,
        },
    }
}
