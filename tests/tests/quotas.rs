//! Quotas and the audit log, as somebody with kubectl and somebody with `towline` meets them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tests::{Agent, Cluster, Gateway, Stopwatch, User, World, wait_until};

/// How long somebody may look at a terminal that says nothing.
const TOLD: Duration = Duration::from_secs(25);

const PATIENCE: Duration = Duration::from_secs(30);

struct Own {
    world: World,
    cluster: Cluster,
    _agent: Agent,
}

/// A gateway of its own, with the limits that every gateway begins with.
fn own() -> &'static Own {
    static OWN: LazyLock<Own> = LazyLock::new(|| {
        let cluster = Cluster::second();
        let gateway = Gateway::init("quotas", &cluster);
        gateway.configure("[limits]\n");
        let mut gateway = gateway;
        gateway.run();
        let world = World::of(gateway);
        let agent = world.join(&cluster, "limited");
        Own {
            world,
            cluster,
            _agent: agent,
        }
    });
    &OWN
}

/// A user who may read, here and in the cluster, and whose kubectl knows the cluster's APIs.
fn reader(name: &str) -> User {
    let Own { world, cluster, .. } = own();
    let user = world.user(name, "gatewayReader");
    world.grant(cluster, name, "cluster-admin");
    user.get_credentials("limited");
    user.kubectl("get namespaces").ok();
    user
}

fn set(user: &User, limit: &str) {
    own()
        .world
        .admin
        .towline("quotas set requests_per_minute --project demo")
        .args(["--member", &format!("user:{}", user.name)])
        .words(limit)
        .ok();
}

/// Asks as fast as it can until it is dropped, so that nothing is left of the user's budget.
fn busy(user: &User) -> impl Drop + use<> {
    struct Busy(
        std::sync::Arc<AtomicBool>,
        Option<std::thread::JoinHandle<()>>,
    );
    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            let ended = self.1.take().unwrap().join();
            assert!(ended.is_ok(), "who asks all the time has failed");
        }
    }
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let (api, ends) = (user.api(), std::sync::Arc::clone(&over));
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut connection = api.http2().await;
            while !ends.load(Ordering::Relaxed) {
                let request = api
                    .request("GET", "/version")
                    .body(tests::http::empty())
                    .unwrap();
                drop(tests::http::read(connection.send(request).await).await);
            }
        });
    });
    Busy(over, Some(asking))
}

#[test]
fn a_refusal_of_requests_is_printed_and_not_retried_in_silence() {
    let user = reader("many");
    // Ten at once and 100 a minute: waiting a second helps, unless somebody takes it all.
    for limit in ["--limit 100", "--limit 6"] {
        set(&user, limit);
        let busy = busy(&user);
        let refused = || user.api();
        wait_until("the budget is used up", PATIENCE, || {
            let answer = tokio::runtime::Runtime::new()
                .unwrap()
                .block_on(refused().get("/version"));
            answer.status == 429
        });
        // kubectl that knows the APIs, and kubectl that has to ask for them first.
        for words in [
            "get namespaces",
            "get pods -A",
            "get namespaces --cache-dir /nonexistent",
        ] {
            let since = Stopwatch::new();
            let said = user.kubectl(words).fails();
            let took = since.elapsed();
            // Of a 429 to that question client-go has words of its own, whatever the answer says.
            let expected = if words.contains("--cache-dir") {
                "(TooManyRequests)"
            } else {
                r#"resource_exhausted: quota "requests_per_minute" exhausted (user:many may make"#
            };
            assert!(said.contains(expected), "{limit}: {words}: {said}");
            assert!(took < TOLD, "{limit}: {words}: {took:?}");
        }
        drop(busy);
    }
    // Others have their own budget, and a new limit holds at once.
    own().world.admin.kubectl("get namespaces").ok();
    set(&user, "--unset");
    user.kubectl("get namespaces").ok();
}

