//! Clients of every kind, each of which does one stream after the other and looks at every byte of it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tests::{
    Cluster, Cmd, Program, Stopwatch, User,
    file::{checksum, random_file},
    place,
    world::POD,
};

use crate::faults::Numbers;

/// How long a stream may stand still: a session is kept for a minute without a connection.
const STALL: Duration = Duration::from_secs(90);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Between two lines of a shell.
const LINE: Duration = Duration::from_millis(200);

/// What a copy carries, in bytes.
const COPY: (usize, usize) = (2 << 20, 16 << 20);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `kubectl exec` of a shell that answers each line.
    Exec,
    /// `kubectl cp` to a pod.
    CopyUp,
    /// `kubectl cp` from a pod.
    CopyDown,
    /// `kubectl port-forward` to an echo.
    Forward,
    /// A watch of an object that changes.
    Watch,
}

/// What came of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ended as its client wanted.
    Done,
    /// It didn't begin.
    Refused(String),
    /// It ended early.
    Lost(String),
    /// Bytes are missing, twice there, or others.
    Differs(String),
    /// It neither went on nor ended.
    Stalled(String),
}

/// A stream that is over.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// Its client.
    pub kind: Kind,
    /// To which cluster.
    pub cluster: usize,
    /// Since the soak began.
    pub from: Duration,
    /// The same.
    pub to: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// One cluster as its clients see it.
