//! What is said when something is wrong.

use std::net::TcpListener;

use serde_json::json;

use crate::{User, gateway::Gateway};

#[test]
fn a_gateway_that_is_not_there() {
    let mut gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.stop();
    user.run(&["memberships", "list"])
        .fails(&["refuses connections", &gateway.url()]);
    let mut through = user.command(&["memberships", "list"]);
    let ran: crate::Ran = through
        .env("HTTPS_PROXY", gateway.url().replace("https", "http"))
        .output()
        .unwrap()
        .into();
    ran.fails(&["the proxy on the way", "HTTPS_PROXY"]);
    user.run(&["whoami", "--gateway", "https://no-such-host.invalid"])
        .fails(&["run: towline login"]);
    user.run(&["login", "https://no-such-host.invalid", "--username", "a"])
        .fails(&["is not known"]);
}

#[test]
fn what_listens_there_is_no_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let plain = std::thread::spawn(move || {
        use std::io::Write;
        let (mut connection, _) = listener.accept().unwrap();
        connection
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    user.run(&["login", &format!("https://{address}"), "--username", "a"])
        .fails(&["does not speak TLS"]);
    plain.join().unwrap();

    gateway.set_issuer("https://accounts.example.com");
    user.login(&["--certificate-authority", "ca.pem"])
        .fails(&["not as a Towline gateway does"]);
}

#[test]
fn the_gateways_refusals_are_told_in_its_words() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let denied = json!({"code": "permission_denied", "message": "user \"alice\" lacks permission"});
    gateway.answer("Memberships/Register", 403, denied);
    user.run(&["memberships", "register", "x", "--project", "p"])
        .fails(&["error: user \"alice\" lacks permission"]);
    gateway.answer(
        "Projects/List",
        401,
        json!({"code": "unauthenticated", "message": "token expired"}),
    );
    user.run(&["projects", "list"])
        .fails(&["not signed in", "towline login https://"]);
    gateway.answer("Users/List", 200, json!([1]));
    user.run(&["users", "list"])
        .fails(&["not understood", "Users/List"]);
    gateway.answer("Streams/List", 502, json!("bad gateway"));
    user.run(&["streams", "list", "--project", "p"])
        .fails(&["not understood", "502"]);
}

#[test]
fn an_answer_from_a_newer_gateway_is_understood() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer(
        "Projects/List",
        200,
        json!({"projects": [{"name": "p", "colour": "red"}], "next": 1}),
    );
    assert_eq!(
        user.run(&["projects", "list", "-o", "name"]).succeeds().out,
        "p\n"
    );
}

#[test]
fn wrong_words_are_usage() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    for (words, said) in [
        (&["membership", "lst"][..], "list"),
        (&["memberships", "register", "Not_a_Label"], "DNS label"),
        (&["get-credentials"], "NAME"),
        (
            &["get-credentials", "a", "--context-name", "{cluster}"],
            "{membership}",
        ),
        (&["memberships", "list", "-o", "xml"], "json"),
        (
            &[
                "projects",
                "add-iam-policy-binding",
                "p",
                "--member",
                "alice",
                "--role",
                "owner",
            ],
            "user:alice",
        ),
        (
            &["memberships", "register", "x", "--impersonate-anyone"],
            "--manifest",
        ),
    ] {
        let ran = user.run(words);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{words:?}");
        assert!(ran.err.contains(said), "{said} in {}", ran.err);
    }
}

#[test]
fn a_config_file_with_an_unknown_key_is_named() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    std::fs::write(
        user.file(".config/towline/config.yaml"),
        "gateway: x\nproejct: y\n",
    )
    .unwrap();
    user.run(&["whoami"])
        .fails(&["config.yaml", "proejct", "line 2"]);
}

#[test]
fn the_other_name_is_a_plugin_of_kubectl() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let plugin = user.file("kubectl-towline");
    // A link and no copy: a file that another thread's child inherited while it was written can't be run.
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_towline"), &plugin).unwrap();
    let help = std::process::Command::new(plugin)
        .args(["memberships", "list", "--help"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("Usage: kubectl towline memberships list")
    );
}

#[test]
fn completions_and_manual_pages_come_out() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    assert!(
        user.run(&["completions", "bash"])
            .succeeds()
            .out
            .contains("_towline")
    );
    user.run(&["man", "man1"]).succeeds();
    for page in [
        "towline.1",
        "towline-login.1",
        "towline-memberships-register.1",
    ] {
        assert!(
            user.read(&format!("man1/{page}")).contains("towline"),
            "{page}"
        );
    }
}
