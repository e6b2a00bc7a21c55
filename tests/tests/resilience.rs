//! Parts that die and links that fail: everything comes back by itself, soon, and nothing is left behind.
//!
//! With `TOWLINE_FULL` set every part is killed 20 times, 5 of them for a minute.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard},
    thread,
    time::Duration,
};

use http::StatusCode;
use tests::{
    Agent, Cluster, Program, Stopwatch, User, World,
    gateway::sum,
    http::{Api, empty, read},
    place,
    program::Usage,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Within what requests succeed again once the part is back.
const RECOVERY: Duration = Duration::from_secs(5);

/// A runtime for requests by hand.
fn block_on<T>(task: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    RUNTIME.block_on(task)
}

/// Whether one request on a connection of its own succeeds within two seconds.
fn served(api: &Api) -> bool {
    block_on(async {
        let request = api
            .request("GET", "/api/v1/namespaces/kube-system")
            .body(empty())
            .unwrap();
        let attempt = async {
            // A gateway that is gone refuses the connection, which `http1` takes for the end.
            tokio::net::TcpStream::connect(api.authority()).await.ok()?;
            let mut connection = api.http1().await;
            connection
                .try_send(request)
                .await
                .ok()
                .map(|response| response.status())
        };
        let attempt = std::panic::AssertUnwindSafe(attempt);
        let answer = futures_util::FutureExt::catch_unwind(attempt);
        tokio::time::timeout(Duration::from_secs(2), answer)
            .await
            .is_ok_and(|answer| matches!(answer, Ok(Some(StatusCode::OK))))
    })
}

/// How long from now until a request succeeds.
fn until_served(api: &Api, bound: Duration) -> Duration {
    let since = Stopwatch::new();
    wait_until("requests succeed again", bound, || served(api));
    since.elapsed()
}

#[test]
fn two_clusters_at_one_gateway_never_cross() {
    let _whole = whole_link();
    let clusters = [Cluster::with_node(), Cluster::second()];
    let world = World::new("pair", &clusters[0]);
    let mut agents = Vec::new();
    let mut apis = Vec::new();
    for (cluster, name) in clusters.iter().zip(["first", "second"]) {
        agents.push(world.join(cluster, name));
        let user = world
            .admin
            .with_kubeconfig(&place::directory(name).join("kubeconfig"));
        user.get_credentials(name);
        apis.push((user.api(), cluster.uid()));
    }
    assert_ne!(apis[0].1, apis[1].1);
    block_on(async {
        // One HTTP/2 connection for both, so that nothing but the path tells them apart.
        let mut connection = apis[0].0.http2().await;
        let tests::http::Connection::Two(sender) = &mut connection else {
            unreachable!("asked for")
        };
        let mut all = Vec::new();
        for n in 0..400 {
            let (api, uid) = &apis[n % 2];
            let request = api
                .request("GET", &format!("/api/v1/namespaces/kube-system?n={n}"))
                .body(empty())
                .unwrap();
            let answer = sender.send_request(request);
            all.push(async move {
                let answer = read(answer.await.unwrap()).await;
                assert_eq!(
                    answer.json()["metadata"]["uid"],
                    uid.as_str(),
                    "request {n}"
                );
            });
        }
        futures_util::future::join_all(all).await;
    });
    // A token that was fetched for one is refused at the other, if it is bound to it at all.
    let list = world
        .admin
        .towline("memberships list --project demo -o json")
        .json();
    let known: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["externalId"].as_str().unwrap().to_owned())
        .collect();
    assert!(apis.iter().all(|(_, uid)| known.contains(uid)), "{list}");
    // And one that goes away takes nothing from the other.
    agents.pop();
    wait_until("the second is known to be gone", PATIENCE, || {
        !served(&apis[1].0)
    });
    assert!(served(&apis[0].0));
}

/// The second cluster's link: who breaks it has it alone.
static LINK: RwLock<()> = RwLock::new(());

fn whole_link() -> RwLockReadGuard<'static, ()> {
    LINK.read().unwrap_or_else(PoisonError::into_inner)
}

/// A world of its own around the cluster without a node.
struct Small {
    world: World,
    agent: Agent,
    api: Api,
}

fn small(name: &str) -> Small {
    let cluster = Cluster::second();
    let world = World::new(name, &cluster);
    let agent = world.join(&cluster, name);
    let api = world.admin.api();
    Small { world, agent, api }
}

/// A JSON watch, and how it ended.
fn watch(user: &User, name: &str) -> Program {
    let path = "/api/v1/namespaces?watch=1";
    let mut watch = user
        .kubectl("get --raw")
        .arg(path)
        .limit(Duration::from_secs(600))
        .start(name);
    watch.line("its first event", PATIENCE, |line| {
        line.contains("kube-system")
    });
    watch
}

