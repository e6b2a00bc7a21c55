//! What every request asks for, remembered until somebody writes what may change it.
//!
//! A value that was read before a write and arrives after it must not be remembered: so a reader notes the number
//! of writes before it asks the database, and its answer is kept only if no write came since.
//!
//! Others write, too, where a database is shared: then what is remembered is believed for so long after the database
//! last said that nothing was missed, and no longer.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use towline_proto::names::{Membership, Project};

use super::{
    MembershipRow, User, changes::Concern, service_accounts::Account, sign_ins::SignIn,
    workload_identity::Providers,
};
use crate::{
    iam::{CompiledPolicy, Principal, Resource, ServiceAccount},
    quota::Overrides,
};

#[derive(Debug)]
pub(super) struct Cache {
    state: Mutex<State>,
    /// How long what is remembered is believed after [`Cache::believe`]; for ever where nobody else writes.
    limit: Option<Duration>,
    believed: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    writes: u64,
    users: HashMap<String, Option<User>>,
    policies: HashMap<Resource, Option<Arc<CompiledPolicy>>>,
    memberships: HashMap<Membership, Option<MembershipRow>>,
    /// Those whose state may have changed; nothing else in them has.
    doubted: HashMap<Membership, Option<MembershipRow>>,
    quotas: HashMap<Project, Option<Arc<Overrides>>>,
    accounts: HashMap<ServiceAccount, Option<Account>>,
    sign_ins: HashMap<String, Option<Arc<SignIn>>>,
    providers: HashMap<Project, Option<Providers>>,
}

/// One kind of remembered values.
pub(super) trait Remembered: Sized {
    /// How many are remembered; then all are forgotten. What is asked for may be names that don't exist.
    const MOST: usize = 10_000;
    type Key: Clone + Eq + Hash;
    fn of(state: &mut impl Kinds) -> &mut HashMap<Self::Key, Option<Self>>;
}

/// Where each kind is kept.
pub(super) trait Kinds {
    fn users(&mut self) -> &mut HashMap<String, Option<User>>;
    fn policies(&mut self) -> &mut HashMap<Resource, Option<Arc<CompiledPolicy>>>;
    fn memberships(&mut self) -> &mut HashMap<Membership, Option<MembershipRow>>;
    fn quotas(&mut self) -> &mut HashMap<Project, Option<Arc<Overrides>>>;
    fn accounts(&mut self) -> &mut HashMap<ServiceAccount, Option<Account>>;
    fn sign_ins(&mut self) -> &mut HashMap<String, Option<Arc<SignIn>>>;
    fn providers(&mut self) -> &mut HashMap<Project, Option<Providers>>;
}

impl Kinds for State {
    fn users(&mut self) -> &mut HashMap<String, Option<User>> {
        &mut self.users
    }
    fn policies(&mut self) -> &mut HashMap<Resource, Option<Arc<CompiledPolicy>>> {
        &mut self.policies
    }
    fn memberships(&mut self) -> &mut HashMap<Membership, Option<MembershipRow>> {
        &mut self.memberships
    }
    fn quotas(&mut self) -> &mut HashMap<Project, Option<Arc<Overrides>>> {
        &mut self.quotas
    }
    fn accounts(&mut self) -> &mut HashMap<ServiceAccount, Option<Account>> {
        &mut self.accounts
    }
    fn sign_ins(&mut self) -> &mut HashMap<String, Option<Arc<SignIn>>> {
        &mut self.sign_ins
    }
    fn providers(&mut self) -> &mut HashMap<Project, Option<Providers>> {
        &mut self.providers
    }
}

impl Remembered for User {
    type Key = String;
    fn of(state: &mut impl Kinds) -> &mut HashMap<String, Option<Self>> {
        state.users()
    }
}

impl Remembered for Arc<CompiledPolicy> {
    type Key = Resource;
    fn of(state: &mut impl Kinds) -> &mut HashMap<Resource, Option<Self>> {
        state.policies()
    }
}

