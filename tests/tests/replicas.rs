//! Several replicas as real programs on one PostgreSQL, behind a TCP load balancer: what comes to one and is held by
//! another, and what goes on while they come and go.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tests::{
    Agent, Cluster, Cmd, Program, Replicas, Stopwatch,
    file::{checksum, random_file},
    load::{Callers, ask_once},
    place, wait_until,
    world::{POD, run_server},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a copy carries, in bytes.
const COPIED: u64 = 16 << 20;

/// Three replicas, and a cluster whose agent has come through the load balancer to some of them.
struct Site {
    replicas: Replicas,
    cluster: Cluster,
    agent: Agent,
}

impl Site {
    /// Its agent's sessions are at `hold` alone, as far as the load balancer can help it.
    fn new(name: &str, hold: &[usize]) -> Self {
        let cluster = Cluster::with_node();
        // Longer than the load balancer takes to notice.
        let replicas = Replicas::start_with(name, &cluster, 3, "drain_delay = \"2s\"");
        for n in 0..3 {
            replicas.balancer.let_through(n, hold.contains(&n));
        }
        let agent = replicas.world.join(&cluster, name);
        for n in 0..3 {
            replicas.balancer.let_through(n, true);
        }
        let namespace = replicas.world.namespace(&cluster);
        run_server(&cluster, &namespace);
        Self {
            replicas,
            cluster,
            agent,
        }
    }

    /// kubectl at one replica.
    fn at(&mut self, n: usize, words: &str) -> Cmd {
        let admin = self.replicas.world.admin.clone();
        self.replicas.kubectl(n, &admin, words)
    }

    /// Lets new connections through to these replicas alone.
    fn through(&self, to: &[usize]) {
        for n in 0..3 {
            self.replicas.balancer.let_through(n, to.contains(&n));
        }
    }

    /// Waits until sessions are held as they should be.
    fn come(&mut self, holds: impl Fn(&[f64]) -> bool) {
        wait_until("the agent has come", PATIENCE, || {
            holds(&self.replicas.metrics("towline_sessions"))
        });
    }

    /// Which replicas hold a session.
    fn holders(&mut self) -> Vec<usize> {
        let sessions = self.replicas.metrics("towline_sessions");
        (0..3).filter(|n| sessions[*n] > 0.0).collect()
    }
}

/// A shell in the pod that says what it is told to.
struct Shell {
    program: Program,
    said: u32,
}

impl Shell {
    fn start(command: Cmd, name: &str) -> Self {
        let mut shell = Self {
            program: command.input_open().start(name),
            said: 0,
        };
        shell.program.write("pid=$$\n");
        shell.answers();
        shell
    }

    /// The same shell still answers.
    #[track_caller]
    fn answers(&mut self) {
        self.said += 1;
        let number = self.said;
        self.program
            .write(format!("echo answer-$(({number} + 0))-$((pid == $$))\n"));
        let awaited = format!("answer-{number}-1");
        self.program
            .line(&awaited, PATIENCE, |line| line == awaited);
    }

    /// It has given every answer once, in order, and ends as it is told to.
    #[track_caller]
    fn ends(mut self) {
        self.answers();
        let expected: String = (1..=self.said).map(|n| format!("answer-{n}-1\n")).collect();
        assert_eq!(self.program.out(), expected);
        self.program.write("exit 7\n");
        assert_eq!(
            self.program.wait(PATIENCE).code(),
            Some(7),
            "{}",
            self.program.err()
        );
    }
}

/// A watch for config maps, which has begun.
struct Watch {
    program: Program,
}

impl Watch {
    fn start(command: &Cmd, name: &str) -> Self {
        let mut program = command.start(name);
        program.line("its first object", PATIENCE, |line| {
            line == "configmap/kube-root-ca.crt"
        });
        Self { program }
    }

    /// Words of such a watch.
    const WORDS: &str = "get configmaps --watch -o name --request-timeout 0";

    /// It has seen so many, each once.
    #[track_caller]
    fn has_seen(&mut self, count: usize) {
        let last = format!("configmap/seen-{}", count - 1);
        self.program.line(&last, PATIENCE, |line| line == last);
        let mut seen: Vec<String> = self.program.out().lines().map(str::to_owned).collect();
        seen.retain(|line| line.contains("seen-"));
        let expected: Vec<String> = (0..count).map(|n| format!("configmap/seen-{n}")).collect();
        assert_eq!(seen, expected);
        assert!(self.program.runs(), "{}", self.program.err());
    }
}

