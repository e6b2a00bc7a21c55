//! Signing in with an identity provider that a gateway names.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
};

use serde_json::{Value, json};
use url::Url;

use crate::{PROD, Ran, User, gateway::Gateway};

/// A sign-in that waits for its browser.
struct Waiting {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
    said: String,
    url: Url,
}

impl Waiting {
    fn begin(user: &User) -> Self {
        let mut child = user
            .command(&[
                "login",
                &user.gateway,
                "--certificate-authority",
                "ca.pem",
                "--no-browser",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let url = loop {
            let mut line = String::new();
            assert_ne!(err.read_line(&mut line).unwrap(), 0, "no address in {said}");
            said.push_str(&line);
            if let Ok(url) = line.trim().parse() {
                break url;
            }
        };
        Self {
            child,
            err,
            said,
            url,
        }
    }

    /// What a browser gets that goes there.
    fn browse(&self, redirect: &str, query: &HashMap<String, String>) -> String {
        let mut url: Url = redirect.parse().unwrap();
        url.query_pairs_mut().extend_pairs(query);
        let mut connection =
            TcpStream::connect(("127.0.0.1", url.port().expect("a port of its own"))).unwrap();
        let target = &url[url::Position::BeforePath..];
        write!(
            connection,
            "GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    fn end(mut self) -> Ran {
        self.err.read_to_string(&mut self.said).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: self.said,
        }
    }
}

fn offered() -> (Gateway, User) {
    let gateway = Gateway::start();
    gateway.offer_provider();
    let user = User::of(&gateway);
    (gateway, user)
}

/// A sign-in in which `change` meddles with what the browser brings back.
fn sign_in(
    gateway: &Gateway,
    user: &User,
    change: impl FnOnce(&mut HashMap<String, String>),
) -> Ran {
    let waiting = Waiting::begin(user);
    let (redirect, mut back) = gateway.state().idp.authorize(&waiting.url);
    change(&mut back);
    waiting.browse(&redirect, &back);
    waiting.end()
}

fn token(ran: &Ran) -> String {
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "it is silent");
    let credential: Value = serde_json::from_str(&ran.out).unwrap();
    credential["status"]["token"].as_str().unwrap().to_owned()
}

#[test]
fn one_sign_in_serves_all_clusters_and_asks_for_what_the_provider_has() {
    let (gateway, user) = offered();
    let waiting = Waiting::begin(&user);
    let asked: HashMap<String, String> = waiting.url.query_pairs().into_owned().collect();
    // It says that it has no `groups`.
    assert_eq!(asked["scope"], "openid email offline_access");
    let (redirect, back) = gateway.state().idp.authorize(&waiting.url);
    assert!(redirect.starts_with("http://127.0.0.1:") && redirect.ends_with("/callback"));
    let page = waiting.browse(&redirect, &back);
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let ran = waiting.end().succeeds();
    assert!(ran.err.contains("Signed in at"), "{ran:?}");

    token(&user.credential().output().unwrap().into());
    let other = PROD.replace("prod", "other");
    user.run(&[
        "credential",
        "--gateway",
        &user.gateway,
        "--membership",
        &other,
    ])
    .succeeds();
    let state = gateway.state();
    let resources: Vec<&str> = state
        .exchanges
        .iter()
        .map(|form| form["resource"].as_str())
        .collect();
    let of = |membership: &str| format!("{}/v1/{membership}", user.gateway);
    assert_eq!(resources, [&user.gateway, &of(PROD), &of(&other)]);
    let kind = "urn:ietf:params:oauth:token-type:id_token";
    assert!(
        state
            .exchanges
            .iter()
            .all(|form| form["subject_token_type"] == kind)
    );
    assert!(
        state.idp.refreshes.is_empty(),
        "the ID token was still good"
    );
}

#[test]
fn an_answer_that_belongs_to_another_sign_in_is_passed_over() {
    let (gateway, user) = offered();
    let waiting = Waiting::begin(&user);
    let (redirect, back) = gateway.state().idp.authorize(&waiting.url);
    let mut foreign = back.clone();
    foreign.insert("state".into(), "theirs".into());
    foreign.insert("code".into(), "their-code".into());
    let page = waiting.browse(&redirect, &foreign);
    assert!(page.starts_with("HTTP/1.1 400"), "{page}");
    foreign.remove("state");
    assert!(
        waiting
            .browse(&redirect, &foreign)
            .starts_with("HTTP/1.1 400")
    );
    // It still waits for its own.
    waiting.browse(&redirect, &back);
    let ran = waiting.end().succeeds();
    assert!(ran.err.contains("was passed over"), "{ran:?}");
    let state = gateway.state();
    assert_eq!(
        state.idp.forms.len(),
        1,
        "the foreign code was never redeemed"
    );
    assert_eq!(state.idp.forms[0]["code"], "the-code");
}

#[test]
fn a_code_of_another_sign_in_is_found_out_by_its_nonce() {
    let (gateway, user) = offered();
    gateway.state().idp.claims = json!({"nonce": "of-another-sign-in"});
    sign_in(&gateway, &user, |_| {}).fails(&["nonce is another sign-in's"]);
    assert!(gateway.state().exchanges.is_empty());
    assert!(!user.file(".config/towline/tokens").exists());
}

#[test]
fn an_answer_of_another_provider_is_refused() {
    for change in [
        (|back| drop(back.insert("iss".into(), "https://evil".into())))
            as fn(&mut HashMap<String, String>),
        |back| drop(back.remove("iss")),
    ] {
        let (gateway, user) = offered();
        sign_in(&gateway, &user, change).fails(&["does not belong to it", "towline login"]);
        assert!(
            gateway.state().idp.forms.is_empty(),
            "its code goes nowhere"
        );
    }
    // One that doesn't say that it sends its name needn't.
    let (gateway, user) = offered();
    gateway.state().idp.document = json!({"authorization_response_iss_parameter_supported": false});
    sign_in(&gateway, &user, |back| drop(back.remove("iss"))).succeeds();
}

#[test]
fn a_refusal_is_told_in_the_providers_words() {
    let (gateway, user) = offered();
    sign_in(&gateway, &user, |back| {
        back.remove("code");
        back.insert("error".into(), "access_denied".into());
        back.insert("error_description".into(), "Ann said no".into());
    })
    .fails(&["refused the sign-in", "Ann said no"]);
    // At the token endpoint, too; and one that gives no ID token.
    gateway.state().idp.refusals = vec![(
        400,
        json!({"error": "invalid_grant", "error_description": "Code not valid"}),
    )];
    sign_in(&gateway, &user, |_| {}).fails(&["refused the sign-in", "Code not valid"]);
    gateway.state().idp.refusals =
        vec![(200, json!({"access_token": "x", "token_type": "Bearer"}))];
    sign_in(&gateway, &user, |_| {}).fails(&["no ID token", "openid"]);
    // And the gateway's own.
    gateway.state().exchange_errors = vec![(
        400,
        json!({"error": "invalid_grant", "error_description": "email is not verified"}),
    )];
    sign_in(&gateway, &user, |_| {}).fails(&["email is not verified"]);
    assert!(!user.file(".config/towline/tokens").exists());
}

#[test]
fn a_provider_that_is_not_the_one_that_was_named_is_not_used() {
    for (document, word) in [
        (json!({"issuer": "https://evil"}), "https://evil"),
        (
            json!({"token_endpoint": "http://127.0.0.1:1/token"}),
            "is not HTTPS",
        ),
        (
            json!({"code_challenge_methods_supported": ["plain"]}),
            "S256",
        ),
    ] {
        let (gateway, user) = offered();
        gateway.state().idp.document = document;
        user.run(&["login", &user.gateway, "--certificate-authority", "ca.pem"])
            .fails(&[word, "gateway's operator"]);
        assert!(gateway.state().idp.forms.is_empty());
    }
}

#[test]
fn another_device_is_waited_for_in_the_providers_time() {
    let (gateway, user) = offered();
    gateway.state().idp.refusals = vec![
        (400, json!({"error": "authorization_pending"})),
        (400, json!({"error": "slow_down"})),
    ];
    let ran = user
        .run(&[
            "login",
            &user.gateway,
            "--certificate-authority",
            "ca.pem",
            "--device",
        ])
        .succeeds();
    for word in ["WDJB-MJHT", "/idp/activate", "Signed in"] {
        assert!(ran.err.contains(word), "{word} in {ran:?}");
    }
    assert_eq!(gateway.state().idp.forms.len(), 3);
}

#[test]
fn another_device_may_say_no() {
    let device = |refusal: Value, word: &str| {
        let (gateway, user) = offered();
        gateway.state().idp.refusals = vec![(400, refusal)];
        user.run(&[
            "login",
            &user.gateway,
            "--certificate-authority",
            "ca.pem",
            "--device",
        ])
        .fails(&[word]);
        assert!(gateway.state().exchanges.is_empty());
    };
    device(
        json!({"error": "access_denied", "error_description": "Ann said no"}),
        "Ann said no",
    );
    device(json!({"error": "expired_token"}), "has expired");
    let (gateway, user) = offered();
    gateway.state().idp.document = json!({"device_authorization_endpoint": null});
    user.run(&[
        "login",
        &user.gateway,
        "--certificate-authority",
        "ca.pem",
        "--device",
    ])
    .fails(&["no device flow"]);
}

#[test]
fn of_many_processes_one_renews_and_the_rotated_refresh_token_is_kept() {
    let (gateway, user) = offered();
    gateway.state().idp.lifetime = 10;
    sign_in(&gateway, &user, |_| {}).succeeds();
    // The gateway's token ends with the sign-in's; each round all need a new one.
    for round in 1..=2 {
        gateway.state().idp.lifetime = 10;
        let membership = format!("projects/p/locations/global/memberships/m{round}");
        let children: Vec<Child> = (0..8)
            .map(|_| {
                user.command(&[
                    "credential",
                    "--gateway",
                    &user.gateway,
                    "--membership",
                    &membership,
                ])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
            })
            .collect();
        let tokens: Vec<String> = children
            .into_iter()
            .map(|child| token(&child.wait_with_output().unwrap().into()))
            .collect();
        assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
        let state = gateway.state();
        let used: Vec<String> = (1..=round).map(|n| format!("idp-refresh-{n}")).collect();
        assert_eq!(state.idp.refreshes, used, "each was used once");
    }
}

#[test]
fn a_rotated_refresh_token_survives_a_gateway_that_is_away() {
    let (gateway, user) = offered();
    gateway.state().idp.lifetime = 10;
    sign_in(&gateway, &user, |_| {}).succeeds();
    gateway.state().exchange_errors = vec![(503, json!({"error": "temporarily_unavailable"}))];
    Ran::from(user.credential().output().unwrap()).fails(&["temporarily_unavailable"]);
    token(&user.credential().output().unwrap().into());
    assert_eq!(
        gateway.state().idp.refreshes,
        ["idp-refresh-1", "idp-refresh-2"]
    );
}

#[test]
fn an_id_token_that_the_gateway_no_longer_takes_is_renewed() {
    let (gateway, user) = offered();
    sign_in(&gateway, &user, |_| {}).succeeds();
    gateway.state().exchange_errors = vec![(
        400,
        json!({"error": "invalid_grant", "error_description": "unknown key"}),
    )];
    token(&user.credential().output().unwrap().into());
    assert_eq!(gateway.state().idp.refreshes, ["idp-refresh-1"]);
}

#[test]
fn a_renewal_for_somebody_else_is_refused() {
    let (gateway, user) = offered();
    gateway.state().idp.lifetime = 10;
    sign_in(&gateway, &user, |_| {}).succeeds();
    gateway.state().idp.claims = json!({"sub": "bob"});
    Ran::from(user.credential().output().unwrap()).fails(&["another user"]);
    assert_eq!(gateway.state().exchanges.len(), 1);
}

#[test]
fn a_sign_in_that_is_over_says_what_to_run() {
    let (gateway, user) = offered();
    gateway.state().idp.lifetime = 10;
    sign_in(&gateway, &user, |_| {}).succeeds();
    gateway.state().idp.refusals = vec![(400, json!({"error": "invalid_grant"}))];
    Ran::from(user.credential().output().unwrap()).fails(&["run: towline login https://"]);
    // Without a refresh token it is over with the ID token.
    gateway.state().idp.no_refresh = true;
    let ran = sign_in(&gateway, &user, |_| {}).succeeds();
    assert!(ran.err.contains("offline_access"), "{ran:?}");
    Ran::from(user.credential().output().unwrap()).fails(&["run: towline login https://"]);
}

#[test]
fn signing_out_tells_the_provider_and_the_gateway() {
    let (gateway, user) = offered();
    sign_in(&gateway, &user, |_| {}).succeeds();
    user.run(&["logout"]).succeeds();
    {
        let state = gateway.state();
        let (path, form) = &state.idp.ended[0];
        assert_eq!(
            (path.as_str(), form["token"].as_str()),
            ("/idp/revoke", "idp-refresh-1")
        );
        assert_eq!(state.revoked, ["access-1"]);
    }
    user.run(&["whoami"]).fails(&["not signed in"]);

    gateway.state().idp.document = json!({"revocation_endpoint": null});
    sign_in(&gateway, &user, |_| {}).succeeds();
    user.run(&["logout"]).succeeds();
    assert_eq!(gateway.state().idp.ended[1].0, "/idp/logout");
}

#[test]
fn signing_out_forgets_also_when_nobody_can_be_told() {
    let (mut gateway, user) = offered();
    sign_in(&gateway, &user, |_| {}).succeeds();
    gateway.stop();
    user.run(&["logout"]).fails(&[
        "signed out here",
        "identity provider was not told",
        "gateway was not told",
    ]);
    let ran = user.run(&["logout"]).succeeds();
    assert!(ran.err.contains("Not signed in"), "{ran:?}");
}

#[test]
fn which_issuer_is_said_where_there_are_several() {
    let (gateway, user) = offered();
    {
        let mut state = gateway.state();
        let mut second = state.issuers[0].clone();
        second["name"] = json!("partners");
        state.issuers.as_array_mut().unwrap().push(second);
    }
    let login = ["login", &user.gateway, "--certificate-authority", "ca.pem"];
    user.run(&login).fails(&["corp, partners", "--issuer NAME"]);
    user.run(&[&login[..], &["--issuer", "partner"]].concat())
        .fails(&["did you mean partners?"]);
    // The gateway's own users still sign in.
    user.login(&["--certificate-authority", "ca.pem"])
        .succeeds();
}