impl Remembered for MembershipRow {
    type Key = Membership;
    fn of(state: &mut impl Kinds) -> &mut HashMap<Membership, Option<Self>> {
        state.memberships()
    }
}

impl Remembered for Arc<Overrides> {
    type Key = Project;
    fn of(state: &mut impl Kinds) -> &mut HashMap<Project, Option<Self>> {
        state.quotas()
    }
}

impl Remembered for Account {
    type Key = ServiceAccount;
    fn of(state: &mut impl Kinds) -> &mut HashMap<ServiceAccount, Option<Self>> {
        state.accounts()
    }
}

impl Remembered for Arc<SignIn> {
    // The groups that a token was mapped to are in it.
    const MOST: usize = 4_000;
    type Key = String;
    fn of(state: &mut impl Kinds) -> &mut HashMap<String, Option<Self>> {
        state.sign_ins()
    }
}

impl Remembered for Providers {
    // A project may have many, with the keys of their issuers.
    const MOST: usize = 500;
    type Key = Project;
    fn of(state: &mut impl Kinds) -> &mut HashMap<Project, Option<Self>> {
        state.providers()
    }
}

impl Cache {
    /// With `limit`, nothing is believed before the first [`Cache::believe`].
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            state: Mutex::default(),
            limit,
            believed: Mutex::default(),
        }
    }

    /// At this time nothing that is remembered was stale.
    pub(super) fn believe(&self, at: Instant) {
        *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Whether what is remembered may be used.
    pub(super) fn is_believed(&self) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let believed = *self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        believed.is_some_and(|at| at.elapsed() <= limit)
    }

    /// What is remembered, or the number of writes so far to hand to [`Cache::remember`].
    pub(super) fn recall<T: Remembered + Clone>(&self, key: &T::Key) -> Result<Option<T>, u64> {
        let believed = self.is_believed();
        let mut state = self.lock();
        let writes = state.writes;
        let kind = T::of(&mut *state);
        kind.get(key).filter(|_| believed).cloned().ok_or(writes)
    }

    pub(super) fn remember<T: Remembered>(&self, key: T::Key, value: Option<T>, writes: u64) {
        let mut state = self.lock();
        if state.writes == writes {
            let kind = T::of(&mut *state);
            if kind.len() >= T::MOST {
                kind.clear();
            }
            kind.insert(key, value);
        }
    }

    /// What a write may have made another is asked for anew.
    pub(super) fn forget(&self, concern: &Concern) {
        let mut state = self.lock();
        state.writes += 1;
        match concern {
            Concern::Tokens => {}
            Concern::Sessions => {
                let doubted = std::mem::take(&mut state.memberships);
                if state.doubted.len() + doubted.len() > MembershipRow::MOST {
                    state.doubted.clear();
                }
                state.doubted.extend(doubted);
            }
            Concern::User(name) => {
                state.users.remove(name);
                let principal = Principal::User(name.clone());
                state.sign_ins.retain(|_, sign_in| {
                    let of = |sign_in: &Arc<SignIn>| sign_in.standing.base.principal() != principal;
                    sign_in.as_ref().is_some_and(of)
                });
            }
            Concern::Family(family) => {
                state.sign_ins.retain(|_, sign_in| {
                    sign_in
                        .as_ref()
                        .is_some_and(|sign_in| sign_in.family != *family)
                });
            }
            Concern::Project(project) => {
                state.policies.retain(|key, _| key.project() != project);
                state.memberships.retain(|key, _| key.project != *project);
                state.doubted.retain(|key, _| key.project != *project);
                state.accounts.retain(|key, _| key.project != *project);
                state.quotas.remove(project);
                state.providers.remove(project);
            }
            Concern::Everything => {
                *state = State {
                    writes: state.writes,
                    ..State::default()
                };
            }
        }
    }

    /// A membership as it was before its sessions changed: what is decided on it is the same.
    pub(super) fn doubted(&self, membership: &Membership) -> Option<Option<MembershipRow>> {
        let believed = self.is_believed();
        self.lock()
            .doubted
            .get(membership)
            .filter(|_| believed)
            .cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
