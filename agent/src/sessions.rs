//! Keeps sessions up: one where the gateway has one replica, and two to different ones where it has several.
//!
//! Replicas share one address, and what stands before them picks one for each connection. So a hello names the replicas
//! that it isn't for, those refuse it, and the agent dials again: a few times close together, then now and then.
//! A replica that is going says so. The agent opens a session elsewhere first and says that it has; the one that it had
//! goes on with its streams until the gateway ends it.
//!
//! Nothing that the network does ends this: it dials forever, and never slower than every half minute.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use towline_proto::{
    handshake::{Facts, Opened},
    registration::Registration,
    session::Session,
};

use crate::{
    backoff::{Backoff, jittered},
    cluster::Cluster,
    enrol,
    facts::KnownFacts,
    guard::{AllowedSystem, end_to_end::EndToEnd},
    open::{OpenError, Opener},
    role::Role,
    serve::Reviews,
    state::State,
    upstream::{Upstream, chain},
};
use seats::Seats;
use served::Ended;

mod seats;
mod served;

/// A session that ended sooner shows that dialling at once does no good.
const SHORT: Duration = Duration::from_secs(1);

/// How often a replica that is already served is met in a row before dialling again can wait.
const CLOSE_TRIES: u32 = 8;

/// How long to wait between those, at most: each is a handshake that somebody pays for.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// How long to wait after them, at most.
const NOW_AND_THEN: Duration = Duration::from_secs(60);

/// What the sessions of an agent share.
pub struct Parts {
    /// The way to the gateway.
    pub opener: Opener,
    /// Whose agent it is, and what may have to be redeemed once more.
    pub registration: Registration,
    /// Asked for what a hello tells.
    pub cluster: Cluster,
    /// Whom the agent may name.
    pub role: Arc<Role>,
    /// Whom callers may be instead.
    pub reviews: Arc<Reviews>,
    /// The API server.
    pub upstream: Arc<Upstream>,
    /// Names that begin with `system:` and may be impersonated.
    pub allowed: Arc<AllowedSystem>,
    /// Where callers have to prove who they are.
    pub end_to_end: Option<Arc<EndToEnd>>,
    /// How long running streams may go on once the agent is told to end.
    pub drain_limit: Duration,
    /// What can be seen of it all.
    pub state: Arc<State>,
    /// A session's phase has changed, or its gateway has said something.
    pub news: Notify,
}

/// A session that was just opened, and what was said of the cluster.
type Begun = (Opened, Session, Facts);

/// Keeps sessions up until `shutdown`, and then until their streams are done or the drain limit is reached.
/// `may_redeem`: a gateway that doesn't know the key is given the token once more.
pub async fn keep(parts: Arc<Parts>, mut may_redeem: bool, shutdown: CancellationToken) {
    let facts = Arc::new(Mutex::new(KnownFacts::new()));
    let mut seats = Seats::default();
    let mut pace = Pace::new();
    let (mut running, mut dialling) = (JoinSet::new(), JoinSet::new());
    loop {
        if seats.look(&parts.state) {
            pace.begin_anew();
        }
        let wants_another = seats.wants_another();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = running.join_next_with_id() => {
                let (id, ended) = ended.unwrap_or_else(|error| {
                    tracing::error!(%error, "a session's task failed");
                    (error.id(), Ended::default())
                });
                if seats.remove(id) {
                    pace.ended(ended);
                }
            }
            Some(dialled) = dialling.join_next() => {
                let (outcome, tried): (Result<Begun, OpenError>, Duration) = match dialled {
                    Ok(dialled) => dialled,
                    Err(error) => {
                        tracing::error!(%error, "the task that dials failed");
                        pace.failed(Duration::ZERO);
                        continue;
                    }
                };
                match outcome {
                    Ok((opened, session, facts)) => {
                        pace.opened();
                        let (replica, replicas) = (opened.replica.clone(), opened.replicas);
                        let handle = session.handle();
                        let (parts, shutdown) = (Arc::clone(&parts), shutdown.clone());
                        let task = running.spawn(async move {
                            served::serve(&parts, opened, session, &facts, &shutdown).await
                        });
                        seats.add(task.id(), handle, replica, replicas);
                    }
                    Err(error) if error.elsewhere() && seats.any_staying() => {
                        tracing::debug!(error = %chain(&error), "no second session yet");
                        pace.met_the_same();
                    }
                    Err(error) => {
                        if error.refused() && may_redeem {
                            // The key was stored, and the agent died before the token was redeemed; or the
                            // membership was made anew.
                            tracing::info!(error = %chain(&error), "the gateway does not take the key, redeeming the token");
                            may_redeem = tokio::select! {
                                () = shutdown.cancelled() => break,
                                again = redeem_again(&parts) => again,
                            };
                        } else {
                            log_failure(&error);
                        }
                        pace.failed(tried);
                    }
                }
            }
            () = parts.news.notified() => {}
            () = sleep_until(pace.due), if wants_another && dialling.is_empty() => {
                let (parts, facts, avoid) = (Arc::clone(&parts), Arc::clone(&facts), seats.replicas());
                dialling.spawn(async move {
                    let began = Instant::now();
                    let facts = facts.lock().await.fresh(&parts.cluster).await.clone();
                    let opened = parts.opener.open(&facts, &avoid).await;
                    let begun = opened.map(|(opened, session)| (opened, session, facts));
                    (begun, began.elapsed())
                });
            }
            () = sleep_until(seats.next_look()) => {}
        }
    }
    drop(dialling);
    while running.join_next().await.is_some() {}
}

