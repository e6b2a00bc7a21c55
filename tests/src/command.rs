//! One command: what it is, where it runs, and what it said.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    group::{lead, spawn},
    place,
    program::Program,
    wait::{Stopwatch, wait_for},
};

/// Variables that go on to commands; nothing else of the caller's environment does.
const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "TOWLINE_CACHE", "TOWLINE_STATE"];

/// A command that was not run yet.
#[derive(Debug, Clone)]
pub struct Cmd {
    words: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    input: Input,
    directory: Option<PathBuf>,
    limit: Duration,
}

#[derive(Debug, Clone)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(PathBuf),
    Pipe,
}

impl Input {
    const fn stays_open(&self) -> bool {
        matches!(self, Self::Pipe)
    }
}

impl Cmd {
    /// `program` with a clean environment, no input, and a limit of a minute.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let kept = KEPT
            .iter()
            .filter_map(|name| Some((OsString::from(name), place::variable(name)?.into())));
        Self {
            words: vec![program.as_ref().to_owned()],
            env: kept
                .chain([(OsString::from("NO_COLOR"), OsString::from("1"))])
                .collect(),
            input: Input::Nothing,
            directory: None,
            limit: Duration::from_secs(60),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, words: I) -> Self {
        self.words
            .extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// A string of plain words.
    #[must_use]
    pub fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// What it reads.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// The file that it reads.
    #[must_use]
    pub fn input_file(mut self, path: impl AsRef<Path>) -> Self {
        self.input = Input::File(path.as_ref().to_owned());
        self
    }

    /// Its input is a pipe that stays open until the program is told otherwise; for [`Cmd::start`].
    #[must_use]
    pub fn input_open(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.directory = Some(path.as_ref().to_owned());
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Words before it: a program that runs programs.
    #[must_use]
    pub fn under<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, words: I) -> Self {
        self.words.splice(
            0..0,
            words
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect::<Vec<_>>(),
        );
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It can't be started, or takes longer than its limit.
    #[track_caller]
    pub fn run(&self) -> Output {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let since = Stopwatch::new();
        let mut child = spawn(command).unwrap_or_else(|e| panic!("cannot start {self}: {e}"));
        if let (Input::Bytes(bytes), Some(mut stdin)) = (&self.input, child.stdin.take()) {
            let bytes = bytes.clone();
            thread::spawn(move || stdin.write_all(&bytes).ok());
        }
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if since.elapsed() > self.limit {
                child.kill().ok();
                child.wait().ok();
                let said = [stdout, stderr].map(|said| {
                    said.recv_timeout(Duration::from_secs(1))
                        .unwrap_or_default()
                });
                let [out, err] = said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                panic!(
                    "{self}\ntook longer than {:?}\nstdout: {out}\nstderr: {err}",
                    self.limit
                );
            }
            thread::sleep(Duration::from_millis(5));
        };
        // A grandchild that was left behind may hold the pipes.
        let patience = Duration::from_secs(5);
        Output {
            command: self.to_string(),
            code: status.code(),
            bytes: stdout.recv_timeout(patience).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&stderr.recv_timeout(patience).unwrap_or_default())
                .into_owned(),
            took: since.elapsed(),
        }
    }

    /// Its output; it has to succeed.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.run().ok()
    }

    /// All it said; it has to fail.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn fails(&self) -> String {
        self.run().fails()
    }

    /// Its output as JSON; it has to succeed.
    ///
    /// # Panics
    /// It does not, or says something else.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let said = self.ok();
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{self}: no JSON ({e}): {said}"))
    }

    /// Starts it; what it says goes into files.
    ///
    /// # Panics
    /// It can't be started.
    #[track_caller]
    pub fn start(&self, name: &str) -> Program {
        let directory = place::run_directory();
        let base = (0..)
            .map(|n| {
                directory.join(if n == 0 {
                    name.to_owned()
                } else {
                    format!("{name}-{n}")
                })
            })
            .find(|path| File::create_new(path.with_extension("out")).is_ok())
            .expect("one of all names is free");
        let (out, err) = (base.with_extension("out"), base.with_extension("err"));
        let mut command = self.command();
        command.stdout(File::create(&out).expect("a log can be written"));
        command.stderr(File::create(&err).expect("a log can be written"));
        let mut child = lead(command).unwrap_or_else(|e| panic!("cannot start {self}: {e}"));
        let mut stdin = child.stdin.take();
        if let (Input::Bytes(bytes), Some(mut stdin)) =
            (&self.input, stdin.take_if(|_| !self.input.stays_open()))
        {
            let bytes = bytes.clone();
            thread::spawn(move || stdin.write_all(&bytes).ok());
        }
        Program::new(self.to_string(), child, stdin, out, err)
    }

    fn command(&self) -> Command {
        // A child ends with whoever started it, however that ended; see also `group`.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.words)
            .env_clear()
            .envs(&self.env);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(match &self.input {
            Input::Nothing => Stdio::null(),
            Input::Bytes(_) | Input::Pipe => Stdio::piped(),
            Input::File(path) => File::open(path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                .into(),
        });
        command
    }

    /// The terminal end of a pseudo-terminal instead of files; see `pty`.
    pub(crate) fn on_terminal(&self, terminal: &File) -> Command {
        let mut command = self.command();
        let end = || Stdio::from(terminal.try_clone().expect("a file can be cloned"));
        command.stdin(end()).stdout(end()).stderr(end());
        command
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self
            .words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        f.write_str(&words.join(" "))
    }
}

/// What a command said that has ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// What was run.
    pub command: String,
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub bytes: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Standard output, if it succeeded.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.text()
    }

    /// Standard output and error, if it failed by itself.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn fails(&self) -> String {
        assert!(
            self.code.is_some_and(|code| code != 0),
            "should have failed: {self}"
        );
        format!("{}{}", self.text(), self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        let shown: String = text.chars().take(4000).collect();
        write!(
            f,
            "{}\nexit code {:?} after {:?}",
            self.command, self.code, self.took
        )?;
        write!(
            f,
            "\nstdout ({} bytes): {shown}\nstderr: {}",
            self.bytes.len(),
            self.stderr
        )
    }
}

fn collect(pipe: Option<impl std::io::Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        sender.send(bytes).ok();
    });
    receiver
}

/// The text of a file that a program writes; empty while it isn't there.
pub fn text_of(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_end(&mut bytes).ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a line in a file that a program writes.
///
/// # Panics
/// When it doesn't come.
#[track_caller]
pub fn wait_line(path: &Path, what: &str, bound: Duration, holds: impl Fn(&str) -> bool) -> String {
    wait_for(&format!("{what} in {}", path.display()), bound, || {
        text_of(path)
            .lines()
            .find(|line| holds(line))
            .map(str::to_owned)
    })
}
