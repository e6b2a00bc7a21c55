//! Pipelines that sign in with their own token, and acting as service accounts.

use serde_json::json;

use crate::{PROD, Ran, User, gateway::Gateway};

const PROVIDER: &str = "projects/p/locations/global/workloadIdentityPools/ci/providers/github";

fn pipeline(gateway: &Gateway) -> User {
    let user = User::of(gateway);
    std::fs::write(user.file("token"), "one.own.token\n").unwrap();
    user
}

fn login<'a>(user: &'a User, more: &[&'a str]) -> Ran {
    let mut words = vec![
        "login",
        &user.gateway,
        "--certificate-authority",
        "ca.pem",
        "--workload-identity-provider",
        PROVIDER,
        "--token-file",
        "token",
    ];
    words.extend(more);
    user.run(&words)
}

#[test]
fn the_token_is_read_again_whenever_a_new_one_is_needed() {
    let gateway = Gateway::start();
    let user = pipeline(&gateway);
    login(&user, &["--service-account", "deployer@p"]).succeeds();
    std::fs::write(user.file("token"), "next.own.token\n").unwrap();
    Ran::from(user.credential().output().unwrap()).succeeds();
    let state = gateway.state();
    let [first, second] = state.exchanges.as_slice() else {
        panic!("{:?}", state.exchanges)
    };
    assert_eq!(first["subject_token"], "one.own.token");
    assert_eq!(second["subject_token"], "next.own.token");
    for form in [first, second] {
        assert_eq!(
            form["audience"],
            format!("//{}/{PROVIDER}", gateway.address)
        );
        assert_eq!(
            form["subject_token_type"],
            "urn:ietf:params:oauth:token-type:jwt"
        );
        assert_eq!(form["impersonate_service_account"], "deployer@p");
    }
    assert_eq!(second["resource"], format!("{}/v1/{PROD}", user.gateway));
}

#[test]
fn what_is_wrong_is_told_at_once() {
    let gateway = Gateway::start();
    let user = pipeline(&gateway);
    gateway.state().exchange_errors = vec![(
        400,
        json!({"error": "invalid_grant", "error_description": "repository is not acme/shop"}),
    )];
    login(&user, &[]).fails(&["repository is not acme/shop"]);
    login(&user, &["--service-account", "deployer"]).fails(&["deployer", "NAME@PROJECT"]);
    std::fs::write(user.file("token"), "not a token").unwrap();
    login(&user, &[]).fails(&["holds no JSON Web Token"]);
    std::fs::remove_file(user.file("token")).unwrap();
    login(&user, &[]).fails(&["cannot read the workload's token"]);
    assert!(!user.file(".config/towline/tokens").exists());
}

fn configuration(gateway: &Gateway, source: serde_json::Value) -> String {
    json!({
        "type": "external_account",
        "gateway": gateway.url(),
        "certificate_authority_data": gateway.authority_pem,
        "audience": format!("//{}/{PROVIDER}", gateway.address),
        "credential_source": source,
        "service_account": "deployer@p",
    })
    .to_string()
}

#[test]
fn a_configuration_file_is_all_that_is_needed() {
    let gateway = Gateway::start();
    let user = pipeline(&gateway);
    let text = configuration(&gateway, json!({"file": "token"}));
    std::fs::write(user.file("credentials.json"), text).unwrap();
    // For one command, where nothing may be written,
    let mut command = user.command(&["whoami"]);
    let ran: Ran = command
        .env("TOWLINE_CREDENTIALS", "credentials.json")
        .env("TOWLINE_CONFIG_DIR", "/proc/towline")
        .output()
        .unwrap()
        .into();
    ran.succeeds();
    assert!(!user.file(".config").exists());
    // or as a sign-in.
    user.run(&["login", "--cred-file", "credentials.json"])
        .succeeds();
    Ran::from(user.credential().output().unwrap()).succeeds();
    assert!(gateway.state().exchanges.iter().all(|form| {
        form["impersonate_service_account"] == "deployer@p"
            && form["subject_token"] == "one.own.token"
    }));
    user.run(&["logout"]).succeeds();
}

