//! The table of all ways beside each other.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{machine::Machine, peers::Figures, route::Between};

/// All of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The day, as in 2026-11-22.
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// Of what was measured, by name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) rounds: Rounds,
    /// Memory of Towline's gateway for each idle agent in KiB, by how many there are.
    pub(crate) agents: BTreeMap<usize, f64>,
}

/// Each way's figures, a set for each round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rounds(pub(crate) BTreeMap<Between, Vec<Figures>>);

/// Between these lines of a page stands the table.
const BEGIN: &str = "<!-- Written by tests/bench/run.sh --readme: begin -->";
const END: &str = "<!-- Written by tests/bench/run.sh --readme: end -->";

/// What the table is, for who reads the page.
const SENTENCE: &str = "Beside its peers, all asked the same by one client in one run ([how, and what it means](docs/performance.md)):";

impl Comparison {
    /// Puts the table into a page, in the place of the one before.
    ///
    /// # Errors
    /// The page has no place for it.
    pub(crate) fn write_into(&self, page: &Path) -> anyhow::Result<()> {
        let text = fs::read_to_string(page)?;
        let place = text.split_once(BEGIN).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(END)?;
            Some((before, after))
        });
        let (before, after) =
            place.with_context(|| format!("{} has no lines {BEGIN} and {END}", page.display()))?;
        let table = self.to_string();
        fs::write(
            page,
            format!(
                "{before}{BEGIN}\n\n{SENTENCE}\n\n```\n{}\n```\n\n{END}{after}",
                table.trim_end()
            ),
        )?;
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            processor,
            cores,
            memory_gib,
            kernel,
        } = &self.machine;
        let versions = self.versions.iter();
        let versions: Vec<String> = versions
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        writeln!(
            f,
            "{}, {processor}, {cores} cores, {memory_gib} GiB, Linux {kernel}",
            self.date
        )?;
        writeln!(f, "{}", versions.join(", "))?;
        writeln!(
            f,
            "TLS on every leg, over the loopback; client, both ends and origin share these cores\n\
             a+b: the end at the client, and the other; a .. b: rounds that differ much\n"
        )?;
        write!(f, "{}", self.rounds)?;
        for (count, kib) in &self.agents {
            let label = format!("memory per idle agent at the gateway, {count}");
            writeln!(f, "{label:<45} {:>21} {:>21}", "-", format!("{kib:.1} KiB"))?;
        }
        Ok(())
    }
}

/// A row: its words, the figures in it that belong together, and how they are written.
struct Row {
    label: &'static str,
    figures: &'static [&'static str],
    places: usize,
    unit: &'static str,
}

const fn row(
    label: &'static str,
    figures: &'static [&'static str],
    places: usize,
    unit: &'static str,
) -> Row {
    Row {
        label,
        figures,
        places,
        unit,
    }
}

