//! Streams end in every way there is, and nothing of what they held is left.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use towline_proto::{body, wire};

use super::{
    double,
    world::{World, bounded},
};
use crate::{get, text};

pub(crate) fn exec(path: &str) -> Request<Empty<Bytes>> {
    let mut request = get(path);
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", "websocket".parse().unwrap());
    request
}

/// `/refused` answers 403, `/never` not at all, `/abort` breaks off, `/panic` panics; upgrades echo, watches wait.
pub(crate) async fn agent(world: &World) {
    world
        .agent(|request: Request<Incoming>, _| async move {
            let path = request.uri().path().to_owned();
            match path.as_str() {
                "/refused" => {
                    let mut answer = text("no");
                    *answer.status_mut() = StatusCode::FORBIDDEN;
                    return answer;
                }
                "/never" | "/api/v1/never" => return std::future::pending().await,
                "/panic" => panic!("on purpose"),
                _ => {}
            }
            let (sender, channel) = body::channel();
            let (aborts, watched) = (path == "/abort", path == "/api/v1/pods");
            let upgrade = request.headers().get(wire::UPGRADE).cloned();
            double::own(async move {
                sender.send(Bytes::from_static(b"{}\n")).await.unwrap();
                if aborts {
                    sender.abort(body::Aborted("the pod is gone".into()));
                    return;
                }
                // Until the caller has ended; one who sends nothing at all never has.
                if upgrade.is_some() {
                    drop(request.into_body().collect().await);
                    sender.finish();
                } else {
                    std::future::pending::<()>().await;
                }
            });
            let mut answer = Response::new(channel.map_err(Into::into).boxed_unsync());
            if !watched {
                answer
                    .headers_mut()
                    .insert(wire::UPGRADED, "websocket".parse().unwrap());
            }
            answer
        })
        .await;
}

#[tokio::test]
async fn leases_come_back_whatever_becomes_of_a_stream() {
    let world = World::start().await;
    agent(&world).await;
    let alice = world.as_user("alice");
    // Each twice, as there are two places: what leaked would be missed by the next.
    for round in 0..2 {
        // The caller ends, and the caller vanishes.
        let mut stream = alice.upgrade(exec("/exec")).await;
        bounded(stream.read_exact(&mut [0; 3])).await.unwrap();
        assert_eq!(world.in_use("alice").streams, 1);
        stream.shutdown().await.unwrap();
        bounded(stream.read_to_end(&mut Vec::new())).await.unwrap();
        world.nothing_held("alice", "ended").await;
        drop(alice.upgrade(exec("/exec")).await);
        alice.forget();
        world.nothing_held("alice", "vanished").await;

        // The connection is reset.
        alice.resets(true);
        drop(alice.upgrade(exec("/exec")).await);
        alice.forget();
        alice.resets(false);
        world.nothing_held("alice", "reset").await;

        // The pod ends it; the API server refuses it; the double panics.
        let mut stream = alice.upgrade(exec("/abort")).await;
        drop(bounded(stream.read_to_end(&mut Vec::new())).await);
        world.nothing_held("alice", "aborted").await;
        let refused = alice.http1(exec("/refused")).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        // At once, with the answer not even read: kubectl's next try needs the place.
        assert_eq!(world.in_use("alice").streams, 0);
        drop(refused);
        world.nothing_held("alice", "refused").await;
        // The gateway refuses after the lease was given.
        let mut request = exec("/exec");
        let headers = request.headers_mut();
        headers.insert("impersonate-group", "g".parse().unwrap());
        assert_eq!(alice.http1(request).await.status(), StatusCode::BAD_REQUEST);
        world.nothing_held("alice", "refused by the gateway").await;

        // The caller goes away before there is an answer.
        for request in [exec("/never"), get("/api/v1/never?watch=1"), get("/never")] {
            let waiting = tokio::time::timeout(Duration::from_millis(200), alice.http1(request));
            assert!(waiting.await.is_err());
            alice.forget();
            world.nothing_held("alice", "cancelled").await;
        }

        // Watches: read, dropped, reset.
        for http2 in [false, true] {
            let watch = if http2 {
                alice.http2(get("/api/v1/pods?watch=1")).await
            } else {
                alice.http1(get("/api/v1/pods?watch=1")).await
            };
            assert_eq!(world.in_use("alice").watches, 1, "{http2} {round}");
            drop(watch);
            alice.forget();
            world.nothing_held("alice", "a watch").await;
        }

        // The permission goes.
        let mut stream = alice.upgrade(exec("/exec")).await;
        let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
        world.set_policy("user:owner").await;
        drop(bounded(stream.read_to_end(&mut Vec::new())).await);
        while let Some(Ok(_)) = bounded(watch.frame()).await {}
        world.nothing_held("alice", "revoked").await;
        world.set_policy("user:alice").await;

        // The agent dies.
        let mut stream = alice.upgrade(exec("/exec")).await;
        let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
        world.cut_agents();
        drop(bounded(stream.read_to_end(&mut Vec::new())).await);
        while let Some(Ok(_)) = bounded(watch.frame()).await {}
        world.nothing_held("alice", "the agent died").await;
        agent(&world).await;

        // Its answer panics, and takes the session with it.
        let refused = alice.http1(exec("/panic")).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        world.nothing_held("alice", "the agent panicked").await;
        world.cut_agents();
        agent(&world).await;
    }
    // Nor is anything left when the gateway drains.
    let mut stream = alice.upgrade(exec("/exec")).await;
    stream.write_all(b"x").await.unwrap();
    let gateway = world.drain().await;
    assert_eq!(gateway.live.count(), 0);
    let (project, principal) = ("p".parse().unwrap(), "user:alice".parse().unwrap());
    assert_eq!(gateway.quotas.in_use(&project, &principal).streams, 0);
}
