//! Signing in and out.

use std::{io::Write, process::Stdio};

use crate::{
    Ran, User,
    gateway::{CODE, Gateway, PASSWORD},
};

#[test]
fn a_password_signs_in_and_is_kept_nowhere() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let ran = user
        .login(&["--certificate-authority", "ca.pem"])
        .succeeds();
    assert!(
        ran.err.contains("as user:alice (gatewayOperator)") && ran.err.contains("Next: towline"),
        "{ran:?}"
    );
    let ran = user.run(&["whoami"]).succeeds();
    assert!(
        ran.out.contains("user:alice") && ran.out.contains(&gateway.url()),
        "{ran:?}"
    );
    let kept = find(user.home.path(), PASSWORD);
    assert_eq!(kept, ["password"], "only where the user put it");

    // A second time neither the CA nor the name is needed.
    let again = ["login", "--password-file", "password"];
    user.run(&again).succeeds();
    let ran = user.run(&["config", "list"]).succeeds();
    assert!(
        ran.out.contains("alice") && ran.out.contains('*'),
        "{ran:?}"
    );
}

#[cfg(unix)]
#[test]
fn what_is_kept_is_the_users_alone() {
    use std::os::unix::fs::MetadataExt;
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let mut dirs = vec![user.file(".config")];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(dir.metadata().unwrap().mode() & 0o077, 0, "{dir:?}");
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension != "lock")
            {
                assert_eq!(path.metadata().unwrap().mode() & 0o077, 0, "{path:?}");
                files += 1;
            }
        }
    }
    assert_eq!(files, 3);
}

#[test]
fn a_password_can_come_from_standard_input() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let arguments = [
        "login",
        &gateway.url(),
        "--certificate-authority",
        "ca.pem",
        "--username",
        "alice",
        "--password-stdin",
    ];
    let mut child = user
        .command(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(format!("{PASSWORD}\n").as_bytes())
        .unwrap();
    Ran::from(child.wait_with_output().unwrap()).succeeds();
}

#[test]
fn a_wrong_password_is_told_in_the_gateways_words_and_leaves_no_trace() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    std::fs::write(user.file("password"), "wrong\n").unwrap();
    user.login(&["--certificate-authority", "ca.pem"])
        .fails(&["refused the sign-in", "wrong name or password"]);
    assert!(!user.file(".config").exists());
}

#[test]
fn a_one_time_code_sets_a_password() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let url = gateway.url();
    let mut arguments = vec![
        "login",
        &url,
        "--certificate-authority",
        "ca.pem",
        "--username",
        "alice",
        "--one-time-code",
        CODE,
    ];
    // There is no terminal to ask on.
    user.run(&arguments).fails(&["--new-password-file"]);
    arguments.extend(["--new-password-file", "password"]);
    user.run(&arguments).succeeds();
    assert_eq!(gateway.state().forms[0]["new_password"], PASSWORD);
    assert!(!gateway.state().forms[0].contains_key("password"));
}

#[test]
fn an_unknown_authority_is_shown_and_nothing_is_sent_to_it() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let fingerprint = gateway.authority_fingerprint.clone();
    user.login(&[]).fails(&[
        "not known here",
        &fingerprint,
        "--ca-fingerprint",
        "--certificate-authority",
    ]);
    let other = fingerprint.replace(|c: char| c.is_ascii_hexdigit(), "0");
    user.login(&["--ca-fingerprint", &other])
        .fails(&["shows no certificate with the fingerprint", &fingerprint]);
    user.login(&["--ca-fingerprint", "12:34"])
        .fails(&["is not a SHA-256 fingerprint"]);
    assert!(gateway.state().forms.is_empty());
    user.login(&["--ca-fingerprint", &fingerprint]).succeeds();
    // It is the one that is trusted from then on.
    user.run(&["whoami"]).succeeds();
}

#[test]
fn another_gateway_under_the_same_address_is_noticed() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let stranger = Gateway::start();
    std::fs::write(user.file("ca.pem"), &stranger.authority_pem).unwrap();
    user.login(&["--certificate-authority", "ca.pem"])
        .fails(&["not the one that was trusted before"]);
    std::fs::write(user.file("ca.pem"), "nothing").unwrap();
    user.login(&["--certificate-authority", "ca.pem"])
        .fails(&["no certificate in it"]);
}

#[test]
fn without_a_terminal_it_says_what_to_give() {
    let gateway = Gateway::start();
    let user = User::of(&gateway);
    let url = gateway.url();
    let arguments = ["login", &url, "--certificate-authority", "ca.pem"];
    user.run(&arguments).fails(&["--username"]);
    user.run(&[&arguments[..], &["--username", "a"]].concat())
        .fails(&["--password-file"]);
    user.run(&["login"]).fails(&["towline login https://HOST"]);
    user.run(&["login", "http://gw"]).fails(&["https:// only"]);
}

#[test]
fn a_gateway_with_another_name_says_which() {
    let gateway = Gateway::start();
    gateway.set_issuer("https://gw.example.com/oauth2");
    let user = User::of(&gateway);
    user.login(&["--certificate-authority", "ca.pem"])
        .fails(&["towline login https://gw.example.com"]);
}

#[test]
fn signing_out_ends_it_on_both_sides() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    user.run(&["logout"]).succeeds();
    assert_eq!(gateway.state().revoked, ["refresh-1"]);
    user.run(&["whoami"])
        .fails(&["not signed in", "run: towline login https://"]);
    let ran = user.run(&["logout"]).succeeds();
    assert!(ran.err.contains("Not signed in"), "{ran:?}");
}

/// Names of files below `dir` that hold `text`.
fn find(dir: &std::path::Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, text));
        } else if std::fs::read_to_string(&path).unwrap().contains(text) {
            found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}
