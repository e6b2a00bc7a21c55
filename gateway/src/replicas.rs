//! The running copies of the gateway that share one database.
//!
//! Each has a row whose beat it moves; one whose beat stands still for a while is gone, and so are its sessions. Nobody's
//! clock is compared with another's. Where the database is no other's ([`Database::Sqlite`]), there is this one alone.
//!
//! [`Database::Sqlite`]: crate::store::Database::Sqlite

pub mod identity;
pub mod listener;

mod ask;
mod directory;
mod elsewhere;
mod passed;
mod peers;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, sleep, timeout},
};

use crate::{
    agents,
    app::Gateway,
    clock::Clock,
    keys::{Keys, Published},
    store::{Noted, State, Store, StoreError},
    tunnels::Tunnel,
};
use directory::Directory;
use identity::Identity;
use peers::Peers;

pub(crate) use directory::DOUBTED;
pub(crate) use elsewhere::{Elsewhere, Holder, pass_on};
pub(crate) use passed::PassedOn;
pub(crate) use peers::Peer;

/// Between replicas: whose session is meant, which, and where its agent comes from.
const OF_MEMBERSHIP: &str = "towline-membership";
const OF_SESSION: &str = "towline-session";
const OF_CLIENT: &str = "towline-client";
/// Answer: there is no such session here.
const NOT_HERE: &str = "towline-not-here";

/// How often a beat is moved, and the others' are looked at.
const BEAT: Duration = Duration::from_secs(2);

/// How often another's may be the same before it is gone: ten seconds.
const MISSED: u32 = 5;

/// How long a new key waits until the others have heard of it, whatever became of the notice.
const HEARD: Duration = Duration::from_secs(10);

/// How long a token of an unknown key may wait for the news of it.
const KEYS: Duration = Duration::from_secs(1);

/// For how long one that wasn't reached isn't tried: at first, and after many times.
const UNREACHED: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Sessions that are written down at once.
const AT_ONCE: usize = 200;

/// How long what the database didn't take waits.
const AGAIN: Duration = Duration::from_secs(1);

/// Changes within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(200);

/// This replica, and what it knows of the others.
#[derive(Debug)]
pub struct Replicas {
    id: String,
    /// Where the others reach this one; `None`: not at all.
    address: Option<String>,
    store: Store,
    peers: Peers,
    directory: Directory,
    others: Mutex<HashMap<String, Other>>,
    beat: AtomicU64,
    leaving: AtomicBool,
    /// It is no replica any more.
    parted: AtomicBool,
    /// What stands in the database of this one may be wrong.
    lost: AtomicBool,
    /// Sessions by id of which it isn't written down yet how they are.
    unsaid: Mutex<HashMap<String, Arc<Tunnel>>>,
    news: Notify,
    /// When the others' keys were read last because of a token of an unknown one.
    looked_for_keys: tokio::sync::Mutex<Option<(Instant, bool)>>,
    requests_passed_on: AtomicU64,
    connections_passed_on: AtomicU64,
}

#[derive(Debug, Clone)]
struct Other {
    address: String,
    beat: u64,
    draining: bool,
    /// How often its beat was the same.
    missed: u32,
    /// It wasn't reached: until when it isn't tried again, and how long that was.
    unreached: Option<(Instant, Duration)>,
}

impl Replicas {
    /// This replica, of this name, before it has joined the others.
    ///
    /// # Errors
    /// TLS can't be set up.
    pub fn new(
        identity: &Arc<Identity>,
        address: Option<String>,
        (store, keys, clock): (Store, Arc<Keys>, Clock),
    ) -> Result<Self, rustls::Error> {
        let id = identity.replica().to_owned();
        Ok(Self {
            directory: Directory::new(id.clone(), store.clone(), (keys, clock)),
            id,
            address,
            store,
            peers: Peers::new(identity)?,
            others: Mutex::default(),
            beat: AtomicU64::default(),
            leaving: AtomicBool::default(),
            parted: AtomicBool::default(),
            lost: AtomicBool::default(),
            unsaid: Mutex::default(),
            news: Notify::new(),
            looked_for_keys: tokio::sync::Mutex::default(),
            requests_passed_on: AtomicU64::default(),
            connections_passed_on: AtomicU64::default(),
        })
    }

