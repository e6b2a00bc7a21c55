//! Tokens for tokens, over real HTTP: service accounts, chains of them, and what ends them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

#[cfg(test)]
mod api {
    pub(crate) mod office;
}

use api::office::Office;
use http::StatusCode;
use serde_json::{Value, json};
use towline_gateway::iam::{Binding, Role};
use towline_proto::names::Project;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const EDGE: &str = "/v1/projects/p/locations/global/memberships/edge";

/// Gives a role in project `p`, or takes it.
async fn bind(office: &Office, role: Role, member: &str, given: bool) {
    let store = &office.gateway().store;
    let project: Project = "p".parse().unwrap();
    let mut policy = store.policy(&project).await.unwrap().unwrap();
    let member = member.parse().unwrap();
    if given {
        policy.bindings.push(Binding::new(role, vec![member]));
    } else {
        for binding in &mut policy.bindings {
            binding
                .members
                .retain(|other| binding.role != role.into() || *other != member);
        }
    }
    policy
        .bindings
        .retain(|binding| !binding.members.is_empty());
    store
        .set_policy_of(&(&project).into(), &policy)
        .await
        .unwrap();
}

/// An office with accounts `a` to `e`, where bob may act as `a` by a binding on the project, and so as all.
async fn open() -> Office {
    let office = Office::open().await;
    let alice = office.token("alice");
    for name in ["a", "b", "c", "d", "e"] {
        office
            .ok(
                &alice,
                "ServiceAccounts/Create",
                json!({"project": "p", "name": name, "displayName": "For tests"}),
            )
            .await;
    }
    bind(&office, Role::ServiceAccountTokenCreator, "user:bob", true).await;
    office
}

async fn exchange(office: &Office, token: &str, fields: &[(&str, &str)]) -> (StatusCode, Value) {
    let fields = [
        &[
            ("grant_type", GRANT),
            ("subject_token_type", ACCESS_TOKEN),
            ("subject_token", token),
        ],
        fields,
    ]
    .concat();
    office.form("/oauth2/token", &fields).await
}

/// A token of these accounts, one acting through the other.
async fn acting(office: &Office, token: &str, accounts: &str) -> String {
    let (status, answer) =
        exchange(office, token, &[("impersonate_service_account", accounts)]).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["issued_token_type"], ACCESS_TOKEN);
    assert_eq!(answer["token_type"], "Bearer");
    answer["access_token"].as_str().unwrap().to_owned()
}

async fn refused(
    office: &Office,
    token: &str,
    fields: &[(&str, &str)],
) -> (StatusCode, String, String) {
    let (status, answer) = exchange(office, token, fields).await;
    assert!(answer["access_token"].is_null(), "{answer}");
    let text = |key: &str| answer[key].as_str().unwrap().to_owned();
    (status, text("error"), text("error_description"))
}

