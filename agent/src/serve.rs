//! One request of a session: verify, impersonate, upstream.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_proto::{
    body::{Aborted, IntoTunnel, channel},
    tunnel, upgraded,
    wire::{self, Refusal},
};

use crate::{
    body::{Boxed, Holding, Upload, text},
    guard::{Denied, Guard, Impersonation},
    role::Role,
    upstream::{Answer, Outbound, SendError, Upstream},
};

mod denial;

/// Streams that an agent serves at a time.
pub const MAX_STREAMS: usize = tunnel::MAX_STREAMS;

/// What the requests of one session share.
pub struct Shared {
    /// Who is calling.
    pub guard: Guard,
    /// Whom they call.
    pub upstream: Arc<Upstream>,
    /// Which groups may be named.
    pub role: Arc<Role>,
    /// Room for streams, in all sessions of the agent.
    pub streams: Arc<Semaphore>,
    /// Upgraded streams.
    pub joins: TaskTracker,
    /// Ends upgraded streams.
    pub over: CancellationToken,
}

/// Why the agent answers by itself.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the agent serves {MAX_STREAMS} streams, which is its limit; try again")]
    Overloaded,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{0}")]
    Impersonation(String),
}

impl Refused {
    const fn refusal(&self) -> Refusal {
        match self {
            Self::Overloaded => Refusal::Overloaded,
            Self::Denied(denied) => denied.refusal(),
            Self::Send(error) => error.refusal(),
            Self::Impersonation(_) => Refusal::Impersonation,
        }
    }
}

/// Answers a request; a failure is an answer too.
pub async fn request<B>(shared: &Shared, request: Request<B>) -> Response<Boxed>
where
    B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    serve(shared, request)
        .await
        .unwrap_or_else(|refused| refusal(&refused))
}

async fn serve<B>(shared: &Shared, request: Request<B>) -> Result<Response<Boxed>, Refused>
where
    B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let permit = Arc::clone(&shared.streams)
        .try_acquire_owned()
        .map_err(|_| Refused::Overloaded)?;
    let (parts, body) = request.into_parts();
    let mut caller = shared.guard.admit(parts)?;
    let left_out = caller.keep_groups(|group| shared.role.names(group));
    let out = Outbound::from(&caller);
    tracing::debug!(
        request = caller.request_id(),
        principal = caller.principal(),
        method = %caller.method(),
        path = caller.path().path(),
        groups_left_out = left_out,
        "serving"
    );
    if caller.upgrade().is_none() {
        let (upload, watch) = Upload::new(body);
        let response = shared
            .upstream
            .send(out, upload.boxed_unsync(), watch)
            .await?;
        return answer(shared, response, &caller, permit).await;
    }
    match shared.upstream.upgrade(&out).await? {
        Answer::Switched(response, connection) => {
            Ok(switch(shared, response, connection, body, caller, permit))
        }
        Answer::Other(response) => answer(shared, response, &caller, permit).await,
    }
}

/// The API server's own answer, untouched but for what belongs to its connection.
async fn answer(
    shared: &Shared,
    response: Response<Boxed>,
    caller: &Impersonation,
    permit: OwnedSemaphorePermit,
) -> Result<Response<Boxed>, Refused> {
    let inspected = denial::inspect(response, caller.user()).await;
    let mut response = inspected.map_err(|sentence| {
        shared.role.doubt();
        Refused::Impersonation(sentence)
    })?;
    wire::strip_hop_by_hop(response.headers_mut());
    Ok(response.map(|body| Holding::new(IntoTunnel::new(body), permit).boxed_unsync()))
}

/// Both sides talk from here on; the agent carries.
fn switch<B>(
    shared: &Shared,
    response: Response<()>,
    connection: hyper::upgrade::Upgraded,
    incoming: B,
    caller: Impersonation,
    permit: OwnedSemaphorePermit,
) -> Response<Boxed>
where
    B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let (sender, outgoing) = channel();
    let over = shared.over.clone();
    drop(shared.joins.spawn(async move {
        let kill = async move {
            over.cancelled().await;
            "the agent ended the session".to_owned()
        };
        let ended = upgraded::join(TokioIo::new(connection), incoming, sender, kill).await;
        let Aborted(reason) = ended.aborted.unwrap_or_else(|| Aborted(String::new()));
        tracing::debug!(
            request = caller.request_id(),
            sent = ended.sent,
            received = ended.received,
            reason,
            "an upgraded stream ended"
        );
        drop(permit);
    }));
    let (mut head, ()) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    head.status = StatusCode::OK;
    wire::strip_hop_by_hop(&mut head.headers);
    let protocol = protocol.unwrap_or_else(|| HeaderValue::from_static(""));
    head.headers
        .insert(HeaderName::from_static(wire::UPGRADED), protocol);
    head.version = http::Version::HTTP_2;
    Response::from_parts(head, outgoing.boxed_unsync())
}

fn refusal(refused: &Refused) -> Response<Boxed> {
    let refusal = refused.refusal();
    let mut sentence = refused.to_string();
    sentence.truncate(sentence.floor_char_boundary(wire::MAX_REFUSAL));
    tracing::info!(refusal = refusal.code(), "refused: {sentence}");
    let mut response = Response::new(text(sentence));
    *response.status_mut() = match refusal {
        Refusal::Assertion | Refusal::Identity | Refusal::Impersonation => StatusCode::FORBIDDEN,
        Refusal::Malformed => StatusCode::BAD_REQUEST,
        Refusal::Upstream => StatusCode::BAD_GATEWAY,
        Refusal::Overloaded | Refusal::Draining => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = response.headers_mut();
    headers.insert(wire::REFUSAL, HeaderValue::from_static(refusal.code()));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
