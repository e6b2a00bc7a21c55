//! Kubeconfigs, as kubectl's user has them.

use serde_json::json;

use crate::{PROD, User, gateway::Gateway};

fn gateway() -> Gateway {
    let gateway = Gateway::start();
    let list = json!({"memberships": [
        {"project": "p", "location": "global", "name": "prod"},
        {"project": "q", "location": "global", "name": "prod"},
        {"project": "q", "location": "global", "name": "stage"},
    ]});
    gateway.answer("Memberships/List", 200, list);
    gateway
}

fn server(gateway: &Gateway, membership: &str) -> String {
    let server = format!("{}/v1/{membership}", gateway.url());
    gateway.answer(
        "Memberships/GenerateCredentials",
        200,
        json!({"server": server}),
    );
    server
}

#[test]
fn one_becomes_current_and_a_second_time_changes_nothing() {
    let gateway = gateway();
    let user = User::signed_in(&gateway);
    let server = server(&gateway, PROD);
    let ran = user
        .run(&["get-credentials", "prod", "--project", "p"])
        .succeeds();
    assert!(
        ran.err.contains("(current)") && ran.err.contains("put it on your PATH"),
        "{ran:?}"
    );
    let text = user.read(".kube/config");
    assert!(text.contains(&format!("server: {server}")), "{text}");
    let name = format!("towline_127.0.0.1_{}_p_global_prod", gateway.address.port());
    assert!(text.contains(&format!("current-context: {name}")), "{text}");
    assert!(
        !text.contains("--config-dir"),
        "the usual directory goes without saying"
    );
    let ran = user
        .run(&["memberships", "get-credentials", PROD])
        .succeeds();
    assert!(ran.err.contains("had all of it already"), "{ran:?}");
    assert_eq!(user.read(".kube/config"), text);
    assert!(!user.file(".kube/config.lock").exists());
}

#[cfg(unix)]
#[test]
fn a_new_file_is_the_users_alone() {
    use std::os::unix::fs::MetadataExt;
    let gateway = gateway();
    let user = User::signed_in(&gateway);
    server(&gateway, PROD);
    user.run(&["get-credentials", PROD, "--kubeconfig", "k"])
        .succeeds();
    assert_eq!(user.file("k").metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_list_of_files_is_honoured() {
    let gateway = gateway();
    let user = User::signed_in(&gateway);
    server(&gateway, PROD);
    let foreign =
        "clusters:\n- name: other\n  cluster: {server: 'https://x', x-custom: [1, {a: b}]}\n";
    std::fs::write(user.file("b"), foreign).unwrap();
    let list = std::env::join_paths(["a", "b", "c"].map(|name| user.file(name))).unwrap();
    let run = || {
        let mut command = user.command(&["get-credentials", PROD, "--no-set-current"]);
        crate::Ran::from(command.env("KUBECONFIG", &list).output().unwrap())
    };
    run().succeeds();
    let text = user.read("b");
    assert!(
        text.contains("x-custom") && text.contains(PROD) && !text.contains("current-context"),
        "{text}"
    );
    assert!(!user.file("a").exists() && !user.file("c").exists() && !user.file(".kube").exists());

    std::fs::write(user.file("a"), "users: {").unwrap();
    run().fails(&["a: ", "line 1", "nothing was changed"]);
    assert_eq!(user.read("b"), text);
}

#[test]
fn all_of_them_at_once() {
    let gateway = gateway();
    let user = User::signed_in(&gateway);
    server(&gateway, PROD);
    user.run(&["get-credentials", "--all", "--context-name", "{membership}"])
        .fails(&["would both be called \"prod\"", "--context-name"]);
    assert!(!user.file(".kube").exists());
    let denied = json!({"code": "permission_denied", "message": "not yours"});
    gateway.answer("Memberships/GenerateCredentials", 403, denied);
    server(&gateway, PROD);
    let ran = user
        .run(&[
            "get-credentials",
            "--all",
            "--context-name",
            "{project}-{membership}",
        ])
        .succeeds();
    assert!(
        ran.err
            .contains("Left out projects/q/locations/global/memberships/prod: not yours"),
        "{ran:?}"
    );
    let text = user.read(".kube/config");
    assert!(
        text.contains("name: p-prod") && text.contains("name: q-stage") && !text.contains("q-prod"),
        "{text}"
    );
    assert!(
        text.contains("current-context: \"\""),
        "several leave it as it is: {text}"
    );
}

#[test]
fn without_a_project_the_name_decides_when_it_can() {
    let gateway = gateway();
    let user = User::signed_in(&gateway);
    server(&gateway, PROD);
    user.run(&["get-credentials", "stage"]).succeeds();
    user.run(&["get-credentials", "prod"])
        .fails(&["ambiguous", "projects/q/locations/global/memberships/prod"]);
    user.run(&["get-credentials", "stag"])
        .fails(&["did you mean stage?"]);
    user.run(&["config", "set", "project", "q"]).succeeds();
    user.run(&["get-credentials", "prod"]).succeeds();
    let calls = gateway.state().calls.clone();
    assert_eq!(calls.last().unwrap().1["project"], "q");
}

#[test]
fn a_directory_of_ones_own_is_told_to_kubectl() {
    let gateway = gateway();
    let user = User::of(&gateway);
    server(&gateway, PROD);
    let login = ["--certificate-authority", "ca.pem", "--config-dir", "mine"];
    user.login(&login).succeeds();
    user.run(&["get-credentials", PROD, "--config-dir", "mine"])
        .succeeds();
    let text = user.read(".kube/config");
    // kubectl may be run from anywhere.
    assert!(
        text.contains(&format!("- {}", user.file("mine").display())),
        "{text}"
    );
}