#[test]
fn quotas_are_shown_with_who_uses_what() {
    let user = reader("shown");
    let admin = &own().world.admin;
    let table = admin.towline("quotas list --project demo").ok();
    for line in [
        "project requests_per_minute 60000",
        "default requests_per_minute 6000",
        "default active_streams 50",
        "user:shown requests_per_minute 6000",
    ] {
        let squeezed: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert!(
            squeezed.iter().any(|row| row.starts_with(line)),
            "{line}: {table}"
        );
    }
    let rows = admin
        .towline("quotas list --project demo --member user:shown -o json")
        .json();
    let requests = &rows[0];
    assert_eq!(requests["quota"], "requests_per_minute");
    assert!(requests["inUse"].as_u64().unwrap() > 0, "{rows}");
    let said = user
        .towline("quotas set watches --project demo --default --limit 1")
        .fails();
    assert!(said.contains(r#"lacks permission "quotas.set""#), "{said}");
}

/// The events that `towline audit list` finds.
fn audit(words: &str) -> Vec<Value> {
    let found = own()
        .world
        .admin
        .towline("audit list --project demo -o json")
        .words(words)
        .json();
    found.as_array().unwrap().clone()
}

#[test]
fn one_id_finds_the_record_here_and_at_the_api_server() {
    let user = reader("audited");
    let Own { world, cluster, .. } = own();
    user.kubectl("get configmaps -n kube-system -l towline.test/x=y")
        .ok();
    let mut events = Vec::new();
    wait_until("the request is recorded", PATIENCE, || {
        events = audit("--user audited --membership limited --since 10m");
        events.retain(|event| event["objectRef"]["resource"] == "configmaps");
        !events.is_empty()
    });
    let event = &events[0];
    assert_eq!(
        (&event["verb"], &event["user"]["username"]),
        (&"list".into(), &"audited".into())
    );
    assert_eq!(event["objectRef"]["namespace"], "kube-system");
    assert_eq!(
        event["annotations"]["towline.dev/decision"],
        "gatewayReader in the policy of projects/demo"
    );
    let id = event["auditID"].as_str().unwrap();
    wait_until("the API server has it, too", PATIENCE, || {
        fs::read_to_string(cluster.audit_log())
            .unwrap()
            .lines()
            .filter(|line| line.contains(id))
            .any(|line| line.contains("\"configmaps\""))
    });

    // The id of a refusal leads to its record.
    let said = user.kubectl("delete configmap none").fails();
    let id = said
        .split("request ")
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .unwrap_or_else(|| panic!("no id: {said}"));
    wait_until("the refusal is recorded", PATIENCE, || {
        !audit(&format!("--request-id {id}")).is_empty()
    });
    let refusal = &audit(&format!("--request-id {id}"))[0];
    assert_eq!(refusal["responseStatus"]["code"], 403);
    assert_eq!(refusal["annotations"]["towline.dev/layer"], "authorization");

    // Management calls and sign-ins are recorded as well.
    let calls = audit("--user admin --since 10m --limit 1000");
    assert!(
        calls
            .iter()
            .any(|event| event["verb"] == "Register" && event["objectRef"]["name"] == "limited"),
        "{calls:?}"
    );
    let mine = user.towline("audit list --project demo").fails();
    assert!(mine.contains(r#"lacks permission "audit.list""#), "{mine}");

    // And none of all that was secret is in any of it.
    let log = fs::read_to_string(world.gateway.config().with_file_name("audit.jsonl")).unwrap();
    assert!(log.lines().count() > 10);
    let registration = fs::read_to_string(world.register("never")).unwrap();
    let token = registration
        .lines()
        .find_map(|line| line.trim().strip_prefix("token:"))
        .unwrap_or_else(|| panic!("{registration}"))
        .trim()
        .to_owned();
    let log =
        log + &fs::read_to_string(world.gateway.config().with_file_name("audit.jsonl")).unwrap();
    for secret in [
        user.token(),
        world.gateway.one_time_code.clone(),
        "correct horse".to_owned(),
        token,
        "Bearer ".to_owned(),
    ] {
        assert!(secret.len() >= 7 && !log.contains(&secret), "{secret}");
    }
}