#[test]
fn an_agent_that_is_killed_ends_streams_with_a_word_and_comes_back() {
    let _whole = whole_link();
    let mut small = small("agent-killed");
    let mut watched = watch(&small.world.admin, "watched");
    small.world.admin.kubectl("get namespaces").ok();
    let table = "get namespaces --watch -o name --request-timeout 0";
    let mut shell = small.world.admin.kubectl(table).start("table");
    shell.line("its first object", PATIENCE, |line| {
        line.contains("kube-system")
    });
    small.agent.kill();
    // kubectl knows the cluster's APIs by now, so it prints the gateway's words.
    let said = small.world.admin.kubectl("get namespaces").fails();
    assert!(said.contains("no active connections found"), "{said}");
    // A process that is gone looks like a network that is, and could still come back.
    assert!(watched.runs(), "{}", watched.out());
    small.agent.run();
    let took = until_served(&small.api, PATIENCE);
    assert!(took < RECOVERY, "{took:?}");
    // An agent that starts anew says so, and what it served before ends.
    watched.wait(RECOVERY);
    // A JSON watch can say why it ends.
    let last = watched.out().lines().last().unwrap_or_default().to_owned();
    let said: serde_json::Value = serde_json::from_str(&last).expect("whole events to the last");
    assert_eq!(said["type"], "ERROR", "{said}");
    assert_eq!(said["object"]["kind"], "Status", "{said}");
    let message = said["object"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("connection to agent terminated"), "{said}");
}

#[test]
fn a_gateway_that_is_killed_comes_back_with_all_it_knew() {
    let _whole = whole_link();
    let mut small = small("gateway-killed");
    let token = small.api.token.clone();
    small.world.gateway.kill();
    assert!(!served(&small.api));
    small.world.gateway.run();
    let took = until_served(&small.api, PATIENCE);
    assert!(took < RECOVERY, "{took:?}");
    assert_eq!(small.api.token, token, "the token from before is good");
    small.world.admin.kubectl("get namespaces").ok();
    small
        .world
        .admin
        .towline("memberships list --project demo")
        .ok();
}

#[test]
fn a_gateway_that_is_told_to_end_lets_streams_finish() {
    let _whole = whole_link();
    let mut small = small("drained");
    // A watch that the API server will end in a few seconds.
    let path = "/api/v1/namespaces?watch=1&timeoutSeconds=4";
    let mut running = small
        .world
        .admin
        .kubectl("get --raw")
        .arg(path)
        .start("draining");
    running.line("its first event", PATIENCE, |line| {
        line.contains("kube-system")
    });
    let took = small.world.gateway.stop();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(
        running.wait(PATIENCE).success(),
        "a stream that was nearly done was cut: {}",
        running.err()
    );
    // A watch that is cut ends with an event that says so, and kubectl is content with that.
    assert!(!running.out().contains("\"ERROR\""), "{}", running.out());
    small.world.gateway.run();
    let took = until_served(&small.api, PATIENCE);
    assert!(took < RECOVERY, "{took:?}");
}

/// Faults on the second cluster's link, one after the other: they are the link's, not a world's.
#[test]
fn a_link_that_fails_is_noticed_and_comes_back() {
    let _alone = LINK.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::second();
    let small = small("link");
    for fault in ["cut", "blackhole", "refuse"] {
        cluster.link(fault);
        let since = Stopwatch::new();
        wait_until("the gateway notices", PATIENCE, || {
            state(&small.world.admin, "link") == "DISCONNECTED"
        });
        assert!(
            since.elapsed() < Duration::from_secs(12),
            "{fault}: a dead peer was found after {:?}",
            since.elapsed()
        );
        cluster.link("restore");
        let took = until_served(&small.api, PATIENCE);
        assert!(took < RECOVERY, "{fault}: {took:?}");
    }
    // One packet in a hundred lost: slower, but whole.
    cluster.link("loss 10");
    let list = small
        .world
        .admin
        .kubectl("get --raw /openapi/v2")
        .limit(PATIENCE * 2)
        .run();
    cluster.link("restore");
    assert!(list.bytes.len() > 1 << 20, "{list}");
}

fn state(user: &User, membership: &str) -> String {
    let said = user
        .towline("memberships describe --project demo -o json")
        .arg(membership)
        .json();
    said["state"].as_str().unwrap_or_default().to_owned()
}

/// How often a part is killed, and how many of those for a minute.
fn kills() -> (usize, usize) {
    if place::full() { (20, 5) } else { (3, 0) }
}

const OUTAGE: Duration = Duration::from_secs(60);

/// What both ends hold, beside the kernel's count the gateway's and the agent's own.
#[derive(Debug)]
struct Held {
    gateway: Usage,
    agent: Usage,
    gateway_tasks: f64,
    agent_tasks: f64,
}

fn held(small: &mut Small) -> Held {
    let health = health_address(&mut small.agent);
    let curl =
        tests::Cmd::new("curl").args(["--silent", "--fail", &format!("http://{health}/metrics")]);
    let metrics = Cluster::second().inside(curl).run().text();
    Held {
        gateway: small.world.gateway.program().usage(),
        agent: small.agent.program().usage(),
        gateway_tasks: small.world.gateway.metric("towline_tasks"),
        agent_tasks: sum(&metrics, "towline_agent_tasks"),
    }
}

