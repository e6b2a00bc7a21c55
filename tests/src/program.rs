//! A program that runs beside the test, and ends with it, together with all that it started.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{text_of, wait_line},
    group,
    wait::wait_for,
};

/// A running program; dropping it ends it.
#[derive(Debug)]
pub struct Program {
    command: String,
    child: Child,
    status: Option<ExitStatus>,
    stdin: Option<ChildStdin>,
    out: PathBuf,
    err: PathBuf,
}

impl Program {
    pub(crate) fn new(
        command: String,
        child: Child,
        stdin: Option<ChildStdin>,
        out: PathBuf,
        err: PathBuf,
    ) -> Self {
        Self {
            command,
            child,
            status: None,
            stdin,
            out,
            err,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn out(&self) -> String {
        text_of(&self.out)
    }

    /// The file with its standard output.
    pub fn out_file(&self) -> &Path {
        &self.out
    }

    /// What it wrote to standard error so far.
    pub fn err(&self) -> String {
        text_of(&self.err)
    }

    /// Waits for a line on standard output.
    ///
    /// # Panics
    /// When it doesn't come, or the program ends first.
    #[track_caller]
    pub fn line(&mut self, what: &str, bound: Duration, holds: impl Fn(&str) -> bool) -> String {
        let out = self.out.clone();
        wait_for(
            &format!("{what} from {} (see {})", self.command, out.display()),
            bound,
            || {
                let ended = self.ended();
                let line = text_of(&out)
                    .lines()
                    .find(|line| holds(line))
                    .map(str::to_owned);
                if let (None, Some(status)) = (&line, ended) {
                    panic!(
                        "{} ended ({status}) before {what}\n{}{}",
                        self.command,
                        self.out(),
                        self.err()
                    );
                }
                line
            },
        )
    }

    /// The local port that a running `kubectl port-forward` has chosen.
    ///
    /// # Panics
    /// It names none.
    #[track_caller]
    pub fn forwarded_port(&mut self, bound: Duration) -> u16 {
        const BEGINS: &str = "Forwarding from 127.0.0.1:";
        let line = self.line("the local port", bound, |line| line.starts_with(BEGINS));
        let port = line.trim_start_matches(BEGINS).split(' ').next();
        port.and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("no port in {line:?}"))
    }

    /// Waits for a line on standard error.
    ///
    /// # Panics
    /// When it doesn't come.
    #[track_caller]
    pub fn err_line(&self, what: &str, bound: Duration, holds: impl Fn(&str) -> bool) -> String {
        wait_line(&self.err, what, bound, holds)
    }

    /// Writes to its input.
    ///
    /// # Panics
    /// It was not started with an open input, or has ended.
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).expect("the program reads");
    }

    /// Ends its input.
    pub fn close_input(&mut self) {
        drop(self.stdin.take());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.ended().is_none()
    }

    /// The same, where an end of the program is an answer.
    ///
    /// # Errors
    /// The program doesn't read any more.
    ///
    /// # Panics
    /// It was not started with an open input.
    #[track_caller]
    pub fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let stdin = self.stdin.as_mut().expect("started with an open input");
        stdin.write_all(bytes.as_ref())?;
        stdin.flush()
    }

    /// Ends it, and takes what it said away.
    pub fn forget(mut self) {
        self.kill();
        for log in [&self.out, &self.err] {
            fs::remove_file(log).ok();
        }
    }

    /// How it ended, if it did. What it started ends with it: from now on its number may be another's.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
            if self.status.is_some() {
                group::end(self.pid());
            }
        }
        self.status
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on beyond the bound.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.command);
        wait_for(&what, bound, || self.ended())
    }

    /// Ends it at once, and all that it started.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            group::end(self.pid());
            self.status = self.child.wait().ok();
        }
    }

    /// Open files, sockets, and resident memory in KiB, as the kernel counts them.
    pub fn usage(&self) -> Usage {
        let process = Path::new("/proc").join(self.pid().to_string());
        let links: Vec<_> = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .collect();
        let status = text_of(&process.join("status"));
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Usage {
            files: links.len(),
            sockets: links
                .iter()
                .filter(|link| link.to_string_lossy().starts_with("socket:"))
                .count(),
            threads: number("Threads:").unwrap_or(0),
            resident_kib: number("VmRSS:").unwrap_or(0),
        }
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub files: usize,
    /// Those that are sockets.
    pub sockets: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory in KiB.
    pub resident_kib: usize,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
