//! Sessions that go on over other connections, and those that must not.

use std::{convert::Infallible, pin::pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc},
};
use towline_gateway::tunnels::MAX_SESSIONS;
use towline_proto::{
    body,
    handshake::{self, Facts, Opening, Resumption, ResumptionKey},
    jws::KeyPair,
    session::Phase,
    tunnel,
};

use super::{
    agent::{Agent, facts},
    double::{self, Answer},
    leases::exec,
    world::{World, bounded, membership},
};
use crate::get;

impl Agent {
    /// Loses the connection; how far the session has come, and the number of the next connection.
    fn lose(&self) -> (u64, u64) {
        let generation = self.handle.generation() + 1;
        (generation, self.handle.fence(generation).unwrap())
    }

    async fn resume(&self, world: &World) -> Result<u64, (StatusCode, String)> {
        let (generation, position) = self.lose();
        let asked = Resumption {
            replica: &self.opened.replica,
            session: self.handle.id(),
            key: &self.opened.resumption,
            generation,
            position,
        };
        let (theirs, connection) = ask(world, &world.agent_key, &asked).await?;
        Ok(self.handle.attach(generation, connection, theirs).unwrap())
    }
}

/// Asks to go on with a session; how far the gateway has come, and the connection.
async fn ask(
    world: &World,
    key: &KeyPair,
    asked: &Resumption<'_>,
) -> Result<(u64, impl towline_proto::session::Connection), (StatusCode, String)> {
    let now = towline_gateway::clock::Clock::System.unix();
    let facts = Facts::default();
    let opening = Opening::resume(
        key,
        membership(),
        world.running.gateway().keys.root(),
        &facts,
        now,
        asked,
    )
    .unwrap();
    let (head, connection) =
        double::switch(world.running.public_address(), opening.hello()).await?;
    let [chain, proof] =
        [handshake::CHAIN, handshake::PROOF].map(|name| head[name].to_str().unwrap());
    let (theirs, _) = opening
        .resumed(
            asked.session,
            asked.key,
            world.running.gateway().keys.root(),
            chain,
            proof,
            now,
        )
        .unwrap();
    Ok((theirs, connection))
}