    /// This replica: another with every start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Requests, and agents' connections, that were passed on to the replica that holds the session.
    pub fn passed_on(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            count(&self.requests_passed_on),
            count(&self.connections_passed_on),
        )
    }

    /// How many take new sessions, this one included.
    pub fn live(&self) -> usize {
        let others = self.lock();
        let live = others.values().filter(|other| other.is_live());
        1 + live.filter(|other| !other.draining).count()
    }

    /// Lets the agents here know how many there are, for as long as it is polled.
    pub(crate) async fn tell_agents(gateway: Arc<Gateway>) {
        loop {
            let live = gateway.replicas.live();
            let live = u32::try_from(live).unwrap_or(u32::MAX);
            gateway.tunnels.tell_replicas(live);
            sleep(BEAT / 2).await;
        }
    }

    /// Makes this one, and the key that it signs with, known to the others; and theirs to this one.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn join(&self, keys: &Keys, now: u64) -> Result<(), StoreError> {
        let address = self.address.as_deref().unwrap_or_default();
        self.store.replica_joins(&self.id, address, now).await?;
        if self.store.is_shared() {
            self.store.publish_key(&keys.published(), now).await?;
            keys.believe(&self.store.signing_keys().await?);
            self.look(now, false).await;
        }
        Ok(())
    }

    /// A token came whose key isn't known: another replica's, of which the news is on its way? `true` if the keys were
    /// read just now, however many ask; nobody waits long for that.
    pub(crate) async fn hear_of_keys(&self, keys: &Keys) -> bool {
        if !self.store.is_shared() {
            return false;
        }
        let came = Instant::now();
        let Ok(mut looked) = timeout(KEYS, self.looked_for_keys.lock()).await else {
            return false;
        };
        if let Some((at, heard)) = *looked
            && (at >= came || at.elapsed() < TOGETHER)
        {
            return heard;
        }
        let chains = timeout(KEYS, self.store.signing_keys()).await;
        let heard = match chains {
            Ok(Ok(chains)) => {
                keys.believe(&chains);
                true
            }
            Ok(Err(_)) | Err(_) => false,
        };
        *looked = Some((Instant::now(), heard));
        heard
    }

    /// Ends the streams that run through other replicas.
    pub fn close(&self) {
        self.peers.close();
    }

    /// Takes this one out: its sessions are over.
    pub async fn part(&self, now: u64) {
        self.parted.store(true, Ordering::Relaxed);
        let ids = [self.id.clone()];
        if let Err(error) = self.store.forget_replicas(&ids, now).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the other replicas will have to find out that this one is gone"
            );
        }
    }

    /// How many others live.
    pub fn others(&self) -> usize {
        let others = self.lock();
        others.values().filter(|other| other.is_live()).count()
    }

    /// It takes no new sessions from now on; the others are told with its next beat, which is at once.
    pub async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        if self.store.is_shared() && self.say(0).await != Some(false) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Has it written down how a session is, for the other replicas and for whoever asks about the membership. Nothing
    /// waits for that.
    pub(crate) fn note(&self, tunnel: &Arc<Tunnel>) {
        let id = tunnel.handle().id().to_owned();
        self.unsaid().insert(id, Arc::clone(tunnel));
        self.news.notify_one();
    }

    /// Writes down how sessions are, for as long as it is polled: what there is by then, many at once.
    pub(crate) async fn say_sessions(gateway: Arc<Gateway>) {
        let this = &gateway.replicas;
        loop {
            this.news.notified().await;
            while !this.parted.load(Ordering::Relaxed) {
                let some: Vec<Arc<Tunnel>> = {
                    let mut unsaid = this.unsaid();
                    let ids: Vec<String> = unsaid.keys().take(AT_ONCE).cloned().collect();
                    ids.iter().filter_map(|id| unsaid.remove(id)).collect()
                };
                if some.is_empty() {
                    break;
                }
                let noted: Vec<Noted<'_>> = some.iter().map(|tunnel| noted(tunnel)).collect();
                let now = gateway.clock.unix();
                if let Err(error) = gateway.store.note_sessions(&this.id, &noted, now).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the others don't know yet how sessions are"
                    );
                    for tunnel in &some {
                        this.note(tunnel);
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Moves the beat and follows the others', for as long as it is polled.
    pub(crate) async fn keep(gateway: Arc<Gateway>) {
        let this = &gateway.replicas;
        if !this.store.is_shared() {
            return;
        }
        let mut tick = tokio::time::interval(BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut doubtful = false;
        while !this.parted.load(Ordering::Relaxed) {
            tick.tick().await;
            let forgotten = this.say(1).await;
            // After an answer that was lost, the row may be new.
            doubtful |= forgotten != Some(false) || this.lost.swap(false, Ordering::Relaxed);
            if forgotten.is_none() {
                continue;
            }
            if doubtful {
                doubtful = !this.say_all(&gateway).await;
            }
            this.look(gateway.clock.unix(), true).await;
        }
    }

    /// Has everything about this one written again; `false` if the database doesn't take it.
    async fn say_all(&self, gateway: &Gateway) -> bool {
        let tunnels = gateway.tunnels.all();
        let now = gateway.clock.unix();
        let said = async {
            let published = gateway.keys.published();
            self.store.publish_key(&published, now).await?;
            let mut over = self.store.sessions_held(&self.id).await?;
            over.retain(|id| !tunnels.iter().any(|tunnel| tunnel.handle().id() == id));
            self.store.forget_sessions(&over, now).await
        };
        if let Err(error) = said.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what the others know of this replica may be wrong"
            );
            return false;
        }
        for tunnel in &tunnels {
            self.note(tunnel);
        }
        gateway.quotas.say_all();
        true
    }

    /// Writes this one's row; whether it was gone, and `None` if the database doesn't answer.
    async fn say(&self, beats: u64) -> Option<bool> {
        let beat = self.beat.fetch_add(beats, Ordering::Relaxed) + beats;
        let address = self.address.as_deref().unwrap_or_default();
        let draining = self.leaving.load(Ordering::Relaxed);
        let said = self
            .store
            .replica_beats(&self.id, address, beat, draining)
            .await;
        match said {
            Ok(forgotten) => Some(forgotten),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "this replica can't tell the others that it lives"
                );
                None
            }
        }
    }

    /// Looks at the others' beats. While the database is away nobody can be told from the dead, and none is.
    /// Beats are `due` when they have had the time to move.
    async fn look(&self, now: u64, due: bool) {
        let rows = match self.store.replicas().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "nothing is known of other replicas just now"
                );
                return;
            }
        };
        let gone: Vec<String> = {
            let mut others = self.lock();
            others.retain(|id, _| rows.iter().any(|row| row.id == *id));
            for row in rows.into_iter().filter(|row| row.id != self.id) {
                let other = others.entry(row.id).or_insert_with(|| Other {
                    address: row.address.clone(),
                    beat: row.beat,
                    draining: row.draining,
                    missed: 0,
                    unreached: None,
                });
                if other.beat != row.beat {
                    other.missed = 0;
                } else if due {
                    other.missed = other.missed.saturating_add(1);
                }
                other.beat = row.beat;
                other.draining = row.draining;
                other.address = row.address;
            }
            let gone = others.iter().filter(|(_, other)| other.missed > MISSED);
            gone.map(|(id, _)| id.clone()).collect()
        };
        for id in &gone {
            tracing::info!(replica = id, "a replica is gone");
        }
        if !gone.is_empty()
            && let Err(error) = self.store.forget_replicas(&gone, now).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "replicas that are gone could not be forgotten"
            );
        }
        let others = self.lock();
        self.peers.keep(|replica| others.contains_key(replica));
    }

    /// Where a replica is reached, if it lives as far as is known.
    fn address_of(&self, replica: &str) -> Option<String> {
        let others = self.lock();
        let other = others.get(replica)?;
        other.is_reached().then(|| other.address.clone())
    }

    /// All others that are reached, as far as is known.
    fn reachable(&self) -> Vec<String> {
        let others = self.lock();
        let reached = others.iter().filter(|(_, other)| other.is_reached());
        reached.map(|(id, _)| id.clone()).collect()
    }

    /// It wasn't reached: it isn't tried again for a while, and for longer each time.
    fn unreached(&self, replica: &str) {
        if let Some(other) = self.lock().get_mut(replica) {
            let now = Instant::now();
            let wait = match other.unreached {
                // Found out by several at once.
                Some((until, _)) if now < until => return,
                Some((_, wait)) => (wait * 2).min(UNREACHED.1),
                None => UNREACHED.0,
            };
            other.unreached = Some((now + wait, wait));
        }
    }

    /// It was.
    fn reached(&self, replica: &str) {
        if let Some(other) = self.lock().get_mut(replica) {
            other.unreached = None;
        }
    }

    fn unsaid(&self) -> MutexGuard<'_, HashMap<String, Arc<Tunnel>>> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Other>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews this replica's keys as they age; the others know of one before it signs anything.
