//! A gateway that is told to end: who is moved, who is served to the end, and what is told meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    dead_code,
    reason = "a test says what went wrong by panicking; what the tests of the path need is more"
)]

use std::{net::TcpListener, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use towline_gateway::{app::Gateway, clock::Clock};
use towline_proto::{
    handshake::{Facts, Opening},
    session::Notice,
};

pub(crate) mod path {
    pub(crate) mod agent;
    pub(crate) mod double;
    pub(crate) mod world;
}

use path::{
    agent::Agent,
    double,
    world::{World, bounded, membership},
};

/// Whether callers come to one replica and agents to another.
pub(crate) const ELSEWHERE: bool = false;

fn get(path: &str) -> Request<Empty<Bytes>> {
    let path = format!("/v1/{}{path}", membership());
    Request::get(path).body(Empty::new()).unwrap()
}

fn exec(path: &str) -> Request<Empty<Bytes>> {
    let mut request = get(path);
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
    headers.insert(header::UPGRADE, "websocket".parse().unwrap());
    request
}

const LEAVING: Notice = Notice {
    leaving: true,
    replicas: 0,
};

/// A caller's connection that is kept alive.
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
    authorization: String,
}

impl Kept {
    async fn connect(world: &World) -> Self {
        let stream = TcpStream::connect(world.running.public_address())
            .await
            .unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        Self {
            sender,
            connection: double::own(async move { drop(connection.await) }),
            authorization: format!("Bearer {}", world.token("alice", None, 600)),
        }
    }

    /// A request's status, and whether its answer is the connection's last.
    async fn ask(&mut self, method: Method) -> (StatusCode, bool) {
        let mut request = get("/api").map(|_| Full::from("body"));
        *request.method_mut() = method;
        let headers = request.headers_mut();
        headers.insert(header::HOST, "gateway.test".parse().unwrap());
        headers.insert(header::AUTHORIZATION, self.authorization.parse().unwrap());
        bounded(self.sender.ready()).await.unwrap();
        let answer = bounded(self.sender.send_request(request)).await.unwrap();
        let last = answer
            .headers()
            .get(header::CONNECTION)
            .is_some_and(|value| value == "close");
        let status = answer.status();
        bounded(answer.into_body().collect()).await.unwrap();
        (status, last)
    }
}

