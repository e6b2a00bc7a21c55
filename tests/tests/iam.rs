//! IAM with real kubectl on the real cluster: what a change of a policy does to a running exec, conditions, and what
//! `towline iam explain` says of both layers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, time::Duration};

use serde_json::Value;
use tests::{
    Stopwatch, User, place, shared,
    user::{Kubectl, Protocol},
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// How long a stream may outlive its permission.
const LIMIT: Duration = Duration::from_secs(5);

fn user(name: &str, role: &str, cluster_role: Option<&str>) -> User {
    let shared = shared();
    let user = shared.world.user(name, role);
    if let Some(cluster_role) = cluster_role {
        shared.world.grant(&shared.cluster, name, cluster_role);
    }
    user.with_kubeconfig(&place::directory(name).join("kubeconfig"))
}

fn admin(words: &str) -> String {
    shared().world.admin.towline(words).ok()
}

/// Runs until the change, and then ends in time, with what stands in the terminal.
fn ends(user: &User, protocol: Protocol, change: &str) -> String {
    let namespace = &shared().namespace;
    let mut exec = user
        .kubectl_of(
            Kubectl::Current,
            protocol,
            &format!("exec -n {namespace} -i box -- sh -c"),
        )
        .arg("echo up; cat")
        .input_open()
        .start(&user.name);
    exec.line("its output", PATIENCE, |line| line == "up");
    admin(change);
    let since = Stopwatch::new();
    let status = exec.wait(PATIENCE);
    assert!(
        since.elapsed() < LIMIT,
        "{protocol:?}: {:?}",
        since.elapsed()
    );
    assert!(!status.success(), "{protocol:?}: {}", exec.err());
    exec.err()
}

fn ended_with(user: &User, reason: &str) {
    wait_until("the reason is in the list", PATIENCE, || {
        let list: Value =
            serde_json::from_str(&admin("streams list --ended --project demo -o json")).unwrap();
        list.as_array().unwrap().iter().any(|stream| {
            stream["principal"] == format!("user:{}", user.name)
                && stream["reason"].as_str().unwrap().starts_with(reason)
        })
    });
}

#[test]
fn a_binding_that_is_removed_ends_a_running_exec_with_the_reason() {
    for (name, protocol) in [
        ("leaver-ws", Protocol::WebSocket),
        ("leaver-spdy", Protocol::Spdy),
    ] {
        let user = user(name, "gatewayAdmin", Some("cluster-admin"));
        user.get_credentials("it");
        let change = format!(
            "projects remove-iam-policy-binding demo --member user:{name} --role gatewayAdmin"
        );
        let said = ends(&user, protocol, &change);
        let reason = format!("user \"{name}\" lacks permission \"gateway.stream\"");
        assert!(said.contains(&reason), "{protocol:?}: {said}");
        ended_with(&user, &reason);
    }
}

#[test]
fn a_binding_on_the_membership_alone_comes_and_goes() {
    let user = user("guest", "gatewayReader", Some("cluster-admin"));
    user.get_credentials("it");
    let namespace = &shared().namespace;
    let said = user
        .kubectl(&format!("exec -n {namespace} box -- true"))
        .fails();
    assert!(said.contains("lacks permission"), "{said}");
    let binding = "it --project demo --member user:guest --role gatewayAdmin";
    admin(&format!("memberships add-iam-policy-binding {binding}"));
    user.kubectl(&format!("exec -n {namespace} box -- true"))
        .ok();
    let said = ends(
        &user,
        Protocol::WebSocket,
        &format!("memberships remove-iam-policy-binding {binding}"),
    );
    assert!(
        said.contains("lacks permission \"gateway.stream\""),
        "{said}"
    );
}

#[test]
fn a_condition_holds_for_what_the_api_server_sees() {
    let namespace = &shared().namespace;
    let shared = shared();
    let user = user("narrow", "fleetViewer", Some("cluster-admin"));
    let condition = format!(
        "expression=!request.path.startsWith('/api/v1/') || request.namespace == '{namespace}' && \
         request.resource == 'pods' && request.verb in ['get', 'list'],title=pods of one namespace"
    );
    shared
        .world
        .admin
        .towline("projects add-iam-policy-binding demo --member user:narrow --role gatewayReader --condition")
        .arg(&condition)
        .ok();
    // A kubeconfig is not a request to the cluster: its path is empty.
    user.get_credentials("it");
    user.kubectl(&format!("get pods -n {namespace}")).ok();
    user.kubectl(&format!("get pod box -n {namespace}")).ok();
    for refused in [
        "get pods -A".to_owned(),
        "get pods -n kube-system".to_owned(),
        format!("get secrets -n {namespace}"),
        format!("get --raw /api/v1/namespaces/{namespace}/secrets"),
        format!("get --raw /api/v1/namespaces/{namespace}/pods?watch=1"),
    ] {
        let said = user.kubectl(&refused).fails();
        assert!(
            said.contains("lacks permission \"gateway.get\""),
            "{refused}: {said}"
        );
    }
}

#[test]
fn explain_says_what_either_layer_says_and_why() {
    let user = user("asked", "gatewayReader", Some("view"));
    user.get_credentials("it");
    let explain = |rest: &str| {
        admin(&format!(
            "iam explain --membership it --project demo --member user:asked {rest}"
        ))
    };
    let said = explain("--verb list --resource pods --namespace default");
    assert!(said.starts_with("IAM:   yes"), "{said}");
    assert!(
        said.contains("user:asked has gatewayReader on projects/demo"),
        "{said}"
    );
    assert!(said.contains("RBAC:  yes"), "{said}");
    user.kubectl("get pods -n default").ok();

    let said = explain("--verb list --resource secrets --namespace default");
    assert!(
        said.starts_with("IAM:   yes") && said.contains("RBAC:  no"),
        "{said}"
    );
    user.kubectl("get secrets -n default").fails();

    let said = explain("--verb create --resource pods --subresource exec --namespace default");
    assert!(said.starts_with("IAM:   no"), "{said}");
    assert!(
        said.contains("needs gateway.stream")
            && said.contains("roles with it: gatewayAdmin, owner"),
        "{said}"
    );
    assert!(said.contains("RBAC:  no"), "{said}");

    // Groups that the gateway doesn't know; RBAC in the cluster does.
    let cluster = &shared().cluster;
    cluster
        .kubectl("create clusterrolebinding towline-it-readers --clusterrole cluster-admin --group readers")
        .run();
    wait_until("RBAC knows the group", PATIENCE, || {
        explain("--groups readers --verb list --resource secrets --namespace default")
            .contains("RBAC:  yes")
    });
    // Nobody is asked about whom the agent may never be.
    let said = admin(
        "iam explain --membership it --project demo --member user:system:admin --verb list --resource pods",
    );
    assert!(
        said.contains("RBAC:  not known") && said.contains("system:"),
        "{said}"
    );
    // The question needs a permission of its own.
    let said = user
        .towline("iam explain --membership it --project demo --member user:admin --verb list --resource pods")
        .fails();
    assert!(said.contains("lacks permission \"iam.explain\""), "{said}");

    // Who asked in whose name: one id for the gateway's record and the API server's.
    let mut calls = Vec::new();
    wait_until("the question is recorded", PATIENCE, || {
        let events = admin("audit list --project demo --since 10m --limit 1000 -o json");
        let events: Vec<Value> = serde_json::from_str(&events).unwrap();
        calls = events
            .into_iter()
            .filter(|event| event["verb"] == "Explain" && event["user"]["username"] == "admin")
            .map(|event| event["auditID"].as_str().unwrap().to_owned())
            .collect();
        !calls.is_empty()
    });
    wait_until("the API server has it, too", PATIENCE, || {
        let log = fs::read_to_string(cluster.audit_log()).unwrap();
        log.lines()
            .filter(|line| line.contains("selfsubjectaccessreviews") && line.contains("\"asked\""))
            .any(|line| calls.iter().any(|id| line.contains(id)))
    });
}
