//! The same work over every way to the origin, in turns: Towline beside what others have.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    agents, cut,
    load::{self, Beside, Pace, Times},
    route::Between,
    scene::{Leg, Programs, Scene},
    table::Rounds,
};

/// What is measured with.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    programs: Programs,
    /// How long each small measurement takes, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How much is downloaded and uploaded each time.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// How many watches are open at once.
    #[arg(long, default_value_t = 5000)]
    watches: usize,
    /// How many readers don't read.
    #[arg(long, default_value_t = 64)]
    stalled: usize,
    /// How often connections are cut.
    #[arg(long, default_value_t = 10)]
    cuts: usize,
    /// How often each way is measured; every second time in the opposite order.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// How many simulated agents are idle, one number after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    agents: Vec<usize>,
    /// Only these ways.
    #[arg(long, value_delimiter = ',', value_parser = between)]
    only: Vec<Between>,
    /// Only the measurements whose names begin so.
    #[arg(long, value_delimiter = ',')]
    figures: Vec<String>,
    /// Where state and logs go; a new directory otherwise.
    #[arg(long)]
    directory: Option<PathBuf>,
}

fn between(text: &str) -> Result<Between, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|error| error.to_string())
}

/// One way's figures of one round, by name.
pub(crate) type Figures = BTreeMap<String, f64>;

/// How many downloads run beside a measurement.
const BULK: usize = 4;

/// The pace of one that is paced, in bytes a second.
const PACE: u64 = 40 * 1024 * 1024;

/// That of a slow reader.
const SLOW: u64 = 256 * 1024;

/// How long one measurement may take in all.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures all ways in turns.
pub(crate) async fn all(settings: &Settings) -> anyhow::Result<(Rounds, BTreeMap<usize, f64>)> {
    let directory = match &settings.directory {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("towline-bench-{}", std::process::id())),
    };
    std::fs::create_dir_all(&directory)?;
    let directory = directory.canonicalize()?;
    let mut scene = Scene::set(settings.programs.clone(), &directory).await?;
    let mut rounds = Rounds::default();
    for round in 0..settings.rounds {
        let mut order: Vec<Between> = Between::ALL
            .into_iter()
            .filter(|between| settings.only.is_empty() || settings.only.contains(between))
            .filter(|between| scene.has(*between))
            .collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for between in order {
            eprintln!("bench: round {}, {}", round + 1, between.name());
            let figures = way(&mut scene, between, settings).await?;
            rounds.0.entry(between).or_default().push(figures);
        }
    }
    drop(scene);
    let mut agents = BTreeMap::new();
    if settings.wants("agents") {
        eprintln!("bench: simulated agents");
        let own = directory.join("agents");
        std::fs::create_dir(&own)?;
        agents = agents::memory(&settings.programs, &own, &settings.agents).await?;
    }
    if settings.directory.is_none() {
        std::fs::remove_dir_all(&directory)?;
    }
    Ok((rounds, agents))
}

async fn way(scene: &mut Scene, between: Between, settings: &Settings) -> anyhow::Result<Figures> {
    let leg = scene
        .leg(between, async |_: SocketAddr| Ok(None))
        .await
        .with_context(|| format!("{} does not answer", between.name()))?;
    let mut measured = Measured {
        leg: &leg,
        settings,
        figures: Figures::new(),
    };
    measured.all().await;
    let mut figures = measured.figures;
    leg.end().await;
    if between != Between::Direct && settings.wants("cut") {
        match cut::measure(scene, between, settings.cuts).await {
            Ok(more) => figures.extend(more),
            Err(error) => eprintln!("bench: {}: cut: {error:#}", between.name()),
        }
    }
    Ok(figures)
}

impl Settings {
    fn wants(&self, name: &str) -> bool {
        self.figures.is_empty()
            || self
                .figures
                .iter()
                .any(|wanted| name.starts_with(wanted.as_str()))
    }
}

struct Measured<'a> {
    leg: &'a Leg,
    settings: &'a Settings,
    figures: Figures,
}

