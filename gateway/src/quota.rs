//! How much: from a permit to a lease.
//!
//! Threat: one caller, or one project, takes what all have to share, and others stand still.
//! Decision: every request takes from two budgets, its principal's and its project's. The caller's own is tried
//! first, and a refusal takes nothing from either. A lease gives back what it took when it is dropped, so there is no
//! way to end a stream that leaks one.
//! Consequence: whoever is over their limit is refused with the quota's name; nobody else notices.
//!
//! Budgets are of one project: what a principal does in another doesn't count here, and its owner doesn't see it.

mod limits;
mod rate;
mod shared;
mod usage;

use crate::{
    authz::Permit,
    error::Refused,
    iam::Principal,
    store::{Store, StoreError},
    target::Kind,
};
use towline_proto::names::Project;

pub use limits::{Defaults, Exhausted, InvalidQuota, MOST_LIMIT, Overrides, Quota, Whose};
use shared::Shared;
pub use usage::InUse;
use usage::{Ask, Taken, Usage};

/// How many of those who use something are listed: the ones that use most.
const MOST_LISTED: usize = 1_000;

/// What is in use, and how much may be.
#[derive(Debug, Clone)]
pub struct Quotas {
    defaults: Defaults,
    store: Store,
    usage: Usage,
    /// Where there may be other replicas.
    shared: Option<Shared>,
}

/// A permit with what it may use. Made by [`Quotas::lease`] alone.
#[derive(Debug)]
pub struct Lease {
    permit: Permit,
    taken: Taken,
}

impl Lease {
    /// The permit that it was given on.
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The request was an upgrade and the API server refused it: kubectl tries the same again over SPDY, so the first
    /// takes nothing.
    pub fn refused_upgrade(&self) {
        self.taken.refused_upgrade();
    }
}

/// One quota of one holder, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which.
    pub quota: Quota,
    /// Whose.
    pub whose: Whose,
    /// How much there may be; `None`: no limit.
    pub limit: Option<u32>,
    /// How much is in use; `None` for what all principals get, which nobody uses.
    pub in_use: Option<u32>,
    /// Whether the project set it; otherwise it follows from a default.
    pub set: bool,
}

impl Quotas {
    /// Nothing in use at this replica.
    pub fn new(defaults: Defaults, store: Store, replica: &str) -> Self {
        let shared = store
            .is_shared()
            .then(|| Shared::new(store.clone(), replica.to_owned()));
        let usage = shared.as_ref().map(|shared| shared.usage().clone());
        Self {
            defaults,
            store,
            usage: usage.unwrap_or_default(),
            shared,
        }
    }

    /// Takes what the permit's request needs.
    ///
    /// # Errors
    /// 429 with the quota's name and its use.
    pub async fn lease(&self, permit: Permit) -> Result<Lease, Refused> {
        let project = &permit.membership().project;
        let principal = permit.sender();
        let overrides = self.store.quotas(project).await?;
        let ask = match permit.target().kind {
            Kind::Short => Ask::Request,
            Kind::LongRunning { .. } => Ask::Watch,
            Kind::Upgrade { .. } => Ask::Stream,
        };
        let own = overrides.of_principal(&self.defaults, principal);
        let all = overrides.of_project(&self.defaults);
        let taken = self.usage.take(ask, (project, &all), (principal, &own))?;
        if let (Some(shared), Some(quota)) = (&self.shared, ask.place()) {
            shared
                .claim(quota, (project, &all), (principal, &own))
                .await?;
        }
        Ok(Lease { permit, taken })
    }

    /// A project's quotas: its own, what each principal gets, what was set for some, and what is in use by whom.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn rows(&self, project: &Project) -> Result<Vec<Row>, StoreError> {
        let overrides = self.store.quotas(project).await?;
        let (mut all, mut principals) = self.usage.of(project);
        for (principal, in_use) in self.elsewhere(project).await? {
            let Some(principal) = principal else {
                all.add(&in_use);
                continue;
            };
            match principals.iter_mut().find(|(user, _)| *user == principal) {
                Some((_, here)) => here.add(&in_use),
                None => principals.push((principal, in_use)),
            }
        }
        principals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if principals.len() > MOST_LISTED {
            principals.sort_by_key(|(_, in_use)| std::cmp::Reverse(in_use.weight()));
            principals.truncate(MOST_LISTED);
            principals.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        }
        for principal in overrides.principals() {
            if !principals.iter().any(|(user, _)| user == principal) {
                principals.push((principal.clone(), InUse::default()));
            }
        }
        let mut rows = self.rows_for(&overrides, &Whose::Project, Some(all));
        rows.extend(self.rows_for(&overrides, &Whose::EachPrincipal, None));
        for (principal, in_use) in principals {
            rows.extend(self.rows_for(&overrides, &Whose::Principal(principal), Some(in_use)));
        }
        Ok(rows)
    }

    /// One principal's quotas in a project.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn rows_of(
        &self,
        project: &Project,
        principal: &Principal,
    ) -> Result<Vec<Row>, StoreError> {
        let overrides = self.store.quotas(project).await?;
        let mut in_use = self.usage.of_principal(project, principal);
        for (whose, elsewhere) in self.elsewhere(project).await? {
            if whose.as_ref() == Some(principal) {
                in_use.add(&elsewhere);
            }
        }
        Ok(self.rows_for(
            &overrides,
            &Whose::Principal(principal.clone()),
            Some(in_use),
        ))
    }

    /// What is in use at the other replicas; `None`: by the project.
    async fn elsewhere(
        &self,
        project: &Project,
    ) -> Result<Vec<(Option<Principal>, InUse)>, StoreError> {
        match &self.shared {
            Some(shared) => shared.elsewhere(project).await,
            None => Ok(Vec::new()),
        }
    }

    fn rows_for(&self, overrides: &Overrides, whose: &Whose, in_use: Option<InUse>) -> Vec<Row> {
        let limits = match whose {
            Whose::Project => overrides.of_project(&self.defaults),
            Whose::EachPrincipal => overrides.of_each_principal(&self.defaults),
            Whose::Principal(principal) => overrides.of_principal(&self.defaults, principal),
        };
        let row = |quota| Row {
            quota,
            limit: limits.get(quota),
            in_use: in_use.map(|in_use| in_use.get(quota)),
            set: overrides.is_set(whose, quota),
            whose: whose.clone(),
        };
        Quota::ALL.map(row).into()
    }

    /// What a principal uses in a project now.
    pub fn in_use(&self, project: &Project, principal: &Principal) -> InUse {
        self.usage.of_principal(project, principal)
    }

    /// Principals and projects that are remembered because they used something lately.
    pub fn holders(&self) -> usize {
        self.usage.holders()
    }

    /// Everything that is in use here is told to the other replicas again.
    pub(crate) fn say_all(&self) {
        if let Some(shared) = &self.shared {
            shared.say_all();
        }
    }

    /// Tells the other replicas what is in use here, for as long as it is polled; `others` is how many there are.
    pub async fn share(self, others: impl Fn() -> usize) {
        if let Some(shared) = &self.shared {
            tokio::join!(shared.give_back(), shared.keep_pace(others));
        }
    }

    /// Forgets those who use nothing any more, for as long as it is polled.
    pub async fn forget_idle(self) {
        let mut tick = tokio::time::interval(usage::REMEMBERED);
        loop {
            tick.tick().await;
            self.usage.forget_idle();
        }
    }
}