pub async fn renew_keys(gateway: Arc<Gateway>) {
    let (store, clock) = (&gateway.store, &gateway.clock);
    let publish = async |key: Published| {
        if !store.is_shared() {
            return true;
        }
        if let Err(error) = store.publish_key(&key, clock.unix()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the new signing key waits: other replicas can't be told of it"
            );
            return false;
        }
        sleep(HEARD).await;
        true
    };
    Arc::clone(&gateway.keys).renew(publish).await;
}

/// Follows what the others write, for as long as it is polled: memberships whose agents are to be let go, and keys that
/// they sign with.
pub async fn follow(gateway: Arc<Gateway>) {
    let store = &gateway.store;
    if !store.is_shared() {
        return;
    }
    let rights = each_change(store.changes(), || {
        let gateway = Arc::clone(&gateway);
        async move { agents::let_go(&gateway).await }
    });
    let sessions = each_change(store.sessions_changed(), || {
        let gateway = Arc::clone(&gateway);
        async move {
            let now = gateway.clock.unix();
            gateway.replicas.look(now, false).await;
            let chains = gateway.store.signing_keys().await?;
            gateway.keys.believe(&chains);
            Ok(())
        }
    });
    tokio::join!(rights, sessions);
}

/// Does something now and after every change, again until it is done; a storm of changes is one.
async fn each_change<F>(mut changes: watch::Receiver<u64>, todo: impl Fn() -> F)
where
    F: Future<Output = Result<(), StoreError>>,
{
    loop {
        changes.mark_unchanged();
        while let Err(error) = todo().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what other replicas have changed is not known yet"
            );
            sleep(AGAIN).await;
        }
        sleep(TOGETHER).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// How a session is now.
fn noted(tunnel: &Tunnel) -> Noted<'_> {
    Noted {
        session: tunnel.handle().id(),
        hello: tunnel.hello(),
        agent: *tunnel.agent(),
        state: if tunnel.is_open() {
            State::Up
        } else if tunnel.closed().is_cancelled() {
            State::Over
        } else {
            State::Down
        },
    }
}

impl Other {
    const fn is_live(&self) -> bool {
        self.missed <= MISSED
    }

    /// Whether it may be tried.
    fn is_reached(&self) -> bool {
        let now = Instant::now();
        self.is_live()
            && !self.address.is_empty()
            && self.unreached.is_none_or(|(until, _)| now >= until)
    }
}
