//! Paths, queries and methods that IAM and the API server could read differently.

use http::{Method, Request, StatusCode};
use http_body_util::Empty;

use super::{
    ground::{BASE, Ground},
    raw::exchange,
    raw2::{Connection, Outcome},
};

/// Kubernetes paths that have a second reading; all are refused.
const TWO_READINGS: &[&str] = &[
    "//api",
    "/api//v1/secrets",
    "/api/v1//secrets",
    "/api/./v1/secrets",
    "/api/../api/v1/secrets",
    "/api/v1/pods/..",
    "/api/v1/pods/%2e%2e/secrets",
    "/api/v1/pods/%2E./secrets",
    "/api/v1/pods/.%2e/secrets",
    "/api/v1/pods/%2e/secrets",
    "/api/v1%2fsecrets",
    "/api/v1%2Fsecrets",
    "/api/v1/namespaces/n%2f..%2fkube-system/secrets",
    // A backslash is a slash to some proxies.
    "/api/v1\\secrets",
    "/api/v1%5csecrets",
    "/api/v1/pods/..%5csecrets",
    // A parameter of a segment is cut off by some servers (RFC 3986 §3.3).
    "/api/v1/pods/..;/secrets",
    "/api/v1/pods/..;a=b/secrets",
    "/api/v1/pods/%2e%2e;/secrets",
    "/api/v1/pods/..%3b/secrets",
    "/api/v1/pods%00/x",
    // Encoded twice: whoever decodes once more sees a slash or dots.
    "/api/v1%252fsecrets",
    "/api/v1/pods/%252e%252e/secrets",
    // No valid encoding: a server may take it as it is, drop it, or stop there.
    "/api/v1/pods/%zz",
    "/api/v1/pods/%2",
    "/api/v1/pods/%",
    // An overlong UTF-8 slash and dot.
    "/api/v1%c0%afsecrets",
    "/api/v1/pods/%c0%ae%c0%ae/secrets",
    "/api/v1/pods/%0d%0aImpersonate-User:%20root",
    "/api/v1/pods/%0a",
    // `proxy` gives way to somebody else's path only where it is the subresource.
    "/api/v1/namespaces/proxy/../kube-system/secrets",
    "/api/v1/namespaces/proxy//secrets",
    "/proxy/../api/v1/secrets",
    "/apis/proxy/../../api/v1/secrets",
];