/// Where the agent said its health listener is.
fn health_address(agent: &mut Agent) -> String {
    let said = format!("{}{}", agent.program().out(), agent.program().err());
    let at = said
        .find("127.0.0.1:")
        .unwrap_or_else(|| panic!("the agent names no health address: {said}"));
    said[at..]
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.' || *c == ':')
        .collect()
}

/// Streams that are under way when a part dies: what could be left behind.
fn busy(small: &Small) -> Vec<Program> {
    (0..5)
        .map(|n| watch(&small.world.admin, &format!("busy-{n}")))
        .collect()
}

/// Kills `part` again and again; `kill` returns when it is back after the outage it is given.
fn again_and_again(part: &str, small: &mut Small, mut kill: impl FnMut(&mut Small, Duration)) {
    // Caches and pools are filled before anything is counted.
    for _ in 0..20 {
        assert!(served(&small.api));
    }
    drop(busy(small));
    let before = settled(small);
    let (count, long) = kills();
    let mut times = Vec::new();
    for n in 0..count {
        let streams = busy(small);
        // Tokens end after ten minutes, and this takes longer.
        small.api = small.world.admin.api();
        kill(
            small,
            if n >= count - long {
                OUTAGE
            } else {
                Duration::ZERO
            },
        );
        times.push(until_served(&small.api, PATIENCE));
        drop(streams);
    }
    times.sort();
    let after = settled(small);
    let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1];
    #[expect(clippy::print_stdout, reason = "the figures are what this is for")]
    {
        println!(
            "{part} killed {count} times, {long} of them for a minute: p50 {:?}, p99 {:?}",
            at(50),
            at(99)
        );
        println!("{part}: before {before:?}\n{part}: after  {after:?}");
    }
    assert!(at(99) < RECOVERY, "{part}: {times:?}");
    // Less than one for each time: what is left behind once each time is seen with few of them, too.
    let slack = (count - 1).min(3);
    // What a process that was killed held is gone with it; the others must not have grown.
    for (what, before, after) in [
        (
            "the gateway's sockets",
            before.gateway.sockets,
            after.gateway.sockets,
        ),
        (
            "the agent's sockets",
            before.agent.sockets,
            after.agent.sockets,
        ),
        (
            "the gateway's files",
            before.gateway.files,
            after.gateway.files,
        ),
        ("the agent's files", before.agent.files, after.agent.files),
    ] {
        assert!(
            after <= before + slack,
            "{what} grew from {before} to {after}"
        );
    }
    for (what, before, after) in [
        (
            "the gateway's tasks",
            before.gateway_tasks,
            after.gateway_tasks,
        ),
        ("the agent's tasks", before.agent_tasks, after.agent_tasks),
    ] {
        assert!(
            after <= before + f64::from(u8::try_from(slack).unwrap()),
            "{what} grew from {before} to {after}"
        );
    }
    for (what, before, after) in [
        (
            "the gateway's memory",
            before.gateway.resident_kib,
            after.gateway.resident_kib,
        ),
        (
            "the agent's memory",
            before.agent.resident_kib,
            after.agent.resident_kib,
        ),
    ] {
        assert!(
            after < before * 3 / 2 + 16 * 1024,
            "{what} grew from {before} to {after} KiB"
        );
    }
}

/// What is held once nothing is under way: the least of some seconds.
fn settled(small: &mut Small) -> Held {
    let mut least = held(small);
    let since = Stopwatch::new();
    while since.elapsed() < Duration::from_secs(8) {
        thread::sleep(Duration::from_millis(500));
        let now = held(small);
        if now.gateway.sockets + now.agent.sockets <= least.gateway.sockets + least.agent.sockets {
            least = now;
        }
    }
    least
}

#[test]
fn the_agents_connection_is_killed_again_and_again() {
    let _alone = LINK.write().unwrap_or_else(PoisonError::into_inner);
    let mut small = small("kill-connection");
    let cluster = Cluster::second();
    let port = small.world.gateway.port;
    again_and_again("the agent's connection", &mut small, |small, outage| {
        if outage.is_zero() {
            let said = cluster.link(&format!("kill {port}"));
            assert!(!said.contains("ended 0 "), "nothing was killed: {said}");
        } else {
            cluster.link("refuse");
            wait_until("the gateway notices", PATIENCE, || {
                state(&small.world.admin, "kill-connection") == "DISCONNECTED"
            });
            thread::sleep(outage);
            cluster.link("restore");
        }
    });
}

#[test]
fn the_agent_is_killed_again_and_again() {
    let _whole = whole_link();
    let mut small = small("kill-agent");
    again_and_again("the agent", &mut small, |small, outage| {
        small.agent.kill();
        thread::sleep(outage);
        small.agent.run();
    });
}

#[test]
fn the_gateway_is_killed_again_and_again() {
    let _whole = whole_link();
    let mut small = small("kill-gateway");
    again_and_again("the gateway", &mut small, |small, outage| {
        small.world.gateway.kill();
        thread::sleep(outage);
        small.world.gateway.run();
    });
}
