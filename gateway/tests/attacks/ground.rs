//! A gateway with one connected agent that tells what comes to it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode, request::Parts};
use http_body_util::{BodyExt as _, Empty};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use towline_gateway::app::Gateway;
use towline_proto::assertion::Grant;

use crate::{
    double,
    world::{World, bounded},
};

/// The membership's URL, without the host.
pub(crate) const BASE: &str = "/v1/projects/p/locations/global/memberships/m";

/// What an attacker got: the status, and the message of the `Status` object.
pub(crate) type Answered = (StatusCode, String);

/// Where attacks take place.
pub(crate) struct Ground {
    pub(crate) world: World,
    seen: UnboundedReceiver<(Parts, Grant)>,
}

impl Ground {
    /// Users, one membership, and its agent's double.
    pub(crate) async fn new() -> Self {
        let world = World::start().await;
        let (agent, seen) = double::recording();
        world.agent(agent).await;
        Self { world, seen }
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        self.world.running.gateway()
    }

    /// The `Authorization` of `alice`, who may do everything in the membership.
    pub(crate) fn alice(&self) -> String {
        format!("Bearer {}", self.world.token("alice", None, 600))
    }

    /// A request that passes, so that what did not come before it was not sent at all.
    pub(crate) async fn assert_nothing_came(&mut self) {
        let marker = get("/api/marker");
        let answer = self.world.as_user("alice").http1(marker).await;
        assert_eq!(answer.status(), StatusCode::OK, "the marker has to pass");
        let (head, _) = self.next().await;
        assert_eq!(
            head.uri.path(),
            "/api/marker",
            "{} {} came to the agent",
            head.method,
            head.uri
        );
    }

    /// The next request that came to the agent.
    pub(crate) async fn next(&mut self) -> (Parts, Grant) {
        bounded(self.seen.recv()).await.unwrap()
    }

    /// One request over HTTP/1.1.
    pub(crate) async fn ask(&self, request: Request<Empty<Bytes>>, token: &str) -> Answered {
        let response = self.world.with_token(token).http1(request).await;
        let status = response.status();
        let body = bounded(response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        (status, message(&body))
    }
}

/// A GET below the membership.
pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("{BASE}{path}"))
        .body(Empty::new())
        .unwrap()
}

/// The message of a `Status`, or the body as it is.
pub(crate) fn message(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    json.as_ref()
        .and_then(|status| status["message"].as_str())
        .map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}
