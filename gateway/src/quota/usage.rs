//! What is in use: the counts and buckets of every project and of its principals.
//!
//! Holders are remembered while they hold something, or a new bucket would be fuller than theirs. So their number
//! follows what happens now and doesn't grow with everybody who ever came.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use governor::clock::Clock as _;
use tokio::sync::Notify;
use towline_proto::names::Project;

use super::{
    limits::{Exhausted, Limits, Quota},
    rate::{self, Allowed, Elapsed, Rate},
};
use crate::iam::Principal;

/// How long a holder who uses nothing stays in lists.
pub(super) const REMEMBERED: Duration = Duration::from_secs(120);

/// Holders beyond which those are forgotten too who used something a moment ago, if nothing is lost by it.
const MANY: usize = 50_000;

/// The longest wait that is worth telling a client of: client-go makes up to ten of them before it shows why.
const WORTH_WAITING: Duration = Duration::from_secs(2);

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// One request.
    Request,
    /// One request, and a place among the watches for as long as it runs.
    Watch,
    /// One request, and a place among the streams for as long as it runs.
    Stream,
}

impl Ask {
    pub(super) const fn place(self) -> Option<Quota> {
        match self {
            Self::Request => None,
            Self::Watch => Some(Quota::Watches),
            Self::Stream => Some(Quota::ActiveStreams),
        }
    }
}

/// What a holder uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InUse {
    /// Requests in the last minute.
    pub requests: u32,
    /// Upgraded streams now.
    pub streams: u32,
    /// Watches, followed logs and proxied requests now.
    pub watches: u32,
}

impl InUse {
    /// How much of one quota.
    pub const fn get(&self, quota: Quota) -> u32 {
        match quota {
            Quota::RequestsPerMinute => self.requests,
            Quota::ActiveStreams => self.streams,
            Quota::Watches => self.watches,
        }
    }

    /// Adds what is used elsewhere.
    pub(super) const fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.streams = self.streams.saturating_add(other.streams);
        self.watches = self.watches.saturating_add(other.watches);
    }

    /// To find who uses most.
    pub(super) fn weight(&self) -> u64 {
        u64::from(self.requests) + u64::from(self.streams) + u64::from(self.watches)
    }
}

/// Everybody's, at this replica.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    clock: Elapsed,
    state: Arc<Mutex<State>>,
    /// Where it is told what was given back, for other replicas.
    given_back: Option<Arc<GivenBack>>,
}

/// What was given back and the other replicas don't know of.
#[derive(Debug, Default)]
pub(super) struct GivenBack {
    holders: Mutex<HashMap<Project, HashSet<(Principal, Quota)>>>,
    any: Notify,
}

impl GivenBack {
    pub(super) fn add(&self, project: &Project, principal: &Principal, quota: Quota) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let of_project = holders.entry(project.clone()).or_default();
        of_project.insert((principal.clone(), quota));
        drop(holders);
        self.any.notify_one();
    }

    /// Waits until there is something, and takes all of it.
    pub(super) async fn take(&self) -> HashMap<Project, HashSet<(Principal, Quota)>> {
        self.any.notified().await;
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *holders)
    }
}

#[derive(Debug, Default)]
struct State {
    projects: HashMap<Project, OfProject>,
    /// Principals in all projects.
    principals: usize,
    /// At how many of them those who are idle are looked for.
    sweep_at: usize,
    /// Replicas that serve requests besides this one.
    others: u32,
}

#[derive(Debug, Default)]
struct OfProject {
    all: Holder,
    principals: HashMap<Principal, Holder>,
}

#[derive(Debug, Default)]
struct Holder {
    streams: u32,
    watches: u32,
    requests: Option<Rate>,
    /// Upgrades whose request was given back: as many as requests there may be.
    refused_upgrades: Option<Rate>,
    last: Duration,
    /// Requests since the last look, and in a minute at that pace.
    since_look: u32,
    pace: u32,
    /// In a minute at the pace of the other replicas.
    elsewhere: u32,
}

