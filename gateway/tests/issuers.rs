//! Other issuers' tokens, over real HTTP: people by `authentication_config`, workloads by their project's providers.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

#[cfg(test)]
mod api {
    pub(crate) mod issuer;
    pub(crate) mod office;
}

use api::{issuer::Issuer, office::Office};
use http::StatusCode;
use serde_json::{Value, json};
use towline_gateway::iam::{Binding, Role};
use towline_proto::{
    end_to_end::{self, Possession},
    jws::KeyPair,
    names::Project,
};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const EDGE: &str = "/v1/projects/p/locations/global/memberships/edge";
const POOL: &str = "projects/p/locations/global/workloadIdentityPools/ci";

/// Gives a role in project `p`.
async fn bind(office: &Office, role: Role, member: &str) {
    let store = &office.gateway().store;
    let project: Project = "p".parse().unwrap();
    let mut policy = store.policy(&project).await.unwrap().unwrap();
    policy
        .bindings
        .push(Binding::new(role, vec![member.parse().unwrap()]));
    store
        .set_policy_of(&(&project).into(), &policy)
        .await
        .unwrap();
}

async fn exchange(office: &Office, fields: &[(&str, &str)]) -> (StatusCode, Value) {
    let fields = [&[("grant_type", GRANT)], fields].concat();
    office.form("/oauth2/token", &fields).await
}

async fn signed_in(office: &Office, fields: &[(&str, &str)]) -> (String, u64) {
    let (status, answer) = exchange(office, fields).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    (
        answer["access_token"].as_str().unwrap().to_owned(),
        answer["expires_in"].as_u64().unwrap(),
    )
}

async fn exchange_with(office: &Office, token: &str, possession: &str) -> (StatusCode, Value) {
    let fields = [&id_token(token)[..], &[("possession", possession)]].concat();
    exchange(office, &fields).await
}

/// Error and reason of a refused exchange.
async fn refused(office: &Office, fields: &[(&str, &str)]) -> (String, String) {
    let (status, answer) = exchange(office, fields).await;
    assert!(!status.is_success(), "{answer}");
    let text = |key: &str| answer[key].as_str().unwrap().to_owned();
    (text("error"), text("error_description"))
}

async fn whoami(office: &Office, token: &str) -> Value {
    office.ok(token, "Identity/WhoAmI", json!({})).await
}