async fn tell(gateway: std::net::SocketAddr, path: &str) -> String {
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let _connection = double::own(async move { drop(connection.await) });
    let request = Request::get(path)
        .header(header::HOST, "admin")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = bounded(sender.send_request(request)).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

async fn said_and_heard(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut heard = [0; 5];
    bounded(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
}

/// Begins to drain; the gateway, and the drain's end.
fn begin(world: World) -> (Arc<Gateway>, JoinHandle<Arc<Gateway>>) {
    let gateway = Arc::clone(world.running.gateway());
    (gateway, double::own(world.drain()))
}

#[tokio::test]
async fn agents_move_first_then_callers_and_streams_go_on_to_their_end() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::handed(socket.try_clone().unwrap(), "session_grace = '60s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let mut kept = Kept::connect(&world).await;
    assert_eq!(kept.ask(Method::POST).await, (StatusCode::OK, false));
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    let dialled = TcpStream::connect(world.running.public_address())
        .await
        .unwrap();
    let (public, admin) = (
        world.running.public_address(),
        world.running.admin_address(),
    );
    assert_eq!(tell(admin, "/readyz").await, "ok\n");
    let root = world.running.gateway().keys.root();
    let (key, facts) = (&world.agent_key, Facts::default());
    let opening = Opening::new(key, membership(), root, &facts, Clock::System.unix()).unwrap();

    let (gateway, mut drained) = begin(world);
    bounded(agent.handle.told().wait_for(|notice| notice.leaving))
        .await
        .unwrap();
    // Nobody is turned away while agents look for another gateway, but for agents.
    assert_eq!(kept.ask(Method::POST).await, (StatusCode::OK, false));
    let (status, says) = double::switch_on(dialled, opening.hello())
        .await
        .unwrap_err();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(says.contains("opens no new session"), "{says}");
    // Whoever connects comes to the one that has the socket now.
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpListener::from_std(socket).unwrap();
    let mut connected = TcpStream::connect(public).await.unwrap();
    let (mut accepted, _) = bounded(socket.accept()).await.unwrap();
    connected.write_all(b"to the next").await.unwrap();
    let mut heard = [0; 11];
    bounded(accepted.read_exact(&mut heard)).await.unwrap();

    assert!(!gateway.drain.is_cancelled());
    agent.handle.tell(LEAVING);
    bounded(gateway.drain.cancelled()).await;
    // Whoever has a connection still gets an answer, and is told that it is the last.
    assert_eq!(kept.ask(Method::POST).await, (StatusCode::OK, true));
    bounded(kept.connection).await.unwrap();
    assert_eq!(
        tell(admin, "/readyz").await,
        "draining, 1 streams are left\n"
    );
    assert!(
        tell(admin, "/metrics")
            .await
            .contains("\ntowline_draining 1\n")
    );
    said_and_heard(&mut stream).await;
    assert!(futures_util::FutureExt::now_or_never(&mut drained).is_none());
    drop(stream);
    bounded(drained).await.unwrap();
}

#[tokio::test]
async fn a_kept_connection_is_closed_with_its_next_answer_alone() {
    let world = World::start().await;
    let _agent = Agent::start(&world, &Facts::default()).await;
    let mut kept = Kept::connect(&world).await;
    let mut unused = Kept::connect(&world).await;
    assert_eq!(kept.ask(Method::POST).await, (StatusCode::OK, false));
    let public = world.running.public_address();
    let (gateway, drained) = begin(world);
    bounded(gateway.drain.cancelled()).await;
    let refused = async { while TcpStream::connect(public).await.is_ok() {} };
    bounded(refused).await;
    // A request may have been on its way to either.
    for connection in [&mut kept, &mut unused] {
        assert_eq!(connection.ask(Method::POST).await, (StatusCode::OK, true));
        bounded(&mut connection.connection).await.unwrap();
    }
    bounded(drained).await.unwrap();
}

#[tokio::test]
async fn who_is_alone_waits_for_no_agent() {
    let world = World::start_with("drain_delay = '600s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    // It is told all the same: another gateway may take this one's place.
    let mut told = agent.handle.told();
    let (_, drained) = begin(world);
    bounded(drained).await.unwrap();
    assert!(told.wait_for(|notice| notice.leaving).await.is_ok());
}

#[tokio::test]
async fn one_gateway_follows_another_and_neither_refuses_anybody() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let clone = || socket.try_clone().unwrap();
    let world = World::handed(clone(), "session_grace = '60s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let mut kept = Kept::connect(&world).await;
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    let next = world.successor(clone()).await;
    let (public, root) = (
        world.running.public_address(),
        world.running.gateway().keys.root(),
    );
    let (key, policy) = (world.agent_key.to_pkcs8(), "user:owner");
    let key = towline_proto::jws::KeyPair::from_pkcs8(key).unwrap();
    let alice = world.as_user("alice");

    let (gateway, drained) = begin(world);
    bounded(agent.handle.told().wait_for(|notice| notice.leaving))
        .await
        .unwrap();
    // Whoever dials comes to the other now.
    let (opened, session) =
        double::open(public, &key, root, &membership(), &Facts::default()).await;
    assert_eq!(opened.replica, next.gateway().replicas.id());
    let handle = session.handle();
    let echo = |request, _| path::agent::echo(request);
    let _moved = double::answering(Arc::new(opened), session, membership(), echo);
    bounded(
        handle
            .phase()
            .wait_for(|now| *now == towline_proto::session::Phase::Up),
    )
    .await
    .unwrap();
    agent.handle.tell(LEAVING);
    bounded(gateway.drain.cancelled()).await;
    for _ in 0..20 {
        assert_eq!(
            bounded(alice.http1(get("/api"))).await.status(),
            StatusCode::OK
        );
    }
    assert_eq!(kept.ask(Method::POST).await, (StatusCode::OK, true));
    // What the one is told, the other goes by: the stream that still runs there ends with its permission.
    said_and_heard(&mut stream).await;
    World::set_policy_in(&next.gateway().store, policy).await;
    drop(bounded(stream.read_to_end(&mut Vec::new())).await);
    bounded(drained).await.unwrap();
    assert!(
        gateway.live.ended(None)[0]
            .reason
            .contains("gateway.stream"),
        "{:?}",
        gateway.live.ended(None)
    );
}