impl Measured<'_> {
    /// What costs memory first: what others leave behind would hide it.
    async fn all(&mut self) {
        self.step("memory", async |own| own.memory().await).await;
        for callers in [1, 16, 128] {
            self.step(&format!("get{callers}"), async |own| {
                own.gets(callers).await
            })
            .await;
        }
        self.step("connect", async |own| own.connections().await)
            .await;
        for streams in [1, 8] {
            self.step(&format!("down{streams}"), async |own| {
                own.transfer("down", streams).await
            })
            .await;
            self.step(&format!("up{streams}"), async |own| {
                own.transfer("up", streams).await
            })
            .await;
        }
        let full = vec![Pace::Full; BULK];
        let paced = vec![Pace::Bytes(PACE)];
        let stalled = vec![Pace::Never; self.settings.stalled];
        let slow = [vec![Pace::Bytes(PACE)], vec![Pace::Bytes(SLOW); 4]].concat();
        for (name, beside) in [
            ("watch_idle", vec![]),
            ("watch_bulk", full.clone()),
            ("watch_stalled", stalled),
            ("watch_slow", slow),
        ] {
            self.step(name, async |own| own.watch(name, &beside).await)
                .await;
        }
        for (name, beside) in [
            ("exec_idle", vec![]),
            ("exec_bulk", full),
            ("exec_paced", paced),
        ] {
            self.step(name, async |own| own.exec(name, &beside).await)
                .await;
        }
    }

    async fn step(&mut self, name: &str, run: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>) {
        if !self.settings.wants(name) {
            return;
        }
        let outcome = timeout(LIMIT, run(self)).await;
        if let Err(error) = outcome.map_err(Into::into).flatten() {
            eprintln!(
                "bench: {}: {name}: {error:#}",
                self.leg.route.between.name()
            );
        }
    }

    fn put(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    fn spread(&mut self, name: &str, times: &mut Times) {
        for percent in [50, 99] {
            if let Some(value) = times.percentile(percent) {
                self.put(&format!("{name}_p{percent}_ms"), value);
            }
        }
    }

    const fn length(&self) -> Duration {
        Duration::from_secs(self.settings.seconds)
    }

    async fn memory(&mut self) -> anyhow::Result<()> {
        if self.leg.ends.is_none() {
            return Ok(());
        }
        load::small_gets(&self.leg.route, 16, Duration::from_millis(500)).await?;
        let before = self.leg.resident();
        self.put("memory_idle_near_mib", before.0 as f64 / 1024.0);
        self.put("memory_idle_far_mib", before.1 as f64 / 1024.0);
        let each_its_own = self.leg.route.between != Between::Towline;
        let watches =
            load::Watches::open(&self.leg.route, self.settings.watches, each_its_own).await?;
        sleep(Duration::from_secs(1)).await;
        let with = self.leg.resident();
        let each =
            |before: u64, with: u64| with.saturating_sub(before) as f64 / watches.count() as f64;
        self.put("memory_watch_near_kib", each(before.0, with.0));
        self.put("memory_watch_far_kib", each(before.1, with.1));
        drop(watches);
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    async fn gets(&mut self, callers: usize) -> anyhow::Result<()> {
        let before = self.leg.seconds();
        let (mut times, rate) = load::small_gets(&self.leg.route, callers, self.length()).await?;
        let after = self.leg.seconds();
        let name = format!("get{callers}");
        self.put(&format!("{name}_rate"), rate);
        let each = 1e6 / times.count() as f64;
        self.put(&format!("{name}_near_us"), (after.0 - before.0) * each);
        self.put(&format!("{name}_far_us"), (after.1 - before.1) * each);
        self.spread(&name, &mut times);
        Ok(())
    }

    async fn connections(&mut self) -> anyhow::Result<()> {
        let count = usize::try_from(40 * self.settings.seconds)?;
        let mut times = load::new_connections(&self.leg.route, count).await?;
        self.spread("connect", &mut times);
        Ok(())
    }

    async fn transfer(&mut self, way: &str, streams: usize) -> anyhow::Result<()> {
        let bytes = self.settings.mebibytes << 20;
        let before = self.leg.seconds();
        let rate = if way == "down" {
            load::download(&self.leg.route, streams, bytes).await?
        } else {
            load::upload(&self.leg.route, streams, bytes).await?
        };
        let after = self.leg.seconds();
        let name = format!("{way}{streams}");
        self.put(&format!("{name}_mibs"), rate);
        let gibibytes = self.settings.mebibytes as f64 / 1024.0;
        self.put(&format!("{name}_near_s"), (after.0 - before.0) / gibibytes);
        self.put(&format!("{name}_far_s"), (after.1 - before.1) / gibibytes);
        Ok(())
    }

    async fn watch(&mut self, name: &str, beside: &[Pace]) -> anyhow::Result<()> {
        // What hangs has brought nothing.
        self.put(&format!("{name}_events_percent"), 0.0);
        let beside = Beside::start(&self.leg.route, beside).await?;
        let watched = load::watch(&self.leg.route, self.length()).await;
        self.ended(name, beside.end().await);
        let (mut times, share) = watched?;
        self.put(&format!("{name}_events_percent"), share);
        self.spread(name, &mut times);
        Ok(())
    }

    async fn exec(&mut self, name: &str, beside: &[Pace]) -> anyhow::Result<()> {
        let beside = Beside::start(&self.leg.route, beside).await?;
        let typed = load::exec_echo(&self.leg.route, self.length()).await;
        self.ended(name, beside.end().await);
        self.spread(name, &mut typed?);
        Ok(())
    }

    fn ended(&self, name: &str, count: usize) {
        if count > 0 {
            let between = self.leg.route.between.name();
            eprintln!("bench: {between}: {name}: {count} downloads beside it ended early");
        }
    }
}

/// The time since `began`, in milliseconds.
pub(crate) fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