/// What a holder's requests come to in a minute at this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) project: Project,
    /// `None`: the project's own.
    pub(super) principal: Option<Principal>,
    pub(super) per_minute: u32,
}

/// What one request took; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Taken {
    usage: Usage,
    /// What is counted for as long as the request runs.
    place: Option<Quota>,
    given_back: AtomicBool,
    project: Project,
    principal: Principal,
    limits: [Option<u32>; 2],
}

impl Usage {
    /// The same, with other replicas to be told.
    pub(super) fn shared(given_back: Arc<GivenBack>) -> Self {
        Self {
            given_back: Some(given_back),
            ..Self::default()
        }
    }

    /// Takes from the principal's budget, then from the project's; all or nothing.
    pub(super) fn take(
        &self,
        ask: Ask,
        (project, all_limits): (&Project, &Limits),
        (principal, own_limits): (&Principal, &Limits),
    ) -> Result<Taken, Exhausted> {
        let now = self.clock.now();
        let mut state = self.lock();
        state.make_room(now);
        let State {
            projects,
            principals,
            others,
            ..
        } = &mut *state;
        let others = *others;
        // Looked up before it is made: keys are cloned for newcomers alone.
        if !projects.contains_key(project) {
            projects.insert(project.clone(), OfProject::default());
        }
        let of_project = projects.entry(project.clone()).or_default();
        let own = of_project
            .principals
            .entry(principal.clone())
            .or_insert_with(|| {
                *principals += 1;
                Holder::default()
            });
        let all = &mut of_project.all;
        (own.last, all.last) = (now, now);

        own.check_place(ask, own_limits, || principal.to_string())?;
        let before = own.take_request(own_limits, others, self.clock, || principal.to_string())?;
        let of_all = || format!("project:{project}");
        if let Err(exhausted) = all.check_place(ask, all_limits, of_all).and_then(|()| {
            all.take_request(all_limits, others, self.clock, of_all)
                .map(drop)
        }) {
            if let (Some(requests), Some(before)) = (&mut own.requests, before) {
                requests.undo(before);
            }
            return Err(exhausted);
        }
        for holder in [own, all] {
            if let Some(place) = ask.place().and_then(|quota| holder.place(quota)) {
                *place += 1;
            }
        }
        drop(state);
        Ok(Taken {
            usage: self.clone(),
            place: ask.place(),
            given_back: AtomicBool::new(false),
            project: project.clone(),
            principal: principal.clone(),
            limits: [own_limits, all_limits].map(|limits| limits.get(Quota::RequestsPerMinute)),
        })
    }

    /// A project's own use, and that of each principal in it.
    pub(super) fn of(&self, project: &Project) -> (InUse, Vec<(Principal, InUse)>) {
        let mut state = self.lock();
        let Some(of_project) = state.projects.get_mut(project) else {
            return Default::default();
        };
        let mut principals: Vec<(Principal, InUse)> = of_project
            .principals
            .iter_mut()
            .map(|(principal, holder)| (principal.clone(), holder.in_use()))
            .collect();
        principals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        (of_project.all.in_use(), principals)
    }

    /// One principal's.
    pub(super) fn of_principal(&self, project: &Project, principal: &Principal) -> InUse {
        self.lock()
            .holder(project, principal)
            .map(Holder::in_use)
            .unwrap_or_default()
    }

    /// How much of a quota a principal and its project use at this replica.
    pub(super) fn counts(
        &self,
        project: &Project,
        principal: &Principal,
        quota: Quota,
    ) -> [u32; 2] {
        let mut state = self.lock();
        let Some(of_project) = state.projects.get_mut(project) else {
            return [0; 2];
        };
        let own = of_project.principals.get_mut(principal);
        let own = own.map(Holder::in_use).unwrap_or_default();
        [own, of_project.all.in_use()].map(|in_use| in_use.get(quota))
    }

