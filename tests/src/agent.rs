//! An agent process in a cluster's network.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::{cluster::Cluster, command::Cmd, place, program::Program};

/// An agent; dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    /// The membership that it serves.
    pub membership: String,
    cluster: Cluster,
    registration: PathBuf,
    key: PathBuf,
    kubeconfig: PathBuf,
    env: Vec<(String, String)>,
    before: Vec<String>,
    binary: PathBuf,
    program: Option<Program>,
}

impl Agent {
    /// One that doesn't run yet; it is the cluster's administrator unless told otherwise.
    pub fn new(cluster: &Cluster, membership: &str, registration: PathBuf) -> Self {
        Self {
            membership: membership.to_owned(),
            cluster: cluster.clone(),
            key: place::directory(&format!("agent-{membership}")).join("agent.key"),
            registration,
            kubeconfig: cluster.admin_kubeconfig().to_owned(),
            env: Vec::new(),
            before: Vec::new(),
            binary: place::program("towline-agent"),
            program: None,
        }
    }

    /// Runs with a clock of its own, such as `+1h`.
    #[must_use]
    pub fn clock(mut self, shift: &str) -> Self {
        self.binary = place::dynamic("towline-agent");
        self.under(&place::clock(shift))
    }

    /// A variable of its environment, such as `HTTPS_PROXY`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Words before the program, such as `faketime`.
    #[must_use]
    pub fn under(mut self, words: &str) -> Self {
        self.before = words.split_whitespace().map(str::to_owned).collect();
        self
    }

    /// Another kubeconfig: an agent with fewer rights.
    #[must_use]
    pub fn kubeconfig(mut self, path: PathBuf) -> Self {
        self.kubeconfig = path;
        self
    }

    /// Another place for its key: a second agent, or one that comes back.
    #[must_use]
    pub fn key(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.key);
        self
    }

    /// The command that runs it.
    pub fn command(&self) -> Cmd {
        let mut command = Cmd::new(&self.binary)
            .env(
                "TOWLINE_LOG",
                place::variable("TOWLINE_TEST_LOG").unwrap_or_else(|| "info".to_owned()),
            )
            .arg("run")
            .arg("--registration")
            .arg(&self.registration)
            .arg("--key-file")
            .arg(&self.key)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--health-listen", "127.0.0.1:0"]);
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        self.cluster.inside(command.under(self.before.clone()))
    }

    /// Runs it; who needs it connected waits for that.
    #[track_caller]
    pub fn run(&mut self) {
        self.program = Some(self.command().start(&format!("agent-{}", self.membership)));
    }

    /// The running process.
    ///
    /// # Panics
    /// It doesn't run.
    #[track_caller]
    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the agent runs")
    }

    /// A metric of its health listener; `None` while it doesn't say.
    pub fn metric(&mut self, name: &str) -> Option<f64> {
        const AT: &str = "127.0.0.1:";
        let program = self.program.as_ref()?;
        let said = program.out() + &program.err();
        let (_, port) = said.split_once(AT)?;
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        let url = format!("http://{AT}{port}/metrics");
        let curl = Cmd::new("curl").args(["--silent", "--fail", "--max-time", "5", &url]);
        let said = self.cluster.inside(curl).run();
        (said.code == Some(0)).then(|| crate::gateway::sum(&said.text(), name))
    }

    /// Tells it to end and starts another in its place at once, as a Deployment does; the old process, which finishes
    /// what it has.
    ///
    /// # Panics
    /// It doesn't run.
    #[track_caller]
    pub fn replace(&mut self) -> Program {
        let old = self.program.take().expect("the agent runs");
        self.run();
        old.signal(Signal::TERM);
        old
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        drop(self.program.take());
    }

    /// Ends it as a cluster does.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut program = self.program.take().expect("the agent runs");
        program.signal(Signal::TERM);
        program.wait(Duration::from_secs(60));
    }
}
