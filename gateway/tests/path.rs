//! A whole gateway in this process, a double of an agent, and real HTTP on the loopback: the path of a request.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    reason = "a test says what went wrong by panicking; a double is what it answers"
)]

pub(crate) mod path {
    pub(crate) mod agent;
    mod audit;
    mod away;
    pub(crate) mod double;
    mod hostile;
    pub(crate) mod iam;
    pub(crate) mod leases;
    mod resumption;
    pub(crate) mod world;
}

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use path::{
    double::{self, Answer},
    world::{World, bounded},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use towline_proto::{assertion::Nested, body, wire};

/// Whether callers come to one replica and agents to another.
#[allow(
    dead_code,
    reason = "the crate's root has it: `path_replicas` has another"
)]
pub(crate) const ELSEWHERE: bool = false;

pub(crate) const BASE: &str = "/v1/projects/p/locations/global/memberships/m";

pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("{BASE}{path}"))
        .body(Empty::new())
        .unwrap()
}

pub(crate) fn text(text: impl Into<Bytes>) -> Answer {
    Response::new(
        Full::new(text.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    )
}

pub(crate) async fn status_object(response: Response<Incoming>) -> serde_json::Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn the_agent_gets_exactly_what_it_should() {
    let world = World::start().await;
    let (agent, mut seen) = double::recording();
    world.agent(agent).await;
    let mut request = get("/api/v1/pods?limit=1");
    for (name, value) in [
        ("accept", "application/json"),
        ("cookie", "a=b"),
        ("x-remote-user", "root"),
        ("connection", "keep-alive, x-private"),
        ("x-private", "1"),
        ("towline-grant", "forged"),
        ("user-agent", "kubectl"),
        ("audit-id", "forged"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = world.as_user("alice").http1(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let (head, grant) = bounded(seen.recv()).await.unwrap();
    assert_eq!(head.uri.path_and_query().unwrap(), "/api/v1/pods?limit=1");
    let mut names: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
    // Another replica signs with a key of its own.
    names.retain(|name| *name != wire::GRANT_CHAIN);
    let chained = head.headers.contains_key(wire::GRANT_CHAIN);
    assert_eq!(chained, world.is_elsewhere());
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "audit-id",
            wire::GRANT,
            wire::MAC,
            wire::REQUEST_ID,
            wire::SEQUENCE,
            "user-agent",
            "x-forwarded-for"
        ]
    );
    assert_eq!(
        (grant.user.as_str(), grant.groups.as_slice()),
        ("alice", &["dev".to_owned()][..])
    );
    assert_eq!(grant.principal, "user:alice");
    // One id for the caller, both programs' logs and the API server's record.
    let id = &response.headers()["towline-request-id"];
    assert_eq!(id.len(), 36);
    for told in [
        &response.headers()["audit-id"],
        &head.headers["audit-id"],
        &head.headers[wire::REQUEST_ID],
    ] {
        assert_eq!(told, id);
    }
}

#[tokio::test]
async fn whom_the_caller_asks_to_be_is_told_under_the_mac_and_not_as_headers() {
    let world = World::start().await;
    let (agent, mut seen) = double::recording();
    world.agent(agent).await;
    let mut request = get("/api/v1/pods");
    for (name, value) in [
        ("Impersonate-User", "bob"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Extra-Scopes", "read"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = world.as_user("alice").http1(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    // The double verifies the MAC over what it got.
    let (head, grant) = bounded(seen.recv()).await.unwrap();
    assert_eq!(grant.user, "alice");
    let nested = head.headers[wire::NESTED].to_str().unwrap();
    let nested = Nested::from_header(nested).unwrap();
    assert_eq!(
        (nested.user.as_str(), nested.uid.as_deref()),
        ("bob", Some("7"))
    );
    assert_eq!(nested.groups, ["ops"]);
    assert_eq!(nested.extra["scopes"], ["read"]);
    let headers = head.headers.keys();
    assert!(
        headers
            .into_iter()
            .all(|name| !name.as_str().starts_with("impersonate"))
    );
}

#[tokio::test]
async fn refusals_are_status_objects_with_the_layer_and_the_request() {
    let world = World::start().await;
    let alice = world.as_user("alice");
    let reader = world.as_user("reader");
    let nobody = world.as_user("nobody");
    for (client, request, code, begins) in [
        (
            &alice,
            get("/api"),
            503,
            "no active connections found for cluster (project: p, membership: m)",
        ),
        (
            &reader,
            post("/api/v1/namespaces/n/pods"),
            403,
            "user \"reader\" lacks permission \"gateway.post\"",
        ),
        (
            &nobody,
            get("/api"),
            403,
            "user \"nobody\" lacks permission \"gateway.get\" on projects/p/",
        ),
        (
            &alice,
            at("/v1/projects/p/locations/global/memberships/n/api"),
            404,
            "membership \"n\" not found in project \"p\"; did you mean m?",
        ),
        (
            &nobody,
            at("/v1/projects/p/locations/global/memberships/n/api"),
            403,
            "user \"nobody\" lacks permission",
        ),
        (
            &nobody,
            at("/v1/projects/q/locations/global/memberships/n/api"),
            403,
            "user \"nobody\" lacks permission",
        ),
        (
            &alice,
            at("/v1/projects/p/api"),
            404,
            "the requested URL was not found on this server",
        ),
        (&alice, get("/api/../x"), 400, "the path is refused"),
        (
            &alice,
            with("Impersonate-Group", "root"),
            400,
            "the request is refused: header \"impersonate-group\" would impersonate without a user; add --as USER",
        ),
        (
            &alice,
            with("Impersonate_User", "root"),
            400,
            "the request is refused: header \"impersonate_user\" would impersonate",
        ),
        (
            &alice,
            with("Connection", "Impersonate-Group"),
            400,
            "the request is refused",
        ),
        (
            &world.with_token("nonsense"),
            get("/api"),
            401,
            "the bearer token is refused",
        ),
        (
            &world.with_token(&world.token("alice", None, -1)),
            get("/api"),
            401,
            "the bearer token is refused",
        ),
        (
            &world.with_token(&world.token("ghost", None, 60)),
            get("/api"),
            401,
            "the bearer token is refused: user \"ghost\" does not exist",
        ),
    ] {
        let asked = format!("{} {}", request.method(), request.uri());
        let response = client.http1(request).await;
        assert_eq!(response.status().as_u16(), code, "{asked}");
        let id = response.headers()["towline-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let status = status_object(response).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with(begins), "{asked}: {message}");
        assert!(message.contains(&id), "{asked}: {message}");
        assert_eq!(
            (status["kind"].as_str(), status["code"].as_u64()),
            (Some("Status"), Some(u64::from(code))),
            "{asked}"
        );
    }
}

fn at(path: &str) -> Request<Empty<Bytes>> {
    Request::get(path).body(Empty::new()).unwrap()
}

fn post(path: &str) -> Request<Empty<Bytes>> {
    Request::post(format!("{BASE}{path}"))
        .body(Empty::new())
        .unwrap()
}

fn with(name: &str, value: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("{BASE}/api"))
        .header(name, value)
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn a_token_of_one_membership_is_good_there_alone_and_needs_no_prefix() {
    let world = World::start().await;
    let (agent, mut seen) = double::recording();
    world.agent(agent).await;
    let bound = world.with_token(&world.token("alice", Some("m"), 60));
    assert_eq!(
        bound.http1(at("/api/v1/pods")).await.status(),
        StatusCode::OK
    );
    assert_eq!(
        bounded(seen.recv()).await.unwrap().0.uri.path(),
        "/api/v1/pods"
    );
    let elsewhere = bound
        .http1(at("/v1/projects/p/locations/global/memberships/other/api"))
        .await;
    assert_eq!(elsewhere.status(), StatusCode::UNAUTHORIZED);
    // Kubernetes' own paths go to the cluster, whatever pages the gateway has.
    for path in [
        "/healthz",
        "/metrics",
        "/version",
        "/.well-known/openid-configuration",
    ] {
        assert_eq!(
            bound.http1(at(path)).await.status(),
            StatusCode::OK,
            "{path}"
        );
        assert_eq!(bounded(seen.recv()).await.unwrap().0.uri.path(), path);
    }
}

#[tokio::test]
async fn an_upgrade_carries_bytes_both_ways_and_tells_an_abort_from_an_end() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            assert_eq!(request.method(), Method::POST);
            assert_eq!(request.headers()[wire::METHOD], "GET");
            let abort = request.uri().path().ends_with("abort");
            let (sender, channel) = body::channel();
            let answer = Response::builder()
                .header(wire::UPGRADED, request.headers()[wire::UPGRADE].clone())
                .body(channel.map_err(Into::into).boxed_unsync())
                .unwrap();
            double::own(async move {
                let mut caller = body::FromTunnel(request.into_body());
                while let Some(Ok(frame)) = caller.frame().await {
                    sender.send(frame.into_data().unwrap()).await.unwrap();
                }
                if abort {
                    sender.abort(body::Aborted("the pod is gone".into()));
                } else {
                    sender.send(Bytes::from_static(b"bye")).await.unwrap();
                    sender.finish();
                }
            });
            answer
        })
        .await;
    for (number, (path, clean)) in [("/exec", true), ("/abort", false)].into_iter().enumerate() {
        let mut request = get(path);
        request
            .headers_mut()
            .insert("connection", "Upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "SPDY/3.1".parse().unwrap());
        let mut stream = world.as_user("alice").upgrade(request).await;
        stream.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        bounded(stream.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        bounded(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, if clean { &b"bye"[..] } else { b"" });
        let ended = world.ended(number + 1).await;
        assert_eq!(
            ended[0].reason,
            if clean { "ended" } else { "the pod is gone" }
        );
    }
}

#[tokio::test]
async fn active_streams_have_a_quota_and_a_dropped_one_comes_back() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            let (sender, channel) = body::channel();
            double::own(async move {
                // As the API server does: a caller who has ended ends the stream.
                drop(request.into_body().collect().await);
                sender.finish();
            });
            Response::builder()
                .header(wire::UPGRADED, "websocket")
                .body(channel.map_err(Into::into).boxed_unsync())
                .unwrap()
        })
        .await;
    let exec = || {
        let mut request = get("/exec");
        request
            .headers_mut()
            .insert("connection", "Upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "websocket".parse().unwrap());
        request
    };
    let alice = world.as_user("alice");
    let mut held = vec![alice.upgrade(exec()).await, alice.upgrade(exec()).await];
    let refused = alice.http1(exec()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!refused.headers().contains_key("retry-after"));
    let message = status_object(refused).await["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with(
            "resource_exhausted: quota \"active_streams\" exhausted (2 of 2 in use by user:alice)"
        ),
        "{message}"
    );
    drop(held.pop());
    world.ended(1).await;
    drop(alice.upgrade(exec()).await);
}

#[tokio::test]
async fn a_watch_whose_permission_is_gone_ends_with_an_event() {
    let world = World::start().await;
    let (agent, events) = double::watching();
    world.agent(agent).await;
    let mut watch = world
        .as_user("alice")
        .http1(get("/api/v1/pods?watch=1"))
        .await
        .into_body();
    events
        .send(Bytes::from_static(b"{\"type\":\"ADDED\"}\n"))
        .await
        .unwrap();
    assert_eq!(
        bounded(watch.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "{\"type\":\"ADDED\"}\n"
    );
    world.set_policy("user:owner").await;
    let last = bounded(watch.frame())
        .await
        .unwrap()
        .unwrap()
        .into_data()
        .unwrap();
    let event: serde_json::Value = serde_json::from_slice(&last).unwrap();
    assert_eq!(event["type"], "ERROR");
    assert!(
        event["object"]["message"]
            .as_str()
            .unwrap()
            .contains("lacks permission"),
        "{event}"
    );
}

#[tokio::test]
async fn a_stream_ends_with_the_right_to_act_as_whom_it_acts_as() {
    for (case, reason) in [
        (
            "link",
            "user \"reader\" lacks permission \"serviceAccounts.getAccessToken\"",
        ),
        ("account", "serviceAccount ci@p is disabled"),
        ("revoked", "were revoked"),
        ("signed out", "user \"reader\" signed out"),
        ("user", "user \"reader\" is disabled"),
    ] {
        let world = World::start().await;
        let (agent, events) = double::watching();
        world.agent(agent).await;
        let token = world.acting_as("reader", "ci@p").await;
        let mut watch = world
            .with_token(&token)
            .http1(get("/api/v1/pods?watch=1"))
            .await
            .into_body();
        events.send(Bytes::from_static(b"{}\n")).await.unwrap();
        bounded(watch.frame()).await.unwrap().unwrap();
        world.take_back(case, &token).await;
        let last = bounded(watch.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap();
        let event: serde_json::Value = serde_json::from_slice(&last).unwrap();
        let message = event["object"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{case}: {event}");
    }
}

#[tokio::test]
async fn a_watch_cut_within_an_event_or_with_its_session_is_an_abort_or_an_event() {
    for (within, clean) in [(true, false), (false, true)] {
        let world = World::start().await;
        let (agent, events) = double::watching();
        world.agent(agent).await;
        let mut watch = world
            .as_user("alice")
            .http1(get("/api/v1/pods?watch=1"))
            .await
            .into_body();
        let sent: &[u8] = if within { b"{\"type\":" } else { b"{}\n" };
        events.send(Bytes::from_static(sent)).await.unwrap();
        bounded(watch.frame()).await.unwrap().unwrap();
        world.cut_agents();
        let last = bounded(watch.frame()).await.unwrap();
        assert_eq!(last.is_ok(), clean, "{last:?}");
        if let Ok(frame) = last {
            let event: serde_json::Value =
                serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
            assert!(
                event["object"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("connection to agent terminated")
            );
        }
    }
}

#[tokio::test]
async fn a_redirect_within_the_api_server_stays_within_the_membership() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            let to = request.uri().query().unwrap().to_owned();
            Response::builder()
                .status(302)
                .header("location", to)
                .body(empty())
                .unwrap()
        })
        .await;
    let alice = world.as_user("alice");
    for (to, location) in [
        ("/api/x?y=z", format!("{BASE}/api/x?y=z")),
        ("relative", format!("{BASE}/relative")),
        ("/../other/api", format!("{BASE}/other/api")),
    ] {
        let response = alice.http1(get(&format!("/r?{to}"))).await;
        assert_eq!(response.headers()["location"], location, "{to}");
    }
    // Clients send their token wherever they are led.
    for to in [
        "//elsewhere/x",
        "https://elsewhere/x",
        "http://127.0.0.1:1/x",
        "HTTPS://elsewhere/x",
        "https://a@elsewhere/x",
    ] {
        let response = alice.http1(get(&format!("/r?{to}"))).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{to}");
        assert!(!response.headers().contains_key("location"), "{to}");
    }
}

fn empty() -> UnsyncBoxBody<Bytes, double::Broken> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

#[tokio::test]
async fn stalled_readers_stall_themselves() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            if request.uri().path() != "/bulk" {
                return text("small");
            }
            let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
            let endless = futures_util::stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
            Response::new(StreamBody::new(endless).boxed_unsync())
        })
        .await;
    let alice = world.as_user("alice");
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let mut bulk = alice.http2(get("/bulk")).await.into_body();
        // One frame, so that the stream runs; then nobody reads.
        bounded(bulk.frame()).await.unwrap().unwrap();
        stalled.push(bulk);
    }
    for _ in 0..20 {
        let small = bounded(alice.http2(get("/small"))).await.into_body();
        assert_eq!(bounded(small.collect()).await.unwrap().to_bytes(), "small");
    }
}

