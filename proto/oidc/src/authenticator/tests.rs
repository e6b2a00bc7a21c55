use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::configuration::AuthenticationConfiguration;
use crate::testing::server::{Page, Server};
use crate::testing::{NOW, Signer, at, claims, encode};

/// A configuration for one issuer, from JSON (which is YAML).
fn configuration(server: &Server, more: Value) -> Value {
    let mut jwt = json!({
        "issuer": {
            "url": server.url,
            "certificateAuthority": server.authority,
            "audiences": ["towline"],
        },
        "claimMappings": {
            "username": {"claim": "sub", "prefix": ""},
            "groups": {"claim": "groups", "prefix": ""},
        },
    });
    jwt.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    jwt
}

fn document(jwt: &[Value]) -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": jwt,
    })
    .to_string()
}

fn authenticator(jwt: &[Value]) -> Authenticator {
    let rules = Rules::towline();
    let configuration = AuthenticationConfiguration::parse(&document(jwt), &rules).unwrap();
    Authenticator::new(&configuration, rules).unwrap()
}

async fn started() -> (Signer, Server) {
    let signer = Signer::es256();
    let server = Server::start(&signer.jwks("k")).await;
    (signer, server)
}

fn token(signer: &Signer, server: &Server, more: Value) -> String {
    let mut all = claims(json!({"iss": server.url}));
    all.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    signer.token("k", &all)
}

#[tokio::test]
async fn a_token_is_a_user() {
    let (signer, server) = started().await;
    let authenticator = authenticator(&[configuration(
        &server,
        json!({
            "claimMappings": {
                "username": {"expression": "'oidc:' + claims.sub"},
                "groups": {"claim": "groups", "prefix": "oidc:"},
                "uid": {"claim": "uid"},
                "extra": [{"key": "example.org/team", "valueExpression": "claims.?team.orValue('')"}],
            },
        }),
    )]);
    let claims = json!({"groups": ["a", "b"], "uid": "u", "team": "blue", "jti": "1"});
    let user = authenticator
        .authenticate(&token(&signer, &server, claims), at(0))
        .await
        .unwrap();
    assert_eq!(user.username, "oidc:alice");
    assert_eq!(user.groups, ["oidc:a", "oidc:b"]);
    assert_eq!(user.uid, "u");
    assert_eq!(
        user.extra.into_iter().collect::<Vec<_>>(),
        [
            (
                "authentication.kubernetes.io/credential-id".to_owned(),
                vec!["JTI=1".to_owned()]
            ),
            ("example.org/team".to_owned(), vec!["blue".to_owned()]),
        ]
    );
    assert_eq!(user.issuer, server.url);
    assert_eq!(user.expires, at(300));
    assert_eq!(user.claims["team"], "blue");
}

#[tokio::test]
async fn a_refusal_says_which_check_failed() {
    let (signer, server) = started().await;
    let authenticator = authenticator(&[configuration(
        &server,
        json!({
            "claimValidationRules": [
                {"claim": "hd", "requiredValue": "example.org"},
                {"expression": "claims.level > 2", "message": "your level is too low"},
            ],
            "userValidationRules": [
                {"expression": "user.username != 'mallory'", "message": "not you"},
            ],
        }),
    )]);
    for (more, says) in [
        (json!({}), ""),
        (
            json!({"exp": NOW - 60}),
            "token is expired since 2027-01-15T07:59:00Z",
        ),
        (
            json!({"aud": "kubernetes"}),
            r#"token has the wrong audience: "kubernetes" has none of towline"#,
        ),
        (
            json!({"iss": "https://x"}),
            r#"token has an unknown issuer: "https://x" is not one of https://127"#,
        ),
        (
            json!({"hd": "evil"}),
            r#"required claim hd: it is "evil", not "example.org""#,
        ),
        (
            json!({"hd": 1}),
            "required claim hd: the claim hd is not a string",
        ),
        (
            json!({"level": 1}),
            "token is refused by a rule: your level is too low",
        ),
        (
            json!({"level": "x"}),
            r#"evaluating "claims.level > 2" failed"#,
        ),
        (
            json!({"sub": "mallory"}),
            "token is refused by a rule: not you",
        ),
        (json!({"sub": ""}), "token names no username: it is empty"),
        (
            json!({"sub": 1}),
            "token is malformed: its claim sub is not a string",
        ),
        (
            json!({"groups": [1]}),
            "token names no groups: the claim groups is neither",
        ),
        (json!({"groups": null, "_claim_names": {"groups": "x"}}), ""),
    ] {
        let mut all = json!({"hd": "example.org", "level": 3});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let outcome = authenticator
            .authenticate(&token(&signer, &server, all), at(0))
            .await;
        match outcome {
            Ok(_) => assert!(says.is_empty(), "{more} was taken"),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(
                    !says.is_empty() && refused.contains(says),
                    "{more}: {refused}"
                );
            }
        }
    }
    let elsewhere = json!({"hd": "example.org", "level": 3, "_claim_names": {"groups": "src"},
        "_claim_sources": {"src": {"endpoint": "https://127.0.0.1:1/"}}});
    let refused = authenticator
        .authenticate(&token(&signer, &server, elsewhere), at(0))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("distributed"), "{refused}");
    let stranger = token(&Signer::es256(), &server, json!({}));
    let refused = authenticator
        .authenticate(&stranger, at(0))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("token has an invalid signature"),
        "{refused}"
    );
}