/// A port-forward to an echo, and one connection through it.
struct Forward {
    program: Program,
    connection: TcpStream,
    sent: usize,
}

impl Forward {
    fn start(command: &Cmd, name: &str) -> Self {
        let mut program = command.start(name);
        let port = program.forwarded_port(PATIENCE);
        let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut forward = Self {
            program,
            connection,
            sent: 0,
        };
        forward.echoes();
        forward
    }

    const WORDS: &str = "port-forward pod/server :7000";

    /// The same connection gives back what it is given.
    #[track_caller]
    fn echoes(&mut self) {
        let sent: Vec<u8> = (0..100_000_usize)
            .map(|n| u8::try_from(((self.sent + n) * 31 + n / 256) % 256).unwrap())
            .collect();
        self.connection.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        let read = self.connection.read_exact(&mut got);
        read.unwrap_or_else(|error| panic!("after {}: {error}: {}", self.sent, self.program.err()));
        assert!(got == sent, "after {} bytes", self.sent);
        self.sent += sent.len();
    }

    /// Its connection is cut; whether kubectl takes that for a success.
    #[track_caller]
    fn ends(&mut self) -> bool {
        let mut byte = [0];
        // What is sent to nobody shows kubectl that there is nobody.
        self.connection.write_all(b"x").ok();
        let read = self.connection.read(&mut byte);
        assert!(!matches!(read, Ok(1)), "it still answers");
        self.program.wait(PATIENCE).success()
    }
}

#[test]
fn every_replica_serves_what_another_holds() {
    let mut site = Site::new("held", &[0]);
    let passed_on = |site: &mut Site| site.replicas.metrics("towline_requests_passed_on_total");
    let before = passed_on(&mut site);
    let none: Vec<usize> = (0..3).filter(|n| !site.holders().contains(n)).collect();
    assert!(
        !none.is_empty(),
        "an agent has a session with every replica"
    );
    let directory = place::directory("held");
    for n in 0..3 {
        let said = site.at(n, "get pods -o name").ok();
        assert_eq!(said, "pod/box\npod/server\n", "replica {n}");
        let words = format!("exec -i {POD} -- sh");
        let mut shell = Shell::start(site.at(n, &words), "held-shell");
        let mut watch = Watch::start(&site.at(n, Watch::WORDS), "held-watch");
        let mut forward = Forward::start(&site.at(n, Forward::WORDS), "held-forward");
        let (up, down) = (directory.join("up"), directory.join("down"));
        random_file(&up, COPIED);
        let remote = format!("{POD}:/tmp/copied");
        site.at(n, "cp").arg(&up).arg(&remote).ok();
        site.at(n, "cp").arg(&remote).arg(&down).ok();
        assert_eq!(checksum(&up), checksum(&down), "replica {n}");
        fs::remove_file(&down).unwrap();
        site.at(n, &format!("create configmap seen-{n}")).ok();
        watch.has_seen(n + 1);
        forward.echoes();
        shell.answers();
        shell.ends();
    }
    let after = passed_on(&mut site);
    for n in none {
        assert!(
            after[n] >= before[n] + 6.0,
            "replica {n}: {before:?}, {after:?}"
        );
    }
}

