//! `AuthenticationConfiguration`, read by a real kube-apiserver and by Towline: the same files are refused, and the
//! same tokens are the same users.
//!
//! The files are in `tests/authentication`, with `${ISSUER}`, `${ISSUER2}` and `${CA}` in place of this run's.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{collections::BTreeMap, fs, sync::Arc, time::SystemTime};

use serde_json::{Value, json};
use tests::{Cluster, apiserver::ApiServer, certificate::Certificate, issuer::Issuer, place};
use tokio::task::{JoinSet, block_in_place};
use towline_oidc::{Authenticated, AuthenticationConfiguration, Authenticator, Rules};

/// Begins the name of a file that both must refuse.
const WRONG: &str = "wrong-";

/// A user, as both say it.
#[derive(Debug, PartialEq, Eq)]
struct Who {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the API server has no other clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Claims by name of the token. What is `null` is left out.
fn tokens(issuer: &str) -> Vec<(&'static str, Value)> {
    let seconds = now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is after 1970")
        .as_secs();
    let base = json!({
        "iss": issuer, "aud": "towline", "sub": "alice", "exp": seconds + 3600, "nbf": seconds - 10, "iat": seconds,
        "email": "Alice.B@example.org", "email_verified": true, "groups": ["dev", "Ops"], "roles": "a,b,,c",
        "team": "blue", "level": 5, "uid": "u-1", "hd": "example.org", "empty": "", "jti": "id-1",
        "kubernetes.io": {"namespace": "ci", "pod-name": "runner-0"},
    });
    let with = |changes: Value| {
        let mut claims = base.clone();
        let claims_of = claims.as_object_mut().expect("an object");
        for (name, value) in changes.as_object().expect("an object") {
            if value == "ABSENT" {
                claims_of.remove(name);
            } else {
                claims_of.insert(name.clone(), value.clone());
            }
        }
        claims
    };
    vec![
        ("full", with(json!({}))),
        (
            "the least",
            json!({"iss": issuer, "aud": "towline", "sub": "bob", "exp": seconds + 3600}),
        ),
        ("email not verified", with(json!({"email_verified": false}))),
        (
            "email_verified missing",
            with(json!({"email_verified": "ABSENT"})),
        ),
        (
            "email_verified a string",
            with(json!({"email_verified": "true"})),
        ),
        ("email_verified null", with(json!({"email_verified": null}))),
        ("email missing", with(json!({"email": "ABSENT"}))),
        ("one group", with(json!({"groups": "dev"}))),
        ("no groups", with(json!({"groups": "ABSENT"}))),
        ("groups null", with(json!({"groups": null}))),
        ("groups empty", with(json!({"groups": []}))),
        (
            "groups with an empty one",
            with(json!({"groups": ["", "dev"]})),
        ),
        ("groups with a number", with(json!({"groups": ["dev", 1]}))),
        ("groups an object", with(json!({"groups": {"dev": true}}))),
        (
            "a group of Kubernetes'",
            with(json!({"groups": ["dev", "Ops", "system:masters"]})),
        ),
        (
            "a name of Kubernetes'",
            with(json!({"sub": "system:admin"})),
        ),
        ("sub a number", with(json!({"sub": 5}))),
        ("sub missing", with(json!({"sub": "ABSENT"}))),
        (
            "sub with all kinds of letters",
            with(json!({"sub": "ä ö\"\\/<>&'λ😀"})),
        ),
        ("other hd", with(json!({"hd": "evil.example"}))),
        ("hd a list", with(json!({"hd": ["example.org"]}))),
        ("level low", with(json!({"level": 2}))),
        ("level a fraction", with(json!({"level": 5.5}))),
        ("level a string", with(json!({"level": "5"}))),
        ("uid a number", with(json!({"uid": 1}))),
        ("uid null", with(json!({"uid": null}))),
        ("team red", with(json!({"team": "red"}))),
        ("team missing", with(json!({"team": "ABSENT"}))),
        ("a banned claim", with(json!({"banned": true}))),
        ("a nickname", with(json!({"nickname": "al"}))),
        ("no token id", with(json!({"jti": "ABSENT"}))),
        ("token id a number", with(json!({"jti": 7}))),
        ("audiences", with(json!({"aud": ["x", "third", "towline"]}))),
        ("another audience", with(json!({"aud": "other"}))),
        ("nobody's audience", with(json!({"aud": "towline2"}))),
        ("no audience", with(json!({"aud": "ABSENT"}))),
        ("expired", with(json!({"exp": seconds - 5}))),
        ("no expiry", with(json!({"exp": "ABSENT"}))),
        (
            "expiry a fraction",
            with(json!({"exp": seconds as f64 + 3600.5})),
        ),
        ("not yet", with(json!({"nbf": seconds + 600}))),
        ("almost", with(json!({"nbf": seconds + 30}))),
        (
            "another issuer",
            with(json!({"iss": "https://issuer.example"})),
        ),
        (
            "deep claims",
            with(json!({"deep": [[[[[[{"a": [1, 2, {"b": null}]}]]]]]]})),
        ),
    ]
}

/// API servers side by side: each takes ten seconds for a file that it takes, and does nothing in them.
const LANES: usize = 4;

/// What came of some of the files.
#[derive(Debug, Default)]
struct Compared {
    wrong: Vec<String>,
    taken: usize,
    refused: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_file_means_the_same_to_kube_apiserver() {
    let tls = Arc::new(Certificate::new("authentication", "127.0.0.1"));
    let first = Arc::new(Issuer::start(&tls, &[]).await);
    let second = Arc::new(Issuer::start(&tls, &[("/other", &first)]).await);
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let own = files().into_iter().skip(lane).step_by(LANES);
        let own: Vec<(String, String)> = own.collect();
        let tls = Arc::clone(&tls);
        let issuers = [Arc::clone(&first), Arc::clone(&second)];
        lanes.spawn(async move { compared(lane, own, &tls, &issuers).await });
    }
    let mut all = Compared::default();
    for lane in lanes.join_all().await {
        all.wrong.extend(lane.wrong);
        all.taken += lane.taken;
        all.refused += lane.refused;
    }
    let Compared {
        wrong,
        taken,
        refused,
    } = all;
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        taken >= 30 && refused >= 30,
        "{taken} files taken, {refused} refused"
    );
}

