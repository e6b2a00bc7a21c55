//! Upgraded streams.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use towline_agent::body;
use towline_proto::{
    body::{Aborted, FromTunnel},
    wire,
};

use crate::{
    apiserver::ApiServer,
    eventually,
    gateway::{Gateway, text},
};

/// Reads `length` bytes out of an upgraded stream.
async fn read(body: &mut FromTunnel<Incoming>, length: usize) -> Result<Vec<u8>, Aborted> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        match body.frame().await {
            Some(frame) => bytes.extend_from_slice(frame?.data_ref().unwrap()),
            None => break,
        }
    }
    Ok(bytes)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_for_itself() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let (sender, request) = Gateway::streaming(
        gateway
            .request("GET", "/exec?command=sh", "websocket")
            .header("sec-websocket-key", "k"),
    );
    let response = gateway.send(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[wire::UPGRADED], "websocket");
    assert_eq!(
        response.headers()["x-stream-protocol-version"],
        "v5.channel.k8s.io"
    );
    assert!(
        !response.headers().contains_key("connection")
            && !response.headers().contains_key("upgrade")
    );
    let mut body = FromTunnel(response.into_body());
    let data = vec![b'e'; 300_000];
    let (sent, echoed) = tokio::join!(
        async {
            for chunk in data.chunks(10_000) {
                sender.send(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            sender
        },
        read(&mut body, data.len())
    );
    assert!(echoed.unwrap() == data);
    sent.finish();
    assert_eq!(read(&mut body, 100).await.unwrap(), b"bye");
    assert_eq!(*server.record.exec.lock().unwrap(), ["clean end"]);

    let seen = server.last();
    assert_eq!(seen.line, "GET /exec?command=sh");
    let mut lines: Vec<String> = seen
        .headers
        .iter()
        .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "authorization: Bearer first",
            "connection: Upgrade",
            &format!("host: {}", server.address),
            "impersonate-group: dev",
            "impersonate-user: alice",
            "sec-websocket-key: k",
            "upgrade: websocket",
        ]
    );
}

#[tokio::test]
async fn an_abort_by_the_api_server_comes_after_its_bytes() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let (_sender, request) = Gateway::streaming(gateway.request("POST", "/exec?abort", "SPDY/3.1"));
    let response = gateway.send(request).await.unwrap();
    let mut body = FromTunnel(response.into_body());
    assert_eq!(read(&mut body, 4).await.unwrap(), b"part");
    read(&mut body, 1).await.unwrap_err();
    assert_eq!(server.last().line, "POST /exec?abort");
}

#[tokio::test]
async fn a_caller_that_vanishes_never_says_goodbye() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    for round in 1..=20 {
        let (sender, request) = Gateway::streaming(gateway.request("GET", "/exec", "websocket"));
        let response = gateway.send(request).await.unwrap();
        let mut body = FromTunnel(response.into_body());
        sender.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(read(&mut body, 1).await.unwrap(), b"x");
        if round % 2 == 0 {
            // A reset.
            drop((body, sender));
        } else {
            sender.abort(Aborted("the caller vanished".into()));
        }
        eventually("the API server notices", async || {
            server.record.exec.lock().unwrap().len() == round
        })
        .await;
    }
    let ends = server.record.exec.lock().unwrap().clone();
    assert!(ends.iter().all(|end| end.starts_with("broken")), "{ends:?}");
}

#[tokio::test]
async fn a_refused_upgrade_is_the_api_servers_own_answer() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let (_sender, request) = Gateway::streaming(gateway.request("GET", "/no-exec", "websocket"));
    let response = gateway.send(request).await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["x-own"], "kept");
    assert!(
        !response.headers().contains_key(wire::UPGRADED)
            && !response.headers().contains_key(wire::REFUSAL)
    );
    assert_eq!(text(response).await, "container not found");
}

#[tokio::test]
async fn the_end_of_a_session_reaches_its_upgraded_streams() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let (_sender, request) = Gateway::streaming(gateway.request("GET", "/exec", "websocket"));
    let response = gateway.send(request).await.unwrap();
    let mut body = FromTunnel(response.into_body());
    gateway.over.cancel();
    let aborted = read(&mut body, 1).await.unwrap_err();
    assert_eq!(aborted.0, "the agent ended the session");
}

#[tokio::test]
async fn an_upgrade_with_a_thousand_groups() {
    let server = ApiServer::start().await;
    let groups: Vec<String> = (0..1100).map(|n| format!("group-{n}")).collect();
    let gateway = Gateway::open_as(server.upstream().await, groups).await;
    let (_sender, request) = Gateway::streaming(gateway.request("GET", "/exec", "websocket"));
    assert_eq!(
        gateway.send(request).await.unwrap().headers()[wire::UPGRADED],
        "websocket"
    );
    assert_eq!(
        server
            .last()
            .headers
            .get_all("impersonate-group")
            .iter()
            .count(),
        1100
    );
    let _unused = body::empty();
}