/// Whether it makes sense to redeem once more.
async fn redeem_again(parts: &Parts) -> bool {
    let opener = &parts.opener;
    match enrol::redeem(opener.dialer(), &parts.registration, opener.key()).await {
        Ok(()) => {
            tracing::info!("the gateway knows this agent's key now");
            true
        }
        Err(error) => {
            tracing::error!(error = %chain(&error), "the gateway does not know this agent's key");
            error.is_network()
        }
    }
}

/// When to dial next.
struct Pace {
    backoff: Backoff,
    /// How often a replica was met that is served already.
    met: u32,
    due: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            backoff: Backoff::default(),
            met: 0,
            due: Instant::now(),
        }
    }

    /// There may be somebody else to meet.
    fn begin_anew(&mut self) {
        *self = Self::new();
    }

    fn opened(&mut self) {
        self.met = 0;
        self.due = Instant::now();
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { reached, lived } = ended;
        self.backoff.ended(lived);
        self.met = 0;
        self.due = Instant::now();
        // One that can't go on with a session is there, and has been waited for already.
        if !reached || lived <= SHORT {
            self.due += self.backoff.wait(Duration::ZERO);
        }
    }

    fn failed(&mut self, tried: Duration) {
        self.due = Instant::now() + self.backoff.wait(tried);
    }

    fn met_the_same(&mut self) {
        self.met = self.met.saturating_add(1);
        let wait = if self.met < CLOSE_TRIES {
            BETWEEN_TRIES
        } else {
            NOW_AND_THEN
        };
        self.due = Instant::now() + jittered(wait);
    }
}

fn log_failure(error: &OpenError) {
    if error.refused() {
        tracing::error!(error = %chain(error), "no session");
    } else {
        tracing::warn!(error = %chain(error), "no session");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_always_leads_to_the_same_replica_is_asked_now_and_then() {
        let mut pace = Pace::new();
        assert_eq!(pace.due, Instant::now());
        let mut wait = || {
            pace.met_the_same();
            pace.due - Instant::now()
        };
        for _ in 1..CLOSE_TRIES {
            assert!(wait() <= BETWEEN_TRIES);
        }
        for _ in 0..3 {
            assert!((NOW_AND_THEN / 2..=NOW_AND_THEN).contains(&wait()));
        }
        // Until there is somebody else to meet.
        pace.begin_anew();
        pace.met_the_same();
        assert!(pace.due - Instant::now() <= BETWEEN_TRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_end_at_once_are_not_dialled_at_once() {
        let mut pace = Pace::new();
        let ended = |reached, lived| Ended {
            reached,
            lived: Duration::from_millis(lived),
        };
        pace.ended(ended(true, 2_000));
        assert_eq!(pace.due, Instant::now());
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            pace.opened();
            pace.ended(ended(true, 10));
            last = pace.due - Instant::now();
        }
        assert!(last >= Duration::from_secs(1), "{last:?}");
    }
}
