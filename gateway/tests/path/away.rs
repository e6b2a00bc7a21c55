//! PostgreSQL goes away and comes back, under a whole gateway.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use towline_proto::{body, wire};
use towline_test_postgresql::Server;

use super::{
    double::{self, Answer},
    world::{Client, World, at, bounded},
};
use crate::{get, status_object, text};

/// Answers at once, and an upgrade with whatever it is sent.
async fn echo(request: Request<Incoming>, _: towline_proto::assertion::Grant) -> Answer {
    let Some(upgrade) = request.headers().get(wire::UPGRADE).cloned() else {
        return text("here");
    };
    let (sender, channel) = body::channel();
    double::own(async move {
        let mut caller = body::FromTunnel(request.into_body());
        while let Some(Ok(frame)) = caller.frame().await {
            if let Ok(data) = frame.into_data()
                && sender.send(data).await.is_err()
            {
                return;
            }
        }
        sender.finish();
    });
    Response::builder()
        .header(wire::UPGRADED, upgrade)
        .body(channel.map_err(Into::into).boxed_unsync())
        .unwrap()
}

async fn shell(client: &Client) -> TokioIo<Upgraded> {
    let mut request = get("/exec");
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", "SPDY/3.1".parse().unwrap());
    client.upgrade(request).await
}

async fn echoes<S>(stream: &mut S, said: &[u8])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(said).await.unwrap();
    let mut heard = vec![0; said.len()];
    bounded(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, said);
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    bounded(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn ready(world: &World) -> StatusCode {
    let admin = world.running.admin_address();
    let stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let _connection = double::own(connection);
    let request = Request::get("/readyz")
        .header("host", "admin")
        .body(http_body_util::Empty::<Bytes>::new())
        .unwrap();
    bounded(client.send_request(request))
        .await
        .unwrap()
        .status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_streams_of_those_who_are_known_go_on_without_the_database() {
    let server = Server::start();
    let world = World::start_on(Some(at(&server.url("postgres"))), "").await;
    let store = &world.running.gateway().store;
    until(|| store.is_believed()).await;
    world.agent(echo).await;
    let (alice, reader) = (world.as_user("alice"), world.as_user("reader"));
    assert_eq!(alice.http1(get("/version")).await.status(), StatusCode::OK);
    let mut stream = shell(&alice).await;
    echoes(&mut stream, b"before").await;

    server.stop();
    until(|| store.away().is_some()).await;
    echoes(&mut stream, b"away").await;
    for _ in 0..3 {
        let answer = bounded(alice.http1(get("/version"))).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    echoes(&mut shell(&alice).await, b"another").await;
    assert_eq!(ready(&world).await, StatusCode::OK);
    // Who isn't known is told why, and not that they may not.
    let answer = bounded(reader.http1(get("/version"))).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let status = status_object(answer).await;
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("the gateway's database can't be reached"),
        "{status}"
    );
    let disabling = store.set_disabled("alice", true).await;
    assert!(
        disabling
            .unwrap_err()
            .to_string()
            .contains("nothing was changed")
    );
    // An agent comes back, and its cluster is reached.
    if !world.is_elsewhere() {
        world.cut_agents();
        world.connected(0).await;
        world.agent_untold(echo).await;
        let answer = bounded(alice.http1(get("/version"))).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }

    server.resume();
    until(|| store.away().is_none()).await;
    assert_eq!(
        bounded(reader.http1(get("/version"))).await.status(),
        StatusCode::OK
    );
    // Nothing was kept of the change that was refused; and one is made again.
    assert_eq!(
        bounded(alice.http1(get("/version"))).await.status(),
        StatusCode::OK
    );
    store.set_disabled("alice", true).await.unwrap();
    assert_eq!(
        bounded(alice.http1(get("/version"))).await.status(),
        StatusCode::UNAUTHORIZED
    );
}

/// A revocation may have been missed: who was let in is let in no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_and_no_stream_goes_on_after_the_limit() {
    let server = Server::start();
    let database = at(&server.url("postgres")).with_offline_limit(Duration::from_secs(5));
    let world = World::start_on(Some(database), "").await;
    let store = &world.running.gateway().store;
    until(|| store.is_believed()).await;
    world.agent(echo).await;
    let alice = world.as_user("alice");
    let mut stream = shell(&alice).await;
    echoes(&mut stream, b"before").await;
    server.stop();
    until(|| !store.is_believed()).await;
    let answer = bounded(alice.http1(get("/version"))).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let ended = world.ended(1).await;
    assert!(
        ended[0].reason.contains("not heard from its database"),
        "{}",
        ended[0].reason
    );
    assert_eq!(ready(&world).await, StatusCode::SERVICE_UNAVAILABLE);
    server.resume();
    until(|| store.is_believed()).await;
    let answer = bounded(alice.http1(get("/version"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
}
