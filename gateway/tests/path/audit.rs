//! What the audit log says of requests, streams and refusals, and what it never says.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use towline_proto::{body, wire};

use super::{
    double,
    world::{World, bounded},
};
use crate::{BASE, get, text};

fn exec(query: &str) -> Request<Empty<Bytes>> {
    let mut request = get(&format!("/api/v1/namespaces/n/pods/box/exec?{query}"));
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", "SPDY/3.1".parse().unwrap());
    headers.insert("user-agent", "kubectl/v1.36".parse().unwrap());
    headers.insert("cookie", "session=cookie-hunter2".parse().unwrap());
    headers.insert("x-api-key", "header-hunter2".parse().unwrap());
    request
}

/// Echoes an upgrade's first five bytes and ends; watches end after an event; all else gets `small`.
async fn agent(world: &World) {
    world
        .agent(|request: Request<Incoming>, _| async move {
            if request
                .uri()
                .query()
                .is_some_and(|query| query.contains("watch"))
            {
                return text("{\"object\": \"answer-hunter2\"}\n");
            }
            let Some(protocol) = request.headers().get(wire::UPGRADE).cloned() else {
                return text("small");
            };
            let (sender, channel) = body::channel();
            double::own(async move {
                let mut caller = body::FromTunnel(request.into_body());
                let frame = caller.frame().await.unwrap().unwrap();
                sender.send(frame.into_data().unwrap()).await.unwrap();
                drop(caller.collect().await);
                sender.finish();
            });
            Response::builder()
                .header(wire::UPGRADED, protocol)
                .body(channel.map_err(Into::into).boxed_unsync())
                .unwrap()
        })
        .await;
}

fn of<'a>(events: &'a [Value], id: &http::HeaderValue) -> Vec<&'a Value> {
    let id = id.to_str().unwrap();
    events
        .iter()
        .filter(|event| event["auditID"] == id)
        .collect()
}

fn annotation<'a>(event: &'a Value, key: &str) -> &'a str {
    event["annotations"][format!("towline.dev/{key}")]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test]
