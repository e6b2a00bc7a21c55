//! Requests that are no upgrades.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
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

#[tokio::test]
async fn path_and_headers_arrive_as_they_were_sent_and_nothing_else() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let path = "/api/v1/namespaces/a%2Fb/pods//x?labelSelector=a%3Db&y=%20+";
    let request = gateway
        .request("GET", path, "")
        .header("accept", "application/json");
    let response = gateway
        .send(request.body(body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(
        (response.status().as_u16(), text(response).await),
        (200, "ok".to_owned())
    );
    let seen = server.last();
    assert_eq!(seen.line, format!("GET {path}"));
    let mut names: Vec<String> = seen
        .headers
        .iter()
        .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "accept: application/json",
            "authorization: Bearer first",
            "impersonate-group: dev",
            "impersonate-user: alice",
        ]
    );
}

#[tokio::test]
async fn an_answer_passes_untouched_with_its_trailers() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let response = gateway.get("/forbidden").await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(!response.headers().contains_key(wire::REFUSAL));
    assert_eq!(
        text(response).await,
        r#"{"message":"pods is forbidden: User \"alice\" cannot list"}"#
    );
    let collected = gateway
        .get("/trailers")
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert_eq!(collected.trailers().unwrap()["x-checksum"], "7");
    assert_eq!(collected.to_bytes(), "x");
}

#[tokio::test]
async fn an_abort_by_the_api_server_comes_after_its_bytes() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let collected = gateway
        .get("/abort")
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert!(collected.trailers().unwrap().contains_key(wire::ABORT));
    assert_eq!(collected.to_bytes(), "part");
}

#[tokio::test]
async fn a_stream_that_the_gateway_resets_is_reset_upstream_at_once() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let mut watch = gateway.get("/api/v1/pods?watch=1").await.unwrap();
    watch.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(server.watches(), 1);
    drop(watch);
    eventually("the watch is closed", async || server.watches() == 0).await;
}

#[tokio::test]
async fn an_upload_that_ends_early_never_looks_finished() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    // Ended, aborted, and reset.
    let (sender, request) = Gateway::streaming(gateway.request("POST", "/upload", ""));
    let (response, ()) = tokio::join!(gateway.send(request), async {
        sender.send(Bytes::from_static(b"whole")).await.unwrap();
        sender.finish();
    });
    assert_eq!(text(response.unwrap()).await, "5");

    let (sender, request) = Gateway::streaming(gateway.request("POST", "/upload", ""));
    let (response, ()) = tokio::join!(gateway.send(request), async {
        sender.send(Bytes::from_static(b"part")).await.unwrap();
        sender.abort(Aborted("the caller vanished".into()));
    });
    let response = response.unwrap();
    assert_eq!(response.headers()[wire::REFUSAL], "upstream");

    for _ in 0..20 {
        let (sender, request) = Gateway::streaming(gateway.request("POST", "/upload", ""));
        let before = server.record.requests.lock().unwrap().len();
        tokio::select! {
            _ = gateway.send(request) => panic!("the upload isn't finished"),
            () = async {
                sender.send(Bytes::from_static(b"part")).await.unwrap();
                eventually("it arrives", async || server.record.requests.lock().unwrap().len() > before).await;
            } => {}
        }
    }
    eventually("all uploads ended", async || {
        server.record.uploads.lock().unwrap().len() == 22
    })
    .await;
    let uploads = server.record.uploads.lock().unwrap().clone();
    assert_eq!(
        uploads.iter().filter(|upload| upload.is_ok()).count(),
        1,
        "{uploads:?}"
    );
}