#[test]
fn a_variable_holds_the_token_of_a_gitlab_job() {
    let gateway = Gateway::start();
    let user = pipeline(&gateway);
    let text = configuration(
        &gateway,
        json!({"environment_variable": "TOWLINE_ID_TOKEN"}),
    );
    std::fs::write(user.file("credentials.json"), text).unwrap();
    let whoami = |token: &str| -> Ran {
        user.command(&["whoami", "--credentials", "credentials.json"])
            .env("TOWLINE_ID_TOKEN", token)
            .output()
            .unwrap()
            .into()
    };
    whoami("").fails(&["TOWLINE_ID_TOKEN", "id_tokens"]);
    whoami("a.gitlab.token").succeeds();
    assert_eq!(
        gateway.state().exchanges[0]["subject_token"],
        "a.gitlab.token"
    );
}

#[test]
fn another_gateway_never_gets_the_token() {
    let gateway = Gateway::start();
    let user = pipeline(&gateway);
    let stranger = Gateway::start();
    let text = configuration(&gateway, json!({"file": "token"}));
    std::fs::write(user.file("credentials.json"), text).unwrap();
    let url = stranger.url();
    user.run(&["login", &url, "--cred-file", "credentials.json"])
        .fails(&["is for", "not for"]);
    user.run(&[
        "whoami",
        "--gateway",
        &url,
        "--credentials",
        "credentials.json",
    ])
    .fails(&["not signed in"]);
    assert!(stranger.state().exchanges.is_empty());
}

#[test]
fn a_service_account_is_acted_as_by_flag_variable_and_setting() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let account = "auth/impersonate_service_account";
    user.run(&["config", "set", account, "deployer"])
        .fails(&["NAME@PROJECT"]);
    user.run(&["config", "set", account, "deployer@p"])
        .succeeds();
    assert_eq!(
        user.run(&["config", "get", account]).succeeds().out,
        "deployer@p\n"
    );
    let acted_as = || gateway.state().acted_as.clone();
    user.run(&["whoami"]).succeeds();
    assert_eq!(acted_as().as_deref(), Some("deployer@p"));
    // A flag is stronger, and an empty one is oneself.
    user.run(&["whoami", "--impersonate-service-account", "a@p,b@p"])
        .succeeds();
    assert_eq!(acted_as().as_deref(), Some("a@p,b@p"));
    user.run(&["whoami", "--impersonate-service-account", "", "-v"])
        .succeeds();
    let mut command = user.command(&["whoami"]);
    command.env("TOWLINE_IMPERSONATE_SERVICE_ACCOUNT", "env@p");
    Ran::from(command.output().unwrap()).succeeds();
    assert_eq!(acted_as().as_deref(), Some("env@p"));
    user.run(&["config", "unset", account]).succeeds();
    user.run(&["config", "get", account])
        .fails(&["no service account is set"]);
}

#[test]
fn a_kubeconfig_acts_as_it_was_written_whatever_is_set_later() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer(
        "Memberships/GenerateCredentials",
        200,
        json!({"server": format!("{}/v1/{PROD}", gateway.url())}),
    );
    let account = "auth/impersonate_service_account";
    user.run(&["config", "set", account, "deployer@p"])
        .succeeds();
    let ran = user.run(&["get-credentials", PROD]).succeeds();
    assert!(ran.err.contains("acts as deployer@p"), "{ran:?}");
    user.run(&["config", "set", account, "other@p"]).succeeds();
    let kubeconfig = user.read(".kube/config");
    assert!(
        kubeconfig.contains("--impersonate-service-account"),
        "{kubeconfig}"
    );
    assert!(kubeconfig.contains("deployer@p"), "{kubeconfig}");
    // And the plugin itself doesn't look at what is set.
    Ran::from(user.credential().output().unwrap()).succeeds();
    assert_eq!(gateway.state().acted_as, None);
}

#[test]
fn a_service_account_that_one_may_not_act_as_is_told_by_name() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.state().token_error = Some((
        403,
        r#"{"error":"access_denied","error_description":"user \"alice\" lacks permission"}"#.into(),
    ));
    user.run(&["whoami", "--impersonate-service-account", "deployer@p"])
        .fails(&["to act as deployer@p", "lacks permission"]);
}

#[test]
fn a_token_file_is_written_instead_of_the_plugin() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    user.run(&["logout"]).succeeds();
    // Nobody need be signed in on a machine that has such a file.
    user.run(&["get-credentials", PROD, "--token-file", "token"])
        .succeeds();
    let kubeconfig = user.read(".kube/config");
    let path = user.file("token");
    assert!(
        kubeconfig.contains(&format!("tokenFile: {}", path.display())),
        "{kubeconfig}"
    );
    assert!(!kubeconfig.contains("exec"), "{kubeconfig}");
}