#[tokio::test]
async fn many_watches_leave_room_for_the_next() {
    let world = World::start().await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            if request.uri().query().is_none() {
                return text("small");
            }
            let first =
                futures_util::stream::once(async { Ok(Frame::data(Bytes::from_static(b"{}\n"))) });
            let open = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            Response::new(StreamBody::new(open).boxed_unsync())
        })
        .await;
    let alice = world.as_user("alice");
    let mut watches = Vec::new();
    for _ in 0..1_000 {
        let mut watch = bounded(alice.http2(get("/api/v1/pods?watch=1")))
            .await
            .into_body();
        bounded(watch.frame()).await.unwrap().unwrap();
        watches.push(watch);
    }
    let small = bounded(alice.http2(get("/small"))).await;
    assert_eq!(small.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_long_head_is_refused_and_the_tunnel_lives() {
    let world = World::start().await;
    let (agent, events) = double::watching();
    world.agent(agent).await;
    let alice = world.as_user("alice");
    let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
    for kib in [64, 200, 300, 600] {
        let mut request = get("/api");
        for line in 0..kib {
            let name: http::HeaderName = format!("x-long-{line}").parse().unwrap();
            request
                .headers_mut()
                .insert(name, "x".repeat(1000).parse().unwrap());
        }
        let status = bounded(alice.http1(request)).await.status();
        let expected = if kib <= 200 {
            StatusCode::OK
        } else {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        };
        assert_eq!(status, expected, "{kib} KiB");
    }
    events.send(Bytes::from_static(b"{}\n")).await.unwrap();
    assert_eq!(
        bounded(watch.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "{}\n"
    );
}

#[tokio::test]
async fn a_burst_of_cancelled_requests_ends_nobody_elses_stream() {
    let world = World::start().await;
    let (agent, events) = double::watching();
    world.agent(agent).await;
    let alice = world.as_user("alice");
    let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
    for _ in 0..40 {
        let burst: Vec<_> = (0..300).map(|_| alice.http2(get("/api/slow"))).collect();
        let sent = futures_util::future::join_all(burst);
        // Sent, and dropped before any answer.
        drop(tokio::time::timeout(Duration::from_millis(5), sent).await);
    }
    events.send(Bytes::from_static(b"{}\n")).await.unwrap();
    assert_eq!(
        bounded(watch.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "{}\n"
    );
    assert_eq!(world.sessions(), 1);
}

#[tokio::test]
async fn a_caller_that_vanishes_is_noticed_by_the_agent() {
    let world = World::start().await;
    let (agent, events) = double::watching();
    world.agent(agent).await;
    let alice = world.as_user("alice");
    for http2 in [false, true] {
        let response = if http2 {
            alice.http2(get("/api/v1/pods?watch=1")).await
        } else {
            alice.http1(get("/api/v1/pods?watch=1")).await
        };
        assert_eq!(response.status(), StatusCode::OK);
        drop(response);
        alice.forget();
        bounded(events.closed_once()).await;
    }
}

/// Tells of the first bytes of every upload, and then whether it came whole.
async fn uploads(world: &World) -> tokio::sync::mpsc::UnboundedReceiver<Result<Bytes, String>> {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    world
        .agent(move |request: Request<Incoming>, _| {
            let tell = tell.clone();
            async move {
                let mut body = body::FromTunnel(request.into_body());
                let end = loop {
                    match body.frame().await {
                        Some(Ok(frame)) => {
                            drop(tell.send(Ok(frame.into_data().unwrap_or_default())))
                        }
                        Some(Err(aborted)) => break Err(aborted.to_string()),
                        None => break Ok(Bytes::new()),
                    }
                };
                drop(tell.send(end));
                text("got it")
            }
        })
        .await;
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_an_upload_is_never_a_whole_one() {
    let world = World::start().await;
    let mut told = uploads(&world).await;
    let alice = world.as_user("alice");
    // A reset with NO_ERROR reads like an end unless the request is dropped first: so often enough to see both.
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL].repeat(50) {
        let (response, mut upload) = alice.upload("/api/v1/namespaces/n/configmaps").await;
        upload
            .send_data(Bytes::from_static(b"half"), false)
            .unwrap();
        assert_eq!(bounded(told.recv()).await.unwrap().unwrap(), "half");
        upload.send_reset(reason);
        let end = bounded(told.recv()).await.unwrap();
        assert!(end.is_err(), "{reason:?}");
        drop(response);
    }
    let (response, mut upload) = alice.upload("/api/v1/namespaces/n/configmaps").await;
    upload
        .send_data(Bytes::from_static(b"whole"), true)
        .unwrap();
    assert_eq!(bounded(response).await.unwrap().status(), StatusCode::OK);
    assert_eq!(bounded(told.recv()).await.unwrap().unwrap(), "whole");
    assert_eq!(bounded(told.recv()).await.unwrap().unwrap(), "");
}

#[tokio::test]
async fn a_trailer_that_would_impersonate_is_the_callers_fault() {
    let world = World::start().await;
    let _told = uploads(&world).await;
    let alice = world.as_user("alice");
    for name in ["impersonate-user", "impersonate_group", wire::ABORT] {
        let (response, mut upload) = alice.upload("/api/v1/namespaces/n/configmaps").await;
        upload.send_data(Bytes::from_static(b"{}"), false).unwrap();
        let trailers = [(name.parse().unwrap(), "x".parse().unwrap())];
        upload
            .send_trailers(trailers.into_iter().collect())
            .unwrap();
        assert_eq!(
            bounded(response).await.unwrap().status(),
            StatusCode::BAD_REQUEST,
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_gives_what_there_was_and_then_an_abort() {
    let world = World::start().await;
    world
        .agent(|_: Request<Incoming>, _| async move {
            let (sender, channel) = body::channel();
            double::own(async move {
                sender
                    .send(Bytes::from_static(b"half of it"))
                    .await
                    .unwrap();
                sender.abort(body::Aborted("the API server went away".into()));
            });
            Response::new(channel.map_err(Into::into).boxed_unsync())
        })
        .await;
    let alice = world.as_user("alice");
    for http2 in [false, true] {
        let response = if http2 {
            alice.http2(get("/api")).await
        } else {
            alice.http1(get("/api")).await
        };
        assert_eq!(response.status(), StatusCode::OK);
        let mut answer = response.into_body();
        assert_eq!(
            bounded(answer.frame())
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            "half of it"
        );
        assert!(bounded(answer.frame()).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn who_stalls_too_many_answers_loses_the_oldest() {
    let world = World::start_with("limits.slow_readers_bytes = 16777216").await;
    world
        .agent(|request: Request<Incoming>, _| async move {
            if request.uri().path() == "/small" {
                return text("small");
            }
            text(vec![b'x'; 64 * 1024])
        })
        .await;
    // Somebody else's, the oldest of all.
    let other = world.as_user("reader").narrow().await;
    let mut others = bounded(other("/bulk")).await;
    let alice = world.as_user("alice").narrow().await;
    let mut stalled = Vec::new();
    for _ in 0..16 * 16 + 9 {
        stalled.push(bounded(alice("/bulk")).await);
    }
    // 256 fit into 16 MiB. Ten are too many, and all of them are alice's.
    world.cut(10).await;
    assert!(world.stalled_bytes() <= 16 << 20);
    for body in stalled.iter_mut().take(10) {
        assert!(read(body).await.is_err());
    }
    for body in stalled.iter_mut().skip(10).chain([&mut others]) {
        assert_eq!(read(body).await.unwrap(), 64 * 1024);
    }
    let small = bounded(world.as_user("reader").http1(get("/small")))
        .await
        .into_body();
    assert_eq!(bounded(small.collect()).await.unwrap().to_bytes(), "small");
}

/// Reads an answer to its end.
async fn read(body: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut bytes = 0;
    while let Some(data) = bounded(body.data()).await {
        let length = data?.len();
        bytes += length;
        body.flow_control().release_capacity(length)?;
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_cluster_says_nothing_for_the_gateways_origin() {
    let world = World::start().await;
    world
        .agent(|_: Request<Incoming>, _| async move {
            let mut answer = text("hostile");
            for (name, value) in [
                ("strict-transport-security", "max-age=1; includeSubDomains"),
                ("alt-svc", "h3=\":1\""),
                ("clear-site-data", "\"*\""),
                ("service-worker-allowed", "/"),
                ("towline-gateway", "1"),
                ("towline-request-id", "forged"),
                ("x-own", "kept"),
            ] {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            answer
        })
        .await;
    let response = world.as_user("alice").http1(get("/api")).await;
    let id = response.headers()["towline-request-id"].clone();
    assert_ne!(id, "forged");
    let mut names: Vec<&str> = response
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "audit-id",
            "content-length",
            "date",
            "towline-request-id",
            "x-own"
        ]
    );
}
