//! One session, from its first byte to its last: its requests, and its connections.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::{
    handshake::{Facts, Opened, ResumptionKey},
    session::{Handle, Phase, Session},
    tunnel,
};

use super::{Parts, log_failure};
use crate::{
    backoff::Backoff,
    clock::GatewayClock,
    guard::Guard,
    open::OpenError,
    serve::{self, Shared},
    state::Counted,
    upstream::chain,
};

/// What streams that were cut at the drain limit get to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    /// A gateway was reached that can't go on with it.
    pub(super) reached: bool,
    /// How long it lived.
    pub(super) lived: Duration,
}

/// Serves one session to its end, over one connection after the other.
pub(super) async fn serve(
    parts: &Parts,
    opened: Opened,
    session: Session,
    facts: &Facts,
    shutdown: &CancellationToken,
) -> Ended {
    let began = Instant::now();
    let handle = session.handle();
    let id = handle.id();
    let (key, grace) = (Arc::clone(&opened.resumption), opened.grace);
    let replica = opened.replica.clone();
    let over = CancellationToken::new();
    let _ends_with_the_session = over.clone().drop_guard();
    let shared = Arc::new(Shared {
        guard: Guard::new(
            opened,
            parts.registration.membership.clone(),
            Arc::clone(&parts.allowed),
            parts.end_to_end.clone(),
        ),
        upstream: Arc::clone(&parts.upstream),
        role: Arc::clone(&parts.role),
        reviews: Arc::clone(&parts.reviews),
        streams: Arc::clone(&parts.state.streams),
        joins: TaskTracker::new(),
        over: over.clone(),
    });
    let of_service = Arc::clone(&shared);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&of_service);
        async move { Ok::<_, Infallible>(serve::request(&shared, request).await) }
    });
    let served = async {
        let connection = tunnel::server().serve_connection(TokioIo::new(session), service);
        // Dropped at the end of this, which ends the session.
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                tracing::info!(session = id, limit = ?parts.drain_limit, "draining");
                connection.as_mut().graceful_shutdown();
                if let Ok(ended) = timeout(parts.drain_limit, connection.as_mut()).await {
                    ended
                } else {
                    tracing::warn!(session = id, streams = parts.state.streams(), "drain limit reached, cutting streams");
                    over.cancel();
                    timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
                }
            }
        }
    };
    let session = Kept {
        handle: &handle,
        replica: &replica,
        key: &key,
        grace,
        facts,
        clock: shared.guard.clock(),
    };
    let kept = keep(parts, session, shutdown);
    let (ended, reached, ()) = tokio::join!(served, kept, tell_news(parts, &handle));
    match ended {
        Ok(()) => tracing::info!(session = id, "session ended"),
        // A gateway that was told so may hang up first.
        Err(_) if shutdown.is_cancelled() => tracing::info!(session = id, "session ended"),
        Err(error) => tracing::warn!(session = id, error = %chain(&error), "session lost"),
    }
    Ended {
        reached,
        lived: began.elapsed(),
    }
}

/// Gives a session another connection whenever it has lost one, until it is over; whether it is so because a
/// gateway was reached that can't go on with it.
async fn keep(parts: &Parts, kept: Kept<'_>, shutdown: &CancellationToken) -> bool {
    let handle = kept.handle;
    let session = handle.id();
    let (mut phase, mut over) = (handle.phase(), handle.phase());
    let mut backoff = Backoff::default();
    let mut since = Instant::now();
    loop {
        let counted = Counted::new(&parts.state.sessions);
        let ended = |now: &Phase| matches!(now, Phase::Down | Phase::Over);
        let Ok(Phase::Down) = phase.wait_for(ended).await.map(|now| *now) else {
            return false;
        };
        drop(counted);
        let reason = handle.lost();
        tracing::info!(session, reason, "connection lost, resuming");
        // A connection over which nothing came was as good as none, and isn't replaced at once.
        let mut wait = Duration::ZERO;
        if handle.carried_anything() {
            (since, backoff) = (Instant::now(), Backoff::default());
        } else {
            wait = backoff.wait(Duration::ZERO);
        }
        let resumed = async {
            sleep(wait).await;
            resume(parts, &kept, &mut backoff).await
        };
        let unused = async {
            shutdown.cancelled().await;
            if parts.state.streams() > 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            _ = over.wait_for(|now| *now == Phase::Over) => return false,
            resumed = resumed => match resumed {
                Ok(replayed) => {
                    tracing::info!(session, replayed, "session resumed");
                    parts.state.resumptions.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    handle.end(&chain(&error));
                    return true;
                }
            },
            () = sleep_until(since + kept.grace) => {
                handle.end(&format!("nothing came within {:?}", kept.grace));
            }
            // Whoever ends doesn't wait for a gateway that has nothing more to ask.
            () = unused => handle.end("the agent ends"),
        }
    }
}

/// Tries until a session has a connection, or can't have one.
async fn resume(parts: &Parts, kept: &Kept<'_>, backoff: &mut Backoff) -> Result<u64, OpenError> {
    let Kept {
        handle,
        replica,
        key,
        facts,
        clock,
        ..
    } = kept;
    loop {
        let began = Instant::now();
        let session = (*handle, *replica);
        match parts.opener.resume(facts, session, key, clock).await {
            Err(error) if !error.ends_session() => log_failure(&error),
            resumed => return resumed,
        }
        sleep(backoff.wait(began.elapsed())).await;
    }
}

/// Lets those who decide on sessions know when there is something to decide on.
async fn tell_news(parts: &Parts, handle: &Handle) {
    let (mut phase, mut told) = (handle.phase(), handle.told());
    loop {
        let over = *phase.borrow_and_update() == Phase::Over;
        parts.news.notify_one();
        if over {
            return;
        }
        tokio::select! {
            Ok(()) = phase.changed() => {}
            Ok(()) = told.changed() => {}
            else => return,
        }
    }
}

/// What it takes to go on with a session.
struct Kept<'a> {
    handle: &'a Handle,
    replica: &'a str,
    key: &'a ResumptionKey,
    grace: Duration,
    facts: &'a Facts,
    clock: &'a GatewayClock,
}
