//! What was written, here or at another replica, and who has to hear of it.
//!
//! Threat: a right is taken at one replica, and another goes on giving it from its memory.
//! Decision: every write counts one up for its kind and tells the other replicas whom it concerns (`NOTIFY`), both within
//! its own transaction. Each replica listens on a connection of its own and, on the same connection, compares the numbers
//! every [`POLL`]. A number that was left out, or another mark than the one that was told, means that anything may have
//! changed. When the connection is lost, what is remembered is kept, as it may be all that there is; when there is
//! another, it is kept if the numbers show that nothing was missed.
//! Consequence: a change is everywhere within milliseconds, and within seconds when the network loses something. How
//! long a replica that hears nothing believes what it remembers is in `cache`.

use std::{
    collections::BTreeMap,
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
use towline_proto::names::Project;

use super::{Database, cache::Cache, connect::Pools};

/// How often the numbers are compared, and with that whether the server still answers.
const POLL: Duration = Duration::from_secs(2);

/// How long the server may take for that, and for letting the listener in.
const LIMIT: Duration = Duration::from_secs(5);

/// How long it waits before it connects again: at first, and after many times.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The `NOTIFY` channel, whose messages are `KIND VERSION MARK CONCERN`.
const CHANNEL: &str = "towline";

/// Counts one up and tells it, when the transaction is committed.
const TELL: &str = "WITH changed AS (UPDATE changes SET version = version + 1, mark = $2 WHERE kind = $1 \
                    RETURNING version) \
                    SELECT version, pg_notify('towline', $1 || ' ' || version || ' ' || $2 || ' ' || $3) FROM changed";

/// The longest name that is told; a message has room for 8,000 bytes.
const LONGEST: usize = 4_000;

/// What anybody may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whatever a decision rests on: it is made again.
    Rights,
    /// Who holds which session, which replicas there are, and how they sign.
    Sessions,
}

const KINDS: [Kind; 2] = [Kind::Rights, Kind::Sessions];

/// What a write concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Concern {
    /// Rights of more than one project.
    Everything,
    /// One of the gateway's own users, with their sign-ins.
    User(String),
    /// What is in a project: policies, roles, memberships, quotas, service accounts, pools.
    Project(Project),
    /// All that came of one sign-in.
    Family(String),
    /// Who holds which session, and so memberships' states, on which nothing is decided.
    Sessions,
    /// Tokens and codes, which are never remembered: nobody has to hear of them.
    Tokens,
}

impl Kind {
    /// Its row in `changes`.
    const fn name(self) -> &'static str {
        match self {
            Self::Rights => "rights",
            Self::Sessions => "sessions",
        }
    }

    fn named(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.name() == name)
    }

    /// All that a change of this kind may have been.
    const fn any(self) -> Concern {
        match self {
            Self::Rights => Concern::Everything,
            Self::Sessions => Concern::Sessions,
        }
    }
}

impl Concern {
    /// Who has to hear of it.
    pub(super) const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Everything | Self::User(_) | Self::Project(_) | Self::Family(_) => {
                Some(Kind::Rights)
            }
            Self::Sessions => Some(Kind::Sessions),
            Self::Tokens => None,
        }
    }

    /// As it is told.
    fn told(&self) -> String {
        let told = match self {
            Self::User(name) => format!("user {name}"),
            Self::Project(project) => format!("project {project}"),
            Self::Family(family) => format!("family {family}"),
            Self::Everything | Self::Sessions | Self::Tokens => String::new(),
        };
        // Without a name it is everything.
        if told.len() > LONGEST {
            String::new()
        } else {
            told
        }
    }

    /// What was told of this kind.
    fn heard(kind: Kind, told: &str) -> Self {
        match (kind, told.split_once(' ')) {
            (Kind::Rights, Some(("user", name))) => Self::User(name.to_owned()),
            (Kind::Rights, Some(("project", name))) => {
                name.parse().map_or(Self::Everything, Self::Project)
            }
            (Kind::Rights, Some(("family", family))) => Self::Family(family.to_owned()),
            _ => kind.any(),
        }
    }
}

/// A change as it is numbered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Version {
    number: i64,
    mark: String,
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
    seen: Mutex<Seen>,
    changes: watch::Sender<u64>,
}

