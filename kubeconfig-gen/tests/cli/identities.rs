//! Managing service accounts and workload identity.

use serde_json::json;

use crate::{User, gateway::Gateway};

const PROVIDER: &str = "projects/p/locations/global/workloadIdentityPools/ci/providers/github";

#[test]
fn a_service_account_is_made_and_said_what_comes_next() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let account = json!({"project": "p", "name": "deployer", "account": "deployer@p"});
    gateway.answer("ServiceAccounts/Create", 200, account);
    let ran = user
        .run(&["service-accounts", "create", "deployer", "--project", "p"])
        .succeeds();
    assert!(
        ran.err.contains("add-iam-policy-binding deployer@p") && ran.out.contains("deployer@p"),
        "{ran:?}"
    );
    user.run(&["service-accounts", "create", "deployer@other"])
        .succeeds();
    let calls = gateway.state().calls.clone();
    let made: Vec<_> = calls
        .iter()
        .filter(|(method, _)| method == "ServiceAccounts/Create")
        .map(|(_, body)| body["project"].as_str().unwrap())
        .collect();
    assert_eq!(made, ["p", "other"]);
}

#[test]
fn a_typo_in_a_service_account_is_told() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let not_found =
        json!({"code": "not_found", "message": "there is no service account \"deploier@p\""});
    gateway.answer("ServiceAccounts/RevokeTokens", 404, not_found);
    gateway.answer(
        "ServiceAccounts/List",
        200,
        json!({"serviceAccounts": [{"project": "p", "name": "deployer", "account": "deployer@p"}]}),
    );
    user.run(&["service-accounts", "revoke-tokens", "deploier@p"])
        .fails(&["did you mean deployer@p?"]);
    user.run(&["service-accounts", "delete", "Deployer@p", "--yes"])
        .fails(&["Deployer@p", "lower-case"]);
    user.run(&["service-accounts", "delete", "deployer@p"])
        .fails(&["--yes"]);
}

#[test]
fn a_provider_is_made_from_flags_and_keeps_what_is_not_named() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    std::fs::write(user.file("jwks.json"), r#"{"keys":[]}"#).unwrap();
    let providers = ["iam", "workload-identity-pools", "providers"];
    let run = |more: &[&str]| user.run(&[&providers[..], more, &["--project", "p"]].concat());
    run(&["create-oidc", "github", "--pool", "ci"]).fails(&["--issuer-uri"]);
    gateway.answer(
        "WorkloadIdentity/CreateProvider",
        200,
        json!({"name": "github", "resource": format!("//gw/{PROVIDER}")}),
    );
    run(&[
        "create-oidc",
        "github",
        "--pool",
        "ci",
        "--issuer-uri",
        "https://issuer",
        "--allowed-audiences",
        "a,b",
        "--attribute-mapping",
        "subject=assertion.sub,groups=['x', 'y']",
        "--attribute-condition",
        "assertion.ref == 'main'",
        "--jwks-file",
        "jwks.json",
        "--allow-direct-bearer",
    ])
    .succeeds();
    let (_, made) = gateway.state().calls.last().unwrap().clone();
    let expected = json!({
        "project": "p", "pool": "ci", "name": "github", "issuerUri": "https://issuer",
        "allowedAudiences": ["a", "b"],
        "attributeMapping": {"subject": "assertion.sub", "groups": "['x', 'y']"},
        "attributeCondition": "assertion.ref == 'main'", "jwksJson": r#"{"keys":[]}"#, "allowDirectBearer": true,
    });
    assert_eq!(made, expected);

    let mut old = expected.clone();
    old["resource"] = json!("//gw/x");
    gateway.answer("WorkloadIdentity/GetProvider", 200, old);
    gateway.answer("WorkloadIdentity/UpdateProvider", 200, expected.clone());
    let update = ["update-oidc", "github", "--pool", "ci"];
    run(&[&update[..], &["--attribute-condition", "false"]].concat()).succeeds();
    let (_, changed) = gateway.state().calls.last().unwrap().clone();
    let mut wanted = expected;
    wanted["attributeCondition"] = json!("false");
    assert_eq!(changed, wanted);
}

#[test]
fn a_credential_configuration_is_written_and_signs_in() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    std::fs::write(user.file("token"), "one.own.token\n").unwrap();
    let pools = ["iam", "workload-identity-pools", "create-cred-config"];
    let create = |more: &[&str]| user.run(&[&pools[..], more].concat());
    assert_eq!(
        create(&[PROVIDER]).code,
        Some(2),
        "where the token is has to be said"
    );
    create(&["nothing", "--github-actions"]).fails(&["providers list"]);
    let source = [
        "--credential-source-file",
        "token",
        "--service-account",
        "deployer@p",
    ];
    create(&[&[PROVIDER][..], &source].concat()).succeeds();
    user.run(&["logout"]).succeeds();
    user.run(&["login", "--cred-file", "towline-credentials.json"])
        .succeeds();
    assert_eq!(
        gateway.state().exchanges[0]["subject_token"],
        "one.own.token"
    );

    let printed = create(&[PROVIDER, "--github-actions", "--output-file", "-"]).succeeds();
    let written: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!(
        written["credential_source"]["github_actions"]["audience"],
        format!("//{}/{PROVIDER}", gateway.address)
    );
}

#[test]
fn a_github_job_asks_github_for_its_token() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let create = [
        "iam",
        "workload-identity-pools",
        "create-cred-config",
        PROVIDER,
        "--github-actions",
    ];
    user.run(&create).succeeds();
    let login = ["login", "--cred-file", "towline-credentials.json"];
    user.run(&login)
        .fails(&["ACTIONS_ID_TOKEN_REQUEST_URL", "id-token: write"]);
    let job = |url: &str| -> crate::Ran {
        user.command(&login)
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", url)
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of-the-job")
            .env("SSL_CERT_FILE", user.file("ca.pem"))
            .output()
            .unwrap()
            .into()
    };
    job("http://127.0.0.1/token").fails(&["https://"]);
    job(&format!("{}/github/token?api-version=2.0", gateway.url())).succeeds();
    let state = gateway.state();
    assert_eq!(state.exchanges[0]["subject_token"], "a.github.token");
    assert_eq!(
        state.asked_of_github,
        [
            "Bearer of-the-job".to_owned(),
            format!("//{}/{PROVIDER}", gateway.address)
        ]
    );
}

#[test]
fn a_binding_lets_somebody_act_as_a_service_account() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer("Iam/GetPolicy", 200, json!({"etag": "1"}));
    gateway.answer("Iam/SetPolicy", 200, json!({"etag": "2"}));
    user.run(&[
        "service-accounts",
        "add-iam-policy-binding",
        "deployer@p",
        "--member",
        "user:bob",
        "--role",
        "serviceAccountTokenCreator",
    ])
    .succeeds();
    let (method, body) = gateway.state().calls.last().unwrap().clone();
    assert_eq!(method, "Iam/SetPolicy");
    assert_eq!(body["resource"], "projects/p/serviceAccounts/deployer");
    assert_eq!(body["policy"]["bindings"][0]["members"][0], "user:bob");
    assert_eq!(body["policy"]["etag"], "1");
}
