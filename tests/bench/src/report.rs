//! Two measurements beside each other.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    assertions::Costs,
    decisions::Decisions,
    figures::{Figures, Memory, Spread, Transfer},
    machine::Machine,
    sessions,
};

/// All of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    versions: BTreeMap<String, String>,
    direct: Figures,
    gateway: Figures,
    assertion_micros: Costs,
    decision_micros: Decisions,
    sessions: sessions::Costs,
}

impl Report {
    pub(crate) fn read(
        direct: &Path,
        gateway: &Path,
        assertions: &Path,
        decisions: &Path,
        sessions: &Path,
        versions: &[String],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            machine: Machine::this(),
            versions: self::versions(versions),
            direct: read(direct)?,
            gateway: read(gateway)?,
            assertion_micros: read(assertions)?,
            decision_micros: read(decisions)?,
            sessions: read(sessions)?,
        })
    }
}

/// `NAME=VERSION`, taken apart.
pub(crate) fn versions(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .filter_map(|version| version.split_once('='))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what 'bench' wrote", path.display()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            processor,
            cores,
            memory_gib,
            kernel,
        } = &self.machine;
        writeln!(
            f,
            "{processor}, {cores} cores, {memory_gib} GiB, Linux {kernel}"
        )?;
        let versions: Vec<_> = self
            .versions
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        writeln!(f, "{}", versions.join(", "))?;
        writeln!(
            f,
            "client, gateway, agent and the whole cluster share this machine\n"
        )?;
        row(f, ["", "direct", "gateway"])?;
        for (callers, direct) in &self.direct.get {
            let Some(gateway) = self.gateway.get.get(callers) else {
                continue;
            };
            spread(
                f,
                &format!("small GET, {callers} at a time"),
                direct,
                gateway,
            )?;
        }
        let list = format!("list of {} MiB", self.direct.list.bytes >> 20);
        transfer(f, &list, &self.direct.list, &self.gateway.list)?;
        spread(
            f,
            "exec echo, one line",
            &self.direct.exec_echo,
            &self.gateway.exec_echo,
        )?;
        let size = self.direct.copy_in.bytes >> 20;
        transfer(
            f,
            &format!("cp into a pod, {size} MiB"),
            &self.direct.copy_in,
            &self.gateway.copy_in,
        )?;
        transfer(
            f,
            &format!("cp out of a pod, {size} MiB"),
            &self.direct.copy_out,
            &self.gateway.copy_out,
        )?;
        let watches = format!("{} watches", self.gateway.watches);
        writeln!(
            f,
            "\n{:<34} {:>16} {:>16} {watches:>16}",
            "resident memory", "idle", "after all that"
        )?;
        for (
            name,
            Memory {
                idle,
                after_load,
                with_watches,
            },
        ) in &self.gateway.memory
        {
            let [idle, after_load, with_watches] =
                [idle, after_load, with_watches].map(|kib| format!("{} MiB", kib >> 10));
            writeln!(
                f,
                "{name:<34} {idle:>16} {after_load:>16} {with_watches:>16}"
            )?;
        }
        let Costs {
            sign_grant,
            verify_grant,
            check_known_grant,
            seal,
            verify_mac,
        } = &self.assertion_micros;
        writeln!(f)?;
        row(f, ["the assertion on a request", "gateway", "agent"])?;
        let micros = |micros: &f64| {
            if *micros < 0.01 {
                "< 0.01 us".to_owned()
            } else {
                format!("{micros:.2} us")
            }
        };
        row(
            f,
            [
                "grant, first of its minute",
                &micros(sign_grant),
                &micros(verify_grant),
            ],
        )?;
        row(f, ["grant, seen before", "-", &micros(check_known_grant)])?;
        row(f, ["MAC and number", &micros(seal), &micros(verify_mac)])?;
        let Decisions {
            bindings,
            by_user,
            by_group,
            refused,
            by_condition,
            compile_millis,
        } = &self.decision_micros;
        writeln!(f)?;
        row(f, [&format!("IAM, {bindings} bindings"), "decision", ""])?;
        for (name, cost) in [
            ("by a user's binding", by_user),
            ("by one of 100 groups", by_group),
            ("refused", refused),
            ("by a condition", by_condition),
        ] {
            row(f, [name, &micros(cost), ""])?;
        }
        let compile = format!("{compile_millis:.2} ms");
        row(f, ["made ready after a change", &compile, ""])?;
        let sessions::Costs {
            rounds,
            plain_mib_per_second,
            session_mib_per_second,
            given_up_percent,
            plain_request,
            session_request,
        } = &self.sessions;
        writeln!(f)?;
        let title = format!("HTTP/2 over TLS, {rounds} rounds each");
        row(f, [&title, "plain", "resumable"])?;
        let rate = |rate: &f64| format!("{rate:.0} MiB/s");
        row(
            f,
            [
                "download, 1 stream",
                &rate(plain_mib_per_second),
                &rate(session_mib_per_second),
            ],
        )?;
        let given_up = format!("{given_up_percent:.1} %");
        row(f, ["given up, median of the pairs", "", &given_up])?;
        row(
            f,
            [
                "small request",
                &micros(plain_request),
                &micros(session_request),
            ],
        )
    }
}

fn row(f: &mut fmt::Formatter<'_>, [name, first, second]: [&str; 3]) -> fmt::Result {
    writeln!(f, "{name:<34} {first:>16} {second:>16}")
}

fn spread(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    direct: &Spread,
    gateway: &Spread,
) -> fmt::Result {
    row(
        f,
        [
            &format!("{name}, p50"),
            &millis(direct.p50_micros),
            &millis(gateway.p50_micros),
        ],
    )?;
    row(
        f,
        [
            &format!("{name}, p99"),
            &millis(direct.p99_micros),
            &millis(gateway.p99_micros),
        ],
    )?;
    let rate = |spread: &Spread| format!("{:.0}/s", spread.per_second);
    row(f, [&format!("{name}, rate"), &rate(direct), &rate(gateway)])?;
    if direct.failed + gateway.failed > 0 {
        row(
            f,
            [
                &format!("{name}, failed"),
                &direct.failed.to_string(),
                &gateway.failed.to_string(),
            ],
        )?;
    }
    Ok(())
}

fn millis(micros: f64) -> String {
    format!("{:.2} ms", micros / 1000.0)
}

fn transfer(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    direct: &Transfer,
    gateway: &Transfer,
) -> fmt::Result {
    let rate = |transfer: &Transfer| format!("{:.0} MiB/s", transfer.mebibytes_per_second());
    row(f, [name, &rate(direct), &rate(gateway)])
}
