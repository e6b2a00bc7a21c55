//! A double of an agent whose session the test has in its hands.

use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use towline_proto::{
    body,
    handshake::{Facts, Opened},
    session::{Handle, Phase},
    wire,
};

use super::{
    double::{self, Answer, Connected},
    world::{World, bounded, membership},
};

/// A session of the world's agent, as the agent sees it.
pub(crate) struct Agent {
    pub(crate) opened: Arc<Opened>,
    pub(crate) handle: Handle,
    _connected: Connected,
}

pub(crate) fn facts(host: &str, process: &str) -> Facts {
    Facts {
        host: host.to_owned(),
        process: process.to_owned(),
        ..Facts::default()
    }
}

/// Bodies and upgraded streams echo.
pub(crate) async fn echo(request: Request<Incoming>) -> Answer {
    let (sender, channel) = body::channel();
    let upgrade = request.headers().contains_key(wire::UPGRADE);
    double::own(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(bytes) = frame.into_data() {
                sender.send(bytes).await.unwrap();
            }
        }
        if !upgrade {
            sender.finish();
        }
    });
    let mut answer = Response::new(channel.map_err(Into::into).boxed_unsync());
    if upgrade {
        let protocol = HeaderValue::from_static("websocket");
        answer.headers_mut().insert(wire::UPGRADED, protocol);
    }
    answer
}

impl Agent {
    pub(crate) async fn start(world: &World, facts: &Facts) -> Self {
        let (gateway, before) = (world.holder().public_address(), world.sessions());
        let root = world.running.gateway().keys.root();
        let (opened, session) =
            double::open(gateway, &world.agent_key, root, &membership(), facts).await;
        let (opened, handle) = (Arc::new(opened), session.handle());
        let connected = double::answering(
            Arc::clone(&opened),
            session,
            membership(),
            |request: Request<Incoming>, _| echo(request),
        );
        world.connected(before + 1).await;
        world.known(before + 1).await;
        bounded(handle.phase().wait_for(|now| *now == Phase::Up))
            .await
            .unwrap();
        Self {
            opened,
            handle,
            _connected: connected,
        }
    }
}