#[derive(Debug)]
pub(crate) struct Site {
    /// Which, from 0.
    pub number: usize,
    /// The real one.
    pub cluster: Cluster,
    /// Whose kubeconfig leads there.
    pub user: User,
    /// Where everything happens.
    pub namespace: String,
    /// How often the object that is watched was changed.
    pub changed: AtomicU64,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Since when.
    pub clock: Stopwatch,
    /// They are to finish what they have.
    pub stop: AtomicBool,
    /// What is over.
    pub streams: Mutex<Vec<Stream>>,
    /// Bytes that were looked at.
    pub bytes: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            clock: Stopwatch::new(),
            stop: AtomicBool::new(false),
            streams: Mutex::default(),
            bytes: AtomicU64::default(),
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn looked_at(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One client, until it is told to stop.
pub(crate) fn run(kind: Kind, site: &Site, shared: &Shared, seed: u64) {
    let mut numbers = Numbers(seed);
    let directory = place::directory("client");
    // What comes down is made once.
    let remote = (kind == Kind::CopyDown).then(|| {
        let size = COPY.0 + numbers.below(COPY.1 - COPY.0);
        let make = format!("head -c {size} /dev/urandom >/tmp/down; sha256sum </tmp/down");
        first_word(&site.inside(&make))
    });
    while !shared.stopped() {
        let from = shared.clock.elapsed();
        let life = Duration::from_millis(5_000 + numbers.below(25_000) as u64);
        let outcome = match kind {
            Kind::Exec => exec(site, shared, life),
            Kind::CopyUp => copy_up(site, shared, &directory, &mut numbers),
            Kind::CopyDown => copy_down(
                site,
                shared,
                &directory,
                remote.as_deref().unwrap_or_default(),
            ),
            Kind::Forward => forward(site, shared, life, &mut numbers),
            Kind::Watch => watch(site, shared, life),
        };
        // One that can't begin isn't tried a hundred times a second.
        if outcome != Outcome::Done {
            thread::sleep(Duration::from_secs(1));
        }
        let stream = Stream {
            kind,
            cluster: site.number,
            from,
            to: shared.clock.elapsed(),
            outcome,
        };
        let mut streams = shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        streams.push(stream);
    }
}

impl Site {
    fn kubectl(&self, words: &str) -> Cmd {
        self.user.kubectl(&format!("-n {} {words}", self.namespace))
    }

    /// What a script in the pod says, straight from the cluster; tried for as long as its API server may be away.
    fn inside(&self, script: &str) -> String {
        let since = Stopwatch::new();
        let words = format!("-n {} exec {POD} -- sh -c", self.namespace);
        loop {
            let said = self.cluster.kubectl(&words).arg(script).run();
            if said.code == Some(0) || since.elapsed() > STALL {
                return said.ok();
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Waits until a program has said enough, or has ended, or nothing comes any more.
fn until(program: &mut Program, mut enough: impl FnMut(&str) -> bool) -> Result<(), Outcome> {
    let mut since = Stopwatch::new();
    let mut length = 0;
    loop {
        let ended = program.ended();
        let said = program.out();
        if enough(&said) {
            return Ok(());
        }
        if let Some(status) = ended {
            return Err(Outcome::Lost(format!(
                "{status}: {}",
                last_lines(&program.err())
            )));
        }
        if said.len() != length {
            (length, since) = (said.len(), Stopwatch::new());
        }
        if since.elapsed() > STALL {
            return Err(Outcome::Stalled(last_lines(&program.err())));
        }
        thread::sleep(LOOK);
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(3);
    lines.get(from..).unwrap_or_default().join(" / ")
}

fn first_word(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// As lost before the first answer: refused.
fn refused(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Lost(words) => Outcome::Refused(words),
        other => other,
    }
}

fn exec(site: &Site, shared: &Shared, life: Duration) -> Outcome {
    let command = site.kubectl(&format!("exec -i {POD} -- sh"));
    let mut program = command.input_open().start("soak-exec");
    let outcome = shell(&mut program, shared, life);
    if outcome == Outcome::Done {
        program.forget();
    }
    outcome
}

fn shell(program: &mut Program, shared: &Shared, life: Duration) -> Outcome {
    let since = Stopwatch::new();
    let mut expected = String::new();
    let mut number = 0;
    loop {
        number += 1;
        // The shell's own number shows that it is the same shell.
        let line = if number == 1 { "pid=$$; " } else { "" };
        let line = format!("{line}echo line-{number}-$((pid == $$))\n");
        // Whether somebody reads is seen below.
        program.try_write(line).ok();
        expected += &format!("line-{number}-1\n");
        if let Err(outcome) = until(program, |said| said.len() >= expected.len()) {
            return if number == 1 {
                refused(outcome)
            } else {
                outcome
            };
        }
        let said = program.out();
        if said != expected {
            return Outcome::Differs(format!("{expected:?} became {said:?}"));
        }
        if since.elapsed() > life || shared.stopped() {
            break;
        }
        thread::sleep(LINE);
    }
    shared.looked_at(expected.len());
    program.try_write("exit 7\n").ok();
    let ended = until(program, |_| false);
    match program.ended().and_then(|status| status.code()) {
        Some(7) => Outcome::Done,
        _ => ended.err().unwrap_or(Outcome::Done),
    }
}

/// Runs a copy to its end.
fn copy(command: &Cmd) -> Result<Program, Outcome> {
    let mut program = command.start("soak-cp");
    let since = Stopwatch::new();
    loop {
        match program.ended() {
            Some(status) if status.success() => return Ok(program),
            Some(status) => {
                let said = last_lines(&program.err());
                return Err(Outcome::Lost(format!("{status}: {said}")));
            }
            None if since.elapsed() > STALL * 3 => {
                return Err(Outcome::Stalled(last_lines(&program.err())));
            }
            None => thread::sleep(LOOK),
        }
    }
}

fn copy_up(site: &Site, shared: &Shared, directory: &Path, numbers: &mut Numbers) -> Outcome {
    let size = COPY.0 + numbers.below(COPY.1 - COPY.0);
    let file = directory.join("up");
    random_file(&file, size as u64);
    let command = site.kubectl("cp").arg(&file).arg(format!("{POD}:/tmp/up"));
    let program = match copy(&command) {
        Ok(program) => program,
        Err(outcome) => return outcome,
    };
    let there = first_word(&site.inside("sha256sum </tmp/up"));
    compare(shared, size, &checksum(&file), &there, program)
}

fn copy_down(site: &Site, shared: &Shared, directory: &Path, there: &str) -> Outcome {
    let file = directory.join("down");
    let command = site
        .kubectl("cp")
        .arg(format!("{POD}:/tmp/down"))
        .arg(&file);
    let program = match copy(&command) {
        Ok(program) => program,
        Err(outcome) => return outcome,
    };
    let size = std::fs::metadata(&file).map_or(0, |file| file.len());
    let size = usize::try_from(size).unwrap_or_default();
    compare(shared, size, &checksum(&file), there, program)
}

fn compare(shared: &Shared, size: usize, here: &str, there: &str, program: Program) -> Outcome {
    if here != there {
        let said = last_lines(&program.err());
        return Outcome::Differs(format!(
            "kubectl cp succeeded: {here} here, {there} there: {said}"
        ));
    }
    shared.looked_at(size);
    program.forget();
    Outcome::Done
}

fn forward(site: &Site, shared: &Shared, life: Duration, numbers: &mut Numbers) -> Outcome {
    const BEGINS: &str = "Forwarding from 127.0.0.1:";
    let mut program = site
        .kubectl("port-forward pod/server :7000")
        .start("soak-forward");
    if let Err(outcome) = until(&mut program, |said| said.contains(BEGINS)) {
        return refused(outcome);
    }
    let said = program.out();
    let port = said.split_once(BEGINS).map_or("", |(_, port)| port);
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let outcome = echo(&format!("127.0.0.1:{port}"), shared, life, numbers);
    let said = last_lines(&program.err());
    match outcome {
        Ok(()) => {
            program.forget();
            Outcome::Done
        }
        Err(Outcome::Lost(error)) => Outcome::Lost(format!("{error}: {said}")),
        Err(other) => other,
    }
}

fn echo(
    address: &str,
    shared: &Shared,
    life: Duration,
    numbers: &mut Numbers,
) -> Result<(), Outcome> {
    let lost = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Stalled(error.to_string()),
        _ => Outcome::Lost(error.to_string()),
    };
    let mut connection = TcpStream::connect(address).map_err(lost)?;
    connection.set_read_timeout(Some(STALL)).map_err(lost)?;
    connection.set_write_timeout(Some(STALL)).map_err(lost)?;
    let since = Stopwatch::new();
    while since.elapsed() < life && !shared.stopped() {
        let sent = numbers.bytes(50_000);
        connection.write_all(&sent).map_err(lost)?;
        let mut got = vec![0; sent.len()];
        connection.read_exact(&mut got).map_err(lost)?;
        if got != sent {
            return Err(Outcome::Differs(
                "the echo gave back something else".to_owned(),
            ));
        }
        shared.looked_at(sent.len());
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The object that is watched.
pub(crate) const COUNTER: &str = "counter";

fn watch(site: &Site, shared: &Shared, life: Duration) -> Outcome {
    let path = format!(
        "/api/v1/namespaces/{}/configmaps?watch=1&fieldSelector=metadata.name={COUNTER}",
        site.namespace
    );
    let mut program = site.user.kubectl("get --raw").arg(path).start("soak-watch");
    let begun = until(&mut program, |said| said.contains("\"ADDED\""));
    let lost = match begun {
        Err(outcome) => refused(outcome),
        Ok(()) => {
            let since = Stopwatch::new();
            while since.elapsed() < life && !shared.stopped() && program.runs() {
                thread::sleep(LOOK);
            }
            let last = site.changed.load(Ordering::Relaxed);
            let came = until(&mut program, |said| seen(said).last() >= Some(&last));
            came.err().unwrap_or(Outcome::Done)
        }
    };
    let said = program.out();
    let seen = seen(&said);
    if seen.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        return Outcome::Differs(format!("events {seen:?}"));
    }
    match lost {
        Outcome::Done => {
            shared.looked_at(said.len());
            program.forget();
            Outcome::Done
        }
        Outcome::Lost(status) => {
            let last = said.lines().last().unwrap_or_default();
            Outcome::Lost(format!(
                "{status} {}",
                last.chars().take(400).collect::<String>()
            ))
        }
        other => other,
    }
}

/// The numbers that a watch has seen. An event that is said only in part has none.
fn seen(said: &str) -> Vec<u64> {
    said.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|event| event["object"]["data"]["n"].as_str()?.parse().ok())
        .collect()
}

/// Changes the object that is watched, straight in the cluster, until it is told to stop.
pub(crate) fn change(site: &Site, shared: &Shared) {
    while !shared.stopped() {
        let next = site.changed.load(Ordering::Relaxed) + 1;
        let patch = format!(r#"{{"data":{{"n":"{next}"}}}}"#);
        let words = format!(
            "-n {} patch configmap {COUNTER} --type merge -p",
            site.namespace
        );
        // One that may have come and wasn't answered changes nothing the second time.
        if site.cluster.kubectl(&words).arg(patch).run().code == Some(0) {
            site.changed.store(next, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(300));
    }
}
