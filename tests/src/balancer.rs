//! HAProxy before several replicas: `deploy/proxies/haproxy-replicas.cfg`, with the addresses of a test put in.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use crate::{
    command::Cmd,
    front::in_sbin,
    place,
    program::Program,
    wait::{wait_for, wait_until},
};

const UP: Duration = Duration::from_secs(10);

/// What the kept configuration calls its servers.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A TCP load balancer; dropping it ends it.
#[derive(Debug)]
pub struct Balancer {
    /// Where it listens, `IP:PORT`.
    pub address: String,
    program: Program,
    socket: PathBuf,
}

impl Balancer {
    /// Before these replicas, each its public address and the port that tells whether it is ready.
    ///
    /// # Panics
    /// They are more than the kept configuration has servers, or HAProxy doesn't start.
    #[track_caller]
    pub fn start(name: &str, address: &str, replicas: &[(String, u16)]) -> Self {
        let directory = place::directory(&format!("{name}-balancer"));
        // Short, as a socket's path has to be.
        let socket = directory.join("s");
        let kept = place::tree().join("deploy/proxies/haproxy-replicas.cfg");
        let kept = fs::read_to_string(kept).expect("the kept configuration");
        let mut text = String::new();
        for line in kept.lines() {
            if line.trim_start().starts_with("server ") {
                continue;
            }
            let line = line
                .replace("/run/haproxy/admin.sock", &socket.display().to_string())
                .replace("bind :443", &format!("bind {address}"));
            text += &(line + "\n");
        }
        for (name, (replica, port)) in NAMES.iter().zip(replicas) {
            text += &format!("    server {name} {replica} check addr 127.0.0.1 port {port}\n");
        }
        assert!(replicas.len() <= NAMES.len(), "{replicas:?}");
        assert!(text.contains(&format!("bind {address}")), "{text}");
        let path = directory.join("haproxy.cfg");
        fs::write(&path, text).expect("a file can be written");
        let command = Cmd::new("haproxy").args(["-db", "-f"]).arg(&path);
        let mut program = in_sbin(command).start(&format!("{name}-balancer"));
        wait_until("HAProxy listens", UP, || {
            assert!(program.runs(), "{}{}", program.err(), program.out());
            std::net::TcpStream::connect(address).is_ok()
        });
        Self {
            address: address.to_owned(),
            program,
            socket,
        }
    }

    /// A command at its socket, and what it answers.
    ///
    /// # Panics
    /// It doesn't answer.
    #[track_caller]
    pub fn tell(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("HAProxy's socket");
        stream
            .write_all(format!("{command}\n").as_bytes())
            .expect("HAProxy takes a command");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("HAProxy answers");
        said
    }

    /// Whether new connections may go to a replica; those that there are stay where they are.
    ///
    /// # Panics
    /// There is no such replica.
    #[track_caller]
    pub fn let_through(&self, replica: usize, through: bool) {
        let state = if through { "ready" } else { "maint" };
        let name = NAMES[replica];
        let said = self.tell(&format!("set server towline/{name} state {state}"));
        assert!(said.trim().is_empty(), "{said}");
    }

    /// Asks another port whether a replica is ready: that of another process at the same address.
    ///
    /// # Panics
    /// There is no such replica.
    #[track_caller]
    pub fn ask(&self, replica: usize, port: u16) {
        let name = NAMES[replica];
        let said = self.tell(&format!("set server towline/{name} check-port {port}"));
        assert!(
            said.contains("check port changed") || said.trim().is_empty(),
            "{said}"
        );
    }

    /// Whether it takes a replica for ready.
    #[track_caller]
    pub fn is_ready(&self, replica: usize) -> bool {
        let states = self.tell("show servers state towline");
        let name = NAMES[replica];
        // be_id be_name srv_id srv_name srv_addr srv_op_state ...
        let row = states
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|row| row.get(3) == Some(&name));
        row.is_some_and(|row| row[5] == "2")
    }

    /// Waits until it takes these for ready.
    #[track_caller]
    pub fn wait_ready(&self, replicas: impl Iterator<Item = usize> + Clone) {
        wait_for("HAProxy finds the replicas ready", UP, || {
            replicas.clone().all(|n| self.is_ready(n)).then_some(())
        });
    }

    /// Its process.
    pub const fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}
