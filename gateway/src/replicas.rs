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

use tokio::time::Instant;

use crate::{
    agents,
    app::Gateway,
    clock::Clock,
    keys::{Keys, Published},
    store::{Store, StoreError},
};
use directory::Directory;
use identity::Identity;
use peers::Peers;

pub(crate) use directory::DOUBTED;
pub(crate) use elsewhere::{Elsewhere, pass_on};
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
    /// What stands in the database of this one's sessions may be wrong.
    unsaid: AtomicBool,
    /// When the others' keys were read last because of a token of an unknown one.
    looked_for_keys: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Clone)]
struct Other {
    address: String,
    beat: u64,
    draining: bool,
    /// How often its beat was the same.
    missed: u32,
    /// It wasn't reached since its last beat.
    unreached: bool,
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
            unsaid: AtomicBool::default(),
            looked_for_keys: tokio::sync::Mutex::default(),
        })
    }

    /// This replica: another with every start.
    pub fn id(&self) -> &str {
        &self.id
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
            tokio::time::sleep(BEAT / 2).await;
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
    /// read a moment ago, however many ask.
    pub(crate) async fn hear_of_keys(&self, keys: &Keys) -> bool {
        if !self.store.is_shared() {
            return false;
        }
        let mut looked = self.looked_for_keys.lock().await;
        if looked.is_some_and(|looked| looked.elapsed() < TOGETHER) {
            return true;
        }
        *looked = Some(Instant::now());
        match self.store.signing_keys().await {
            Ok(chains) => keys.believe(&chains),
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the other replicas' keys are not known just now"
            ),
        }
        true
    }

    /// Ends the streams that run through other replicas.
    pub fn close(&self) {
        self.peers.close();
    }

    /// Takes this one out: its sessions are over.
    pub async fn part(&self, now: u64) {
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
        self.say(0).await;
    }

    /// Something about this one's sessions could not be written: all of it is, once the database answers again.
    pub(crate) fn unsaid(&self) {
        self.unsaid.store(true, Ordering::Relaxed);
    }

    /// Moves the beat and follows the others', for as long as it is polled.
    pub(crate) async fn keep(gateway: Arc<Gateway>) {
        let this = &gateway.replicas;
        let mut tick = tokio::time::interval(BEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !this.store.is_shared() && !this.unsaid.load(Ordering::Relaxed) {
                continue;
            }
            match this.say(1).await {
                Some(forgotten) => {
                    if this.unsaid.swap(false, Ordering::Relaxed) || forgotten {
                        this.say_all(&gateway).await;
                    }
                }
                None => continue,
            }
            if this.store.is_shared() {
                this.look(gateway.clock.unix(), true).await;
            }
        }
    }

    /// Writes down all sessions that are held here, and takes out those that are over.
    async fn say_all(&self, gateway: &Gateway) {
        let tunnels = gateway.tunnels.all();
        let over = self.store.sessions_held(&self.id).await.map(|mut ids| {
            ids.retain(|id| !tunnels.iter().any(|tunnel| tunnel.handle().id() == id));
            ids
        });
        let forgotten = match over {
            Ok(over) => {
                self.store
                    .forget_sessions(&over, gateway.clock.unix())
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "sessions that are over could not be forgotten"
            );
            self.unsaid();
        }
        for tunnel in tunnels {
            agents::note(gateway, &tunnel).await;
        }
        gateway.quotas.say_all();
    }

    /// Writes this one's row; whether it was gone, and `None` if the database doesn't answer.
    async fn say(&self, beats: u64) -> Option<bool> {
        let beat = self.beat.fetch_add(beats, Ordering::Relaxed) + beats;
        let address = self.address.as_deref().unwrap_or_default();
        let draining = self.leaving.load(Ordering::Relaxed);
        match self
            .store
            .replica_beats(&self.id, address, beat, draining)
            .await
        {
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
                    unreached: false,
                });
                if other.beat != row.beat {
                    (other.missed, other.unreached) = (0, false);
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
        (other.is_live() && !other.address.is_empty()).then(|| other.address.clone())
    }

    /// All others that are reached, as far as is known.
    fn reachable(&self) -> Vec<String> {
        let others = self.lock();
        let reached = others
            .iter()
            .filter(|(_, other)| other.is_live() && !other.address.is_empty());
        reached.map(|(id, _)| id.clone()).collect()
    }

    /// It wasn't reached: it isn't tried again before it says that it lives.
    fn unreached(&self, replica: &str) {
        if let Some(other) = self.lock().get_mut(replica) {
            other.unreached = true;
        }
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
        tokio::time::sleep(HEARD).await;
        true
    };
    Arc::clone(&gateway.keys).renew(publish).await;
}

/// Follows what the others write: keys that they sign with, and memberships whose agents are to be let go.
pub async fn follow(gateway: Arc<Gateway>) {
    let store = &gateway.store;
    if !store.is_shared() {
        return;
    }
    let (mut rights, mut sessions) = (store.changes(), store.sessions_changed());
    loop {
        let rights_changed = tokio::select! {
            Ok(()) = rights.changed() => true,
            Ok(()) = sessions.changed() => false,
            else => return,
        };
        let followed = if rights_changed {
            agents::let_go(&gateway).await
        } else {
            gateway.replicas.look(gateway.clock.unix(), false).await;
            let keys = store.signing_keys().await;
            keys.map(|chains| gateway.keys.believe(&chains))
        };
        if let Err(error) = followed {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what other replicas have changed is not known yet"
            );
        }
        // A storm of changes is one.
        tokio::time::sleep(TOGETHER).await;
    }
}

impl Other {
    const fn is_live(&self) -> bool {
        self.missed <= MISSED && !self.unreached
    }
}
