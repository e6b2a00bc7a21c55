//! How long it takes until requests pass again when the connection between the two ends is lost, and whether a shell
//! outlives that.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    load::{SMALL, Shell, Times},
    peers::{Figures, millis},
    relay::Relay,
    route::{Between, Route, read},
    scene::Scene,
};

/// Between two tries.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// How long a request is waited for after a cut.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same when nobody is told of it.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// Cuts and swallows the connection.
pub(crate) async fn measure(
    scene: &mut Scene,
    between: Between,
    cuts: usize,
) -> anyhow::Result<Figures> {
    let mut relay = None;
    let through = async |near: SocketAddr| {
        let started = Relay::start(near).await?;
        let port = started.port;
        relay = Some(started);
        Ok(Some(port))
    };
    let leg = scene.leg(between, through).await?;
    let Some(mut relay) = relay else {
        anyhow::bail!("nothing to cut");
    };
    let mut figures = Figures::new();
    let mut times = Times::default();
    let mut survived = 0;
    for _ in 0..cuts {
        let (took, lived) = lost(&leg.route, PATIENCE, || relay.cut()).await?;
        survived += usize::from(lived);
        if let Some(took) = took {
            times.push(took);
        }
    }
    if let Some(p50) = times.percentile(50) {
        figures.insert("cut_p50_ms".to_owned(), p50);
    }
    let share = 100.0 * survived as f64 / cuts.max(1) as f64;
    figures.insert("cut_shells_percent".to_owned(), share);
    let (took, lived) = lost(&leg.route, LONG_PATIENCE, || relay.swallow()).await?;
    if let Some(took) = took {
        figures.insert("cut_swallowed_s".to_owned(), took.as_secs_f64());
    }
    figures.insert(
        "cut_swallowed_shells_percent".to_owned(),
        if lived { 100.0 } else { 0.0 },
    );
    leg.end().await;
    Ok(figures)
}

/// From the loss until a request that began after it is answered, and whether a shell from before still echoes.
async fn lost(
    route: &Route,
    patience: Duration,
    lose: impl FnOnce(),
) -> anyhow::Result<(Option<Duration>, bool)> {
    let mut shell = timeout(PATIENCE, Shell::open(route)).await??;
    timeout(PATIENCE, shell.echo()).await??;
    let began = Instant::now();
    lose();
    let mut tries = JoinSet::new();
    let mut tick = interval(TRY_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let answered = timeout(patience, async {
        loop {
            tokio::select! {
                _ = tick.tick(), if tries.len() < 64 => {
                    let route = route.clone();
                    tries.spawn(async move {
                        let mut client = route.client().await?;
                        read(client.send(route.get(SMALL)?).await?).await
                    });
                }
                Some(tried) = tries.join_next() => if matches!(tried, Ok(Ok(_))) {
                    return began.elapsed();
                },
            }
        }
    });
    let took = answered.await.ok();
    tries.shutdown().await;
    let lived = matches!(timeout(PATIENCE, shell.echo()).await, Ok(Ok(())));
    if took.is_none() {
        eprintln!("bench: nothing passed for {:.0} ms", millis(began));
    }
    Ok((took, lived))
}
