//! What another replica passes on to the one that holds the session.
//!
//! Threat: a request comes in a name that nobody authenticated, or for a session of another membership.
//! Decision: only replicas get here ([`identity`](super::identity)), and a request needs a grant besides: for this
//! session and membership, signed under the root, good now. [`PassedOn`] is made by [`verify`] alone, and a tunnel takes
//! nothing else that isn't an `Outbound`. What comes this way goes down a session that is here, or nowhere.
//! Consequence: there is one hop and no loop, and the replica that made the grant answers for who it names.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use towline_proto::{
    assertion::Grant,
    body::{Aborted, FromTunnel, IntoTunnel},
    keys::Chains,
    names::Membership,
    wire,
};

use super::{NOT_HERE, OF_MEMBERSHIP, OF_SESSION};
use crate::{
    app::Gateway,
    error::Refused,
    iam::Principal,
    request::Body,
    tunnels::{Place, RequestBody, Tunnel, Unanswered},
};

/// How long a session that has lost its connection is waited for: another takes a moment.
const RECONNECT: Duration = Duration::from_secs(1);

/// The longest head or trailers that go to another replica, in bytes. In HTTP/2's compression they may be four times as
/// long, and what is too long for the other end would end the connection with everybody's streams.
const MAX_HEAD: usize = 128 * 1024;

/// A request with a grant that was verified here.
#[derive(Debug)]
pub(crate) struct PassedOn {
    request: Request<RequestBody>,
    principal: Principal,
}

impl PassedOn {
    /// Whose it is, and what goes down the tunnel.
    pub(crate) fn into_parts(self) -> (Principal, Request<RequestBody>) {
        (self.principal, self.request)
    }
}

/// Why it goes no further.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// Nothing was done with the request.
    #[error("the session is not here, or takes no more requests")]
    NotHere,
    #[error("the answer's head is {0} bytes long; the limit is {MAX_HEAD}")]
    Head(usize),
    #[error("{0}")]
    Grant(String),
    #[error(transparent)]
    Tunnel(#[from] Refused),
}

impl From<Unanswered> for Stopped {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::NotTaken => Self::NotHere,
            Unanswered::Refused(refused) => Self::Tunnel(refused),
        }
    }
}

/// Serves one request from another replica.
pub(super) async fn serve(
    gateway: &Gateway,
    chains: &Chains,
    replica: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    match run(gateway, chains, request).await {
        Ok(response) => response,
        Err(stopped) => {
            tracing::info!(replica, reason = %stopped, "not passed on");
            stop(&stopped)
        }
    }
}

async fn run(
    gateway: &Gateway,
    chains: &Chains,
    request: Request<Incoming>,
) -> Result<Response<Body>, Stopped> {
    let said = |name: &str| {
        let value = request.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let membership: Membership = said(OF_MEMBERSHIP)
        .and_then(|name| name.parse().ok())
        .ok_or(Stopped::NotHere)?;
    let tunnel = said(OF_SESSION)
        .and_then(|session| gateway.tunnels.session(&membership, session))
        .ok_or(Stopped::NotHere)?;
    if !tunnel.opened_within(RECONNECT).await {
        return Err(Stopped::NotHere);
    }
    let passed = verify(chains, &tunnel, request, gateway.clock.unix())?;
    let (response, place) = tunnel.pass(passed).await?;
    let (mut head, body) = response.into_parts();
    let size = size(&head.headers);
    if size > MAX_HEAD {
        return Err(Stopped::Head(size));
    }
    // Whatever the cluster says of replicas is its own invention.
    for name in [NOT_HERE, OF_MEMBERSHIP, OF_SESSION] {
        head.headers.remove(name);
    }
    let body = IntoTunnel::new(Holding {
        body: FromTunnel(body),
        _place: place,
    });
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

/// Checks the grant; the request keeps it for the agent, who checks it again.
fn verify(
    chains: &Chains,
    tunnel: &Tunnel,
    request: Request<Incoming>,
    now: u64,
) -> Result<PassedOn, Stopped> {
    let headers = request.headers();
    let said = |name: &'static str| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
        .ok_or_else(|| Stopped::Grant(format!("the request carries no valid {name} header")))
    };
    let wrong = |error: &dyn std::error::Error| Stopped::Grant(error.to_string());
    let key = chains
        .signing_key(said(wire::GRANT_CHAIN)?, now)
        .map_err(|error| wrong(&error))?;
    let (membership, session) = (tunnel.membership(), tunnel.handle().id());
    let grant = Grant::verify(said(wire::GRANT)?, key, membership, session, now)
        .map_err(|error| wrong(&error))?;
    let principal = grant
        .principal
        .parse()
        .map_err(|_| Stopped::Grant("the grant names no principal".to_owned()))?;
    let (mut head, body) = request.into_parts();
    for name in [OF_MEMBERSHIP, OF_SESSION, wire::MAC, wire::SEQUENCE] {
        head.headers.remove(name);
    }
    let body = IntoTunnel::new(FromTunnel(body)).boxed_unsync();
    Ok(PassedOn {
        request: Request::from_parts(head, body),
        principal,
    })
}

/// A refusal, in the words of the tunnel.
fn stop(stopped: &Stopped) -> Response<Body> {
    let code = match stopped {
        Stopped::NotHere | Stopped::Tunnel(Refused::AgentLost) => wire::Refusal::Draining,
        Stopped::Grant(_) => wire::Refusal::Assertion,
        Stopped::Head(_) => wire::Refusal::Upstream,
        Stopped::Tunnel(Refused::Header(_) | Refused::Path(_)) => wire::Refusal::Malformed,
        Stopped::Tunnel(_) => wire::Refusal::Overloaded,
    };
    let body = Full::new(Bytes::from(stopped.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(wire::REFUSAL, HeaderValue::from_static(code.code()));
    if matches!(stopped, Stopped::NotHere) {
        headers.insert(NOT_HERE, HeaderValue::from_static("1"));
    }
    response
}

/// What a head or trailers come to, in bytes.
fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32)
        .sum()
}

/// An answer that holds its request's place in the tunnel.
struct Holding<B> {
    body: B,
    _place: Place,
}

impl<B: HttpBody<Data = Bytes, Error = Aborted> + Unpin> HttpBody for Holding<B> {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let long = |frame: &Frame<Bytes>| {
            frame
                .trailers_ref()
                .is_some_and(|trailers| size(trailers) > MAX_HEAD)
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) if long(&frame) => Some(Err(Aborted(
                "the answer's trailers are too long".to_owned(),
            ))),
            frame => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
