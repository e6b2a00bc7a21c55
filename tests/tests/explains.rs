//! Every refusal explains itself: what stands in the terminal, layer by layer, whichever way kubectl asks.
//!
//! The sentence names the layer and a request id, and the id finds the log lines.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, sync::LazyLock, time::Duration};

use tests::{
    Agent, Cluster, Cmd, Gateway, Stopwatch, User, World, place, shared,
    user::{Kubectl, Protocol},
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// How long somebody may look at a terminal that says nothing.
const TOLD: Duration = Duration::from_secs(25);

/// A gateway of its own with an agent in the cluster that has a node; nobody has a stream.
fn world() -> &'static World {
    struct Own {
        world: World,
        _agent: Agent,
    }
    static OWN: LazyLock<Own> = LazyLock::new(|| {
        let cluster = &shared().cluster;
        let world = World::new("explains", cluster);
        let agent = world.join(cluster, "explained");
        Own {
            world,
            _agent: agent,
        }
    });
    &OWN.world
}

/// A user with a role and, where given, a cluster role; kubectl knows the cluster's APIs, so that it prints what it
/// is told (while it learns them it words refusals itself).
fn user(name: &str, role: &str, cluster_role: Option<&str>) -> User {
    let world = world();
    let user = world.user(name, role);
    if let Some(cluster_role) = cluster_role {
        world.grant(&shared().cluster, name, cluster_role);
    }
    let user = user.with_kubeconfig(&place::directory(name).join("kubeconfig"));
    user.get_credentials("explained");
    user.kubectl("api-resources").ok();
    user
}

/// The ways in which kubectl asks for something, each with the words for it.
fn plain(user: &User) -> Vec<(String, Cmd)> {
    plain_with(user, "")
}

fn plain_with(user: &User, flags: &str) -> Vec<(String, Cmd)> {
    let namespace = &shared().namespace;
    ["get pods", "get pods --watch"]
        .into_iter()
        .map(|words| {
            let words = format!("{flags} {words} -n {namespace}");
            (words.clone(), user.kubectl(&words))
        })
        .collect()
}

fn streams(user: &User) -> Vec<(String, Cmd)> {
    streams_with(user, "")
}

fn streams_with(user: &User, flags: &str) -> Vec<(String, Cmd)> {
    let namespace = &shared().namespace;
    let copy = place::directory(&user.name).join("copy");
    let mut all = Vec::new();
    for protocol in [Protocol::WebSocket, Protocol::Spdy] {
        for words in [
            format!("exec -n {namespace} box -- id"),
            format!("cp -n {namespace} box:/etc/passwd {}", copy.display()),
            format!("port-forward -n {namespace} pod/box :80"),
        ] {
            let words = format!("{flags} {words}");
            let command = user.kubectl_of(Kubectl::Current, protocol, &words);
            all.push((format!("{words} ({protocol:?})"), command));
        }
    }
    all
}

/// Runs each, and looks at what is printed.
#[track_caller]
fn explained(ways: Vec<(String, Cmd)>, layer: &str, says: &[&str]) {
    assert!(!ways.is_empty());
    for (way, command) in ways {
        let since = Stopwatch::new();
        let said = command.fails();
        assert!(since.elapsed() < TOLD, "{way} took {:?}", since.elapsed());
        for expected in says {
            assert!(
                said.contains(expected),
                "{way}: no {expected:?} in:\n{said}"
            );
        }
        let begins = format!("(towline: {layer}, request ");
        let (_, rest) = said
            .split_once(&begins)
            .unwrap_or_else(|| panic!("{way}: no {begins:?} in:\n{said}"));
        let id = rest.split(')').next().unwrap_or_default();
        assert!(id.len() >= 16, "{way}: {said}");
        wait_until("the gateway's log has the request's id", PATIENCE, || {
            logs(|name| name.starts_with("explains")).contains(id)
        });
        if layer == "agent" {
            let agents = logs(|name| name.starts_with("agent"));
            assert!(agents.contains(id), "{way}: no agent's log has {id}");
        }
    }
}