fn authentication(issuer: &Issuer, prefix: &str) -> String {
    let authority: Vec<String> = issuer
        .authority
        .lines()
        .map(|line| format!("        {line}\n"))
        .collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    \
         audiences: [towline]\n    certificateAuthority: |\n{}  claimMappings:\n    username: {{claim: email, prefix: \
         \"{prefix}\"}}\n    groups: {{claim: groups, prefix: \"{prefix}\"}}\n    uid: {{claim: sub}}\n    extra:\n    \
         - {{key: example.org/team, valueExpression: \"claims.?team.orValue('')\"}}\n",
        issuer.url,
        authority.concat(),
    )
}

async fn with_people(issuer: &Issuer, prefix: &str) -> Office {
    let login = format!(
        "authentication_config = 'authentication.yaml'\n[[login]]\nname = 'sso'\nissuer = '{}'\nclient_id = 'towline'\n",
        issuer.url
    );
    Office::with(&[
        ("authentication.yaml", &authentication(issuer, prefix)),
        ("gateway.toml", &login),
    ])
    .await
}

fn person(issuer: &Issuer, changes: Value) -> String {
    let mut claims = json!({
        "sub": "4711", "aud": "towline", "email": "carol@example.org", "email_verified": true,
        "groups": ["ops"], "team": "a",
    });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    issuer.sign(claims)
}

fn id_token(token: &str) -> [(&str, &str); 2] {
    [("subject_token_type", ID_TOKEN), ("subject_token", token)]
}

#[tokio::test]
async fn a_person_of_another_issuer_is_who_the_mapping_says() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "sso:").await;
    let id = person(&issuer, json!({}));
    let (token, lifetime) = signed_in(&office, &id_token(&id)).await;
    // Not longer than what it was given for.
    assert!((290..=300).contains(&lifetime), "{lifetime}");
    let me = whoami(&office, &token).await;
    assert_eq!(
        (&me["principal"], &me["username"], &me["uid"]),
        (
            &json!("user:sso:carol@example.org"),
            &json!("sso:carol@example.org"),
            &json!("4711")
        )
    );
    assert_eq!(me["groups"], json!(["sso:ops"]));
    assert_eq!(me["extra"]["example.org/team"]["values"], json!(["a"]));
    assert_eq!(me["issuer"], issuer.url);
    bind(&office, Role::Owner, "group:sso:ops").await;
    office
        .ok(&token, "Memberships/List", json!({"project": "p"}))
        .await;

    // Policies may name people before they come; where there is no other issuer, only those whom there are.
    let policy = |etag: &Value| {
        json!({"resource": "projects/p", "policy": {"etag": etag, "bindings": [
            {"role": "owner", "members": ["user:alice", "user:sso:dave@example.org"]},
        ]}})
    };
    let alone = Office::open().await;
    for (office, expected) in [(&office, StatusCode::OK), (&alone, StatusCode::BAD_REQUEST)] {
        let alice = office.token("alice");
        let now = office
            .ok(&alice, "Iam/GetPolicy", json!({"resource": "projects/p"}))
            .await;
        let (status, answer) = office
            .json(Some(&alice), "Iam/SetPolicy", policy(&now["etag"]))
            .await;
        assert_eq!(status, expected, "{answer}");
    }

    // For one membership alone.
    let resource = format!("https://gateway.test{EDGE}");
    let fields = [&id_token(&id)[..], &[("resource", &resource)]].concat();
    let (narrow, _) = signed_in(&office, &fields).await;
    let (status, _) = office
        .json(Some(&narrow), "Identity/WhoAmI", json!({}))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_thousand_groups_make_no_longer_token() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let groups = |count: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("group-{n}")).collect();
        person(&issuer, json!({"groups": names}))
    };
    let (token, _) = signed_in(&office, &id_token(&groups(1_000))).await;
    assert!(token.len() < 1_000, "{}", token.len());
    let me = whoami(&office, &token).await;
    assert_eq!(me["groups"].as_array().unwrap().len(), 1_000);
    let (error, reason) = refused(&office, &id_token(&groups(2_001))).await;
    assert_eq!(error, "invalid_grant");
    assert!(reason.contains("2001 groups"), "{reason}");
}

