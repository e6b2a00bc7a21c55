//! What was written, here or at another replica, and who has to hear of it.
//!
//! Threat: a right is taken at one replica, and another goes on giving it from its memory.
//! Decision: every write counts one up for what it concerns and tells the other replicas (`NOTIFY`), both within its
//! own transaction. Each replica listens on a connection of its own and, on the same connection, compares the numbers
//! every [`POLL`]. When the connection is lost, what is remembered is kept, as it may be all that there is; when there
//! is another, everything is forgotten, as anything may have been missed.
//! Consequence: a change is everywhere within milliseconds, and within seconds when the network loses something. How
//! long a replica that hears nothing believes what it remembers is in `cache`.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    Any, AnyConnection, Connection as _, Transaction,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{Database, cache::Cache, connect::Pools};

/// How often the numbers are compared, and with that whether the server still answers.
const POLL: Duration = Duration::from_secs(2);

/// How long the server may take for that, and for letting the listener in.
const LIMIT: Duration = Duration::from_secs(5);

/// How long it waits before it connects again: at first, and after many times.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The `NOTIFY` channel, whose messages are `KIND VERSION`.
const CHANNEL: &str = "towline";

/// Counts one up and tells it, when the transaction is committed.
const TELL: &str = "WITH changed AS (UPDATE changes SET version = version + 1 WHERE kind = $1 RETURNING kind, version) \
                    SELECT version, pg_notify('towline', kind || ' ' || version) FROM changed";

/// What a write concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// Users, policies, memberships: decisions are made again.
    Rights,
    /// Who holds which session, and so memberships' states, on which nothing is decided.
    Sessions,
    /// Tokens and codes, which are never remembered: nobody has to hear of them.
    Tokens,
}

/// Those that somebody has to hear of.
const KINDS: [Concern; 2] = [Concern::Rights, Concern::Sessions];

impl Concern {
    /// Its row in `changes`.
    const fn kind(self) -> &'static str {
        match self {
            Self::Rights => "rights",
            Self::Sessions => "sessions",
            Self::Tokens => "",
        }
    }

    /// Whether anybody has to hear of it.
    pub(super) const fn is_told(self) -> bool {
        !matches!(self, Self::Tokens)
    }

    fn of(kind: &str) -> Option<Self> {
        KINDS.into_iter().find(|concern| concern.kind() == kind)
    }
}

/// The memory of one process, and what it has heard.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) cache: Cache,
    rights: Heard,
    sessions: Heard,
    away: Mutex<Option<Instant>>,
}

/// One kind of changes.
#[derive(Debug)]
struct Heard {
    /// The last number that was seen, at which nothing older was remembered any more.
    version: Mutex<i64>,
    changes: watch::Sender<u64>,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            version: Mutex::new(0),
            changes: watch::channel(0).0,
        }
    }
}

impl Changes {
    pub(super) fn new(cache: Cache) -> Self {
        Self {
            cache,
            rights: Heard::default(),
            sessions: Heard::default(),
            away: Mutex::default(),
        }
    }

    pub(super) fn subscribe(&self, concern: Concern) -> watch::Receiver<u64> {
        match self.heard(concern) {
            Some(heard) => heard.changes.subscribe(),
            None => watch::channel(0).1,
        }
    }

    /// Empties the memory of what a change may have made stale, and wakes those who wait for it.
    pub(super) fn happened(&self, concern: Concern) {
        match concern {
            Concern::Rights => self.cache.forget_all(),
            Concern::Sessions => self.cache.forget_memberships(),
            Concern::Tokens => {}
        }
        // After the memory is empty: whoever is woken reads anew.
        if let Some(heard) = self.heard(concern) {
            heard.changes.send_modify(|version| *version += 1);
        }
    }