#[test]
fn a_session_goes_on_through_another_replica() {
    let mut site = Site::new("moved", &[1]);
    let holders = site.holders();
    assert!(!holders.is_empty());
    let words = format!("exec -i {POD} -- sh");
    let mut streams = Vec::new();
    for n in 0..3 {
        streams.push((
            Shell::start(site.at(n, &words), "moved-shell"),
            Forward::start(&site.at(n, Forward::WORDS), "moved-forward"),
            Watch::start(&site.at(n, Watch::WORDS), "moved-watch"),
        ));
    }
    let port = site
        .replicas
        .balancer
        .address
        .rsplit_once(':')
        .unwrap()
        .1
        .to_owned();
    let sum = |site: &mut Site, name: &str| site.replicas.metrics(name).iter().sum::<f64>();
    let count = |site: &mut Site| {
        [
            "towline_sessions_resumed_total",
            "towline_connections_passed_on_total",
        ]
        .map(|name| sum(site, name))
    };
    const CUTS: usize = 5;
    for cut in 0..CUTS {
        let [resumed, passed_on] = count(&mut site);
        // New connections come to those alone that don't hold what is to go on.
        for n in &holders {
            site.replicas.balancer.let_through(*n, false);
        }
        let said = site.cluster.link(&format!("kill {port}"));
        assert!(!said.contains("ended 0 "), "nothing was killed: {said}");
        #[expect(clippy::cast_precision_loss, reason = "three at most")]
        let sessions = holders.len() as f64;
        wait_until(
            "every session goes on, through another replica",
            PATIENCE,
            || {
                let [now, on] = count(&mut site);
                now >= resumed + sessions && on >= passed_on + sessions
            },
        );
        site.at(cut % 3, &format!("create configmap seen-{cut}"))
            .ok();
        for (shell, forward, _) in &mut streams {
            shell.answers();
            forward.echoes();
        }
        site.through(&[0, 1, 2]);
    }
    for (shell, mut forward, mut watch) in streams {
        watch.has_seen(CUTS);
        forward.echoes();
        shell.ends();
    }
    site.agent.stop();
}

/// Replicas end one after the other, and others take their place, while callers go on.
#[test]
fn all_replicas_are_replaced_and_nobody_notices() {
    let mut site = Site::new("rolled", &[0, 1, 2]);
    wait_until(
        "the agent has sessions with two replicas",
        PATIENCE * 3,
        || site.holders().len() == 2,
    );
    let words = format!("exec -i {POD} -- sh");
    let mut streams: Vec<_> = (0..3)
        .map(|n| {
            (
                Shell::start(site.at(n, &words), "rolled-shell"),
                Forward::start(&site.at(n, Forward::WORDS), "rolled-forward"),
                Watch::start(&site.at(n, Watch::WORDS), "rolled-watch"),
            )
        })
        .collect();
    let admin = site.replicas.world.admin.clone();
    let callers = Callers::start(4, Stopwatch::new(), move || admin.api());
    let admin = site.replicas.world.admin.clone();
    let mut old = Vec::new();
    for n in 0..3 {
        old.push(site.replicas.replace(n));
        admin.kubectl(&format!("create configmap seen-{n}")).ok();
        for (shell, forward, _) in &mut streams {
            shell.answers();
            forward.echoes();
        }
    }
    // A while with the new ones alone.
    let answered = |callers: &Callers| callers.counts().gets;
    let before = answered(&callers);
    wait_until("callers are served by new replicas", PATIENCE, || {
        answered(&callers) > before + 100
    });
    for replica in &mut old {
        assert!(
            replica.program().runs(),
            "it has ended though streams ran through it"
        );
    }
    for (shell, mut forward, mut watch) in streams {
        shell.ends();
        forward.echoes();
        watch.has_seen(3);
    }
    let counts = callers.stop();
    assert_eq!(counts.failed, [], "{counts:?}");
    assert!(counts.gets > 100 && counts.posts > 100, "{counts:?}");
    for mut replica in old {
        let status = replica.program().wait(PATIENCE);
        assert!(status.success(), "{status}: {}", replica.program().err());
    }
    #[expect(clippy::print_stdout, reason = "the figures are what this is for")]
    {
        println!(
            "three replicas replaced: {} GETs and {} POSTs over {} connections, none failed, the slowest took {:?}",
            counts.gets, counts.posts, counts.connections, counts.slowest
        );
    }
}

/// How often a replica is killed.
fn kills() -> usize {
    if place::full() { 20 } else { 5 }
}

/// Within what new requests succeed after a replica is gone.
const AGAIN: Duration = Duration::from_secs(2);