const ROWS: &[Row] = &[
    row("small GET, 1 caller, p50", &["get1_p50_ms"], 2, "ms"),
    row("small GET, 1 caller, p99", &["get1_p99_ms"], 2, "ms"),
    row("small GET, 16 callers, p50", &["get16_p50_ms"], 2, "ms"),
    row("small GET, 16 callers, p99", &["get16_p99_ms"], 2, "ms"),
    row("small GET, 128 callers, p50", &["get128_p50_ms"], 2, "ms"),
    row("small GET, 128 callers, p99", &["get128_p99_ms"], 2, "ms"),
    row("small GETs, 1 caller", &["get1_rate"], 0, "/s"),
    row("small GETs, 16 callers", &["get16_rate"], 0, "/s"),
    row("small GETs, 128 callers", &["get128_rate"], 0, "/s"),
    row(
        "CPU per small GET, 16 callers",
        &["get16_near_us", "get16_far_us"],
        0,
        "us",
    ),
    row(
        "CPU per small GET, 128 callers",
        &["get128_near_us", "get128_far_us"],
        0,
        "us",
    ),
    row(
        "new connection, first answer, p50",
        &["connect_p50_ms"],
        2,
        "ms",
    ),
    row("download, 1 stream", &["down1_mibs"], 0, "MiB/s"),
    row("download, 8 streams", &["down8_mibs"], 0, "MiB/s"),
    row("upload, 1 stream", &["up1_mibs"], 0, "MiB/s"),
    row("upload, 8 streams", &["up8_mibs"], 0, "MiB/s"),
    row(
        "CPU per GiB down, 1 stream",
        &["down1_near_s", "down1_far_s"],
        2,
        "s",
    ),
    row(
        "CPU per GiB up, 1 stream",
        &["up1_near_s", "up1_far_s"],
        2,
        "s",
    ),
    row("watch event, p50", &["watch_idle_p50_ms"], 2, "ms"),
    row("watch event, p99", &["watch_idle_p99_ms"], 2, "ms"),
    row(
        "watch event beside 4 downloads, p50",
        &["watch_bulk_p50_ms"],
        2,
        "ms",
    ),
    row(
        "watch event beside 4 downloads, p99",
        &["watch_bulk_p99_ms"],
        2,
        "ms",
    ),
    row(
        "watch events beside 64 that never read",
        &["watch_stalled_events_percent"],
        0,
        "%",
    ),
    row(
        "watch event beside those, p99",
        &["watch_stalled_p99_ms"],
        2,
        "ms",
    ),
    row(
        "watch events beside 40 MiB/s, 4 slow readers",
        &["watch_slow_events_percent"],
        0,
        "%",
    ),
    row(
        "watch event beside those, p99",
        &["watch_slow_p99_ms"],
        2,
        "ms",
    ),
    row("exec echo, p50", &["exec_idle_p50_ms"], 2, "ms"),
    row("exec echo, p99", &["exec_idle_p99_ms"], 2, "ms"),
    row(
        "exec echo beside 4 downloads, p50",
        &["exec_bulk_p50_ms"],
        2,
        "ms",
    ),
    row(
        "exec echo beside 4 downloads, p99",
        &["exec_bulk_p99_ms"],
        2,
        "ms",
    ),
    row(
        "exec echo beside 40 MiB/s, p99",
        &["exec_paced_p99_ms"],
        2,
        "ms",
    ),
    row(
        "memory at the start",
        &["memory_idle_near_mib", "memory_idle_far_mib"],
        0,
        "MiB",
    ),
    row(
        "memory per open watch",
        &["memory_watch_near_kib", "memory_watch_far_kib"],
        1,
        "KiB",
    ),
    row("cut, next good request, p50", &["cut_p50_ms"], 0, "ms"),
    row("shells that outlive a cut", &["cut_shells_percent"], 0, "%"),
    row(
        "black hole, next good request",
        &["cut_swallowed_s"],
        1,
        "s",
    ),
    row(
        "shells that outlive a black hole",
        &["cut_swallowed_shells_percent"],
        0,
        "%",
    ),
];

/// From how much more than the smaller of two rounds on both are shown.
const APART: f64 = 1.2;

impl Row {
    fn cell(&self, rounds: &[Figures]) -> String {
        let mut values: Vec<Vec<f64>> = rounds
            .iter()
            .filter_map(|figures| {
                let own = self.figures.iter().map(|name| figures.get(*name).copied());
                own.collect()
            })
            .collect();
        values.sort_by(|a, b| a.iter().sum::<f64>().total_cmp(&b.iter().sum::<f64>()));
        let write = |values: &[f64]| {
            let texts: Vec<String> = values
                .iter()
                .map(|value| format!("{value:.places$}", places = self.places))
                .collect();
            texts.join("+")
        };
        let (Some(first), Some(last)) = (values.first(), values.last()) else {
            return "-".to_owned();
        };
        let sum = |values: &[f64]| values.iter().sum::<f64>();
        if sum(last) > APART * sum(first) {
            return format!("{} .. {} {}", write(first), write(last), self.unit);
        }
        let middle: Vec<f64> = first
            .iter()
            .zip(last)
            .map(|(first, last)| f64::midpoint(*first, *last))
            .collect();
        format!("{} {}", write(&middle), self.unit)
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<45}", "")?;
        for between in self.0.keys() {
            write!(f, " {:>21}", between.name())?;
        }
        writeln!(f)?;
        for row in ROWS {
            let cells: Vec<String> = self.0.values().map(|rounds| row.cell(rounds)).collect();
            if cells.iter().all(|cell| cell == "-") {
                continue;
            }
            write!(f, "{:<45}", row.label)?;
            for cell in cells {
                write!(f, " {cell:>21}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