#[tokio::test]
async fn a_path_with_two_readings_is_refused() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    let of_m = format!("Bearer {}", ground.world.token("alice", Some("m"), 600));
    let mut failed = Vec::new();
    for path in TWO_READINGS {
        for (base, token) in [(BASE, &alice), ("", &of_m)] {
            let bytes = format!(
                "GET {base}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
            );
            let answers = exchange(gateway, bytes.as_bytes()).await;
            if answers.first().is_none_or(|answer| answer.status != 400) {
                failed.push(format!("{base}{path}: {answers:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn a_prefix_is_a_membership_or_nothing() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    for path in [
        "/v1/projects/p/locations/global/memberships/%6d/api",
        "/v1/projects/p/locations/global/memberships/M/api",
        "/v1/projects/p/locations/global/memberships/m%2fapi",
        "/v1/projects/p/locations/global/memberships/m;a=b/api",
        "/v1/projects/p/locations/global/memberships/m\\api",
        "/v1/projects/p/locations/global/memberships/../memberships/m/api",
        "/v1/projects/q/../p/locations/global/memberships/m/api",
        "/v1//projects/p/locations/global/memberships/m/api",
        "//v1/projects/p/locations/global/memberships/m/api",
        "/./v1/projects/p/locations/global/memberships/m/api",
        "/V1/projects/p/locations/global/memberships/m/api",
        "/%761/projects/p/locations/global/memberships/m/api",
        "/v1/projects/p/locations/global/memberships/",
        "/v1/projects/p/locations/global/memberships/m.evil/api",
        "/v1/projects/p/locations/global/memberships/m@evil/api",
        "/v1?/projects/p/locations/global/memberships/m/api",
    ] {
        let bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\nConnection: close\r\n\r\n"
        );
        let answers = exchange(gateway, bytes.as_bytes()).await;
        let status = answers.first().map(|answer| answer.status);
        assert!(
            matches!(status, Some(400 | 404)),
            "{path}: {status:?} {answers:?}"
        );
    }
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn whatever_form_a_target_has_it_is_read_once() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let (alice, reader) = (
        ground.alice(),
        format!("Bearer {}", ground.world.token("reader", None, 600)),
    );
    let of_m = format!("Bearer {}", ground.world.token("alice", Some("m"), 600));
    // Absolute form (RFC 9112 §3.2.2): the path in it counts, and no other authority reaches anything else.
    for (target, code) in [
        (format!("https://other.test{BASE}/api/v1%2fsecrets"), 400),
        (format!("http://user:pass@other.test{BASE}/api//v1"), 400),
        ("https://other.test/api/v1/secrets".to_owned(), 404),
    ] {
        let bytes = format!(
            "GET {target} HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: {alice}\r\nConnection: close\r\n\r\n"
        );
        let answers = exchange(gateway, bytes.as_bytes()).await;
        assert_eq!(answers[0].status, code, "{target}: {answers:?}");
    }
    // Authority form and asterisk form, methods in another case or of another protocol.
    let mut failed = Vec::new();
    for line in [
        "CONNECT 10.0.0.1:443".to_owned(),
        "CONNECT gateway.test:443".to_owned(),
        format!("CONNECT {BASE}/api"),
        format!("get {BASE}/api"),
        format!("Get {BASE}/api"),
        format!("pOST {BASE}/api"),
        format!("TRACE {BASE}/api"),
        format!("TRACK {BASE}/api"),
        format!("PROPFIND {BASE}/api"),
        format!("WATCH {BASE}/api"),
        format!("GETS {BASE}/api"),
    ] {
        for token in [&alice, &of_m] {
            let bytes = format!(
                "{line} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
            );
            let answers = exchange(gateway, bytes.as_bytes()).await;
            let status = answers.first().map(|answer| answer.status);
            if !matches!(status, Some(400 | 405)) {
                failed.push(format!("{line}: {status:?}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // Over HTTP/2 too; a `:path` in absolute form is no path.
    let absolute = format!("https://gateway.test{BASE}/api");
    for (method, path) in [
        ("get", BASE),
        ("TRACE", BASE),
        ("GET", absolute.as_str()),
        ("GET", "*"),
        ("GET", "api"),
        ("CONNECT", BASE),
    ] {
        let mut connection = Connection::open(gateway).await;
        let headers = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "gateway.test"),
            (":path", path),
            ("authorization", &alice),
        ];
        connection.request(1, &headers).await;
        let outcome = connection.outcome(1).await;
        let refused =
            outcome.is_protocol_error() || matches!(outcome, Outcome::Answered(400 | 404 | 405, _));
        assert!(refused, "{method} {path}: {outcome:?}");
    }
    // A reader's method is what the API server gets: no case, and no header, turns a read into a write.
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let bytes = format!(
            "{method} {BASE}/api/v1/namespaces/n/pods HTTP/1.1\r\nHost: x\r\nAuthorization: {reader}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answers = exchange(gateway, bytes.as_bytes()).await;
        assert_eq!(answers[0].status, 403, "{method}: {answers:?}");
    }
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn a_stream_is_never_had_for_a_read() {
    let mut ground = Ground::new().await;
    let reader = ground.world.token("reader", None, 600);
    for path in ["/api/v1/namespaces/n/pods/p/exec?command=id", "/x"] {
        for (method, connection, upgrade) in [
            (Method::GET, "Upgrade", "websocket"),
            (Method::GET, "upgrade", "SPDY/3.1"),
            (Method::GET, "keep-alive, UPGRADE", "websocket"),
            (Method::GET, "keep-alive,\tupgrade", "WebSocket"),
            (Method::GET, "close, Upgrade", "anything"),
            (Method::HEAD, "Upgrade", "websocket"),
            (Method::OPTIONS, "Upgrade", "websocket"),
            (Method::GET, "Upgrade", "h2c, websocket"),
            (Method::GET, "Upgrade", "websocket, SPDY/3.1"),
        ] {
            let request = Request::builder()
                .method(method.clone())
                .uri(format!("{BASE}{path}"))
                .header("connection", connection)
                .header("upgrade", upgrade)
                .body(Empty::new())
                .unwrap();
            let response = ground.world.with_token(&reader).http1(request).await;
            assert!(
                matches!(
                    response.status(),
                    StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
                ),
                "{method} {path} {connection:?} {upgrade:?}: {}",
                response.status()
            );
        }
    }
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn another_projects_membership_and_one_that_is_not_look_the_same() {
    let mut ground = Ground::new().await;
    let nobody = ground.world.token("nobody", None, 600);
    let mut told = Vec::new();
    for name in [
        // There, not there; the project there, not there; a name of one project in another.
        "projects/p/locations/global/memberships/m",
        "projects/p/locations/global/memberships/x",
        "projects/q/locations/global/memberships/m",
        "projects/q/locations/global/memberships/x",
        "projects/p/locations/elsewhere/memberships/m",
    ] {
        let request = Request::get(format!("/v1/{name}/api"))
            .body(Empty::new())
            .unwrap();
        let (status, message) = ground.ask(request, &nobody).await;
        assert_eq!(status, 403, "{name}: {message}");
        let message = message
            .split(" (towline")
            .next()
            .unwrap()
            .replace(name, "NAME");
        told.push(message);
    }
    assert!(told.iter().all(|message| *message == told[0]), "{told:?}");
    // The owner of p learns nothing of q.
    let alice = ground.world.token("alice", None, 600);
    for name in ["m", "x"] {
        let request = Request::get(format!(
            "/v1/projects/q/locations/global/memberships/{name}/api"
        ))
        .body(Empty::new())
        .unwrap();
        let (status, message) = ground.ask(request, &alice).await;
        assert_eq!(status, 403, "{name}: {message}");
    }
    ground.assert_nothing_came().await;
}
