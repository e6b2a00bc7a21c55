//! Callers who ask to be somebody else, and a thief who has what another session was sent.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, Request};
use serde_json::json;
use towline_agent::body;
use towline_proto::{assertion::Nested, names::Membership, wire};

use crate::{
    apiserver::ApiServer,
    gateway::{Gateway, Keys, membership, text},
};

fn bob() -> Nested {
    Nested {
        user: "bob".into(),
        uid: None,
        groups: vec!["ops".into()],
        extra: BTreeMap::from([("scopes".into(), vec!["read".into()])]),
    }
}

async fn ask(gateway: &Gateway, nested: &Nested) -> (u16, Option<String>, String) {
    let request = gateway.asking("/api", nested).body(body::empty()).unwrap();
    let response = gateway.send(request).await.unwrap();
    let refusal = response
        .headers()
        .get(wire::REFUSAL)
        .map(|code| code.to_str().unwrap().to_owned());
    (response.status().as_u16(), refusal, text(response).await)
}

#[tokio::test]
async fn every_name_is_asked_for_in_the_callers_own_name() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let wanted = [
        json!({"verb": "impersonate", "resource": "users", "name": "bob"}),
        json!({"verb": "impersonate", "resource": "groups", "name": "ops"}),
        json!({
            "verb": "impersonate", "group": "authentication.k8s.io", "resource": "userextras",
            "subresource": "scopes", "name": "read",
        }),
    ];
    // Allowed one more at a time: as long as one is missing, that one is told.
    for (allowed, missing) in [
        (
            0,
            "may not impersonate user \"bob\" in this cluster (RBAC): because; a ClusterRole bound to \"alice\" would",
        ),
        (
            1,
            "may not impersonate group \"ops\" in this cluster (RBAC)",
        ),
        (
            2,
            "may not impersonate with extra \"scopes\" = \"read\" in this cluster (RBAC)",
        ),
    ] {
        *server.record.allowed.lock().unwrap() = wanted[..allowed].to_vec();
        let (status, refusal, said) = ask(&gateway, &bob()).await;
        assert_eq!((status, refusal.as_deref()), (403, Some("rbac")), "{said}");
        assert!(
            said.starts_with("user \"alice\" ") && said.contains(missing),
            "{said}"
        );
    }
    *server.record.allowed.lock().unwrap() = wanted.to_vec();
    assert_eq!(ask(&gateway, &bob()).await, (200, None, "ok".to_owned()));

    let seen = server.record.requests.lock().unwrap().clone();
    let lines = |headers: &HeaderMap| {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .filter(|line| line.starts_with("impersonate"))
            .collect();
        lines.sort();
        lines
    };
    let (request, reviews) = seen.split_last().unwrap();
    assert_eq!(request.line, "GET /api");
    assert_eq!(
        lines(&request.headers),
        [
            "impersonate-extra-scopes: read",
            "impersonate-extra-towline.dev%2foriginal-user: {\"username\":\"alice\",\"groups\":[\"dev\"]}",
            "impersonate-group: ops",
            "impersonate-user: bob",
        ]
    );
    for review in reviews {
        assert_eq!(
            review.line,
            "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        );
        assert_eq!(
            lines(&review.headers),
            ["impersonate-group: dev", "impersonate-user: alice"]
        );
    }
}

#[tokio::test]
async fn a_yes_is_remembered_for_seconds_and_for_one_caller() {
    let server = ApiServer::start().await;
    let keys = Keys::new();
    let upstream = server.upstream().await;
    let mut gateway = Gateway::open_at(&membership(), upstream, &keys, Vec::new()).await;
    let bob = Nested {
        groups: Vec::new(),
        extra: BTreeMap::new(),
        ..bob()
    };
    let yes = json!({"verb": "impersonate", "resource": "users", "name": "bob"});
    server.record.allowed.lock().unwrap().push(yes);
    let reviews = || server.record.reviews.lock().unwrap().len();
    assert_eq!(ask(&gateway, &bob).await.0, 200);
    assert_eq!(ask(&gateway, &bob).await.0, 200);
    assert_eq!(reviews(), 1);
    // The same name with another group is another caller.
    gateway.regrant(&keys.signing, |grant| grant.groups = vec!["dev".into()]);
    server.record.allowed.lock().unwrap().clear();
    assert_eq!(ask(&gateway, &bob).await.0, 403);
    assert_eq!(ask(&gateway, &bob).await.0, 403, "a no is asked for again");
    assert_eq!(reviews(), 3);
    // The first caller's yes ends too.
    gateway.regrant(&keys.signing, |grant| grant.groups.clear());
    assert_eq!(ask(&gateway, &bob).await.0, 200);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    assert_eq!(ask(&gateway, &bob).await.0, 403);
    assert_eq!(reviews(), 4);
}

