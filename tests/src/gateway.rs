//! A gateway process with a state directory of its own.

use std::{
    fs,
    net::TcpListener,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    cluster::Cluster,
    command::Cmd,
    place,
    program::Program,
    wait::{Stopwatch, wait_for},
};

/// A gateway; dropping it ends it.
#[derive(Debug)]
pub struct Gateway {
    /// Its public address, `https://IP:PORT`.
    pub url: String,
    /// The address it is reached at.
    pub ip: String,
    /// The public port.
    pub port: u16,
    /// Its state directory.
    pub state: PathBuf,
    /// The file with the certificate that signs its own.
    pub certificate_authority: PathBuf,
    /// With which `admin` signs in for the first time; empty where another replica was there before.
    pub one_time_code: String,
    name: String,
    program: Option<Program>,
    before: Vec<String>,
    binary: PathBuf,
}

impl Gateway {
    /// Makes one and runs it, where agents of `cluster` (and of every other) can dial it.
    #[track_caller]
    pub fn start(name: &str, cluster: &Cluster) -> Self {
        let mut gateway = Self::init(name, cluster);
        gateway.run();
        gateway
    }

    /// Makes one that doesn't run yet.
    #[track_caller]
    pub fn init(name: &str, cluster: &Cluster) -> Self {
        Self::init_as(name, cluster, None)
    }

    /// The same, but known to everybody under `public_url`: what stands in front of it.
    #[track_caller]
    pub fn init_as(name: &str, cluster: &Cluster, public_url: Option<&str>) -> Self {
        let state = place::directory(&format!("{name}-state"));
        Self::init_with(&state, name, cluster, free_port(), public_url, &[])
    }

    /// One of several replicas, known to everybody under `public_url`, that doesn't run yet; a further one is given what
    /// `first` has.
    #[track_caller]
    pub fn init_replica(
        name: &str,
        cluster: &Cluster,
        port: u16,
        (public_url, database_url): (&str, &str),
        first: Option<&Self>,
    ) -> Self {
        let state = place::directory(&format!("{name}-state"));
        if let Some(first) = first {
            for directory in ["keys", "tls"] {
                fs::create_dir(state.join(directory)).expect("a directory can be made");
            }
            let shared = [
                "ca.crt",
                "ca.key",
                "server.crt",
                "server.key",
                "server.json",
            ];
            let shared = shared.map(|name| format!("tls/{name}"));
            for file in shared.iter().map(String::as_str).chain(ROOT_KEY) {
                fs::copy(first.state.join(file), state.join(file)).expect("a replica has it");
            }
        }
        let admin = format!("127.0.0.1:{}", free_port());
        let more = ["--admin-listen", &admin, "--peer-listen", "127.0.0.1:0"];
        let more = [&more[..], &["--database-url", database_url]].concat();
        Self::init_with(&state, name, cluster, port, Some(public_url), &more)
    }

    /// Makes one with its state in a directory of the caller's.
    #[track_caller]
    pub fn init_in(state: &Path, name: &str, cluster: &Cluster) -> Self {
        Self::init_with(state, name, cluster, free_port(), None, &[])
    }

    #[track_caller]
    fn init_with(
        state: &Path,
        name: &str,
        cluster: &Cluster,
        port: u16,
        public_url: Option<&str>,
        more: &[&str],
    ) -> Self {
        let ip = cluster.host_ip().to_owned();
        let url = public_url.map_or_else(|| format!("https://{ip}:{port}"), str::to_owned);
        let made = Cmd::new(place::program("towline-gateway"))
            .arg("init")
            .arg("--state-dir")
            .arg(state)
            .args([
                "--host",
                &ip,
                "--host",
                "localhost",
                "--listen",
                &format!("0.0.0.0:{port}"),
            ])
            .args(["--public-url", &url])
            .args(more)
            .args(["--project", "demo", "--admin", "admin", "--print", "json"])
            .json();
        let text = |key: &str| {
            made[key]
                .as_str()
                .unwrap_or_else(|| panic!("'init --print json' has no {key}: {made}"))
                .to_owned()
        };
        let gateway = Self {
            url,
            ip,
            port,
            certificate_authority: PathBuf::from(text("certificateAuthority")),
            one_time_code: made["oneTimeCode"].as_str().unwrap_or_default().to_owned(),
            state: state.to_owned(),
            name: name.to_owned(),
            program: None,
            before: Vec::new(),
            binary: place::program("towline-gateway"),
        };
        // One user does here what many do elsewhere, all at once.
        gateway.configure(
            "[limits]\nrequests_per_minute_per_principal = 10000000\nrequests_per_minute_per_project = 10000000\n",
        );
        gateway
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.state.join("gateway.toml")
    }

