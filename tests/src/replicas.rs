//! Several replicas of one gateway as separate programs, with what they need: a PostgreSQL server, and a TCP load
//! balancer, whose address is the one that everybody knows.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use rustix::process::Signal;
use towline_test_postgresql::Server;

use crate::{
    balancer::Balancer,
    cluster::Cluster,
    command::Cmd,
    gateway::{Gateway, free_port},
    http::Api,
    program::Program,
    user::User,
    wait::wait_until,
    world::World,
};

/// How long a replica may take until the load balancer lets callers through to it.
const BACK: Duration = Duration::from_secs(20);

/// Replicas behind one address, with their administrator.
#[derive(Debug)]
pub struct Replicas {
    /// The first one, and `admin`, who comes through the load balancer.
    pub world: World,
    /// What stands before them.
    pub balancer: Balancer,
    /// What they keep their state in.
    pub database: Server,
    rest: Vec<Gateway>,
    name: String,
    cluster: Cluster,
    database_url: String,
    /// More of each replica's configuration.
    settings: String,
    made: usize,
    /// What stands behind the gateway's URL in a kubeconfig.
    paths: HashMap<PathBuf, String>,
}

impl Replicas {
    /// Sets so many up as an operator does, runs them, and signs `admin` in.
    #[track_caller]
    pub fn start(name: &str, cluster: &Cluster, count: usize) -> Self {
        Self::start_with(name, cluster, count, "")
    }

    /// The same, with these keys over each one's configuration.
    #[track_caller]
    pub fn start_with(name: &str, cluster: &Cluster, count: usize, settings: &str) -> Self {
        let database = Server::start();
        let database_url = database.database();
        let address = format!("{}:{}", cluster.host_ip(), free_port());
        let url = format!("https://{address}");
        let mut all: Vec<Gateway> = Vec::new();
        for n in 0..count {
            let gateway = Gateway::init_replica(
                &format!("{name}-{n}"),
                cluster,
                free_port(),
                (&url, &database_url),
                all.first(),
            );
            gateway.configure(settings);
            all.push(gateway);
        }
        for gateway in &mut all {
            gateway.run();
        }
        let behind: Vec<(String, u16)> = all
            .iter_mut()
            .map(|gateway| {
                (
                    format!("{}:{}", gateway.ip, gateway.port),
                    admin_port(gateway),
                )
            })
            .collect();
        let balancer = Balancer::start(name, &address, &behind);
        balancer.wait_ready(0..count);
        let rest = all.split_off(1);
        let first = all.pop().expect("at least one replica");
        Self {
            world: World::of(first),
            balancer,
            database,
            rest,
            name: name.to_owned(),
            cluster: cluster.clone(),
            database_url,
            settings: settings.to_owned(),
            made: count,
            paths: HashMap::new(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + self.rest.len()
    }

    /// One of them.
    pub fn replica(&mut self, n: usize) -> &mut Gateway {
        match n.checked_sub(1) {
            None => &mut self.world.gateway,
            Some(n) => &mut self.rest[n],
        }
    }

    /// Ends one without a word.
    pub fn kill(&mut self, n: usize) {
        self.replica(n).kill();
    }

    /// Starts one that was killed again, at its old address and with its old state.
    #[track_caller]
    pub fn run(&mut self, n: usize) {
        self.replica(n).run();
        self.wait_ready(n);
    }

    /// Tells one to end, and starts another at the same address as soon as that is free. The old process, which
    /// finishes what it has.
    #[track_caller]
    pub fn replace(&mut self, n: usize) -> Gateway {
        let number = self.made;
        self.made += 1;
        let (name, port) = (format!("{}-{number}", self.name), self.replica(n).port);
        let url = self.world.gateway.url.clone();
        let database = self.database_url.clone();
        let cluster = self.cluster.clone();
        let from = self.replica(n);
        let mut new = Gateway::init_replica(&name, &cluster, port, (&url, &database), Some(from));
        new.configure(&self.settings);
        self.replica(n).program().signal(Signal::TERM);
        // The load balancer finds it unready before it refuses anything.
        wait_until(
            "the replica that was told to end takes no connections",
            BACK,
            || std::net::TcpListener::bind(("0.0.0.0", port)).is_ok(),
        );
        new.run();
        let port = admin_port(&mut new);
        let old = std::mem::replace(self.replica(n), new);
        self.balancer.ask(n, port);
        self.wait_ready(n);
        old
    }

    #[track_caller]
    fn wait_ready(&mut self, n: usize) {
        let balancer = &self.balancer;
        wait_until("the replica gets connections again", BACK, || {
            balancer.is_ready(n)
        });
    }

    /// The URL of a user's current membership at one replica, around the load balancer.
    #[track_caller]
    pub fn server(&mut self, n: usize, user: &User) -> String {
        let url = self.world.gateway.url.clone();
        let known = self.paths.entry(user.kubeconfig.clone());
        let path = known.or_insert_with(|| {
            let config = user.kubeconfig_now();
            let server = config["clusters"][0]["cluster"]["server"].as_str();
            let path = server.and_then(|server| server.strip_prefix(&url));
            path.expect("a server at the gateway's URL").to_owned()
        });
        let path = path.clone();
        let gateway = self.replica(n);
        format!("https://{}:{}{path}", gateway.ip, gateway.port)
    }

    /// kubectl as `user` at one replica, around the load balancer.
    #[track_caller]
    pub fn kubectl(&mut self, n: usize, user: &User, words: &str) -> Cmd {
        let server = self.server(n, user);
        user.kubectl(&format!("--server {server} {words}"))
    }

    /// Plain HTTPS to one replica, around the load balancer.
    #[track_caller]
    pub fn api(&mut self, n: usize, user: &User) -> Api {
        let server = self.server(n, user);
        Api::new(
            &server,
            &self.world.gateway.certificate_authority.clone(),
            Some(user.token()),
        )
    }

    /// A metric of each.
    #[track_caller]
    pub fn metrics(&mut self, name: &str) -> Vec<f64> {
        (0..self.count())
            .map(|n| self.replica(n).metric(name))
            .collect()
    }

    /// The processes that run.
    pub fn programs(&mut self) -> Vec<&mut Program> {
        let all = std::iter::once(&mut self.world.gateway).chain(&mut self.rest);
        all.filter_map(Gateway::started).collect()
    }
}

#[track_caller]
fn admin_port(gateway: &mut Gateway) -> u16 {
    let addresses = gateway.addresses();
    let admin = addresses["admin"].as_str().and_then(|a| a.rsplit_once(':'));
    let port = admin.and_then(|(_, port)| port.parse().ok());
    port.unwrap_or_else(|| panic!("no admin port in {addresses}"))
}