/// Up to which change all are known.
#[derive(Debug, Default)]
struct Seen {
    last: Version,
    /// This process's own that come after, with others between that it is yet to hear of.
    own: BTreeMap<i64, String>,
    /// A number that the database had beyond, at the last look: what was told of it may be on its way.
    ahead: Option<i64>,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Seen {
    fn wrote(&mut self, version: Version) {
        if version.number > self.last.number {
            self.own.insert(version.number, version.mark);
            self.join();
        }
    }

    /// `None`: known already. `Some(false)`: something before it was missed.
    fn told(&mut self, version: Version) -> Option<bool> {
        if version.number <= self.last.number {
            return None;
        }
        let next = version.number == self.last.number + 1;
        self.reach(version);
        Some(next)
    }

    /// What the database has: whether something was missed, and whether all of it is known.
    fn found(&mut self, version: Version) -> (bool, bool) {
        if version == self.last || version.number < self.last.number {
            // One of this process's own may have come since.
            self.ahead = None;
            return (false, true);
        }
        let missed = version.number == self.last.number
            || self.ahead.is_some_and(|ahead| ahead > self.last.number);
        if missed {
            self.reach(version);
        } else {
            self.ahead = Some(version.number);
        }
        (missed, missed)
    }

    /// After a time without a connection: whether something was missed.
    fn found_again(&mut self, version: Version) -> bool {
        let missed = version != self.last;
        // Lower than before where a backup was restored, or a standby that lacked the last changes took over.
        self.own.clear();
        self.ahead = None;
        self.last = version;
        missed
    }

    fn reach(&mut self, version: Version) {
        self.own.retain(|number, _| *number > version.number);
        self.ahead = None;
        self.last = version;
        self.join();
    }

    /// Own changes that follow what is known.
    fn join(&mut self) {
        while let Some(mark) = self.own.remove(&(self.last.number + 1)) {
            self.last = Version {
                number: self.last.number + 1,
                mark,
            };
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

    pub(super) fn subscribe(&self, kind: Kind) -> watch::Receiver<u64> {
        self.heard(kind).changes.subscribe()
    }

    /// Empties the memory of what a change may have made stale, and wakes those who wait for it.
    pub(super) fn happened(&self, concern: &Concern) {
        let Some(kind) = concern.kind() else {
            return;
        };
        self.cache.forget(concern);
        // After the memory is empty: whoever is woken reads anew.
        self.wake(kind);
    }

    fn wake(&self, kind: Kind) {
        let changes = &self.heard(kind).changes;
        changes.send_modify(|version| *version += 1);
    }

    /// Makes the change known to the other replicas when `transaction` is committed; its number is to be handed to
    /// [`Changes::wrote`].
    pub(super) async fn tell(
        transaction: &mut Transaction<'static, Any>,
        (kind, concern): (Kind, &Concern),
        mark: String,
    ) -> Result<Version, sqlx::Error> {
        let number = sqlx::query_scalar(TELL)
            .bind(kind.name())
            .bind(mark.as_str())
            .bind(concern.told())
            .fetch_one(&mut **transaction)
            .await?;
        Ok(Version { number, mark })
    }

    /// This process's own change.
    pub(super) fn wrote(&self, concern: &Concern, version: Version) {
        self.happened(concern);
        if let Some(kind) = concern.kind() {
            lock(&self.heard(kind).seen).wrote(version);
        }
    }

    /// For how long the database has been out of reach.
    pub(super) fn away(&self) -> Option<Duration> {
        lock(&self.away).map(|since| since.elapsed())
    }

    /// A message of [`CHANNEL`].
    fn told(&self, message: &str) {
        let mut words = message.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (Some(kind), Ok(number), mark, told) = (
            Kind::named(word()),
            word().parse(),
            word().to_owned(),
            word(),
        ) else {
            return;
        };
        let known = lock(&self.heard(kind).seen).told(Version { number, mark });
        match known {
            None => {}
            Some(true) => self.happened(&Concern::heard(kind, told)),
            Some(false) => self.happened(&kind.any()),
        }
    }

    /// What stands in `changes`; `again`: after a time without a connection. Whether all that was written is known now.
    fn found(&self, rows: Vec<(String, i64, String)>, again: bool) -> bool {
        let mut all = true;
        for (name, number, mark) in rows {
            let Some(kind) = Kind::named(&name) else {
                continue;
            };
            let version = Version { number, mark };
            let (missed, known) = {
                let mut seen = lock(&self.heard(kind).seen);
                if again {
                    (seen.found_again(version), true)
                } else {
                    seen.found(version)
                }
            };
            if missed {
                self.happened(&kind.any());
            }
            all &= known;
        }
        all
    }

    const fn heard(&self, kind: Kind) -> &Heard {
        match kind {
            Kind::Rights => &self.rights,
            Kind::Sessions => &self.sessions,
        }
    }
}

/// Hears of what other replicas write, for as long as it is run.
pub(super) async fn listen(database: Database, pools: Pools, changes: Arc<Changes>) {
    let (mut wait, mut told, mut before) = (AGAIN.0, false, false);
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
        // Whoever acts on what is remembered learns that it may not any more.
        let believed = changes.cache.is_believed();
        if before && !believed {
            tracing::error!(%database, "not heard of for too long: nothing that is remembered is believed any more");
            changes.wake(Kind::Rights);
        }
        before = believed;
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
        // A certificate that isn't believed is another matter.
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
        sqlx::Error::PoolTimedOut => true,
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
                Ok(Some(message)) => changes.told(message.payload()),
                Ok(None) => return io::Error::from(io::ErrorKind::ConnectionAborted).into(),
                Err(error) => return error,
            },
            _ = poll.tick() => {
                let began = Instant::now();
                let rows = match timeout(LIMIT, versions(&mut listener)).await {
                    Ok(Ok(rows)) => rows,
                    Ok(Err(error)) => return error,
                    Err(_) => return io::Error::from(io::ErrorKind::TimedOut).into(),
                };
                // Before anybody is woken, who asks the database then.
                if let Some(since) = lock(&changes.away).take() {
                    tracing::info!(away = ?since.elapsed(), "the database answers again");
                }
                if changes.found(rows, std::mem::take(&mut first)) {
                    changes.cache.believe(began);
                }
            }
        }
    }
}

