//! One request of a session: verify, impersonate, upstream.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
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
mod nested;

use denial::Missing;
pub use nested::Reviews;

/// Streams that an agent serves at a time.
pub const MAX_STREAMS: usize = tunnel::MAX_STREAMS;

/// What the requests of one session share.
pub struct Shared {
    /// Who is calling.
    pub guard: Guard,
    /// Whom they call.
    pub upstream: Arc<Upstream>,
    /// Whom the agent may name.
    pub role: Arc<Role>,
    /// Whom callers may be instead.
    pub reviews: Arc<Reviews>,
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
    #[error(transparent)]
    Impersonation(#[from] Missing),
    #[error(transparent)]
    Nested(#[from] nested::Refused),
}

impl Refused {
    const fn refusal(&self) -> Refusal {
        match self {
            Self::Overloaded => Refusal::Overloaded,
            Self::Denied(denied) => denied.refusal(),
            Self::Send(error) => error.refusal(),
            Self::Impersonation(_) => Refusal::Impersonation,
            Self::Nested(refused) => refused.refusal(),
        }
    }
}

/// Answers a request; a failure is an answer too.
pub async fn request<B>(shared: &Shared, request: Request<B>) -> Response<Boxed>
where
    B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let id = request.headers().get(wire::REQUEST_ID).cloned();
    serve(shared, request)
        .await
        .unwrap_or_else(|refused| refusal(&refused, id.as_ref()))
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
    let (caller, wanted) = shared.guard.admit(parts).await?;
    let rights = shared.role.beside(caller.user());
    let mut caller = caller.within(&rights);
    if let Some(wanted) = wanted {
        let permitted = shared
            .reviews
            .permit(&shared.upstream, &shared.role, &caller, wanted);
        let permitted = permitted.await?;
        caller = caller.instead(permitted);
    }
    let out = Outbound::from(&caller);
    tracing::debug!(
        request_id = caller.request_id(),
        principal = caller.principal(),
        user = caller.user(),
        method = %caller.method(),
        path = caller.path().path(),
        groups_left_out = caller.left_out(),
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
    let mut response = denial::inspect(response, caller, &shared.role).await?;
    wire::strip_hop_by_hop(response.headers_mut());
    tell_left_out(response.headers_mut(), caller);
    Ok(response.map(|body| Holding::new(IntoTunnel::new(body), permit).boxed_unsync()))
}

/// What the audit record has to say of the caller's groups.
fn tell_left_out(headers: &mut HeaderMap, caller: &Impersonation) {
    if caller.left_out() > 0 {
        headers.insert(wire::GROUPS_LEFT_OUT, HeaderValue::from(caller.left_out()));
    }
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
    let (mut head, ()) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    head.status = StatusCode::OK;
    wire::strip_hop_by_hop(&mut head.headers);
    tell_left_out(&mut head.headers, &caller);
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
            request_id = caller.request_id(),
            sent = ended.sent,
            received = ended.received,
            reason,
            "an upgraded stream ended"
        );
        drop(permit);
    }));
    let protocol = protocol.unwrap_or_else(|| HeaderValue::from_static(""));
    head.headers
        .insert(HeaderName::from_static(wire::UPGRADED), protocol);
    head.version = http::Version::HTTP_2;
    Response::from_parts(head, outgoing.boxed_unsync())
}

/// The id is that of the request as it came, believed or not: it is what whoever was refused can name.
fn refusal(refused: &Refused, id: Option<&HeaderValue>) -> Response<Boxed> {
    let refusal = refused.refusal();
    let mut sentence = refused.to_string();
    sentence.truncate(sentence.floor_char_boundary(wire::MAX_REFUSAL));
    let request_id = id
        .and_then(|id| id.to_str().ok())
        .filter(|id| id.len() <= 64)
        .unwrap_or_default();
    tracing::info!(request_id, refusal = refusal.code(), "refused: {sentence}");
    let mut response = Response::new(text(sentence));
    *response.status_mut() = match refusal {
        Refusal::Assertion
        | Refusal::Identity
        | Refusal::Impersonation
        | Refusal::Proof
        | Refusal::Rbac => StatusCode::FORBIDDEN,
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