#[test]
fn a_replica_that_is_killed_takes_nothing_along_but_what_it_held() {
    let mut site = Site::new("killed", &[0]);
    let other = site.replicas.world.register("beside");
    let mut beside = Agent::new(&site.cluster, "beside", other);
    let admin = site.replicas.world.admin.clone();
    let directory = place::directory("beside");
    let neighbour = admin.with_kubeconfig(&directory.join("kubeconfig"));
    neighbour.get_credentials("beside");
    let namespace = admin.kubeconfig_now()["contexts"][0]["context"]["namespace"].clone();
    let words = format!("exec -i {POD} -- sh");
    let mut times = Vec::new();
    for n in 0..kills() {
        let (victim, caller, next) = (n % 3, (n + 1) % 3, (n + 2) % 3);
        // What dies is held by one replica alone, and the neighbour's by the two others.
        site.agent.stop();
        site.through(&[caller, next]);
        beside.run();
        site.come(|sessions| sessions[caller] >= 1.0 && sessions[next] >= 1.0);
        site.through(&[victim]);
        site.agent.run();
        site.come(|sessions| sessions[victim] >= 1.0);
        site.replicas.world.wait_served(&admin);
        let mut held = Vec::new();
        for client in [victim, caller, next] {
            held.push((
                client,
                Shell::start(site.at(client, &words), "killed-shell"),
            ));
        }
        let mut forward = Forward::start(&site.at(caller, Forward::WORDS), "killed-forward");
        let pod = format!("exec -i -n {} {POD} -- sh", namespace.as_str().unwrap());
        let mut goes_on = Vec::new();
        for client in [caller, next] {
            let command = site.replicas.kubectl(client, &neighbour, &pod);
            goes_on.push(Shell::start(command, "beside-shell"));
        }

        let ways = [admin.api(), neighbour.api()];
        let around = site.replicas.api(caller, &admin);
        site.through(&[0, 1, 2]);
        site.replicas.kill(victim);
        let gone = Stopwatch::new();
        for api in ways.iter().chain([&around]) {
            let served = || ask_once(api, AGAIN).is_ok();
            wait_until("new requests succeed", PATIENCE, served);
            times.push(gone.elapsed());
        }
        for shell in &mut goes_on {
            shell.answers();
        }
        for (client, mut shell) in held {
            let status = shell.program.wait(PATIENCE);
            let said = shell.program.err();
            assert!(!status.success(), "replica {client}: {status}: {said}");
            assert!(!said.is_empty(), "replica {client}: no word");
            if client != victim {
                assert!(said.contains(REASON), "replica {client}: {said}");
            }
        }
        assert!(
            !forward.ends(),
            "the port-forward had nothing to say against its end"
        );
        for shell in goes_on {
            shell.ends();
        }
        beside.stop();
        site.replicas.run(victim);
    }
    times.sort();
    let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1];
    #[expect(clippy::print_stdout, reason = "the figures are what this is for")]
    {
        println!(
            "a replica killed {} times: new requests succeed after p50 {:?}, p99 {:?}",
            kills(),
            at(50),
            at(99)
        );
    }
    assert!(at(99) < AGAIN, "{times:?}");
}

/// What streams are told whose replica is gone.
const REASON: &str = "connection to agent terminated";