/// What the programs of these names wrote.
fn logs(of: impl Fn(&str) -> bool) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(place::run_directory()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if of(&name) && name.ends_with(".err") {
            all.push_str(&fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    all
}

#[test]
fn a_wrong_token_is_told_from_everything_else() {
    let user = user("signed-out", "gatewayAdmin", Some("cluster-admin"));
    let says = ["the bearer token is refused"];
    explained(
        plain_with(&user, "--token nonsense"),
        "authentication",
        &says,
    );
    explained(
        streams_with(&user, "--token nonsense"),
        "authentication",
        &says,
    );
}

#[test]
fn iam_says_what_is_missing_and_which_roles_have_it() {
    let reader = user("reader", "gatewayReader", Some("cluster-admin"));
    let says = [
        r#"user "reader" lacks permission "gateway.stream" on projects/demo"#,
        "roles with it: ",
        "gatewayAdmin",
    ];
    explained(streams(&reader), "authorization", &says);
    let gone = user("gone", "gatewayReader", Some("cluster-admin"));
    world()
        .admin
        .towline("projects remove-iam-policy-binding demo --member user:gone --role gatewayReader")
        .ok();
    let says = [
        r#"user "gone" lacks permission "gateway.get" on projects/demo"#,
        "gatewayReader",
    ];
    explained(plain(&gone), "authorization", &says);
}

#[test]
fn a_quota_is_named_with_its_use() {
    let cluster = &shared().cluster;
    let mut gateway = Gateway::init("explains-quota", cluster);
    gateway.configure("[limits]\nstreams_per_principal = 1\n");
    gateway.run();
    let world = World::of(gateway);
    let _agent = world.join(cluster, "metered");
    let namespace = &shared().namespace;
    let mut held = world
        .admin
        .kubectl(&format!("exec -n {namespace} -i box -- sh -c"))
        .arg("echo up; cat")
        .input_open()
        .start("held");
    held.line("its output", PATIENCE, |line| line == "up");
    let says =
        [r#"resource_exhausted: quota "active_streams" exhausted (1 of 1 in use by user:admin)"#];
    explained(streams(&world.admin), "quota", &says);
}

#[test]
fn a_cluster_without_an_agent_is_named() {
    let world = world();
    let user = user("lonely", "gatewayAdmin", Some("cluster-admin"));
    let mut agent = Agent::new(&shared().cluster, "away", world.register("away"));
    agent.run();
    let lonely = user.with_kubeconfig(&place::directory("lonely-away").join("kubeconfig"));
    lonely.get_credentials("away");
    // What kubectl knows of a cluster it keeps by its address.
    wait_until("the agent is connected", PATIENCE, || {
        lonely.kubectl("api-resources").run().code == Some(0)
    });
    agent.kill();
    let says = ["no active connections found for cluster (project: demo, membership: away)"];
    wait_until("the agent is gone", PATIENCE, || {
        let said = lonely.kubectl("get --raw /version").run();
        said.stderr.contains(says[0])
    });
    explained(plain(&lonely), "tunnel", &says);
    explained(streams(&lonely), "tunnel", &says);
}

#[test]
fn an_agent_names_the_rule_that_it_lacks() {
    let shared = shared();
    let cluster = &shared.cluster;
    let world = world();
    let namespace = &shared.namespace;
    let mut agent = Agent::new(cluster, "limited", world.register("limited"))
        .kubeconfig(limited_kubeconfig(cluster));
    agent.run();
    let stranger = user("stranger", "gatewayAdmin", Some("cluster-admin"));
    let stranger =
        stranger.with_kubeconfig(&place::directory("stranger-limited").join("kubeconfig"));
    stranger.get_credentials("limited");
    // For as long as the agent may, so that kubectl learns the cluster's APIs.
    let role = format!("stranger-{namespace}");
    cluster
        .kubectl(&format!(
            "create clusterrole {role} --verb impersonate --resource users,groups"
        ))
        .ok();
    cluster
        .kubectl(&format!(
            "create clusterrolebinding {role} --clusterrole {role} --serviceaccount {namespace}:limited"
        ))
        .ok();
    wait_until("the agent may impersonate", PATIENCE, || {
        stranger.kubectl("api-resources").run().code == Some(0)
    });
    cluster
        .kubectl(&format!("delete clusterrolebinding {role}"))
        .ok();
    wait_until("the agent may not any more", PATIENCE, || {
        stranger.kubectl("get --raw /version").run().code != Some(0)
    });
    let says = [
        r#"agent is not authorized to impersonate user "stranger""#,
        "gateway-impersonate",
    ];
    explained(plain(&stranger), "agent", &says);
    explained(streams(&stranger), "agent", &says);
}

/// A kubeconfig of a service account that may impersonate nobody but `somebody`.
fn limited_kubeconfig(cluster: &Cluster) -> std::path::PathBuf {
    let namespace = &shared().namespace;
    let make = |words: &str| cluster.kubectl(words).ok();
    make(&format!("create serviceaccount limited -n {namespace}"));
    let role = format!("limited-{namespace}");
    make(&format!(
        "create clusterrole {role} --verb impersonate --resource users --resource-name somebody"
    ));
    make(&format!(
        "create clusterrolebinding {role} --clusterrole {role} --serviceaccount {namespace}:limited"
    ));
    let token = make(&format!(
        "create token limited -n {namespace} --duration 1h"
    ));
    let kubeconfig = place::directory("limited").join("kubeconfig");
    let config = |words: &str| {
        Cmd::new(place::cached("kubectl"))
            .env("KUBECONFIG", &kubeconfig)
            .words("config")
            .words(words)
            .ok()
    };
    let (url, ca) = (cluster.setting("APISERVER_URL"), cluster.setting("CA_CERT"));
    config(&format!(
        "set-cluster c --server {url} --certificate-authority {ca}"
    ));
    config(&format!("set-credentials u --token {}", token.trim()));
    config("set-context c --cluster c --user u");
    config("use-context c");
    kubeconfig
}

#[test]
fn rbac_speaks_for_itself() {
    let namespace = &shared().namespace;
    // Another name each time: what was granted in this cluster before is still there.
    let name = format!("unbound-{namespace}");
    let user = user(&name, "gatewayAdmin", None);
    for (way, command) in plain(&user) {
        let said = command.fails();
        let expected = format!(
            r#"pods is forbidden: User "{name}" cannot list resource "pods" in API group "" in the namespace "{namespace}""#
        );
        assert!(said.contains(&expected), "{way}: {said}");
        assert!(!said.contains("towline:"), "{way}: {said}");
    }
    // May look at pods, and no more: the refusal is that of the upgrade.
    world().grant(&shared().cluster, &name, "view");
    for (way, command) in streams(&user) {
        let said = command.fails();
        let expected = format!(r#"pods "box" is forbidden: User "{name}" cannot "#);
        assert!(said.contains(&expected), "{way}: {said}");
        assert!(!said.contains("towline:"), "{way}: {said}");
    }
}