    /// Everybody who holds a place at this replica, for other replicas to be told of again.
    pub(super) fn say_all(&self) {
        let Some(given_back) = &self.given_back else {
            return;
        };
        let state = self.lock();
        for (project, of_project) in &state.projects {
            for (principal, holder) in &of_project.principals {
                if holder.streams > 0 {
                    given_back.add(project, principal, Quota::ActiveStreams);
                }
                if holder.watches > 0 {
                    given_back.add(project, principal, Quota::Watches);
                }
            }
        }
    }

    /// Looks at everybody's pace since the last time, one second ago: those who make at least `least` requests in a
    /// minute.
    pub(super) fn look(&self, others: u32, least: u32) -> Vec<Pace> {
        let mut state = self.lock();
        state.others = others;
        let mut paces = Vec::new();
        for (project, of_project) in &mut state.projects {
            let OfProject { all, principals } = of_project;
            let holders = principals
                .iter_mut()
                .map(|(principal, holder)| (Some(principal), holder));
            for (principal, holder) in holders.chain([(None, all)]) {
                let now = std::mem::take(&mut holder.since_look).saturating_mul(60);
                // Rather too much than too little: it goes up at once, and down by and by.
                holder.pace = now.max(now / 2 + holder.pace / 2);
                if holder.pace >= least {
                    paces.push(Pace {
                        project: project.clone(),
                        principal: principal.cloned(),
                        per_minute: holder.pace,
                    });
                }
            }
        }
        paces
    }

    /// Takes what others' paces are; of whom nothing is said, it is none.
    pub(super) fn elsewhere(&self, paces: &[Pace]) {
        let mut state = self.lock();
        for of_project in state.projects.values_mut() {
            of_project.all.elsewhere = 0;
            for holder in of_project.principals.values_mut() {
                holder.elsewhere = 0;
            }
        }
        for pace in paces {
            let Some(of_project) = state.projects.get_mut(&pace.project) else {
                continue;
            };
            let holder = match &pace.principal {
                Some(principal) => of_project.principals.get_mut(principal),
                None => Some(&mut of_project.all),
            };
            if let Some(holder) = holder {
                holder.elsewhere = holder.elsewhere.saturating_add(pace.per_minute);
            }
        }
    }

    pub(super) fn holders(&self) -> usize {
        let state = self.lock();
        state.projects.len() + state.principals
    }