#[tokio::test]
async fn each_check_of_an_id_token_is_named() {
    let issuer = Issuer::start().await;
    let stranger = Issuer::unreachable("https://elsewhere.example");
    let office = with_people(&issuer, "").await;
    let now = towline_gateway::clock::Clock::System.unix();
    let mut forged = person(&issuer, json!({}));
    forged.truncate(forged.len() - 8);
    forged.push_str("AAAAAAAA");
    for (token, reason) in [
        (person(&issuer, json!({"aud": "another"})), "wrong audience"),
        (person(&issuer, json!({"exp": now - 5})), "expired"),
        (
            person(&issuer, json!({"nbf": now + 600})),
            "not valid before",
        ),
        (person(&stranger, json!({})), "unknown issuer"),
        (forged, "invalid signature"),
        (
            person(&issuer, json!({"email_verified": false})),
            "username",
        ),
        (person(&issuer, json!({"email": "system:admin"})), "system:"),
        (
            person(&issuer, json!({"email": "System:admin"})),
            "another kind",
        ),
        (
            person(&issuer, json!({"groups": ["system:masters"]})),
            "system:",
        ),
        (
            person(&issuer, json!({"email": "serviceAccount:a@p"})),
            "serviceAccount:",
        ),
        (
            person(&issuer, json!({"nonce": "towline-proof.abc"})),
            "no possession of that key",
        ),
        ("x".to_owned(), "malformed"),
    ] {
        let (error, description) = refused(&office, &id_token(&token)).await;
        assert_eq!(error, "invalid_grant");
        assert!(description.contains(reason), "{reason}: {description}");
    }
    // As the bearer token of a request it is nothing in any case.
    let id = person(&issuer, json!({}));
    let (status, _) = office.json(Some(&id), "Identity/WhoAmI", json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nobody_from_elsewhere_has_a_local_users_name() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let (_, reason) = refused(
        &office,
        &id_token(&person(&issuer, json!({"email": "alice"}))),
    )
    .await;
    assert!(
        reason.contains("one of this gateway's own users"),
        "{reason}"
    );
    // Not one who is made later, either.
    let carol = person(&issuer, json!({}));
    let (token, _) = signed_in(&office, &id_token(&carol)).await;
    office
        .ok(
            &office.token("root"),
            "Users/Create",
            json!({"name": "carol@example.org"}),
        )
        .await;
    let (status, answer) = office
        .json(Some(&token), "Identity/WhoAmI", json!({}))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(answer["message"].as_str().unwrap().contains("own users"));
}

#[tokio::test]
async fn signing_out_ends_a_persons_tokens() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let (token, _) = signed_in(&office, &id_token(&person(&issuer, json!({})))).await;
    whoami(&office, &token).await;
    let (status, _) = office.form("/oauth2/revoke", &[("token", &token)]).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = office
        .json(Some(&token), "Identity/WhoAmI", json!({}))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

/// What an agent in end-to-end mode has seen signs nobody in here.
#[tokio::test]
async fn a_token_that_clusters_have_seen_needs_its_key() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let (key, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let token = person(&issuer, json!({"nonce": end_to_end::nonce(&key.public())}));
    let now = jsonwebtoken::get_current_timestamp();
    let endpoint = "https://gateway.test/oauth2/token";
    let sent = async |possession: &Possession| {
        let possession = possession.to_string();
        exchange_with(&office, &token, &possession).await
    };
    let membership = "projects/p/locations/global/memberships/m";
    for (possession, words) in [
        (Possession::state(&thief, endpoint, now), "does not commit"),
        // The very statement that came with the token.
        (
            Possession::state(&key, membership, now),
            "the statement is for",
        ),
        (
            Possession::state(&key, "https://other.example/oauth2/token", now),
            "the statement is for",
        ),
    ] {
        let (status, answer) = sent(&possession).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let said = answer["error_description"].as_str().unwrap();
        assert!(said.contains(words), "{said}");
    }
    let (status, answer) = sent(&Possession::state(&key, endpoint, now)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    // Clocks may be off by any amount: it is only ever stated to this gateway.
    let (status, _) = sent(&Possession::state(&key, endpoint, now - 86_400)).await;
    assert_eq!(status, StatusCode::OK);
    let (status, answer) = exchange_with(&office, &token, "nonsense").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"], "invalid_request");
}

#[tokio::test]
async fn unknown_keys_cause_no_storm() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    signed_in(&office, &id_token(&person(&issuer, json!({})))).await;
    let before = issuer.asked();
    for n in 0..50 {
        issuer.name_key(&format!("https://evil.example/{n}"));
        let (_, reason) = refused(&office, &id_token(&person(&issuer, json!({})))).await;
        assert!(reason.contains("has no key"), "{reason}");
    }
    // Three fetches of two documents in thirty seconds, the first of all among them.
    assert!(issuer.asked() <= before + 4, "{}", issuer.asked());
}

/// A provider `github` in pool `ci` of project `p`, and its issuer that nobody can ask.
async fn with_provider(changes: Value) -> (Office, Issuer) {
    let office = Office::open().await;
    let issuer = Issuer::unreachable("https://token.actions.githubusercontent.com");
    let alice = office.token("alice");
    office
        .ok(
            &alice,
            "WorkloadIdentity/CreatePool",
            json!({"project": "p", "name": "ci"}),
        )
        .await;
    office
        .ok(
            &alice,
            "WorkloadIdentity/CreateProvider",
            provider(&issuer, changes),
        )
        .await;
    (office, issuer)
}

fn provider(issuer: &Issuer, changes: Value) -> Value {
    let mut provider = json!({
        "project": "p", "pool": "ci", "name": "github",
        "issuerUri": issuer.url,
        "jwksJson": issuer.keys(),
        "attributeMapping": {
            "subject": "assertion.sub",
            "attribute.repository": "assertion.repository",
        },
        "attributeCondition": "assertion.repository_owner == 'org'",
    });
    for (name, value) in changes.as_object().unwrap() {
        provider[name] = value.clone();
    }
    provider
}

const AUDIENCE: &str =
    "//gateway.test/projects/p/locations/global/workloadIdentityPools/ci/providers/github";

/// As GitHub makes them.
fn job(issuer: &Issuer, repository: &str, audience: &str) -> String {
    let owner = repository.split('/').next().unwrap();
    issuer.sign(json!({
        "sub": format!("repo:{repository}:ref:refs/heads/main"),
        "aud": audience,
        "ref": "refs/heads/main",
        "repository": repository,
        "repository_owner": owner,
        "repository_visibility": "private",
        "job_workflow_ref": format!("{repository}/.github/workflows/deploy.yml@refs/heads/main"),
        "event_name": "push",
        "jti": "11111111-2222-3333-4444-555555555555",
    }))
}

fn workload<'a>(token: &'a str, audience: &'a str) -> [(&'a str, &'a str); 3] {
    [
        ("subject_token_type", JWT),
        ("subject_token", token),
        ("audience", audience),
    ]
}