async fn every_request_and_stream_has_its_events_and_no_secret_is_in_them() {
    let world = World::start().await;
    agent(&world).await;
    let alice = world.as_user("alice");
    let token = world.token("alice", None, 600);

    let plain = alice
        .http2(get("/api/v1/pods?limit=1&x=query-hunter2"))
        .await;
    let plain_id = plain.headers()["audit-id"].clone();
    drop(plain.into_body().collect().await);

    let watch = alice.http1(get("/api/v1/pods?watch=1")).await;
    let watch_id = watch.headers()["audit-id"].clone();
    drop(watch.into_body().collect().await);

    let switched = alice
        .http1(exec("command=sh&command=-c&command=command-hunter2"))
        .await;
    assert_eq!(switched.status(), StatusCode::SWITCHING_PROTOCOLS);
    let exec_id = switched.headers()["audit-id"].clone();
    let mut stream = hyper_util::rt::TokioIo::new(hyper::upgrade::on(switched).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    bounded(stream.read_exact(&mut [0; 5])).await.unwrap();
    stream.shutdown().await.unwrap();
    bounded(stream.read_to_end(&mut Vec::new())).await.unwrap();
    world.ended(2).await;

    let refused = world.as_user("reader").http1(exec("stdin=true")).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused_id = refused.headers()["audit-id"].clone();
    let nobody = world.with_token("token-hunter2").http1(get("/api")).await;
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    let nobody_id = nobody.headers()["audit-id"].clone();
    drop((
        refused.into_body().collect().await,
        nobody.into_body().collect().await,
    ));

    let (text, events) = world.audit(5 + 2).await;
    let [event] = of(&events, &plain_id)[..] else {
        panic!("{text}");
    };
    assert_eq!(event["stage"], "ResponseComplete");
    assert_eq!(event["responseStatus"]["code"], 200);
    assert_eq!(event["user"]["username"], "alice");
    assert_eq!(event["user"]["groups"][0], "dev");
    assert_eq!(
        event["requestURI"],
        format!("{BASE}/api/v1/pods?limit=1&redacted")
    );
    assert_eq!(event["sourceIPs"][0], "127.0.0.1");
    assert_eq!(annotation(event, "bytes-sent"), "5");
    assert_eq!(
        (&event["verb"], &event["objectRef"]["resource"]),
        (&"list".into(), &"pods".into())
    );
    assert_eq!(
        annotation(event, "decision"),
        "gatewayAdmin in the policy of projects/p"
    );
    assert_eq!(annotation(event, "permission"), "gateway.get");
    assert_eq!(
        annotation(event, "membership"),
        "projects/p/locations/global/memberships/m"
    );

    for (id, code, protocol) in [(&watch_id, 200, "watch"), (&exec_id, 101, "SPDY/3.1")] {
        let [began, ended] = of(&events, id)[..] else {
            panic!("{text}");
        };
        assert_eq!(began["stage"], "ResponseStarted");
        assert_eq!(ended["stage"], "ResponseComplete");
        for event in [began, ended] {
            assert_eq!(event["responseStatus"]["code"], code);
            assert_eq!(annotation(event, "protocol"), protocol);
        }
        assert_eq!(annotation(ended, "reason"), "ended");
    }
    let ended = of(&events, &exec_id)[1];
    assert_eq!(
        (
            annotation(ended, "bytes-received"),
            annotation(ended, "bytes-sent")
        ),
        ("5", "5")
    );
    assert_eq!(ended["userAgent"], "kubectl/v1.36");
    assert_eq!(
        ended["objectRef"],
        serde_json::json!({
            "resource": "pods", "namespace": "n", "name": "box", "apiVersion": "v1", "subresource": "exec",
        })
    );

    let [event] = of(&events, &refused_id)[..] else {
        panic!("{text}");
    };
    assert_eq!(event["user"]["username"], "reader");
    assert_eq!(annotation(event, "layer"), "authorization");
    assert!(annotation(event, "reason").contains("lacks permission \"gateway.stream\""));
    let [event] = of(&events, &nobody_id)[..] else {
        panic!("{text}");
    };
    assert_eq!(event["user"]["username"], "system:anonymous");
    assert_eq!(annotation(event, "layer"), "authentication");

    assert!(!text.contains("hunter2"), "{text}");
    assert!(!text.contains(&token) && !text.contains("Bearer"), "{text}");
}

#[tokio::test]
async fn an_end_that_is_not_clean_says_why() {
    let world = World::start().await;
    agent(&world).await;
    let alice = world.as_user("alice");
    let mut stream = alice.upgrade(exec("tty=true")).await;
    stream.write_all(b"hello").await.unwrap();
    bounded(stream.read_exact(&mut [0; 5])).await.unwrap();
    world.set_policy("user:owner").await;
    drop(bounded(stream.read_to_end(&mut Vec::new())).await);
    world.ended(1).await;
    let (_, events) = world.audit(2).await;
    assert!(
        annotation(&events[1], "reason").contains("lacks permission"),
        "{events:?}"
    );
}

#[tokio::test]
async fn without_room_for_a_record_nothing_is_done() {
    let world = World::start_with("audit.sink = 'webhook'\naudit.webhook_url = 'http://127.0.0.1:1/'\naudit.queue = 100\naudit.when_full = 'refuse'").await;
    agent(&world).await;
    let alice = world.as_user("alice");
    let mut refused = None;
    for _ in 0..20 {
        let many = (0..50).map(|_| alice.http2(get("/api")));
        let answers = bounded(futures_util::future::join_all(many)).await;
        refused = answers
            .into_iter()
            .find(|answer| answer.status() != StatusCode::OK);
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("the log gets full");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let status = crate::status_object(refused).await;
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("the audit log is full, and nothing is done without a record"),
        "{status}"
    );
}
