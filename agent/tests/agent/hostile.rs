//! The four ways in which one caller could stop everybody's tunnel, and doesn't.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{task::JoinSet, time::timeout};
use towline_agent::body;

use crate::{
    apiserver::ApiServer,
    eventually,
    gateway::{Gateway, text},
};

/// The first piece of a body.
async fn first(response: &mut Response<Incoming>) {
    let frame = timeout(Duration::from_secs(10), response.body_mut().frame()).await;
    frame.expect("stuck").unwrap().unwrap();
}

/// A small request is answered soon, whatever else goes on.
async fn others_go_on(gateway: &Gateway) {
    let answered = timeout(Duration::from_secs(5), gateway.get("/api"))
        .await
        .expect("stuck")
        .unwrap();
    assert_eq!(text(answered).await, "ok");
}

#[tokio::test]
async fn stalled_readers_stall_themselves() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let mut response = gateway.get("/download").await.unwrap();
        first(&mut response).await;
        stalled.push(response);
    }
    others_go_on(&gateway).await;
    // And a stalled one still gets all of it once it reads.
    let rest = stalled
        .pop()
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert!(rest.len() > 15 << 20);
}

#[tokio::test]
async fn more_watches_than_a_connection_takes() {
    let server = ApiServer::start().await;
    let upstream = server.upstream().await;
    let gateway = Gateway::open(upstream.clone()).await;
    let opening: Vec<_> = (0..1050)
        .map(|_| gateway.get("/api/v1/pods?watch=1"))
        .collect();
    let mut watches = Vec::new();
    for response in futures_util::future::join_all(opening).await {
        let mut response = response.unwrap();
        first(&mut response).await;
        watches.push(response);
    }
    assert_eq!(server.watches(), 1050);
    others_go_on(&gateway).await;
    assert_eq!(upstream.connections(), (1, 11));
    drop(watches);
    eventually("the watches are closed", async || server.watches() == 0).await;
    others_go_on(&gateway).await;
}

#[tokio::test]
async fn the_rush_shares_connections() {
    let server = ApiServer::start().await;
    let upstream = server.upstream().await;
    let gateway = Gateway::open(upstream.clone()).await;
    // 350 at once, as informers do it: none is parked behind a full connection.
    let all = futures_util::future::join_all((0..350).map(|_| gateway.get("/api/v1/pods?watch=1")));
    let watches = timeout(Duration::from_secs(10), all).await.expect("parked");
    assert!(watches.iter().all(Result::is_ok));
    assert_eq!(upstream.connections().1, 4);
}

#[tokio::test]
async fn large_headers_pass_both_ways() {
    let server = ApiServer::start().await;
    let groups: Vec<String> = (0..1100)
        .map(|n| format!("group-{n}-{}", "g".repeat(60)))
        .collect();
    let gateway = Gateway::open_as(server.upstream().await, groups).await;
    let mut watch = gateway.get("/api/v1/pods?watch=1").await.unwrap();
    first(&mut watch).await;
    let request = gateway
        .request("GET", "/api", "")
        .header("x-large", "l".repeat(70 * 1024));
    let response = gateway
        .send(request.body(body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let seen = server.last();
    assert_eq!(
        seen.headers.get_all("impersonate-group").iter().count(),
        1100
    );
    assert_eq!(seen.headers["x-large"].len(), 70 * 1024);
    others_go_on(&gateway).await;
    assert_eq!(server.watches(), 1);
}

#[tokio::test]
async fn bursts_of_cancelled_requests_end_nobody_elses_stream() {
    let server = ApiServer::start().await;
    let gateway = std::sync::Arc::new(Gateway::open(server.upstream().await).await);
    let mut watch = gateway.get("/api/v1/pods?watch=1").await.unwrap();
    first(&mut watch).await;
    for _ in 0..20 {
        let mut burst = JoinSet::new();
        for _ in 0..300 {
            let gateway = std::sync::Arc::clone(&gateway);
            burst.spawn(async move { drop(gateway.get("/download").await) });
        }
        tokio::task::yield_now().await;
        burst.shutdown().await;
    }
    others_go_on(&gateway).await;
    assert_eq!(server.watches(), 1);
    let quiet = timeout(Duration::from_millis(50), watch.body_mut().frame()).await;
    assert!(quiet.is_err(), "the watch ended: {quiet:?}");
}