async fn versions(listener: &mut PgListener) -> Result<Vec<(String, i64, String)>, sqlx::Error> {
    sqlx::query_as("SELECT kind, version, mark FROM changes")
        .fetch_all(listener)
        .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: i64) -> Version {
        Version {
            number,
            mark: format!("m{number}"),
        }
    }

    #[test]
    fn what_is_left_out_is_noticed() {
        let mut seen = Seen::default();
        assert!(seen.found_again(version(7)));
        assert!(!seen.found_again(version(7)), "nothing was missed");
        assert_eq!(seen.told(version(8)), Some(true));
        assert_eq!(seen.told(version(8)), None);
        assert_eq!(seen.told(version(10)), Some(false));
        // Own ones, told before those of others that come before them.
        seen.wrote(version(12));
        assert_eq!(seen.told(version(11)), Some(true));
        assert_eq!(seen.told(version(12)), None);
        assert_eq!(seen.last, version(12));
        // An own one, and what came before it is never told.
        seen.wrote(version(14));
        assert_eq!(seen.told(version(14)), Some(false));
        assert_eq!(seen.found(version(14)), (false, true));
    }

    #[test]
    fn what_was_never_told_is_found_at_the_second_look() {
        let mut seen = Seen::default();
        assert_eq!(seen.found(version(1)), (false, false));
        assert_eq!(seen.found(version(2)), (true, true));
        assert_eq!(seen.found(version(3)), (false, false));
        assert_eq!(seen.told(version(3)), Some(true));
        assert_eq!(seen.found(version(3)), (false, true));
        assert_eq!(seen.found(version(4)), (false, false));
    }

    /// A standby that lacked the last change took over, and somebody made another.
    #[test]
    fn the_same_number_of_another_change_is_another() {
        let mut seen = Seen::default();
        seen.found_again(version(7));
        let other = Version {
            number: 7,
            mark: "other".into(),
        };
        assert!(seen.found_again(other));
    }

    #[test]
    fn what_is_told_is_heard() {
        let long = "x".repeat(LONGEST);
        for (concern, heard) in [
            (Concern::User("a b".into()), Concern::User("a b".into())),
            (
                Concern::Project("p".parse().unwrap()),
                Concern::Project("p".parse().unwrap()),
            ),
            (Concern::Family("f".into()), Concern::Family("f".into())),
            (Concern::Everything, Concern::Everything),
            (Concern::User(long), Concern::Everything),
        ] {
            assert_eq!(Concern::heard(Kind::Rights, &concern.told()), heard);
        }
        assert_eq!(Concern::heard(Kind::Sessions, "user x"), Concern::Sessions);
    }
}