    /// Makes the change known to the other replicas when `transaction` is committed. With the number it gets, to be
    /// handed to [`Changes::wrote`].
    pub(super) async fn tell(
        transaction: &mut Transaction<'static, Any>,
        concern: Concern,
    ) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(TELL)
            .bind(concern.kind())
            .fetch_one(&mut **transaction)
            .await
    }

    /// This process's own change, under the write lock: what was before it isn't remembered after it, so that older
    /// news is none.
    pub(super) fn wrote(&self, concern: Concern, version: i64) {
        self.happened(concern);
        if let Some(heard) = self.heard(concern) {
            let mut seen = lock(&heard.version);
            *seen = version.max(*seen);
        }
    }

    /// For how long the database has been out of reach.
    pub(super) fn away(&self) -> Option<Duration> {
        lock(&self.away).map(|since| since.elapsed())
    }

    fn news(&self, concern: Concern, version: i64) {
        let Some(heard) = self.heard(concern) else {
            return;
        };
        let is_new = {
            let mut seen = lock(&heard.version);
            let is_new = version > *seen;
            *seen = version.max(*seen);
            is_new
        };
        if is_new {
            self.happened(concern);
        }
    }

    /// Everything may have changed.
    fn anew(&self, versions: &[(String, i64)]) {
        for (kind, version) in versions {
            if let Some(heard) = Concern::of(kind).and_then(|concern| self.heard(concern)) {
                // Lower than before where a backup was restored, or a standby that lacked the last changes took over.
                *lock(&heard.version) = *version;
            }
        }
        for concern in KINDS {
            self.happened(concern);
        }
    }

    const fn heard(&self, concern: Concern) -> Option<&Heard> {
        match concern {
            Concern::Rights => Some(&self.rights),
            Concern::Sessions => Some(&self.sessions),
            Concern::Tokens => None,
        }
    }
}

/// Hears of what other replicas write, for as long as it is run.
pub(super) async fn listen(database: Database, pools: Pools, changes: Arc<Changes>) {
    let (mut wait, mut told) = (AGAIN.0, false);
    loop {
        let opened = timeout(LIMIT, open(&database, &pools))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let error = match opened {
            Ok(listener) => {
                (wait, told) = (AGAIN.0, false);
                // A lost connection says nothing of the others: the next try will.
                hear(listener, &changes).await
            }
            Err(error) => {
                let mut since = lock(&changes.away);
                *since = is_away(&error).then(|| since.unwrap_or_else(Instant::now));
                error
            }
        };
        if !told {
            tracing::warn!(%database, %error, "changes by other replicas are not heard; trying again");
            told = true;
        }
        sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Whether nothing answers there. A server that has no connection left, or doesn't let another in, still serves those
/// that there are.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            code.starts_with("08") || code.starts_with("57P")
        }
        _ => false,
    }
}

async fn open(database: &Database, pools: &Pools) -> Result<PgListener, sqlx::Error> {
    // The password may be another by now.
    let url = database.connection_url()?;
    pools.set_url(&url)?;
    // A pool would try again and again, and not say what is wrong.
    let probe: AnyConnection = AnyConnection::connect(url.as_str()).await?;
    probe.close().await?;
    let options: PgConnectOptions = url.as_str().parse()?;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(LIMIT)
        .connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    // A new connection is made here, where everything is forgotten after it.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Until the connection is lost; with the reason.
async fn hear(mut listener: PgListener, changes: &Changes) -> sqlx::Error {
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        tokio::select! {
            heard = listener.try_recv() => match heard {
                Ok(Some(news)) => {
                    let (kind, version) = news.payload().split_once(' ').unwrap_or_default();
                    if let (Some(concern), Ok(version)) = (Concern::of(kind), version.parse()) {
                        changes.news(concern, version);
                    }
                }
                Ok(None) => return io::Error::from(io::ErrorKind::ConnectionAborted).into(),
                Err(error) => return error,
            },
            _ = poll.tick() => {
                let began = Instant::now();
                let versions: Vec<(String, i64)> = match timeout(LIMIT, versions(&mut listener)).await {
                    Ok(Ok(versions)) => versions,
                    Ok(Err(error)) => return error,
                    Err(_) => return io::Error::from(io::ErrorKind::TimedOut).into(),
                };
                if first {
                    first = false;
                    // Before anybody is woken, who asks the database then.
                    if let Some(since) = lock(&changes.away).take() {
                        tracing::info!(away = ?since.elapsed(), "the database answers again");
                    }
                    changes.anew(&versions);
                } else {
                    for (kind, version) in versions {
                        if let Some(concern) = Concern::of(&kind) {
                            changes.news(concern, version);
                        }
                    }
                }
                changes.cache.believe(began);
            }
        }
    }
}

async fn versions(listener: &mut PgListener) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("SELECT kind, version FROM changes")
        .fetch_all(listener)
        .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