#[tokio::test]
async fn a_pipeline_is_who_its_provider_says() {
    let (office, issuer) = with_provider(json!({})).await;
    let token = job(&issuer, "org/app", &format!("https:{AUDIENCE}"));
    let (access, _) = signed_in(&office, &workload(&token, AUDIENCE)).await;
    let me = whoami(&office, &access).await;
    let principal = format!("principal://{POOL}/subject/repo:org/app:ref:refs/heads/main");
    assert_eq!(me["principal"], principal);
    assert_eq!(me["username"], principal);

    // By an attribute it may act as a service account; others of the pool may not.
    let alice = office.token("alice");
    office
        .ok(
            &alice,
            "ServiceAccounts/Create",
            json!({"project": "p", "name": "deployer"}),
        )
        .await;
    let member = format!("principalSet://{POOL}/attribute.repository/org/app");
    bind(&office, Role::WorkloadIdentityUser, &member).await;
    let acting = [
        &workload(&token, AUDIENCE)[..],
        &[("impersonate_service_account", "deployer@p")],
    ]
    .concat();
    let (access, _) = signed_in(&office, &acting).await;
    let me = whoami(&office, &access).await;
    assert_eq!(me["principal"], "serviceAccount:deployer@p");
    assert_eq!(me["delegates"], json!([principal]));
    let other = job(&issuer, "org/other", AUDIENCE);
    let acting = [
        &workload(&other, AUDIENCE)[..],
        &[("impersonate_service_account", "deployer@p")],
    ]
    .concat();
    let (error, reason) = refused(&office, &acting).await;
    assert_eq!(error, "access_denied");
    assert!(
        reason.contains("org/other") && reason.contains("lacks permission"),
        "{reason}"
    );
    // The role is for workloads: a person with it acts as nobody.
    bind(&office, Role::WorkloadIdentityUser, "user:bob").await;
    let bob = office.token("bob");
    let (error, _) = refused(
        &office,
        &[
            (
                "subject_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("subject_token", &bob),
            ("impersonate_service_account", "deployer@p"),
        ],
    )
    .await;
    assert_eq!(error, "access_denied");
}

#[tokio::test]
async fn another_repositorys_token_is_refused_with_the_reason() {
    let (office, issuer) = with_provider(json!({})).await;
    let elsewhere = Issuer::unreachable("https://gitlab.example");
    let forger = Issuer::unreachable(&issuer.url);
    for (token, reason) in [
        (
            job(&issuer, "evil/app", AUDIENCE),
            "the condition is not met: assertion.repository_owner == 'org'",
        ),
        (job(&issuer, "org/app", "sts.amazonaws.com"), "wrong audience"),
        (job(&elsewhere, "org/app", AUDIENCE), "another issuer"),
        (job(&forger, "org/app", AUDIENCE), "invalid signature"),
        (issuer.sign(json!({"aud": AUDIENCE, "sub": "x", "repository": "org/app", "repository_owner": "org",
            "nonce": "towline-proof.x"})), "a proof for one cluster"),
        (issuer.sign(json!({"aud": AUDIENCE, "sub": "", "repository": "org/app", "repository_owner": "org"})),
            "gives no subject"),
        (issuer.sign(json!({"aud": AUDIENCE, "sub": "x"})), "evaluating"),
    ] {
        let (error, description) = refused(&office, &workload(&token, AUDIENCE)).await;
        assert_eq!(error, "invalid_grant");
        assert!(description.contains(reason), "{reason}: {description}");
    }
    let token = job(&issuer, "org/app", AUDIENCE);
    for (audience, error) in [
        (AUDIENCE.replace("github", "gitlab"), "invalid_grant"),
        (AUDIENCE.replace("/p/", "/q/"), "invalid_grant"),
        (
            AUDIENCE.replace("gateway.test", "elsewhere.test"),
            "invalid_target",
        ),
        ("projects/p".to_owned(), "invalid_target"),
        (String::new(), "invalid_request"),
    ] {
        let (found, _) = refused(&office, &workload(&token, &audience)).await;
        assert_eq!(found, error, "{audience}");
    }
}

#[tokio::test]
async fn what_a_provider_was_is_over_when_it_changes() {
    let (office, issuer) = with_provider(json!({})).await;
    let alice = office.token("alice");
    let ended = async |access: &str, reason: &str| {
        let (status, answer) = office
            .json(Some(access), "Identity/WhoAmI", json!({}))
            .await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
    };
    let token = job(&issuer, "org/app", AUDIENCE);
    let (access, _) = signed_in(&office, &workload(&token, AUDIENCE)).await;
    let pool = |disabled: bool| json!({"project": "p", "pool": "ci", "disabled": disabled});
    office
        .ok(&alice, "WorkloadIdentity/SetPoolDisabled", pool(true))
        .await;
    ended(&access, "disabled").await;
    refused(&office, &workload(&token, AUDIENCE)).await;
    office
        .ok(&alice, "WorkloadIdentity/SetPoolDisabled", pool(false))
        .await;
    whoami(&office, &access).await;
    office
        .ok(
            &alice,
            "WorkloadIdentity/UpdateProvider",
            provider(&issuer, json!({"attributeCondition": ""})),
        )
        .await;
    ended(&access, "changed").await;
    let (access, _) = signed_in(&office, &workload(&token, AUDIENCE)).await;
    office
        .ok(
            &alice,
            "WorkloadIdentity/DeleteProvider",
            json!({"project": "p", "pool": "ci", "name": "github"}),
        )
        .await;
    ended(&access, "deleted").await;
}

/// A token that was had before is looked at anew; here nobody has one.
#[tokio::test]
async fn what_is_disabled_signs_nobody_in() {
    let (office, issuer) = with_provider(json!({})).await;
    let alice = office.token("alice");
    let token = job(&issuer, "org/app", AUDIENCE);
    let pool = |disabled: bool| json!({"project": "p", "pool": "ci", "disabled": disabled});
    for (pool_disabled, provider_disabled) in [(true, false), (false, true), (false, false)] {
        office
            .ok(
                &alice,
                "WorkloadIdentity/SetPoolDisabled",
                pool(pool_disabled),
            )
            .await;
        let settings = json!({"disabled": provider_disabled});
        office
            .ok(
                &alice,
                "WorkloadIdentity/UpdateProvider",
                provider(&issuer, settings),
            )
            .await;
        if pool_disabled || provider_disabled {
            let (error, reason) = refused(&office, &workload(&token, AUDIENCE)).await;
            assert_eq!(error, "invalid_grant");
            assert!(reason.contains("disabled"), "{reason}");
        } else {
            signed_in(&office, &workload(&token, AUDIENCE)).await;
        }
    }
}

#[tokio::test]
async fn nothing_outlives_what_it_was_given_for() {
    let ends = json!(towline_gateway::clock::Clock::System.unix() + 20);
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let id = person(&issuer, json!({"exp": ends}));
    let (_, lifetime) = signed_in(&office, &id_token(&id)).await;
    assert!(lifetime <= 20, "{lifetime}");

    let (office, issuer) = with_provider(json!({})).await;
    let claims = json!({
        "aud": AUDIENCE, "sub": "x", "repository": "org/app", "repository_owner": "org", "exp": ends,
    });
    let (_, lifetime) = signed_in(&office, &workload(&issuer.sign(claims), AUDIENCE)).await;
    assert!(lifetime <= 20, "{lifetime}");
}

#[tokio::test]
async fn exchanges_cannot_be_tried_out() {
    let (office, issuer) = with_provider(json!({})).await;
    let forger = Issuer::unreachable(&issuer.url);
    let forged = job(&forger, "org/app", AUDIENCE);
    let mut slowed = 0;
    for _ in 0..130 {
        let (error, _) = refused(&office, &workload(&forged, AUDIENCE)).await;
        slowed += u32::from(error == "slow_down");
    }
    // 100 at once, then one a second.
    assert!(slowed >= 10, "{slowed} of 130 were not looked at");
}

#[tokio::test]
async fn gitlabs_words_come_out_of_the_mapping() {
    // docs/identity.md has this mapping.
    let mapping = json!({
        "subject": "assertion.sub",
        "groups": "[\"gitlab:project:\" + assertion.project_id] \
                   + (has(assertion.environment) \
                      ? [\"gitlab:project_env:\" + assertion.project_id + \":\" + assertion.environment] : []) \
                   + (has(assertion.deployment_tier) \
                      ? [\"gitlab:project_tier:\" + assertion.project_id + \":\" + assertion.deployment_tier] : [])",
    });
    let (office, _) = with_provider(json!({})).await;
    let gitlab = Issuer::unreachable("https://gitlab.example");
    office
        .ok(
            &office.token("alice"),
            "WorkloadIdentity/CreateProvider",
            provider(
                &gitlab,
                json!({
                    "name": "gitlab", "attributeMapping": mapping, "attributeCondition": "",
                    "allowedAudiences": ["https://gateway.test"],
                }),
            ),
        )
        .await;
    let audience = AUDIENCE.replace("github", "gitlab");
    let job = json!({
        "sub": "project_path:org/app:ref_type:branch:ref:main",
        "aud": "https://gateway.test",
        "namespace_id": "72", "namespace_path": "org", "project_id": "20", "project_path": "org/app",
        "user_login": "sam", "ref": "main", "ref_type": "branch", "ref_protected": "true",
        "environment": "production", "environment_protected": "true", "deployment_tier": "production",
        "runner_environment": "self-hosted", "job_id": "302",
    });
    let (access, _) = signed_in(&office, &workload(&gitlab.sign(job.clone()), &audience)).await;
    let groups = [
        "gitlab:project:20",
        "gitlab:project_env:20:production",
        "gitlab:project_tier:20:production",
    ];
    let own = |group: &str| format!("principalSet://{POOL}/group/{group}");
    let me = whoami(&office, &access).await;
    assert_eq!(me["groups"], json!(groups.map(own)));
    let mut plain = job;
    plain
        .as_object_mut()
        .unwrap()
        .retain(|name, _| !name.starts_with("environment") && name != "deployment_tier");
    let (access, _) = signed_in(&office, &workload(&gitlab.sign(plain), &audience)).await;
    let me = whoami(&office, &access).await;
    assert_eq!(me["groups"], json!([own("gitlab:project:20")]));
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_by_field() {
    let (office, issuer) = with_provider(json!({})).await;
    let alice = office.token("alice");
    for (changes, field) in [
        (
            json!({"issuerUri": "http://issuer.example"}),
            "issuer_uri: ",
        ),
        (
            json!({"issuerUri": "https://gateway.test/oauth2"}),
            "issuer_uri: ",
        ),
        (
            json!({"attributeMapping": {}}),
            "attribute_mapping: \"subject\" is missing",
        ),
        (
            json!({"attributeMapping": {"subject": "assertion."}}),
            "attribute_mapping: ",
        ),
        (
            json!({"attributeMapping": {"subject": "assertion.sub", "google.x": "'a'"}}),
            "attribute_mapping: \"google.x\" is neither",
        ),
        (
            json!({"attributeCondition": "1 + 1"}),
            "attribute_condition: ",
        ),
        (json!({"jwksJson": "{}"}), "jwks_json: "),
        (
            json!({"jwksJson": format!("{}{}", issuer.keys(), " ".repeat(32 * 1024))}),
            "jwks_json: it is longer than 32768 bytes",
        ),
        (json!({"allowedAudiences": [""]}), "allowed_audiences: "),
    ] {
        let (status, answer) = office
            .json(
                Some(&alice),
                "WorkloadIdentity/UpdateProvider",
                provider(&issuer, changes.clone()),
            )
            .await;
        let message = answer["message"].as_str().unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{changes}: {message}");
        assert!(message.starts_with(field), "{changes}: {message}");
    }
    // Nothing that only the gateway reaches is fetched for a tenant.
    let within = Issuer::start().await;
    let fetched = json!({"issuerUri": within.url, "jwksJson": ""});
    office
        .ok(
            &alice,
            "WorkloadIdentity/UpdateProvider",
            provider(&issuer, fetched),
        )
        .await;
    let token = job(&within, "org/app", AUDIENCE);
    let (error, reason) = refused(&office, &workload(&token, AUDIENCE)).await;
    assert_eq!(error, "temporarily_unavailable");
    assert!(reason.contains("not public"), "{reason}");
    assert_eq!(within.asked(), 0);
}

#[tokio::test]
async fn pools_are_managed_in_their_project_alone() {
    let (office, issuer) = with_provider(json!({})).await;
    office
        .ok(
            &office.token("root"),
            "Projects/Create",
            json!({"name": "q"}),
        )
        .await;
    let (alice, reader) = (office.token("alice"), office.token("reader"));
    for (token, project) in [(&alice, "q"), (&alice, "nowhere"), (&reader, "p")] {
        for (method, mut message) in [
            ("CreatePool", json!({"name": "x"})),
            ("ListPools", json!({})),
            ("DeletePool", json!({"pool": "ci"})),
            ("SetPoolDisabled", json!({"pool": "ci"})),
            ("CreateProvider", provider(&issuer, json!({"name": "x"}))),
            ("UpdateProvider", provider(&issuer, json!({}))),
            ("ListProviders", json!({"pool": "ci"})),
            ("GetProvider", json!({"pool": "ci", "name": "github"})),
            ("DeleteProvider", json!({"pool": "ci", "name": "github"})),
        ] {
            message["project"] = json!(project);
            let method = format!("WorkloadIdentity/{method}");
            let (status, answer) = office.json(Some(token), &method, message).await;
            assert_eq!(
                status,
                StatusCode::FORBIDDEN,
                "{method} {project}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_direct_bearer_is_for_its_own_project_and_provider_alone() {
    let (office, issuer) = with_provider(json!({})).await;
    let alice = office.token("alice");
    let token = job(&issuer, "org/app", AUDIENCE);
    let asked = async |token: &str, path: &str| office.get(token, path).await;
    // Not unless the provider says so.
    let (status, answer) = asked(&token, &format!("{EDGE}/api")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("its issuer is"),
        "{answer}"
    );

    office
        .ok(
            &alice,
            "WorkloadIdentity/UpdateProvider",
            provider(&issuer, json!({"allowDirectBearer": true})),
        )
        .await;
    // It is known, and has no rights yet.
    let (status, answer) = asked(&token, &format!("{EDGE}/api")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("subject/repo:org/app:ref:refs/heads/main"),
        "{message}"
    );
    // The management API is no membership.
    let (status, answer) = office
        .json(Some(&token), "Identity/WhoAmI", json!({}))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");

    let elsewhere = EDGE.replace("/p/", "/q/");
    for (token, path, reason) in [
        (&token, format!("{elsewhere}/api"), "its issuer is"),
        (&token, "/api".to_owned(), "its issuer is"),
        (
            &job(&issuer, "evil/app", AUDIENCE),
            format!("{EDGE}/api"),
            "condition is not met",
        ),
        (
            &job(&issuer, "org/app", "kubernetes"),
            format!("{EDGE}/api"),
            "wrong audience",
        ),
        (
            &job(
                &Issuer::unreachable("https://gitlab.example"),
                "org/app",
                AUDIENCE,
            ),
            format!("{EDGE}/api"),
            "which no workload identity provider here takes",
        ),
        (
            &job(&Issuer::unreachable(&issuer.url), "org/app", AUDIENCE),
            format!("{EDGE}/api"),
            "invalid signature",
        ),
    ] {
        let (status, answer) = asked(token, &path).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path} {reason}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(reason), "{path} {reason}: {message}");
    }

    // Two providers with one issuer: the one whose audience fits has the word.
    office
        .ok(
            &alice,
            "WorkloadIdentity/CreateProvider",
            provider(
                &issuer,
                json!({
                    "name": "another", "allowDirectBearer": true, "allowedAudiences": ["other"],
                    "attributeMapping": {"subject": "'other'"}, "attributeCondition": "",
                }),
            ),
        )
        .await;
    let (_, answer) = asked(&job(&issuer, "evil/app", "other"), &format!("{EDGE}/api")).await;
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("subject/other"),
        "{answer}"
    );
    let (_, answer) = asked(&token, &format!("{EDGE}/api")).await;
    assert!(
        answer["message"].as_str().unwrap().contains("repo:org/app"),
        "{answer}"
    );
}

#[tokio::test]
async fn people_learn_where_to_sign_in_and_changes_of_the_file_count() {
    let issuer = Issuer::start().await;
    let office = with_people(&issuer, "").await;
    let (status, answer) = office
        .get("", "/oauth2/.well-known/openid-configuration")
        .await;
    assert_eq!(status, StatusCode::OK);
    let offered = &answer["towline_issuers"];
    assert_eq!(offered[0]["name"], "sso");
    assert_eq!(offered[0]["issuer"], issuer.url);
    assert_eq!(offered[0]["client_id"], "towline");
    assert_eq!(
        offered[0]["scopes"],
        json!(["openid", "email", "profile", "offline_access"])
    );
    assert!(
        offered[0]["certificate_authority_data"]
            .as_str()
            .unwrap()
            .len()
            > 100
    );
    assert!(offered[0].get("audience").is_none());

    let id = person(&issuer, json!({}));
    let (token, _) = signed_in(&office, &id_token(&id)).await;
    let file = office.file("authentication.yaml");
    let people = &office.gateway().people;
    std::fs::write(&file, "kind: Nonsense\n").unwrap();
    assert!(!people.reload());
    assert_eq!(people.reloads(), (1, true));
    whoami(&office, &token).await;
    // Without the issuer that people are sent to it is no use, either.
    let empty =
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: []\n";
    std::fs::write(&file, empty).unwrap();
    assert!(!people.reload());
    std::fs::write(&file, authentication(&issuer, "new:")).unwrap();
    assert!(people.reload());
    assert_eq!(people.reloads(), (3, false));
    let (token, _) = signed_in(&office, &id_token(&id)).await;
    assert_eq!(
        whoami(&office, &token).await["username"],
        "new:carol@example.org"
    );
}