/// What only Kubernetes or the gateway may give is given by no issuer, whole.
#[tokio::test]
async fn reserved_names_are_no_sign_in() {
    let (signer, server) = started().await;
    let authenticator = authenticator(&[configuration(&server, json!({}))]);
    for (more, says) in [
        (
            json!({"sub": "system:admin"}),
            r#"the username "system:admin" is reserved"#,
        ),
        (
            json!({"sub": "system:serviceaccount:kube-system:x"}),
            "is reserved",
        ),
        (
            json!({"sub": "serviceAccount:deployer@shop"}),
            "is reserved",
        ),
        (json!({"sub": "principal://pool/subject/x"}), "is reserved"),
        (json!({"sub": "principalSet://pool/group/x"}), "is reserved"),
        (
            json!({"sub": "a\r\nImpersonate-Group: system:masters"}),
            "control characters",
        ),
        (
            json!({"groups": ["dev", "system:masters"]}),
            r#"the group "system:masters" is reserved"#,
        ),
        (json!({"groups": "system:nodes"}), "is reserved"),
        (
            json!({"groups": ["principalSet://pool/group/x"]}),
            "is reserved",
        ),
        (json!({"groups": ["a\u{0}"]}), "control characters"),
    ] {
        let token = token(&signer, &server, more.clone());
        let refused = authenticator
            .authenticate(&token, at(0))
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains(says), "{more}: {refused}");
    }
    for name in [
        "System:admin",
        "sys",
        "my-system:admin",
        "principal",
        "alice@example.org",
    ] {
        let token = token(&signer, &server, json!({"sub": name, "groups": [name]}));
        authenticator.authenticate(&token, at(0)).await.unwrap();
    }
}

fn mappings(username: Value, groups: Value) -> Value {
    json!({"claimMappings": {"username": username, "groups": groups}})
}

