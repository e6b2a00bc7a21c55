//! The agent where it belongs: as a pod, with nothing but the rights that its manifest gives it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, path::Path, time::Duration};

use tests::{
    Cluster, Cmd, User, World, place, wait_until,
    world::{BUSYBOX, POD, new_namespace},
};

const IMAGE: &str = "towline.test/agent:it";
const NAMESPACE: &str = "towline-it";

/// An image of the agent that is under test, with the libraries that it needs, if any.
fn load_image(cluster: &Cluster) {
    let agent = place::program("towline-agent");
    let image = place::directory("agent-image").join("agent.tar");
    let mut make = Cmd::new(place::cached("mkimage"))
        .args(["--name", IMAGE, "--entrypoint", "/towline-agent"])
        .args(["--user", "65532", "--dir", "/tmp:1777", "--file"])
        .arg(format!("{}=/towline-agent:0755", agent.display()));
    // `ldd` fails for a static program.
    let libraries = Cmd::new("ldd").arg(&agent).run();
    for path in libraries
        .text()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let library = fs::canonicalize(path).unwrap();
        make = make
            .arg("--file")
            .arg(format!("{}={path}:0755", library.display()));
    }
    make.arg("--output").arg(&image).ok();
    cluster.load(&image);
}

#[test]
fn an_agent_in_a_pod_serves_those_whom_its_role_names() {
    let cluster = Cluster::with_node();
    load_image(&cluster);
    let namespace = new_namespace(&cluster);
    cluster
        .kubectl(&format!(
            "-n {namespace} run {POD} --image {BUSYBOX} --image-pull-policy Never"
        ))
        .args(["--restart", "Never", "--", "sleep", "100000"])
        .ok();
    cluster
        .kubectl(&format!("delete namespace {NAMESPACE} --ignore-not-found"))
        .limit(Duration::from_secs(90))
        .ok();
    let world = World::new("pod", &cluster);
    let manifest = place::directory("pod-manifest").join("agent.yaml");
    world
        .admin
        .towline("memberships register pod --project demo --impersonate-users admin,tester")
        .args(["--namespace", NAMESPACE, "--image", IMAGE, "--manifest"])
        .arg(&manifest)
        .ok();
    apply(&cluster, &manifest);
    cluster
        .kubectl(&format!(
            "-n {NAMESPACE} wait --for condition=Available deployment --all --timeout 60s"
        ))
        .limit(Duration::from_secs(90))
        .ok();
    world.admin.get_credentials("pod");
    world.grant(&cluster, "admin", "cluster-admin");
    world.wait_served(&world.admin);
    let exec = |user: &User| {
        user.kubectl(&format!("-n {namespace} exec {POD} -- echo from the pod"))
            .ok()
    };
    cluster
        .kubectl(&format!(
            "-n {namespace} wait --for condition=Ready pod/{POD} --timeout 60s"
        ))
        .ok();
    assert_eq!(exec(&world.admin), "from the pod\n");

    // Its rights: to impersonate two users, and nothing of the cluster's.
    let account = cluster
        .kubectl(&format!("-n {NAMESPACE} get deployment -o"))
        .arg("jsonpath={.items[0].spec.template.spec.serviceAccountName}")
        .ok();
    let may = |words: &str| {
        let who = format!("--as system:serviceaccount:{NAMESPACE}:{account}");
        cluster
            .kubectl(&format!("auth can-i {words} {who}"))
            .run()
            .text()
            .trim()
            == "yes"
    };
    assert!(may("impersonate users/admin"));
    for too_much in [
        "impersonate users/somebody",
        "impersonate groups/system:masters",
        "get secrets -A",
        "list pods -A",
    ] {
        assert!(!may(too_much), "the agent may {too_much}");
    }
    let other = world.user("other", "gatewayAdmin");
    other.get_credentials("pod");
    let said = other.kubectl("get --raw /version").fails();
    assert!(
        said.contains(r#"agent is not authorized to impersonate user "other""#),
        "{said}"
    );

    // A pod that is replaced keeps its key, and so its membership; the token was used up.
    cluster
        .kubectl(&format!(
            "-n {NAMESPACE} delete pod --all --wait=true --grace-period 1"
        ))
        .limit(Duration::from_secs(90))
        .ok();
    wait_until("the next pod serves", Duration::from_secs(60), || {
        world
            .admin
            .kubectl("get --raw /version --request-timeout 5s")
            .run()
            .code
            == Some(0)
    });
    cluster
        .kubectl("delete -f")
        .arg(&manifest)
        .limit(Duration::from_secs(90))
        .ok();
}

fn apply(cluster: &Cluster, manifest: &Path) {
    cluster.kubectl("apply -f").arg(manifest).ok();
}