/// An agent that was sent a request, and knows its own session's key, tries it at another agent.
#[tokio::test]
async fn what_one_session_was_sent_is_refused_in_every_other() {
    let keys = Keys::new();
    let [server, elsewhere] = [ApiServer::start().await, ApiServer::start().await];
    let other: Membership = "projects/p/locations/global/memberships/n".parse().unwrap();
    let own = Gateway::open_at(&membership(), server.upstream().await, &keys, Vec::new()).await;
    let mut targets = Vec::new();
    for membership in [membership(), other] {
        let upstream = elsewhere.upstream().await;
        targets.push(Gateway::open_at(&membership, upstream, &keys, Vec::new()).await);
    }
    let stranger = Gateway::open_at(
        &membership(),
        elsewhere.upstream().await,
        &Keys::new(),
        Vec::new(),
    )
    .await;
    targets.push(stranger);

    let request = |builder: http::request::Builder| builder.body(body::empty()).unwrap();
    for target in &targets {
        for stolen in [
            own.request("GET", "/api", ""),
            own.asking("/api", &bob()),
            own.request("GET", "/exec", "websocket"),
        ] {
            let response = target.send(request(stolen)).await.unwrap();
            assert_eq!(response.headers()[wire::REFUSAL], "assertion");
        }
        // Its grant with a request that is the target's own otherwise.
        let mut mixed = target.request("GET", "/api", "");
        let grant = own.request("GET", "/api", "").headers_ref().unwrap()[wire::GRANT].clone();
        mixed.headers_mut().unwrap().insert(wire::GRANT, grant);
        let response = target.send(request(mixed)).await.unwrap();
        assert_eq!(response.headers()[wire::REFUSAL], "assertion");
    }
    assert!(elsewhere.record.requests.lock().unwrap().is_empty());

    // And in its own session: once, as it is, and no other way.
    let sent = own.request("GET", "/api", "");
    let headers = sent.headers_ref().unwrap().clone();
    let again = |method: &str, path: &str| {
        let mut again = Request::builder()
            .method(method)
            .uri(format!("https://m{path}"));
        *again.headers_mut().unwrap() = headers.clone();
        request(again)
    };
    assert_eq!(own.send(request(sent)).await.unwrap().status(), 200);
    for (method, path) in [
        ("GET", "/api"),
        ("DELETE", "/api"),
        ("GET", "/api?x"),
        ("GET", "/apis"),
    ] {
        let response = own.send(again(method, path)).await.unwrap();
        assert_eq!(
            response.headers()[wire::REFUSAL],
            "assertion",
            "{method} {path}"
        );
    }
    let mut renumbered = again("GET", "/api");
    let number = "1000".parse().unwrap();
    renumbered.headers_mut().insert(wire::SEQUENCE, number);
    let response = own.send(renumbered).await.unwrap();
    assert_eq!(response.headers()[wire::REFUSAL], "assertion");
    assert_eq!(server.record.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn groups_that_are_left_out_are_counted() {
    use k8s_openapi::api::authorization::v1::ResourceRule;
    let server = ApiServer::start().await;
    let rule = |resource: &str, name: &str| ResourceRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec![resource.into()]),
        resource_names: Some(vec![name.into()]),
        verbs: vec!["impersonate".into()],
    };
    let role = towline_agent::role::Role::of(&[rule("users", "alice"), rule("groups", "dev")]);
    let groups = ["dev", "a", "b"].map(str::to_owned).to_vec();
    let gateway = Gateway::open_under(server.upstream().await, role, groups).await;
    let response = gateway.get("/api").await.unwrap();
    assert_eq!(response.headers()[wire::GROUPS_LEFT_OUT], "2");
    let seen = server.last();
    assert_eq!(seen.headers["impersonate-group"], "dev");
    // An upgrade's answer tells it too.
    let (_sender, upgrade) = Gateway::streaming(gateway.request("GET", "/exec", "websocket"));
    let response = gateway.send(upgrade).await.unwrap();
    assert_eq!(response.headers()[wire::UPGRADED], "websocket");
    assert_eq!(response.headers()[wire::GROUPS_LEFT_OUT], "2");
}
