//! PostgreSQL servers for tests: real ones, each with a directory of its own, gone with the process that started it.
//!
//! A server fails the test when PostgreSQL isn't installed; it isn't skipped. It listens on a socket in its directory,
//! or on a free port too. A shell holds a pipe from this process: when that closes, however the process ended, it stops
//! the server and removes the directory.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests alone use it: what goes wrong here is a test that fails"
)]

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Ends the server when its standard input ends.
const GUARD: &str = r#"cat; "$1/pg_ctl" -D "$2/data" -m immediate -w stop; rm -rf "$2""#;

/// For servers whose data nobody wants back. Texts are sorted as people do, not as machines, so that a query which
/// leaves sorting to the database is found.
const SETTINGS: &str = "\
fsync = off
full_page_writes = off
synchronous_commit = off
max_connections = 300
shared_buffers = 16MB
log_min_messages = warning
";

/// The user that owns every database of a test server; it needs no password on the socket.
pub const USER: &str = "towline";

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    bin: PathBuf,
    owner: Option<(u32, u32)>,
    port: u16,
    // Closing it ends the server.
    _guard: ChildStdin,
}

impl Server {
    /// The server that all tests of this process share, each with a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A server of this test's own, to be stopped and started.
    pub fn start() -> Self {
        Self::with(5432, "listen_addresses = ''\n")
    }

    /// A server that listens on 127.0.0.1, too, with these lines in `postgresql.conf`.
    pub fn on_port(settings: &str) -> Self {
        // Between the two nobody else takes the port: the system gives out others first.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self::with(
            port,
            &format!("listen_addresses = '127.0.0.1'\nport = {port}\n{settings}"),
        )
    }

    fn with(port: u16, settings: &str) -> Self {
        let bin = installed();
        // It removes itself below, when nobody uses it any more. Short, as a socket's path has to be.
        let directory = tempfile::Builder::new()
            .prefix("towline-pg-")
            .tempdir_in(place())
            .unwrap()
            .keep();
        let owner = owner();
        if let Some((user, group)) = owner {
            chown(&directory, Some(user), Some(group)).unwrap();
        }
        let mut guard = as_owner("sh", owner);
        guard
            .args(["-c", GUARD, "guard"])
            .args([&bin, &directory])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not with the terminal's Ctrl-C: it has to outlive the tests.
            .process_group(0);
        let guard = guard.spawn().unwrap().stdin.take().unwrap();
        let server = Self {
            directory,
            bin,
            owner,
            port,
            _guard: guard,
        };
        let data = server.data();
        server.run(
            "initdb",
            &[
                "--pgdata",
                data.to_str().unwrap(),
                "--username",
                USER,
                "--auth-local",
                "trust",
                "--auth-host",
                "scram-sha-256",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
                "--locale-provider",
                "icu",
                "--icu-locale",
                "en",
                "--no-sync",
                "--no-instructions",
            ],
        );
        let mut text = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        writeln!(
            text,
            "{SETTINGS}unix_socket_directories = '{}'\n{settings}",
            server.directory.display()
        )
        .unwrap();
        fs::write(data.join("postgresql.conf"), text).unwrap();
        server.resume();
        server
    }

    /// Where its files are; a new file there has to be made readable for whom the server runs as.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A new, empty database, as a URL for [`USER`] over the socket.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database for [`USER`] over the socket.
    pub fn url(&self, database: &str) -> String {
        let socket = self.directory.to_str().unwrap().replace('/', "%2F");
        format!("postgres://{USER}@{socket}:{}/{database}", self.port)
    }

    /// Runs SQL as the superuser; answers with what `psql` prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let (socket, port) = (self.directory.to_str().unwrap(), self.port.to_string());
        self.run(
            "psql",
            &[
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                socket,
                "-p",
                &port,
                "-U",
                USER,
                "-d",
                database,
                "-c",
                sql,
            ],
        )
    }

    /// Stops it as a power cut does: nobody is told.
    pub fn kill(&self) {
        let data = self.data();
        self.run(
            "pg_ctl",
            &[
                "-D",
                data.to_str().unwrap(),
                "-m",
                "immediate",
                "-w",
                "stop",
            ],
        );
    }

    /// Stops it as an operator does, with every connection.
    pub fn stop(&self) {
        let data = self.data();
        self.run(
            "pg_ctl",
            &["-D", data.to_str().unwrap(), "-m", "fast", "-w", "stop"],
        );
    }

    /// Starts it again.
    pub fn resume(&self) {
        let (data, log) = (self.data(), self.directory.join("log"));
        self.run(
            "pg_ctl",
            &[
                "-D",
                data.to_str().unwrap(),
                "-l",
                log.to_str().unwrap(),
                "-w",
                "-t",
                "60",
                "start",
            ],
        );
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Makes a file of the server's own, as a private key has to be.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        if let Some((user, group)) = self.owner {
            chown(&path, Some(user), Some(group)).unwrap();
        }
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// Runs one of PostgreSQL's programs. Its output goes to a file: a server that it starts would hold a pipe open.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = tempfile::tempfile().unwrap();
        let mut command = as_owner(self.bin.join(program), self.owner);
        let status = command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output.try_clone().unwrap())
            .status()
            .unwrap();
        let output = {
            use std::io::{Read as _, Seek as _};
            let (mut file, mut text) = (output, String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert!(status.success(), "{program}: {output}\n{}", self.log());
        output
    }
}

/// In memory where there is enough: many tests wait for disks, and nobody wants the data back.
fn place() -> &'static str {
    const ENOUGH: u64 = 4 << 30;
    match rustix::fs::statvfs("/dev/shm") {
        Ok(found) if found.f_bavail * found.f_frsize >= ENOUGH => "/dev/shm",
        _ => "/tmp",
    }
}

/// PostgreSQL refuses to run as root: then as the user that its package makes.
fn owner() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse::<u32>()
            .ok()
    };
    (id(&["-u"]) == Some(0)).then(|| {
        let user = id(&["-u", "postgres"]).zip(id(&["-g", "postgres"]));
        user.unwrap_or_else(|| {
            panic!("there is no user \"postgres\"; run: tests/prerequisites.sh --install tests")
        })
    })
}

fn as_owner(program: impl AsRef<std::ffi::OsStr>, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    // Not the PGHOST and the like of whoever runs the tests.
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C");
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// Where PostgreSQL's programs are, as Debian and its own packages put them, the newest version first.
fn installed() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    found.sort_unstable();
    let others = ["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    found
        .into_iter()
        .rev()
        .map(|(_, bin)| bin)
        .chain(others)
        .find(|bin| has(bin))
        .unwrap_or_else(|| {
            panic!("PostgreSQL is not installed; run: tests/prerequisites.sh --install tests")
        })
}

fn has(bin: &Path) -> bool {
    ["initdb", "pg_ctl", "psql", "postgres"]
        .iter()
        .all(|program| bin.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_stopped_and_started_and_keeps_what_it_has() {
        let server = Server::start();
        assert_ne!(server.database(), server.database());
        server.sql(
            "postgres",
            "CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x')",
        );
        server.stop();
        server.resume();
        assert_eq!(server.sql("postgres", "SELECT a FROM t").trim(), "x");
        server.kill();
        server.resume();
        server.sql("postgres", "SELECT 1");
    }
}