#[tokio::test]
async fn two_issuers_cannot_give_one_name() {
    let ((_, one), (_, two)) = (started().await, started().await);
    let claim = |prefix: &str| json!({"claim": "sub", "prefix": prefix});
    let refused = |first: (Value, Value), second: (Value, Value)| {
        let document = document(&[
            configuration(&one, mappings(first.0, first.1)),
            configuration(&two, mappings(second.0, second.1)),
        ]);
        AuthenticationConfiguration::parse(&document, &Rules::kubernetes()).unwrap();
        AuthenticationConfiguration::parse(&document, &Rules::towline())
            .err()
            .map(|error| error.to_string())
    };
    for (first, second, says) in [
        ((claim(""), json!({})), (claim("b:"), json!({})), None),
        ((claim("a:"), claim("a:")), (claim("b:"), claim("b:")), None),
        (
            (claim("a:"), claim("")),
            (
                json!({"expression": "'b:' + claims.sub"}),
                json!({"expression": "dyn(claims.groups).map(g, 'b:' + g)"}),
            ),
            None,
        ),
        (
            (claim(""), json!({})),
            (claim(""), json!({})),
            Some("jwt[1].claimMappings.username: a prefix is required"),
        ),
        (
            (claim("a:"), claim("")),
            (claim("b:"), claim("")),
            Some("jwt[1].claimMappings.groups: a prefix is required"),
        ),
        (
            (claim("a:"), json!({})),
            (claim("a:"), json!({})),
            Some(r#"prefix "a:" overlaps "a:" of jwt[0]"#),
        ),
        (
            (claim("a"), json!({})),
            (claim("ab"), json!({})),
            Some("overlaps"),
        ),
        (
            (claim(""), json!({})),
            (json!({"expression": "claims.sub + ':b'"}), json!({})),
            Some("a prefix is required"),
        ),
        (
            (claim("a:"), claim("")),
            (claim("b:"), json!({"expression": "claims.groups"})),
            Some("jwt[1].claimMappings.groups: a prefix is required"),
        ),
    ] {
        let shown = format!("{first:?} {second:?}");
        match (refused(first, second), says) {
            (None, None) => {}
            (Some(error), Some(says)) => assert!(error.contains(says), "{error}"),
            (found, _) => panic!("{shown}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn an_issuer_without_a_prefix_cannot_take_anothers() {
    let ((plain, one), (_, two)) = (started().await, started().await);
    let claim = |claim: &str, prefix: &str| json!({"claim": claim, "prefix": prefix});
    let authenticator = authenticator(&[
        configuration(&one, mappings(claim("sub", ""), claim("groups", ""))),
        configuration(&two, mappings(claim("sub", "ci:"), claim("groups", "ci-"))),
    ]);
    for (more, taken) in [
        (json!({"sub": "ci:alice"}), false),
        (json!({"groups": ["dev", "ci-admins"]}), false),
        (json!({"sub": "ci-alice", "groups": ["ci:admins"]}), true),
    ] {
        let outcome = authenticator
            .authenticate(&token(&plain, &one, more.clone()), at(0))
            .await;
        match outcome {
            Ok(_) => assert!(taken, "{more} was taken"),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(
                    !taken && refused.contains("another issuer's names begin so"),
                    "{refused}"
                );
            }
        }
    }
}

/// A token of one issuer, signed by another that is trusted too.
#[tokio::test]
async fn an_issuer_cannot_speak_for_another() {
    let ((_, one), (signer, two)) = (started().await, started().await);
    let claim = |prefix: &str| json!({"claim": "sub", "prefix": prefix});
    let authenticator = authenticator(&[
        configuration(&one, mappings(claim("a:"), json!({}))),
        configuration(&two, mappings(claim("b:"), json!({}))),
    ]);
    let forged = token(&signer, &one, json!({}));
    let refused = authenticator
        .authenticate(&forged, at(0))
        .await
        .unwrap_err();
    assert!(matches!(refused, Refused::Signature { .. }), "{refused}");
    let own = authenticator
        .authenticate(&token(&signer, &two, json!({})), at(0))
        .await;
    assert_eq!(own.unwrap().username, "b:alice");
}

#[tokio::test]
async fn a_changed_configuration_keeps_the_keys_and_changes_the_rest() {
    let (signer, server) = started().await;
    let before = authenticator(&[configuration(&server, json!({}))]);
    before.warm_up(at(0)).await;
    assert_eq!(server.requests(), 2);
    let changed = document(&[configuration(
        &server,
        mappings(json!({"claim": "sub", "prefix": "x:"}), json!({})),
    )]);
    let changed = AuthenticationConfiguration::parse(&changed, &Rules::towline()).unwrap();
    server.set("/keys", Page::Status(500));
    let after = before.rebuild(&changed).unwrap();
    let user = after
        .authenticate(&token(&signer, &server, json!({})), at(60))
        .await
        .unwrap();
    assert_eq!(user.username, "x:alice");
    assert_eq!(server.requests(), 2);
    let nobody = before
        .rebuild(&AuthenticationConfiguration::default())
        .unwrap();
    let refused = nobody
        .authenticate(&token(&signer, &server, json!({})), at(60))
        .await;
    assert!(matches!(refused, Err(Refused::UnknownIssuer { .. })));
}

#[test]
fn what_has_no_meaning_here_is_refused_by_name() {
    let parse = |text: &str| {
        AuthenticationConfiguration::parse(text, &Rules::towline())
            .unwrap_err()
            .to_string()
    };
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    for (text, says) in [
        (String::new(), "(document): "),
        ("jwt: [".into(), "(document): neither YAML nor JSON"),
        ("[]".into(), "(document): a list is not an object"),
        (format!("{head}---\n{head}"), "(document): "),
        (
            format!("{head}anonymous: {{enabled: true}}"),
            "anonymous: nobody is let in without a token",
        ),
        (
            format!("{head}jwt: [{{issuer: {{egressSelectorType: cluster}}}}]"),
            "jwt[0].issuer.egressSelectorType: ",
        ),
        (
            format!("{head}jwt: [{{issuer: {{ur: a}}}}]"),
            "jwt[0].issuer.ur: unknown field; there are ",
        ),
        (
            format!("{head}jwt: [{{claimMappings: {{username: {{Claim: a}}}}}}]"),
            "jwt[0].claimMappings.username.Claim: unknown",
        ),
        (format!("{head}jwt: {{}}"), "jwt: an object is not a list"),
        (
            format!("{head}jwt: [{{issuer: {{url: 5}}}}]"),
            "jwt[0].issuer.url: a number is not a string",
        ),
        (
            format!("{head}jwt: [{{issuer: {{audiences: [a, 1]}}}}]"),
            "jwt[0].issuer.audiences[1]: a number is not",
        ),
    ] {
        let error = parse(&text);
        assert!(error.contains(says), "{text}: {error}");
    }
    let own = Rules {
        disallowed_issuers: vec!["https://gateway.example".into()],
        ..Rules::towline()
    };
    let text = format!(
        "{head}jwt: [{{issuer: {{url: 'https://gateway.example', audiences: [a]}}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}}}]"
    );
    let error = AuthenticationConfiguration::parse(&text, &own)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "jwt[0].issuer.url: is the gateway's own issuer");
}

/// A runtime for tests that aren't asynchronous themselves.
fn refused(authenticator: &Authenticator, token: &str) -> Option<Refused> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(authenticator.authenticate(token, at(0)))
        .err()
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "https://issuer.example",
            "RS256",
            "ES256",
            "none",
            "k",
            "towline"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let name = prop_oneof![
            prop::sample::select(vec![
                "iss", "aud", "exp", "nbf", "iat", "sub", "groups", "alg", "kid", "crit"
            ])
            .prop_map(str::to_owned),
            "\\PC{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// An authenticator for an issuer that is not there: nothing is fetched within these tests' bound,
/// because nothing gets that far.
fn nobody() -> Authenticator {
    let text = json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": "https://issuer.invalid", "audiences": ["towline"]},
            "claimMappings": {"username": {"expression": "claims.sub"}},
        }],
    });
    let rules = Rules::towline();
    let configuration = AuthenticationConfiguration::parse(&text.to_string(), &rules).unwrap();
    Authenticator::new(&configuration, rules).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(text in "\\PC{0,300}|[A-Za-z0-9_.-]{0,300}") {
        prop_assert!(refused(&nobody(), &text).is_some());
    }

    #[test]
    fn random_json_is_refused(header in anything(), payload in anything(), signature in any::<Vec<u8>>()) {
        let token = format!(
            "{}.{}.{}",
            encode(header.to_string()),
            encode(payload.to_string()),
            encode(signature)
        );
        prop_assert!(refused(&nobody(), &token).is_some());
    }

    /// The issuer itself may send anything: its signed claims are mapped or refused.
    #[test]
    fn random_claims_of_a_trusted_issuer_never_panic(more in anything()) {
        let Value::Object(more) = more else { return Ok(()); };
        let values = claims(Value::Object(more));
        let Value::Object(values) = values else { return Ok(()); };
        let entry: AuthenticationConfiguration = AuthenticationConfiguration::parse(
            &json!({
                "apiVersion": "apiserver.config.k8s.io/v1",
                "kind": "AuthenticationConfiguration",
                "jwt": [{
                    "issuer": {"url": "https://issuer.invalid", "audiences": ["towline"]},
                    "claimMappings": {
                        "username": {"expression": "claims.?sub.orValue('x')"},
                        "groups": {"claim": "groups", "prefix": ""},
                        "uid": {"expression": "string(claims.?exp.orValue(0.0))"},
                        "extra": [{"key": "a.b/c", "valueExpression": "claims.map(k, k)"}],
                    },
                    "userValidationRules": [{"expression": "user.groups.all(g, g != '')"}],
                }],
            })
            .to_string(),
            &Rules::towline(),
        )
        .unwrap();
        let mappings = Mappings::new("jwt[0]", &entry.jwt[0]).unwrap();
        let claims = crate::Claims {
            values,
            issuer: "https://issuer.invalid".into(),
            expires: at(0),
            issued: None,
        };
        let _mapped = mappings.apply(&claims);
    }
}