/// Gives files to an API server and to Towline, one after the other.
async fn compared(
    lane: usize,
    files: Vec<(String, String)>,
    tls: &Certificate,
    [first, second]: &[Arc<Issuer>; 2],
) -> Compared {
    let mut server = block_in_place(|| {
        ApiServer::start(
            &format!("apiserver-{lane}"),
            &Cluster::second(),
            tls,
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: []\n# first\n",
        )
    });
    let Compared {
        mut wrong,
        mut taken,
        mut refused,
    } = Compared::default();
    for (name, text) in files {
        let text = text
            .replace("${ISSUER}", &first.url)
            .replace("${ISSUER2}", &second.url)
            .replace("${CA}", &Value::from(tls.authority_pem()).to_string());
        let (theirs, said) = block_in_place(|| server.configure(&text));
        let ours = AuthenticationConfiguration::parse(&text, &Rules::kubernetes());
        match (theirs, &ours) {
            (true, Err(error)) => wrong.push(format!("{name}: only Towline refuses it: {error}")),
            (false, Ok(_)) => wrong.push(format!("{name}: only kube-apiserver refuses it: {said}")),
            _ => {}
        }
        if theirs == name.starts_with(WRONG) {
            wrong.push(format!(
                "{name}: its name says otherwise than kube-apiserver: {said}"
            ));
        }
        let (true, Ok(ours)) = (theirs, ours) else {
            refused += 1;
            continue;
        };
        taken += 1;
        let authenticator = Authenticator::new(&ours, Rules::kubernetes()).expect("it was parsed");
        let signed_in = compare(&name, &server, &authenticator, [first, second], &mut wrong).await;
        let nobody = ["failing-expression.yaml", "no-issuers.yaml"].contains(&name.as_str());
        if (signed_in == 0) != nobody {
            wrong.push(format!("{name}: {signed_in} tokens are somebody"));
        }
    }
    Compared {
        wrong,
        taken,
        refused,
    }
}

/// Gives all tokens to both; says how many are somebody.
async fn compare(
    name: &str,
    server: &ApiServer,
    authenticator: &Authenticator,
    issuers: [&Issuer; 2],
    wrong: &mut Vec<String>,
) -> usize {
    let mut signed_in = 0;
    for issuer in issuers {
        for (token_name, claims) in tokens(&issuer.url) {
            let token = issuer.token(&claims);
            let theirs = server.self_subject_review(&token).await;
            let ours = authenticator.authenticate(&token, now()).await;
            let theirs = match theirs.status.as_u16() {
                201 => Some(who_of(&theirs.json()["status"]["userInfo"])),
                401 => None,
                other => panic!("{name}, {token_name}: {other}: {}", theirs.text()),
            };
            match (theirs, ours) {
                (None, Err(_)) => {}
                (Some(theirs), Ok(ours)) if theirs == who(&ours) => signed_in += 1,
                (Some(theirs), Ok(ours)) => {
                    wrong.push(format!(
                        "{name}, {token_name}: {theirs:?} there, {:?} here",
                        who(&ours)
                    ));
                }
                (Some(theirs), Err(refused)) => {
                    wrong.push(format!(
                        "{name}, {token_name}: {theirs:?} there, here: {refused}"
                    ));
                }
                (None, Ok(ours)) => wrong.push(format!(
                    "{name}, {token_name}: nobody there, {:?} here: {}",
                    who(&ours),
                    server
                        .log()
                        .lines()
                        .rev()
                        .find(|line| line.contains("oidc:"))
                        .unwrap_or_default(),
                )),
            }
        }
    }
    signed_in
}

fn who(user: &Authenticated) -> Who {
    Who {
        username: user.username.clone(),
        uid: user.uid.clone(),
        groups: user.groups.clone(),
        extra: user.extra.clone(),
    }
}

fn who_of(info: &Value) -> Who {
    let texts = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| Some(text.as_str()?.to_owned()))
            .collect()
    };
    let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
    let extra = info["extra"].as_object().into_iter().flatten();
    Who {
        username: text("username"),
        uid: text("uid"),
        groups: texts(&info["groups"])
            .into_iter()
            .filter(|group| group != "system:authenticated")
            .collect(),
        extra: extra
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect(),
    }
}

/// All files, by name.
fn files() -> BTreeMap<String, String> {
    let directory = place::tree().join("tests/authentication");
    fs::read_dir(&directory)
        .expect("the directory is in the tree")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(&path).expect("a file can be read"))
        })
        .collect()
}
