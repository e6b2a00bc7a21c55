//! Clients of every kind against two replicas and two clusters, while connections, agents, replicas, PostgreSQL and API
//! servers die at random: what comes of it, byte for byte. See `tests/soak/run.sh --help`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test: what goes wrong is said, and ends it"
)]

mod clients;
mod faults;
mod report;
mod rules;
mod scene;

use std::{process::ExitCode, sync::atomic::Ordering, thread, time::Duration};

use tests::{Stopwatch, load::Callers};

use clients::{Kind, Shared, Site};
use faults::Plan;
use report::Report;
use rules::Fault;
use scene::Scene;

/// Clients run so long before anything dies, and before anything is counted.
const WARM_UP: Duration = Duration::from_secs(15);

/// Callers of each kind at each cluster.
const CALLERS: usize = 2;

/// The clients: at which cluster, what they do.
const CLIENTS: [(usize, Kind); 9] = [
    (0, Kind::Exec),
    (0, Kind::Exec),
    (0, Kind::CopyUp),
    (0, Kind::CopyDown),
    (0, Kind::Forward),
    (0, Kind::Forward),
    (0, Kind::Watch),
    (1, Kind::Watch),
    (1, Kind::Watch),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mut number = |name: &str| -> u64 {
        let word = words.next().unwrap_or_default();
        word.parse().unwrap_or_else(|_| {
            panic!("{name} = {word:?} is not a number; it is run by tests/soak/run.sh")
        })
    };
    let (seconds, seed) = (number("SECONDS"), number("SEED"));
    let report = soak(Duration::from_secs(seconds), seed);
    println!("{report}");
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn soak(lasts: Duration, seed: u64) -> Report {
    let (mut scene, sites) = Scene::new();
    println!(
        "soak: seed {seed}, {} s, {} clients",
        lasts.as_secs(),
        CLIENTS.len()
    );
    let warm_up = Shared::new();
    let (_, calm) = with_clients(&sites, &warm_up, seed, || thread::sleep(WARM_UP));
    let before = scene.held();

    let shared = Shared::new();
    let clock = shared.clock;
    let mut wrong = Vec::new();
    let (mut faults, calls) = with_clients(&sites, &shared, seed, || {
        let mut faults: Vec<Fault> = Vec::new();
        for planned in Plan::new(seed) {
            if clock.elapsed() + planned.lasts > lasts {
                break;
            }
            println!("soak: {:7.1} s: {planned}", clock.elapsed().as_secs_f64());
            let number = faults.len();
            let fault = scene.suffer(planned, clock, number);
            faults.push(fault);
            let until = Stopwatch::new();
            while until.elapsed() < planned.pause {
                wrong.extend(scene.drained(clock, &mut faults));
                thread::sleep(Duration::from_millis(100));
            }
            wrong.extend(scene.runs());
        }
        faults
    });
    println!(
        "soak: {:7.1} s: clients have finished",
        clock.elapsed().as_secs_f64()
    );
    wrong.extend(scene.all_drained(clock, &mut faults));
    let after = scene.held();
    let mut streams = warm_up.streams.into_inner().unwrap_or_default();
    // In calm nothing may be lost: no fault is that early.
    for stream in &mut streams {
        (stream.from, stream.to) = (Duration::ZERO, Duration::ZERO);
    }
    streams.extend(shared.streams.into_inner().unwrap_or_default());
    Report {
        seed,
        lasted: clock.elapsed(),
        faults,
        streams,
        calls: [calm, calls],
        bytes: shared.bytes.load(Ordering::Relaxed),
        before,
        after,
        resumed: scene.resumed(),
        wrong,
    }
}

/// Runs all clients beside `work`, and lets them finish after it; with what callers at each cluster came to.
fn with_clients<T>(
    sites: &[Site],
    shared: &Shared,
    seed: u64,
    work: impl FnOnce() -> T,
) -> (T, Vec<tests::load::Counts>) {
    let callers: Vec<Callers> = sites
        .iter()
        .map(|site| {
            let user = site.user.clone();
            Callers::start(CALLERS, shared.clock, move || user.api())
        })
        .collect();
    let done = thread::scope(|scope| {
        for (number, (site, kind)) in CLIENTS.into_iter().enumerate() {
            let site = &sites[site];
            scope.spawn(move || clients::run(kind, site, shared, seed + number as u64));
        }
        for site in sites {
            scope.spawn(move || clients::change(site, shared));
        }
        let done = work();
        shared.stop.store(true, Ordering::Relaxed);
        done
    });
    let counts = callers.into_iter().map(Callers::stop).collect();
    (done, counts)
}
