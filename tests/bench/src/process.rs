//! Programs that a run starts and ends, and what they used.

use std::{
    ffi::OsStr,
    fs,
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::machine;

/// How long a program may take to be there.
const START: Duration = Duration::from_secs(30);

/// The kernel's unit of processor time in `/proc`: a hundredth of a second.
const TICKS: f64 = 100.0;

/// A running program; dropping it kills it.
pub(crate) struct Process {
    child: Child,
    pid: u32,
}

impl Process {
    /// Starts it, with what it says in a file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        Self::spawn(command.stdout(log.try_clone()?).stderr(log))
    }

    /// Starts it and reads the line that it says first.
    pub(crate) async fn start_and_read(command: &mut Command) -> anyhow::Result<(Self, String)> {
        let mut process = Self::spawn(command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        let output = process.child.stdout.take().context("a pipe")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        Ok((process, line.trim().to_owned()))
    }

    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let name = format!("{:?}", command.as_std().get_program());
        let child = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("it has ended already")?;
        Ok(Self { child, pid })
    }

    /// Processor time used so far, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // Behind the name, which may hold spaces: state is the first field, user and system time the 12th and 13th.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / TICKS
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        machine::resident(self.pid)
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn end(mut self) {
        drop(self.child.kill().await);
    }
}

/// Runs a command to its end; what it said.
pub(crate) async fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = format!("{:?}", command.as_std());
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().await?;
    if !status.success() {
        bail!("{name}: {status}: {}", String::from_utf8_lossy(&stderr));
    }
    Ok(String::from_utf8(stdout)?)
}

/// A command with arguments.
pub(crate) fn command(program: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until somebody listens.
pub(crate) async fn listening(port: u16) -> anyhow::Result<()> {
    let until = Instant::now() + START;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if Instant::now() > until {
            bail!("nobody listens at port {port}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