#[tokio::test]
async fn identities_in_trailers_are_refused() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("impersonate-user", "admin".parse().unwrap());
    let frames = [
        Ok::<_, Aborted>(Frame::data(Bytes::from_static(b"x"))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let response = gateway
        .send(gateway.request("POST", "/upload", "").body(body).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()[wire::REFUSAL], "malformed");
    let sentence = text(response).await;
    assert!(sentence.contains("impersonate-user"), "{sentence}");
}

#[tokio::test]
async fn refusals_come_with_code_and_sentence() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let request = gateway
        .request("GET", "/api", "")
        .header("impersonate-user", "x")
        .body(body::empty())
        .unwrap();
    let response = gateway.send(request).await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()[wire::REFUSAL].to_str().unwrap()
        ),
        (400, "malformed")
    );
    let forged = gateway
        .request("GET", "/api", "")
        .uri("https://m/other")
        .body(body::empty())
        .unwrap();
    let response = gateway.send(forged).await.unwrap();
    assert_eq!(response.headers()[wire::REFUSAL], "assertion");
    assert!(server.record.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_api_server_that_is_gone_is_a_sentence() {
    let server = ApiServer::start().await;
    let upstream = server.upstream().await;
    drop(server);
    let gateway = Gateway::open(upstream).await;
    let response = gateway.get("/api").await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()[wire::REFUSAL].to_str().unwrap()
        ),
        (502, "upstream")
    );
    let sentence = text(response).await;
    assert!(
        sentence.starts_with("the agent cannot reach the API server: cannot connect to 127.0.0.1:"),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_rotated_token_is_used_at_once_when_the_old_one_is_refused() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    *server.record.token.lock().unwrap() = Some("first".into());
    assert_eq!(gateway.get("/api").await.unwrap().status(), 200);
    *server.record.token.lock().unwrap() = Some("second".into());
    // Nothing new to show yet: the API server's own answer.
    assert_eq!(gateway.get("/api").await.unwrap().status(), 401);
    std::fs::write(server.file("token"), "second").unwrap();
    assert_eq!(gateway.get("/api").await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_cut_session_lets_go_of_everything_upstream() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let mut watch = gateway.get("/api/v1/pods?watch=1").await.unwrap();
    watch.body_mut().frame().await.unwrap().unwrap();
    drop((gateway, watch));
    eventually("the watch is closed", async || server.watches() == 0).await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_upload_ends_is_whole() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    for _ in 0..200 {
        let (sender, request) = Gateway::streaming(gateway.request("POST", "/api", ""));
        let response = gateway.send(request).await.unwrap();
        // The stream's reset, which is to say that the rest of the upload is of no interest, has
        // come by now.
        sender.closed().await;
        let body = FromTunnel(response.into_body()).collect().await;
        assert_eq!(body.unwrap().to_bytes(), "ok");
    }
}

#[tokio::test]
async fn a_connection_that_died_unnoticed_costs_nobody_a_request() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    for _ in 0..20 {
        assert_eq!(text(gateway.get("/api").await.unwrap()).await, "ok");
        server.cut();
    }
}

#[tokio::test]
async fn silence_is_bounded_where_the_api_server_answers_itself() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let seen = async |count| {
        let requests = || server.record.requests.lock().unwrap().len();
        eventually("they arrive", async || requests() == count).await;
    };
    let mut log = pin!(gateway.get("/log"));
    let mut silent = pin!(gateway.get("/silent"));
    let (sender, request) = Gateway::streaming(gateway.request("POST", "/silent", ""));
    let mut upload = pin!(gateway.send(request));
    tokio::select! {
        biased;
        _ = &mut log => panic!("answered"),
        _ = &mut silent => panic!("answered"),
        _ = &mut upload => panic!("answered"),
        () = seen(3) => {}
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(76)).await;
    tokio::time::resume();
    let refused = silent.await.unwrap();
    assert_eq!(
        (
            refused.status().as_u16(),
            refused.headers()[wire::REFUSAL].to_str().unwrap()
        ),
        (502, "upstream")
    );
    assert_eq!(
        text(refused).await,
        "the API server did not begin to answer within 75 s"
    );
    // The upload isn't finished: its wait hasn't begun.
    sender.send(Bytes::from_static(b"more")).await.unwrap();
    assert!(
        futures_util::poll!(&mut upload).is_pending() && futures_util::poll!(&mut log).is_pending()
    );
}

#[tokio::test]
async fn a_connection_that_takes_no_more_keeps_what_it_has() {
    let server = ApiServer::start().await;
    let gateway = Gateway::open(server.upstream().await).await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        let mut watch = gateway.get("/api/v1/pods?watch=1").await.unwrap();
        watch.body_mut().frame().await.unwrap().unwrap();
        watches.push(watch);
        let request = gateway
            .request("DELETE", "/api", "")
            .body(body::empty())
            .unwrap();
        assert_eq!(text(gateway.send(request).await.unwrap()).await, "ok");
        server.goaway();
    }
    assert_eq!(server.watches(), 5);
    drop(watches);
    eventually("the watches are closed", async || server.watches() == 0).await;
}