async fn said_and_heard(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut heard = [0; 5];
    bounded(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn a_stream_goes_on_over_other_connections() {
    let world = World::start_with("session_grace = '60s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    for resumed in 1..=20 {
        said_and_heard(&mut stream).await;
        // What is said while there is no connection is heard later.
        if resumed % 2 == 0 {
            agent.lose();
        }
        stream.write_all(b"early").await.unwrap();
        agent.resume(&world).await.unwrap();
        let mut heard = [0; 5];
        bounded(stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"early");
        let tunnels = &world.holder().gateway().tunnels;
        assert_eq!(tunnels.resumptions().0, resumed);
    }
}

#[tokio::test]
async fn what_does_not_prove_to_be_the_session_goes_on_with_nothing() {
    let world = World::start_with("session_grace = '60s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let other = Agent::start(&world, &Facts::default()).await;
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    let asked = |session, key, generation| Resumption {
        replica: &agent.opened.replica,
        session,
        key,
        generation,
        position: 0,
    };
    let (id, key): (&str, &ResumptionKey) = (agent.handle.id(), &agent.opened.resumption);
    let stranger = KeyPair::generate().unwrap();
    for (what, with, asked, status, says) in [
        (
            "another session's secret",
            &world.agent_key,
            asked(id, &other.opened.resumption, 1),
            StatusCode::FORBIDDEN,
            "does not know the secret",
        ),
        (
            "another agent's key",
            &stranger,
            asked(id, key, 1),
            StatusCode::FORBIDDEN,
            "no agent enrolled under this key",
        ),
        (
            "a session that isn't there",
            &world.agent_key,
            asked("1234", key, 1),
            StatusCode::GONE,
            "session 1234 is not here",
        ),
        (
            "a connection that is not newer",
            &world.agent_key,
            asked(id, key, 0),
            StatusCode::GONE,
            "is not here",
        ),
    ] {
        let (refused, message) = ask(&world, with, &asked).await.err().expect(what);
        assert_eq!(refused, status, "{what}: {message}");
        assert!(message.contains(says), "{what}: {message}");
        // The session didn't even notice.
        said_and_heard(&mut stream).await;
        assert_eq!(*agent.handle.phase().borrow(), Phase::Up, "{what}");
    }
}

#[tokio::test]
async fn a_position_that_cannot_be_ends_the_session() {
    let world = World::start_with("session_grace = '60s'").await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    let asked = Resumption {
        replica: &agent.opened.replica,
        session: agent.handle.id(),
        key: &agent.opened.resumption,
        generation: 1,
        position: 1 << 40,
    };
    let _connection = ask(&world, &world.agent_key, &asked).await;
    let read = bounded(stream.read_to_end(&mut Vec::new())).await;
    drop(read);
    world.nothing_held("alice", "a session that is over").await;
}

#[tokio::test]
async fn an_agent_that_starts_anew_ends_what_it_left_behind() {
    let world = World::start_with("session_grace = '60s'").await;
    let alice = world.as_user("alice");
    let agent = Agent::start(&world, &facts("pod-1", "a")).await;
    let mut stream = alice.upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    agent.lose();
    world.connected(0).await;
    // Another pod's session, and another one of the same process, change nothing.
    let _elsewhere = Agent::start(&world, &facts("pod-2", "b")).await;
    let _beside = Agent::start(&world, &facts("pod-1", "a")).await;
    agent.resume(&world).await.unwrap();
    said_and_heard(&mut stream).await;
    agent.lose();
    world.connected(2).await;
    let _anew = Agent::start(&world, &facts("pod-1", "c")).await;
    drop(bounded(stream.read_to_end(&mut Vec::new())).await);
    world
        .nothing_held("alice", "an agent that started anew")
        .await;
    assert_eq!(agent.resume(&world).await.unwrap_err().0, StatusCode::GONE);
}

#[tokio::test]
async fn nothing_new_is_sent_where_there_is_no_connection() {
    let world = World::start_with("session_grace = '60s'").await;
    let alice = world.as_user("alice");
    let agent = Agent::start(&world, &Facts::default()).await;
    agent.lose();
    world.connected(0).await;
    // The request waits for the connection, and is served over it.
    let request = alice.upgrade(exec("/exec"));
    let (mut stream, resumed) = tokio::join!(request, async {
        tokio::task::yield_now().await;
        agent.resume(&world).await
    });
    resumed.unwrap();
    said_and_heard(&mut stream).await;
    // With another session there, it goes to that one at once.
    agent.lose();
    world.connected(0).await;
    let _other = Agent::start(&world, &Facts::default()).await;
    let mut stream = alice.upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
}

#[tokio::test]
async fn a_membership_has_room_for_so_many_sessions() {
    let world = World::start_with("session_grace = '60s'").await;
    let mut agents = Vec::new();
    for _ in 0..MAX_SESSIONS {
        agents.push(Agent::start(&world, &Facts::default()).await);
    }
    let hello = || {
        let now = towline_gateway::clock::Clock::System.unix();
        let root = world.running.gateway().keys.root();
        let facts = Facts::default();
        Opening::new(&world.agent_key, membership(), root, &facts, now).unwrap()
    };
    let gateway = world.holder().public_address();
    let (status, says) = double::switch(gateway, hello().hello()).await.unwrap_err();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(says.contains("has 32 sessions here"), "{says}");
    // One that waits for a connection makes room.
    agents[7].lose();
    world.connected(MAX_SESSIONS - 1).await;
    // For a moment it is about to go on.
    let (status, _) = double::switch(gateway, hello().hello()).await.unwrap_err();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let accepted = async {
        loop {
            match double::switch(gateway, hello().hello()).await {
                Ok((_, connection)) => return connection,
                Err((status, _)) => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
            }
        }
    };
    let _connection = bounded(accepted).await;
    let refused = agents[7].resume(&world).await.unwrap_err();
    assert_eq!(refused.0, StatusCode::GONE);
}

/// An answer that is no watch and no upgrade, of which there is no end.
async fn endless(_: Request<Incoming>) -> Answer {
    let chunk = Bytes::from_static(&[b'x'; 1_000]);
    let frames = futures_util::stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn an_answer_ends_with_a_session_that_gets_no_other_connection() {
    let world = World::start_with("session_grace = '60s'").await;
    let (gateway, root) = (
        world.holder().public_address(),
        world.running.gateway().keys.root(),
    );
    let facts = Facts::default();
    let (opened, session) =
        double::open(gateway, &world.agent_key, root, &membership(), &facts).await;
    let handle = session.handle();
    let serve = |request: Request<Incoming>, _| endless(request);
    let _connected = double::answering(Arc::new(opened), session, membership(), serve);
    world.connected(1).await;
    let mut answer = world.as_user("alice").http1(get("/bulk")).await.into_body();
    bounded(answer.frame()).await.unwrap().unwrap();
    let tunnels = &world.holder().gateway().tunnels;
    tunnels.close(&membership(), "deleted");
    // What runs goes on, until the connection is lost.
    for _ in 0..10 {
        bounded(answer.frame()).await.unwrap().unwrap();
    }
    handle.fence(1).unwrap();
    bounded(async { while let Some(Ok(_)) = answer.frame().await {} }).await;
}

#[tokio::test]
async fn an_agent_that_goes_finishes_what_it_has() {
    let world = World::start().await;
    let alice = world.as_user("alice");
    let (gateway, root) = (
        world.holder().public_address(),
        world.running.gateway().keys.root(),
    );
    let facts = Facts::default();
    let (_, session) = double::open(gateway, &world.agent_key, root, &membership(), &facts).await;
    let (tell, mut served) = mpsc::channel(1);
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let _agent = double::own(async move {
        let service = service_fn(move |_: Request<Incoming>| {
            let (sender, body) = body::channel();
            let tell = tell.clone();
            async move {
                tell.send(sender).await.unwrap();
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let serving = tunnel::server().serve_connection(TokioIo::new(session), service);
        let mut serving = pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => return,
            () = told.notified() => serving.as_mut().graceful_shutdown(),
        }
        drop(serving.await);
    });
    world.connected(1).await;
    let mut watch = alice.http1(get("/api/v1/pods?watch=1")).await.into_body();
    let events = served.recv().await.unwrap();
    let event = || Bytes::from_static(b"{}\n");
    events.send(event()).await.unwrap();
    bounded(watch.frame()).await.unwrap().unwrap();

    go.notify_one();
    // Until the gateway has heard of it, a request may still be served.
    loop {
        let request = alice.http1(get("/api/v1/pods"));
        tokio::select! {
            answer = request => {
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                break;
            }
            Some(sender) = served.recv() => sender.finish(),
        }
    }
    world.connected(0).await;
    events.send(event()).await.unwrap();
    let heard = bounded(watch.frame()).await.unwrap().unwrap();
    assert_eq!(heard.into_data().unwrap(), event());
    // Another agent serves what is new.
    let other = Agent::start(&world, &Facts::default()).await;
    said_and_heard(&mut alice.upgrade(exec("/exec")).await).await;
    drop(other);
    events.finish();
    while let Some(frame) = bounded(watch.frame()).await {
        frame.unwrap();
    }
}

#[tokio::test]
async fn a_session_without_a_connection_ends_in_the_end() {
    let world = World::start().await;
    let agent = Agent::start(&world, &Facts::default()).await;
    let mut stream = world.as_user("alice").upgrade(exec("/exec")).await;
    said_and_heard(&mut stream).await;
    agent.lose();
    drop(bounded(stream.read_to_end(&mut Vec::new())).await);
    world.nothing_held("alice", "a session that is over").await;
    assert_eq!(agent.resume(&world).await.unwrap_err().0, StatusCode::GONE);
}
