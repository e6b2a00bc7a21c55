//! What one replica asks the others: the streams that run there, or ended last.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use towline_proto::names::Project;

use super::Replicas;
use crate::{app::Gateway, live::Stream, request::Body};

/// Where it is asked. No caller's path comes without a session.
const STREAMS: &str = "/replica/v1/streams";

/// How long the others may take.
const LIMIT: Duration = Duration::from_secs(3);

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Which streams are asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    project: Project,
    /// Those that ended last, rather than those that run.
    ended: bool,
}

impl Replicas {
    /// The streams of a project at all other replicas that answer.
    pub(crate) async fn streams_elsewhere(&self, project: &Project, ended: bool) -> Vec<Stream> {
        let asked = Asked {
            project: project.clone(),
            ended,
        };
        let asking = self.reachable().into_iter().map(async |replica| {
            match timeout(LIMIT, self.ask(&replica, &asked)).await {
                Ok(Ok(streams)) => streams,
                Ok(Err(reason)) => {
                    tracing::warn!(replica, reason, "a replica did not tell its streams");
                    Vec::new()
                }
                Err(_) => {
                    tracing::warn!(
                        replica,
                        "a replica did not tell its streams within {LIMIT:?}"
                    );
                    Vec::new()
                }
            }
        });
        join_all(asking).await.into_iter().flatten().collect()
    }

    async fn ask(&self, replica: &str, asked: &Asked) -> Result<Vec<Stream>, String> {
        let address = self.address_of(replica).ok_or("it is gone")?;
        let peer = self.peers.peer(replica, &address).await;
        let peer = peer.map_err(|error| error.to_string())?;
        let asked = serde_json::to_string(asked).map_err(|error| error.to_string())?;
        let request = Request::post(format!("https://replica{STREAMS}"))
            .body(
                Full::from(asked)
                    .map_err(|never| match never {})
                    .boxed_unsync(),
            )
            .map_err(|error| error.to_string())?;
        let answer = peer.requests.clone().send_request(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(answer.status().to_string());
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
    }
}

/// Whether a request is for the replica itself.
pub(super) fn is_question<B>(request: &Request<B>) -> bool {
    request.uri().path() == STREAMS && !request.headers().contains_key(super::OF_SESSION)
}

/// Answers another replica.
pub(super) async fn answer(gateway: &Gateway, request: Request<Incoming>) -> Response<Body> {
    let body = Limited::new(request.into_body(), 64 * 1024).collect().await;
    let asked = body
        .ok()
        .and_then(|body| serde_json::from_slice::<Asked>(&body.to_bytes()).ok());
    let told = asked.and_then(|Asked { project, ended }| {
        let live = &gateway.live;
        let streams = if ended {
            live.ended(Some(&project))
        } else {
            live.running(Some(&project))
        };
        serde_json::to_vec(&streams).ok()
    });
    let (status, body) = match told {
        Some(told) => (StatusCode::OK, Full::from(told).boxed_unsync()),
        None => (
            StatusCode::BAD_REQUEST,
            Empty::<Bytes>::new().boxed_unsync(),
        ),
    };
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
