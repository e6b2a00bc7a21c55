//! Helm through the gateway: install, upgrade, rollback, uninstall.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::time::Duration;

use tests::{Cmd, place, shared};

fn helm(words: &str) -> Cmd {
    let shared = shared();
    shared
        .world
        .admin
        .at_home(Cmd::new(place::cached("helm")))
        .args(["--namespace", &shared.namespace])
        .words(words)
        .limit(Duration::from_secs(120))
}

#[test]
fn a_release_is_installed_upgraded_rolled_back_and_uninstalled() {
    let shared = shared();
    let chart = place::tree().join("tests/clients/chart");
    let greeting = || {
        shared
            .kubectl("get configmap greet -o jsonpath={.data.greeting}")
            .ok()
    };

    let said = helm("install greet --wait --timeout 60s").arg(&chart).ok();
    assert!(said.contains("STATUS: deployed"), "{said}");
    assert_eq!(greeting(), "hello");
    assert_eq!(shared.kubectl("logs deployment/greet").ok(), "hello\n");

    let said = helm("upgrade greet --set greeting=good-day --wait --timeout 60s")
        .arg(&chart)
        .ok();
    assert!(said.contains("REVISION: 2"), "{said}");
    assert_eq!(greeting(), "good-day");

    helm("rollback greet 1 --wait --timeout 60s").ok();
    assert_eq!(greeting(), "hello");
    let history = helm("history greet -o json").json();
    assert_eq!(history.as_array().map(Vec::len), Some(3), "{history}");
    let listed = helm("list -o json").json();
    assert_eq!(listed[0]["name"], "greet", "{listed}");

    helm("uninstall greet --wait --timeout 60s").ok();
    let said = shared.kubectl("get configmap greet").fails();
    assert!(said.contains("NotFound"), "{said}");

    // What Helm says when the cluster refuses comes from the cluster.
    let said = helm("install greet --set image=").arg(&chart).fails();
    assert!(
        said.contains("spec.template.spec.containers[0].image"),
        "{said}"
    );
}