/// Why a token is refused.
async fn why(office: &Office, token: &str) -> String {
    let (status, answer) = office.json(Some(token), "Identity/WhoAmI", json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    answer["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn whoever_may_acts_as_a_service_account() {
    let office = open().await;
    let token = acting(&office, &office.token("bob"), "a@p").await;
    let me = office.ok(&token, "Identity/WhoAmI", json!({})).await;
    assert_eq!(me["principal"], "serviceAccount:a@p");
    assert_eq!(me["username"], "serviceAccount:a@p");
    assert_eq!(me["delegates"], json!(["user:bob"]));
    assert_eq!(
        me["extra"],
        json!({"towline.dev/delegates": {"values": ["user:bob"]}})
    );
    assert!(me["groups"].is_null(), "{me}");
    // No operator's rights come along.
    bind(&office, Role::ServiceAccountTokenCreator, "user:root", true).await;
    let token = acting(&office, &office.token("root"), "a@p").await;
    let (status, _) = office.json(Some(&token), "Users/List", json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn nobody_else_does_or_learns_which_there_are() {
    let office = open().await;
    for (caller, account) in [
        ("reader", "a@p"),
        ("reader", "nothing@p"),
        ("reader", "a@nowhere"),
        // Not even the project's owner: the account is somebody else.
        ("alice", "a@p"),
        ("bob", "a@nowhere"),
    ] {
        let (status, error, description) = refused(
            &office,
            &office.token(caller),
            &[("impersonate_service_account", account)],
        )
        .await;
        assert_eq!(
            (status, error.as_str()),
            (StatusCode::FORBIDDEN, "access_denied")
        );
        assert!(
            description.starts_with(&format!(
                "user {caller:?} lacks permission \"serviceAccounts.getAccessToken\" on serviceAccount {account}; \
                 roles with it: serviceAccountTokenCreator"
            )),
            "{description}"
        );
    }
    let (_, _, description) = refused(
        &office,
        &office.token("bob"),
        &[("impersonate_service_account", "nothing@p")],
    )
    .await;
    assert_eq!(description, "serviceAccount nothing@p does not exist");
    for wrong in ["a", "a@p,", "@p", "A@p", "a@p b@p"] {
        let (status, error, description) = refused(
            &office,
            &office.token("bob"),
            &[("impersonate_service_account", wrong)],
        )
        .await;
        assert_eq!(
            (status, error.as_str()),
            (StatusCode::BAD_REQUEST, "invalid_request")
        );
        assert!(description.contains("NAME@PROJECT"), "{description}");
    }
}

#[tokio::test]
async fn each_link_of_a_chain_is_allowed_or_named() {
    let office = open().await;
    let bob = office.token("bob");
    let (status, _, description) =
        refused(&office, &bob, &[("impersonate_service_account", "a@p,b@p")]).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        description.starts_with(
            "serviceAccount \"a@p\" lacks permission \"serviceAccounts.getAccessToken\" on serviceAccount b@p"
        ),
        "{description}"
    );
    let creator = Role::ServiceAccountTokenCreator;
    for account in ["a", "b", "c", "d"] {
        bind(
            &office,
            creator,
            &format!("serviceAccount:{account}@p"),
            true,
        )
        .await;
    }
    let token = acting(&office, &bob, "a@p,b@p").await;
    let me = office.ok(&token, "Identity/WhoAmI", json!({})).await;
    assert_eq!(me["principal"], "serviceAccount:b@p");
    assert_eq!(me["delegates"], json!(["user:bob", "serviceAccount:a@p"]));

    // In steps as in one.
    let further = acting(&office, &token, "c@p").await;
    let me = office.ok(&further, "Identity/WhoAmI", json!({})).await;
    assert_eq!(
        me["delegates"],
        json!(["user:bob", "serviceAccount:a@p", "serviceAccount:b@p"])
    );
    let (_, error, description) = refused(
        &office,
        &further,
        &[("impersonate_service_account", "d@p,e@p")],
    )
    .await;
    assert_eq!(error, "invalid_request");
    assert!(
        description.starts_with("5 service accounts"),
        "{description}"
    );

    // A link in the middle goes, and with it everything after it.
    bind(&office, creator, "serviceAccount:a@p", false).await;
    assert!(
        why(&office, &further)
            .await
            .contains("serviceAccount \"a@p\" lacks permission")
    );
}

#[tokio::test]
async fn what_a_token_rests_on_is_looked_at_every_time() {
    let office = open().await;
    let (alice, bob) = (office.token("alice"), office.token("bob"));
    let a = json!({"project": "p", "name": "a"});
    let token = acting(&office, &bob, "a@p").await;
    let disabled = |disabled: bool| json!({"project": "p", "name": "a", "disabled": disabled});
    office
        .ok(&alice, "ServiceAccounts/SetDisabled", disabled(true))
        .await;
    assert!(why(&office, &token).await.contains("a@p is disabled"));
    let (_, error, _) = refused(&office, &bob, &[("impersonate_service_account", "a@p")]).await;
    assert_eq!(error, "access_denied");
    office
        .ok(&alice, "ServiceAccounts/SetDisabled", disabled(false))
        .await;
    office.ok(&token, "Identity/WhoAmI", json!({})).await;

    office
        .ok(&alice, "ServiceAccounts/RevokeTokens", a.clone())
        .await;
    assert!(why(&office, &token).await.contains("were revoked"));
    let token = acting(&office, &bob, "a@p").await;
    office.ok(&token, "Identity/WhoAmI", json!({})).await;

    office.ok(&alice, "ServiceAccounts/Delete", a.clone()).await;
    assert!(why(&office, &token).await.contains("a@p does not exist"));
    office.ok(&alice, "ServiceAccounts/Create", a).await;
    assert!(why(&office, &token).await.contains("were revoked"));

    let token = acting(&office, &bob, "a@p").await;
    bind(&office, Role::ServiceAccountTokenCreator, "user:bob", false).await;
    assert!(
        why(&office, &token)
            .await
            .contains("user \"bob\" lacks permission")
    );
    bind(&office, Role::ServiceAccountTokenCreator, "user:bob", true).await;
    office.ok(&token, "Identity/WhoAmI", json!({})).await;
    office
        .gateway()
        .store
        .set_disabled("bob", true)
        .await
        .unwrap();
    assert!(why(&office, &token).await.contains("\"bob\" is disabled"));
}

#[tokio::test]
async fn an_exchange_gives_no_more_than_was_held() {
    let office = open().await;
    let narrow = office.token_for("bob", EDGE);
    let own = format!("https://gateway.test{EDGE}");
    for resource in [
        None,
        Some("https://gateway.test"),
        Some(&*format!("{own}2")),
    ] {
        let fields: Vec<(&str, &str)> = resource.map(|r| ("resource", r)).into_iter().collect();
        let (status, error, description) = refused(&office, &narrow, &fields).await;
        assert_eq!(
            (status, error.as_str()),
            (StatusCode::BAD_REQUEST, "invalid_target"),
            "{resource:?}"
        );
        assert!(
            description.contains("memberships/edge only"),
            "{description}"
        );
    }
    let (status, answer) = exchange(&office, &narrow, &[("resource", &own)]).await;
    assert_eq!(status, StatusCode::OK, "{answer}");

    // The old one's end is the new one's, however often it is exchanged.
    let (status, answer) = exchange(&office, &office.token_ending("bob", 30), &[]).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(answer["expires_in"].as_u64().unwrap() <= 30, "{answer}");
    let (_, error, description) = refused(&office, &office.token_ending("bob", -5), &[]).await;
    assert_eq!(error, "invalid_grant");
    assert!(description.contains("expired"), "{description}");

    let bob = office.token("bob");
    for (field, value) in [
        ("client_id", "another"),
        (
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:saml2",
        ),
        ("actor_token", "x"),
        ("resource", "https://elsewhere.test"),
    ] {
        let (status, _, _) = refused(&office, &bob, &[(field, value)]).await;
        assert!(status.is_client_error(), "{field}");
    }
}

#[tokio::test]
async fn revoking_a_token_ends_all_that_was_made_of_it() {
    let office = open().await;
    bind(
        &office,
        Role::ServiceAccountTokenCreator,
        "serviceAccount:a@p",
        true,
    )
    .await;
    let bob = office.token("bob");
    let (first, other) = (
        acting(&office, &bob, "a@p").await,
        acting(&office, &bob, "a@p").await,
    );
    let second = acting(&office, &first, "b@p").await;
    office.ok(&second, "Identity/WhoAmI", json!({})).await;
    let (status, _) = office.form("/oauth2/revoke", &[("token", &first)]).await;
    assert_eq!(status, StatusCode::OK);
    for token in [&first, &second] {
        assert!(why(&office, token).await.contains("sign-in was ended"));
        let (_, error, _) = refused(&office, token, &[]).await;
        assert_eq!(error, "invalid_grant");
    }
    office.ok(&other, "Identity/WhoAmI", json!({})).await;
}

#[tokio::test]
async fn accounts_are_managed_in_their_project_alone() {
    let office = open().await;
    office
        .ok(
            &office.token("root"),
            "Projects/Create",
            json!({"name": "q"}),
        )
        .await;
    let (alice, reader) = (office.token("alice"), office.token("reader"));
    let account = |project: &str| json!({"project": project, "name": "a"});
    for method in ["Create", "Get", "Delete", "RevokeTokens", "SetDisabled"] {
        let method = format!("ServiceAccounts/{method}");
        for (token, project) in [(&alice, "q"), (&alice, "nowhere"), (&reader, "p")] {
            let (status, answer) = office.json(Some(token), &method, account(project)).await;
            assert_eq!(
                status,
                StatusCode::FORBIDDEN,
                "{method} {project}: {answer}"
            );
        }
    }
    for project in ["q", "nowhere"] {
        let (status, _) = office
            .json(
                Some(&alice),
                "ServiceAccounts/List",
                json!({"project": project}),
            )
            .await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    let listed = office
        .ok(&alice, "ServiceAccounts/List", json!({"project": "p"}))
        .await;
    assert_eq!(listed["serviceAccounts"].as_array().unwrap().len(), 5);
    assert_eq!(listed["serviceAccounts"][0]["account"], "a@p");
    let (status, _) = office
        .json(Some(&alice), "ServiceAccounts/Create", account("p"))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    // An account of this project has no rights in another that doesn't name it.
    let token = acting(&office, &office.token("bob"), "a@p").await;
    let (status, _) = office
        .json(
            Some(&token),
            "ServiceAccounts/List",
            json!({"project": "q"}),
        )
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_binding_on_the_account_is_for_it_alone_and_goes_with_it() {
    let office = open().await;
    let alice = office.token("alice");
    let resource = json!({"resource": "projects/p/serviceAccounts/a"});
    let policy = office.ok(&alice, "Iam/GetPolicy", resource.clone()).await;
    let set = json!({
        "resource": resource["resource"],
        "policy": {"etag": policy["etag"], "bindings": [
            {"role": "serviceAccountTokenCreator", "members": ["user:reader"]},
        ]},
    });
    office.ok(&alice, "Iam/SetPolicy", set).await;
    let reader = office.token("reader");
    let token = acting(&office, &reader, "a@p").await;
    office.ok(&token, "Identity/WhoAmI", json!({})).await;
    let (_, error, _) = refused(&office, &reader, &[("impersonate_service_account", "b@p")]).await;
    assert_eq!(error, "access_denied");

    // Also where the project's policy names it, alone and beside another.
    let project = json!({"resource": "projects/p"});
    let before = office.ok(&alice, "Iam/GetPolicy", project.clone()).await;
    let mut policy = before.clone();
    for members in [
        json!(["serviceAccount:a@p"]),
        json!(["serviceAccount:a@p", "serviceAccount:b@p"]),
    ] {
        let binding = json!({"role": "fleetViewer", "members": members});
        policy["bindings"].as_array_mut().unwrap().push(binding);
    }
    let set = json!({"resource": "projects/p", "policy": policy});
    office.ok(&alice, "Iam/SetPolicy", set).await;

    let a = json!({"project": "p", "name": "a"});
    office.ok(&alice, "ServiceAccounts/Delete", a.clone()).await;
    office.ok(&alice, "ServiceAccounts/Create", a).await;
    let (_, error, _) = refused(&office, &reader, &[("impersonate_service_account", "a@p")]).await;
    assert_eq!(error, "access_denied");
    let after = office.ok(&alice, "Iam/GetPolicy", project).await;
    let mut expected = before["bindings"].clone();
    expected
        .as_array_mut()
        .unwrap()
        .push(json!({"role": "fleetViewer", "members": ["serviceAccount:b@p"]}));
    assert_eq!(after["bindings"], expected);
}