    pub(super) fn forget_idle(&self) {
        let now = self.clock.now();
        self.lock().sweep(now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holder(&mut self, project: &Project, principal: &Principal) -> Option<&mut Holder> {
        self.projects
            .get_mut(project)?
            .principals
            .get_mut(principal)
    }

    /// Looks for the idle whenever there are twice as many as were left the last time, which costs each newcomer
    /// little.
    fn make_room(&mut self, now: Duration) {
        if self.principals >= self.sweep_at {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Duration) {
        let many = self.principals > MANY;
        let keep = |holder: &mut Holder| {
            holder.streams > 0
                || holder.watches > 0
                || [&holder.requests, &holder.refused_upgrades]
                    .into_iter()
                    .flatten()
                    .any(|rate| !rate.is_full())
                || (!many && now.saturating_sub(holder.last) < REMEMBERED)
        };
        self.projects.retain(|_, of_project| {
            of_project.principals.retain(|_, holder| keep(holder));
            let left = of_project.principals.len();
            of_project.principals.shrink_to(left * 2);
            left > 0 || keep(&mut of_project.all)
        });
        self.projects.shrink_to(self.projects.len() * 2);
        self.principals = self
            .projects
            .values()
            .map(|of_project| of_project.principals.len())
            .sum();
        self.sweep_at = (self.principals * 2).max(1_000);
    }
}

impl Holder {
    fn check_place(
        &mut self,
        ask: Ask,
        limits: &Limits,
        holder: impl FnOnce() -> String,
    ) -> Result<(), Exhausted> {
        let Some(quota) = ask.place() else {
            return Ok(());
        };
        let used = self.place(quota).map_or(0, |place| *place);
        match limits.get(quota) {
            Some(limit) if used >= limit => Err(Exhausted::AtATime {
                quota: quota.name(),
                used,
                limit,
                holder: holder(),
            }),
            _ => Ok(()),
        }
    }

    fn take_request(
        &mut self,
        limits: &Limits,
        others: u32,
        clock: Elapsed,
        holder: impl FnOnce() -> String,
    ) -> Result<Option<rate::Before>, Exhausted> {
        let Some(limit) = limits.get(Quota::RequestsPerMinute) else {
            return Ok(None);
        };
        let allowed = self.share(limit, others);
        self.requests
            .get_or_insert_with(|| Rate::new(allowed, clock))
            .take(allowed)
            .map(|before| {
                self.since_look = self.since_look.saturating_add(1);
                Some(before)
            })
            .map_err(|wait| Exhausted::Requests {
                limit,
                burst: rate::burst(limit).get(),
                holder: holder(),
                retry_after: (wait <= WORTH_WAITING)
                    .then(|| if wait <= WORTH_WAITING / 2 { 1 } else { 2 }),
            })
    }

    /// What is left of a limit by the other replicas, and at least this one's equal part; of those at once, its part.
    fn share(&self, limit: u32, others: u32) -> Allowed {
        let replicas = others.saturating_add(1);
        let left = limit.saturating_sub(self.elsewhere);
        Allowed {
            limit: left.max(limit / replicas).max(1),
            burst: NonZeroU32::new(rate::burst(limit).get() / replicas).unwrap_or(NonZeroU32::MIN),
        }
    }

    const fn place(&mut self, quota: Quota) -> Option<&mut u32> {
        match quota {
            Quota::RequestsPerMinute => None,
            Quota::ActiveStreams => Some(&mut self.streams),
            Quota::Watches => Some(&mut self.watches),
        }
    }

    fn in_use(&mut self) -> InUse {
        InUse {
            requests: self.requests.as_mut().map_or(0, Rate::in_last_minute),
            streams: self.streams,
            watches: self.watches,
        }
    }
}

impl Taken {
    /// Gives everything back, the request too unless that was done for as many as there may be: who only makes
    /// upgrades that are refused is limited all the same.
    pub(super) fn refused_upgrade(&self) {
        // Before the caller hears of it: the next try finds room.
        self.give_back_place();
        let clock = self.usage.clock;
        let mut state = self.usage.lock();
        let Some(of_project) = state.projects.get_mut(&self.project) else {
            return;
        };
        let [own_limit, all_limit] = self.limits;
        let Some(own) = of_project.principals.get_mut(&self.principal) else {
            return;
        };
        if let Some(limit) = own_limit {
            let refused = own
                .refused_upgrades
                .get_or_insert_with(|| Rate::new(limit, clock));
            if refused.take(limit).is_err() {
                return;
            }
        }
        let given = [
            (own_limit, &mut own.requests),
            (all_limit, &mut of_project.all.requests),
        ];
        for (limit, requests) in given {
            if let (Some(_), Some(requests)) = (limit, requests) {
                requests.give_back();
            }
        }
    }

    fn give_back_place(&self) {
        let Some(quota) = self.place else {
            return;
        };
        if self.given_back.swap(true, Ordering::Relaxed) {
            return;
        }
        let now = self.usage.clock.now();
        let mut state = self.usage.lock();
        // Both are there: a holder of something is never forgotten.
        let Some(of_project) = state.projects.get_mut(&self.project) else {
            return;
        };
        let own = of_project.principals.get_mut(&self.principal);
        for holder in own.into_iter().chain([&mut of_project.all]) {
            holder.last = now;
            if let Some(place) = holder.place(quota) {
                *place = place.saturating_sub(1);
            }
        }
        drop(state);
        if let Some(given_back) = &self.usage.given_back {
            given_back.add(&self.project, &self.principal, quota);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.give_back_place();
    }
}

#[cfg(test)]
mod tests;
