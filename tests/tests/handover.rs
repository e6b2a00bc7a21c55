//! One gateway or agent takes another's place while callers come without a break: nobody is refused, and nothing that
//! runs is cut.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{StatusCode, header};
use rustix::process::Signal;
use tests::{
    Agent, Cluster, Gateway, World,
    http::{Api, full, read},
    place, wait_until,
    world::POD,
};
use tokio::{runtime::Runtime, task::JoinSet};

const PATIENCE: Duration = Duration::from_secs(30);

/// Callers at a time.
const CALLERS: usize = 4;

/// What a POST asks, which changes nothing.
const REVIEW: &str = r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}"#;

/// Callers who ask one POST after the other, each on an HTTP/1.1 connection that is kept for as long as it may be.
struct Load {
    runtime: Runtime,
    callers: JoinSet<()>,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(api: &Api) -> Self {
        let runtime = Runtime::new().unwrap();
        let (asked, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (api, asked, stop) = (api.clone(), Arc::clone(&asked), Arc::clone(&stop));
            let call = async move {
                while !stop.load(Ordering::Relaxed) {
                    call(&api, &asked, &stop, caller).await;
                }
            };
            callers.spawn_on(call, runtime.handle());
        }
        let load = Self {
            runtime,
            callers,
            asked,
            stop,
        };
        load.goes_on();
        load
    }

    /// Every caller has been answered several times since.
    fn goes_on(&self) {
        let enough = self.asked.load(Ordering::Relaxed) + 20 * CALLERS;
        wait_until("requests are answered", PATIENCE, || {
            self.asked.load(Ordering::Relaxed) >= enough
        });
    }

    /// A request that failed fails the test.
    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.runtime.block_on(async {
            while let Some(ended) = self.callers.join_next().await {
                ended.unwrap();
            }
        });
        self.asked.load(Ordering::Relaxed)
    }
}

/// Asks on one connection until it is closed with an answer.
async fn call(api: &Api, asked: &AtomicUsize, stop: &AtomicBool, caller: usize) {
    let mut connection = api.http1().await;
    while !stop.load(Ordering::Relaxed) {
        let request = api
            .request(
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            )
            .header(header::CONTENT_TYPE, "application/json")
            .body(full(REVIEW))
            .unwrap();
        let sent = tokio::time::timeout(PATIENCE, connection.try_send(request)).await;
        let response = sent.expect("an answer").unwrap_or_else(|error| {
            panic!(
                "request {} of all failed: {error:?}",
                asked.load(Ordering::Relaxed)
            )
        });
        let last = response
            .headers()
            .get(header::CONNECTION)
            .is_some_and(|value| value == "close");
        let answer = read(response).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        asked.fetch_add(1, Ordering::Relaxed);
        if last {
            return;
        }
        // Each has another rhythm, so that a connection is closed in all states that it can be in.
        tokio::time::sleep(Duration::from_millis(1 + 7 * caller as u64)).await;
    }
}

#[test]
fn one_gateway_follows_another_on_the_same_socket() {
    let cluster = Cluster::with_node();
    let mut gateway = Gateway::init("follows", &cluster);
    let socket = TcpListener::bind(("0.0.0.0", gateway.port)).unwrap();
    gateway.listen_on(&socket);
    gateway.run();
    let mut world = World::of(gateway);
    let mut agent = world.join(&cluster, "follows");
    world.namespace(&cluster);
    let mut shell = world
        .admin
        .kubectl(&format!("exec -i {POD} -- cat"))
        .input_open()
        .start("shell");
    let mut said = 0;
    let mut echoes = |shell: &mut tests::Program| {
        said += 1;
        shell.write(format!("line {said}\n"));
        shell.line("what was said", PATIENCE, |line| {
            line == format!("line {said}")
        });
    };
    echoes(&mut shell);
    let load = Load::start(&world.admin.api());

    let mut old = world.gateway.succeed();
    load.goes_on();
    old.signal(Signal::TERM);
    wait_until("the agent has moved", PATIENCE, || {
        world.gateway.metric("towline_sessions") >= 1.0
    });
    load.goes_on();
    echoes(&mut shell);
    assert!(old.runs(), "{}", old.err());
    let asked = load.end();
    assert!(asked > 100, "{asked}");
    echoes(&mut shell);
    shell.close_input();
    assert!(shell.wait(PATIENCE).success(), "{}", shell.err());
    // And that was the last that the old one had.
    assert!(old.wait(PATIENCE).success(), "{}", old.err());
    assert!(
        !old.err().contains("the drain limit is over"),
        "{}",
        old.err()
    );
    world.admin.kubectl("get pods").ok();
    agent.stop();
}

#[test]
fn agents_are_replaced_one_by_one_under_load() {
    let cluster = Cluster::second();
    let mut world = World::new("rolled", &cluster);
    let registration = world.register("rolled");
    let key = place::directory("rolled-key").join("agent.key");
    let agent = || Agent::new(&cluster, "rolled", registration.clone()).key(&key);
    let mut agents = [agent(), agent()];
    agents[0].run();
    world.admin.get_credentials("rolled");
    world.grant(&cluster, &world.admin.name, "cluster-admin");
    world.wait_served(&world.admin);
    agents[1].run();
    let sessions = |world: &mut World, count: f64| {
        wait_until("so many sessions", PATIENCE, || {
            world.gateway.metric("towline_sessions") >= count
        });
    };
    sessions(&mut world, 2.0);
    let load = Load::start(&world.admin.api());
    for round in 0..6 {
        agents[round % 2].stop();
        load.goes_on();
        agents[round % 2].run();
        sessions(&mut world, 2.0);
        load.goes_on();
    }
    let asked = load.end();
    assert!(asked > 500, "{asked}");
}