    /// Its configuration as it stands.
    #[track_caller]
    pub fn configuration(&self) -> toml::Table {
        let text = fs::read_to_string(self.config()).expect("init wrote a configuration");
        text.parse()
            .unwrap_or_else(|e| panic!("{}: {e}", self.config().display()))
    }

    /// Puts keys over its configuration, before it runs.
    #[track_caller]
    pub fn configure(&self, toml: &str) {
        let mut table = self.configuration();
        table.extend(toml.parse::<toml::Table>().expect("the test's own TOML"));
        fs::write(self.config(), table.to_string()).expect("the configuration can be written");
    }

    /// A metric of its admin listener, the sum of it where it has labels.
    #[track_caller]
    pub fn metric(&mut self, name: &str) -> f64 {
        let address = self.addresses()["admin"]
            .as_str()
            .expect("the admin listener has an address")
            .to_owned();
        let text = Cmd::new("curl")
            .args(["--silent", "--fail", &format!("http://{address}/metrics")])
            .ok();
        sum(&text, name)
    }

    /// A clock of its own from its next start on, such as `+1h`.
    pub fn clock(&mut self, shift: &str) {
        self.binary = place::dynamic("towline-gateway");
        self.before = place::clock(shift)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    }

    /// Hands a listening socket to every process that is run from now on, as systemd does. What this test starts
    /// besides inherits it, too.
    ///
    /// # Panics
    /// The socket can't be inherited.
    pub fn listen_on(&mut self, socket: &TcpListener) {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())
            .expect("a socket can be inherited");
        let script = format!(
            "exec 3<&{}; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=towline-gateway.socket; exec \"$0\" \"$@\"",
            socket.as_raw_fd()
        );
        self.before = vec!["bash".to_owned(), "-c".to_owned(), script];
    }

    /// Runs another beside the one that runs, which is handed out.
    #[track_caller]
    pub fn succeed(&mut self) -> Program {
        let before = self.program.take().expect("the gateway runs");
        self.run();
        before
    }

    /// The command that runs it.
    pub fn command(&self) -> Cmd {
        Cmd::new(&self.binary)
            .env(
                "TOWLINE_LOG",
                place::variable("TOWLINE_TEST_LOG").unwrap_or_else(|| "info".to_owned()),
            )
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .arg("--print-addresses")
            .under(self.before.clone())
    }

    /// Runs it and waits until it listens.
    #[track_caller]
    pub fn run(&mut self) {
        let mut program = self.command().start(&self.name);
        program.line("its addresses", Duration::from_secs(20), |line| {
            line.starts_with('{')
        });
        self.program = Some(program);
    }

    /// The running process.
    ///
    /// # Panics
    /// It doesn't run.
    #[track_caller]
    pub fn program(&mut self) -> &mut Program {
        self.program.as_mut().expect("the gateway runs")
    }

    /// The process, if it was started and not taken away.
    pub fn started(&mut self) -> Option<&mut Program> {
        self.program.as_mut()
    }

    /// The addresses that it printed.
    #[track_caller]
    pub fn addresses(&mut self) -> serde_json::Value {
        let line = self
            .program()
            .line("its addresses", Duration::from_secs(1), |line| {
                line.starts_with('{')
            });
        serde_json::from_str(&line).expect("the addresses are JSON")
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        drop(self.program.take());
    }

    /// Ends it as an operator does, and says how long that took.
    #[track_caller]
    pub fn stop(&mut self) -> Duration {
        let mut program = self.program.take().expect("the gateway runs");
        let since = Stopwatch::new();
        program.signal(Signal::TERM);
        program.wait(Duration::from_secs(90));
        since.elapsed()
    }

    /// The public port on loopback answers.
    #[track_caller]
    pub fn wait_listening(&self) {
        wait_for("the gateway listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect((self.ip.as_str(), self.port)).ok()
        });
    }
}

/// The root key, without which a further replica would be another gateway.
const ROOT_KEY: [&str; 2] = ["keys/root.key", "keys/root.pub"];

/// The sum of a metric in Prometheus' text format.
pub fn sum(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.split_whitespace().next_back()?.parse::<f64>().ok())
        .sum()
}

/// A port that was free just now, for what has to be known before it listens.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    listener
        .local_addr()
        .expect("a listener has an address")
        .port()
}

/// A file with `text` in a directory, readable by its owner only.
pub fn secret_file(directory: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    fs::write(&path, text).expect("a file can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
    path
}