#[test]
fn a_change_at_one_replica_holds_at_all() {
    /// How long a stream may outlive its permission.
    const LIMIT: Duration = Duration::from_secs(5);
    let mut site = Site::new("changed", &[0]);
    let (world, cluster) = (&site.replicas.world, &site.cluster);
    let user = world.user("passer", "gatewayAdmin");
    world.grant(cluster, "passer", "cluster-admin");
    user.get_credentials("changed");
    let admin = site.replicas.world.admin.clone();
    let namespace = admin.kubeconfig_now()["contexts"][0]["context"]["namespace"].clone();
    let words = format!("exec -i -n {} {POD} -- sh", namespace.as_str().unwrap());

    // One stream at a time, wherever it is.
    let quota = "quotas set active_streams --project demo --member user:passer";
    admin.towline(quota).args(["--limit", "1"]).ok();
    let mut shell = Shell::start(site.replicas.kubectl(1, &user, &words), "quota-shell");
    for n in 0..3 {
        let said = site.replicas.kubectl(n, &user, &words).fails();
        assert!(
            said.contains("quota \"active_streams\" exhausted"),
            "replica {n}: {said}"
        );
    }
    shell.answers();
    shell.ends();
    // Of those that come at the same time, one.
    for _ in 0..5 {
        let commands = [0, 1, 2].map(|n| {
            let words = words.replace("-- sh", "-- sleep 2");
            site.replicas.kubectl(n, &user, &words)
        });
        let codes = thread::scope(|scope| {
            let runs = commands
                .each_ref()
                .map(|command| scope.spawn(|| command.run()));
            runs.map(|run| run.join().unwrap())
        });
        let let_in = codes.iter().filter(|said| said.code == Some(0)).count();
        assert!(let_in <= 1, "{codes:?}");
        let refused = codes.iter().filter(|said| said.code != Some(0));
        for said in refused {
            assert!(
                said.stderr.contains("quota \"active_streams\" exhausted"),
                "{said}"
            );
        }
        wait_until("the stream's place is free again", PATIENCE, || {
            let words = words.replace("-- sh", "-- true");
            site.replicas.kubectl(0, &user, &words).run().code == Some(0)
        });
    }
    admin.towline(quota).args(["--limit", "50"]).ok();

    // Sessions at the first, the caller at the second, the change at the third.
    let mut shell = Shell::start(site.replicas.kubectl(1, &user, &words), "revoked-shell");
    site.through(&[2]);
    let change = "projects remove-iam-policy-binding demo --member user:passer --role gatewayAdmin";
    admin.towline(change).ok();
    let since = Stopwatch::new();
    let status = shell.program.wait(PATIENCE);
    let took = since.elapsed();
    assert!(took < LIMIT, "{took:?}");
    let said = shell.program.err();
    assert!(!status.success(), "{said}");
    assert!(
        said.contains("lacks permission \"gateway.stream\""),
        "{said}"
    );
    for n in 0..3 {
        let said = site.replicas.kubectl(n, &user, &words).fails();
        assert!(said.contains("lacks permission"), "replica {n}: {said}");
    }
}

#[test]
fn postgresql_is_away_for_a_while() {
    let away = Duration::from_secs(if place::full() { 60 } else { 20 });
    let mut site = Site::new("away", &[0]);
    let words = format!("exec -i {POD} -- sh");
    let mut streams: Vec<_> = (0..3)
        .map(|n| {
            (
                Shell::start(site.at(n, &words), "away-shell"),
                Forward::start(&site.at(n, Forward::WORDS), "away-forward"),
                Watch::start(&site.at(n, Watch::WORDS), "away-watch"),
            )
        })
        .collect();
    let admin = site.replicas.world.admin.clone();
    let port = site
        .replicas
        .balancer
        .address
        .rsplit_once(':')
        .unwrap()
        .1
        .to_owned();
    let api = admin.clone();
    let callers = Callers::start(4, Stopwatch::new(), move || api.api());
    wait_until("callers are known everywhere", PATIENCE, || {
        callers.counts().gets > 50
    });

    site.replicas.database.kill();
    let since = Stopwatch::new();
    let mut seen = 0;
    while since.elapsed() < away {
        let said = admin
            .towline(
                "projects add-iam-policy-binding demo --member user:admin --role gatewayReader",
            )
            .fails();
        assert!(said.contains("database"), "{said}");
        // An agent's connections are cut, and it goes on.
        let said = site.cluster.link(&format!("kill {port}"));
        assert!(!said.contains("ended 0 "), "nothing was killed: {said}");
        site.at(seen % 3, &format!("create configmap seen-{seen}"))
            .ok();
        seen += 1;
        for (shell, forward, _) in &mut streams {
            shell.answers();
            forward.echoes();
        }
    }
    site.replicas.database.resume();
    wait_until("policies can be changed again", PATIENCE, || {
        let change =
            "projects add-iam-policy-binding demo --member user:admin --role gatewayReader";
        admin.towline(change).run().code == Some(0)
    });
    let policy = admin.towline("projects get-iam-policy demo -o json").ok();
    assert!(policy.contains("gatewayReader"), "{policy}");
    let counts = callers.stop();
    assert_eq!(counts.failed, [], "{counts:?}");
    for (shell, mut forward, mut watch) in streams {
        watch.has_seen(seen);
        forward.echoes();
        shell.ends();
    }
    #[expect(clippy::print_stdout, reason = "the figures are what this is for")]
    {
        println!(
            "PostgreSQL away for {away:?}: {} GETs and {} POSTs, none failed, {seen} connections of the agent's cut",
            counts.gets, counts.posts
        );
    }
    site.agent.program().signal(Signal::TERM);
}
