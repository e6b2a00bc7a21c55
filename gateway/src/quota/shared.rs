//! Quotas that hold across replicas.
//!
//! Streams and watches are counted exactly: before one runs, its place is noted in the database, in turn with all others
//! of the project. Requests cost nothing there: each replica tells every second how many a minute the busy ones make,
//! and takes what the others serve off what it allows, but for its equal part of the limit.
//!
//! While the database doesn't answer, each replica counts by itself.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use towline_proto::names::Project;

use super::{
    Exhausted, Quota,
    limits::Limits,
    usage::{GivenBack, InUse, Pace, Usage},
};
use crate::{
    error::Refused,
    iam::Principal,
    store::{Store, StoreError, UsageRow},
};

/// How long a stream waits to be counted.
const CLAIM: Duration = Duration::from_secs(5);

/// How long a stream waits for places that are just being given back at another replica, and how often it looks.
const GIVING_BACK: (u32, Duration) = (3, Duration::from_millis(100));

/// How long giving back waits before the next try.
const AGAIN: Duration = Duration::from_secs(1);

/// How often replicas tell each other how many requests they serve.
const LOOK: Duration = Duration::from_secs(1);

/// From how many requests in a minute on a holder is told of: less than every few seconds is no burden.
const BUSY: u32 = 20;

/// What this replica has in common with the others.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    store: Store,
    replica: String,
    usage: Usage,
    given_back: Arc<GivenBack>,
}

impl Shared {
    pub(super) fn new(store: Store, replica: String) -> Self {
        let given_back = Arc::new(GivenBack::default());
        Self {
            store,
            replica,
            usage: Usage::shared(Arc::clone(&given_back)),
            given_back,
        }
    }

    pub(super) const fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Has what was taken here counted with what was taken elsewhere.
    ///
    /// # Errors
    /// 429: there is no more; 503: it can't be counted, though the database is there.
    pub(super) async fn claim(
        &self,
        quota: Quota,
        (project, all): (&Project, &Limits),
        (principal, own): (&Principal, &Limits),
    ) -> Result<(), Refused> {
        let limits = [own.get(quota), all.get(quota)];
        let holder = principal.to_string();
        let mut looks = GIVING_BACK.0;
        loop {
            let counts = || self.usage.counts(project, principal, quota);
            let claim = self
                .store
                .claim(&self.replica, (project, &holder, quota), limits, counts);
            let taken = match timeout(CLAIM, claim).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(taken))) => taken,
                Ok(Err(error)) if !error.is_away() && self.store.away().is_none() => {
                    tracing::error!(%project, error = &error as &dyn std::error::Error, "a stream can't be counted");
                    return Err(Refused::Uncounted);
                }
                Err(_) if self.store.away().is_none() => {
                    tracing::error!(%project, "a stream was not counted within {CLAIM:?}");
                    return Err(Refused::Uncounted);
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!(%project, "a stream is counted at this replica alone: the database is away");
                    self.given_back.add(project, principal, quota);
                    return Ok(());
                }
            };
            if looks == 0 {
                let (limit, holder) = if taken.of_project {
                    (all.get(quota), format!("project:{project}"))
                } else {
                    (own.get(quota), holder)
                };
                return Err(Refused::Quota(Exhausted::AtATime {
                    quota: quota.name(),
                    used: u32::try_from(taken.used).unwrap_or(u32::MAX),
                    limit: limit.unwrap_or_default(),
                    holder,
                }));
            }
            looks -= 1;
            sleep(GIVING_BACK.1).await;
        }
    }

    /// What is in use of a project's quotas at the other replicas; `None`: by the project itself.
    pub(super) async fn elsewhere(
        &self,
        project: &Project,
    ) -> Result<Vec<(Option<Principal>, InUse)>, StoreError> {
        let rows = self.store.usage_elsewhere(&self.replica, project).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let whose = match row.holder {
                    Some(holder) => Some(holder.parse().ok()?),
                    None => None,
                };
                let used = u32::try_from(row.used).unwrap_or(u32::MAX);
                let mut in_use = InUse::default();
                match row.quota.parse().ok()? {
                    Quota::RequestsPerMinute => in_use.requests = used,
                    Quota::ActiveStreams => in_use.streams = used,
                    Quota::Watches => in_use.watches = used,
                }
                Some((whose, in_use))
            })
            .collect())
    }

    /// Everything that is taken here is told again: the database may have lost it.
    pub(super) fn say_all(&self) {
        self.usage.say_all();
    }

    /// Tells what was given back, for as long as it is polled.
    pub(super) async fn give_back(&self) {
        loop {
            for (project, holders) in self.given_back.take().await {
                let named: Vec<(String, Quota)> = holders
                    .iter()
                    .map(|(principal, quota)| (principal.to_string(), *quota))
                    .collect();
                let count = |holder: &str, quota| {
                    let principal = holders
                        .iter()
                        .find(|(known, _)| known.to_string() == holder);
                    principal.map_or([0; 2], |(principal, _)| {
                        self.usage.counts(&project, principal, quota)
                    })
                };
                let said = self.store.say_usage(&self.replica, &project, &named, count);
                if let Err(error) = said.await {
                    tracing::debug!(%project, error = &error as &dyn std::error::Error, "other replicas don't know yet what was given back");
                    for (principal, quota) in &holders {
                        self.given_back.add(&project, principal, *quota);
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Tells how many requests are served here and hears of the others', for as long as it is polled. `others` is how
    /// many there are.
    pub(super) async fn keep_pace(&self, others: impl Fn() -> usize) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = Vec::new();
        loop {
            tick.tick().await;
            let others = u32::try_from(others()).unwrap_or(u32::MAX);
            let paces: Vec<UsageRow> = self.usage.look(others, BUSY).iter().map(row).collect();
            if let Err(error) = self.exchange(&paces, &mut said).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "not known how many requests other replicas serve"
                );
            }
        }
    }

    async fn exchange(
        &self,
        paces: &[UsageRow],
        said: &mut Vec<UsageRow>,
    ) -> Result<(), StoreError> {
        if paces != said.as_slice() {
            self.store.say_paces(&self.replica, paces).await?;
            *said = paces.to_vec();
        }
        let elsewhere = self.store.paces_elsewhere(&self.replica).await?;
        let elsewhere: Vec<Pace> = elsewhere.iter().filter_map(pace).collect();
        self.usage.elsewhere(&elsewhere);
        Ok(())
    }
}

fn row(pace: &Pace) -> UsageRow {
    UsageRow {
        project: pace.project.to_string(),
        holder: pace.principal.as_ref().map(ToString::to_string),
        quota: Quota::RequestsPerMinute.name().to_owned(),
        used: u64::from(pace.per_minute),
    }
}

/// What another replica says; a principal that can't be read is none of ours.
fn pace(row: &UsageRow) -> Option<Pace> {
    Some(Pace {
        project: row.project.parse().ok()?,
        principal: match &row.holder {
            Some(holder) => Some(holder.parse().ok()?),
            None => None,
        },
        per_minute: u32::try_from(row.used).unwrap_or(u32::MAX),
    })
}
