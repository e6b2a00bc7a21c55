//! The exec plugin.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::{PROD, Ran, User, gateway::Gateway};

fn token(ran: &Ran) -> String {
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "it is silent");
    let credential: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(credential["kind"], "ExecCredential");
    credential["status"]["token"].as_str().unwrap().to_owned()
}

#[test]
fn many_processes_refresh_once() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let children: Vec<Child> = (0..12)
        .map(|_| {
            user.credential()
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        assert_eq!(token(&child.wait_with_output().unwrap().into()), "access-2");
    }
    let state = gateway.state();
    assert_eq!(state.refreshes, 1);
    assert_eq!(
        state.resource.as_deref(),
        Some(format!("{}/v1/{PROD}", gateway.url()).as_str())
    );
}

#[test]
fn a_kept_token_needs_no_gateway() {
    let mut gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-2"
    );
    gateway.stop();
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-2"
    );
    // One membership's token is of no use for another.
    let other = PROD.replace("prod", "other");
    let arguments = [
        "credential",
        "--gateway",
        &gateway.url(),
        "--membership",
        &other,
    ];
    user.run(&arguments).fails(&["refuses connections"]);
}

#[test]
fn a_token_about_to_end_serves_while_the_gateway_is_away() {
    let mut gateway = Gateway::start();
    gateway.set_lifetime(1_000);
    let user = User::signed_in(&gateway);
    token(&user.credential().output().unwrap().into());
    // As if nearly all of its time had gone by.
    let path = user
        .file(".config/towline/tokens")
        .join(format!("127.0.0.1_{}.json", gateway.address.port()));
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kept["access_tokens"][PROD]["renew_at"] = 1.into();
    std::fs::write(&path, kept.to_string()).unwrap();
    gateway.stop();
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-2"
    );
}

#[test]
fn who_is_not_signed_in_is_told_what_to_run() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let wanted = format!("error: run: towline login {}\n", gateway.url());
    let ran = Ran::from(user.credential().output().unwrap()).fails(&[]);
    assert_eq!(ran.err, wanted);
    assert!(!user.file(".config").exists(), "it makes nothing");

    let user = User::signed_in(&gateway);
    gateway.state().ended = true;
    for _ in 0..2 {
        let ran = Ran::from(user.credential().output().unwrap()).fails(&[]);
        assert_eq!(ran.err, wanted);
    }
    assert_eq!(gateway.state().refreshes, 1, "a dead sign-in is tried once");
}

#[test]
fn a_gateway_in_trouble_does_not_end_the_sign_in() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.state().token_error = Some((503, "upstream is away".to_owned()));
    Ran::from(user.credential().output().unwrap()).fails(&["gave no token", "upstream is away"]);
    gateway.state().token_error = None;
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-2"
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_does_not_cost_the_sign_in() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let seen = gateway.hold_token_requests();
    let child = user
        .credential()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    seen.recv_timeout(std::time::Duration::from_secs(30))
        .unwrap();
    let interrupt = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupt.success());
    gateway.release_token_requests();
    assert_eq!(token(&child.wait_with_output().unwrap().into()), "access-2");
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-2"
    );
    assert_eq!(gateway.state().refreshes, 1);
}

#[test]
fn an_answer_that_got_lost_is_asked_for_again() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.state().lose_answers = 1;
    assert_eq!(
        token(&user.credential().output().unwrap().into()),
        "access-3"
    );
    assert_eq!(gateway.state().refreshes, 2);
}

#[test]
fn kubectls_version_counts() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let with = |version: &str| -> Ran {
        let info = format!(
            r#"{{"apiVersion":"client.authentication.k8s.io/{version}","kind":"ExecCredential","spec":{{}}}}"#
        );
        user.credential()
            .env("KUBERNETES_EXEC_INFO", info)
            .output()
            .unwrap()
            .into()
    };
    assert!(
        with("v1")
            .succeeds()
            .out
            .contains("client.authentication.k8s.io/v1\"")
    );
    assert!(
        with("v1beta1")
            .succeeds()
            .out
            .contains("client.authentication.k8s.io/v1beta1\"")
    );
    with("v1alpha1").fails(&["v1alpha1", "get-credentials"]);
}
