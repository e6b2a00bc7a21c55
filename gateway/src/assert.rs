//! What goes down a tunnel: from a lease and a request to an [`Outbound`].
//!
//! Threat: impersonation fails open. A request that reaches the API server with the agent's own token and without
//! `Impersonate-User` *is* the agent.
//! Decision: an [`Outbound`] is made of a [`Lease`], and so of an authorized identity; a tunnel takes nothing else.
//! What somebody else may do is asked in their name by [`review`] alone, which sends that question and no other. Whatever of the caller's could speak for somebody is read into a [`Nested`], which the
//! MAC covers (the standard's `Impersonate-*`), refused (any other spelling), or left out (credentials).
//! Consequence: this does not compile:
//!
//! ```compile_fail,E0451
//! use towline_gateway::assert::Outbound;
//! // Another request under a lease that was given for this one.
//! fn forge(head: http::request::Parts, cleared: Outbound) -> Outbound {
//!     Outbound { head, ..cleared }
//! }
//! ```
//!
//! And neither does sending a bare request to a cluster:
//!
//! ```compile_fail,E0308
//! use towline_gateway::{app::Gateway, request::Body, route};
//! async fn smuggle(gateway: &Gateway, request: http::Request<Body>) {
//!     let _ = route::send(gateway, request).await;
//! }
//! ```

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use towline_proto::{assertion::Nested, body::Aborted, end_to_end::Proof, wire};

use crate::{
    audit,
    authn::{self, BEARER_SUBPROTOCOL},
    error::Refused,
    quota::Lease,
    target::Kind,
};

pub(crate) mod nested;

/// An authorized request, ready for a tunnel.
pub struct Outbound {
    lease: Lease,
    head: Parts,
    body: CallerBody,
    request_id: String,
    nested: Option<Nested>,
    proof: Option<Proof>,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound")
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// Clears a request for the tunnel.
///
/// # Errors
/// 400 where a header could speak for somebody else, or say another method.
pub fn outbound(
    lease: Lease,
    mut head: Parts,
    body: Incoming,
    request_id: String,
    client: IpAddr,
) -> Result<Outbound, Refused> {
    if lease.permit().asker().is_some() {
        return Err(Refused::Internal(
            "a permit for a review sends nothing else".to_owned(),
        ));
    }
    let nested = nested::take(&mut head.headers)?;
    let proof = authn::proof(&head.headers)?;
    refuse_other_methods(&head.headers)?;
    let http2 = head.version == http::Version::HTTP_2;
    // Host is the API server's own name at the agent; the tunnel carries no caller's.
    wire::strip_hop_by_hop(&mut head.headers);
    head.headers.remove(header::HOST);
    // Answered here, when the body is asked for.
    head.headers.remove(header::EXPECT);
    strip_credentials(&mut head.headers);
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        head.headers.insert("x-forwarded-for", client);
    }
    // The API server takes it for its own record; a caller's own would put theirs under another's.
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        head.headers.insert(audit::AUDIT_ID, id);
    }
    Ok(Outbound {
        lease,
        head,
        body: CallerBody::new(body, http2),
        request_id,
        nested,
        proof,
    })
}

/// The question to a cluster what the subject of a permit for a review may do: the one request that such a permit
/// sends, and the one that is sent in another's name.
///
/// # Errors
/// The permit is an ordinary one.
pub fn review(lease: Lease, review: Bytes, request_id: String) -> Result<Outbound, Refused> {
    if lease.permit().asker().is_none() {
        return Err(Refused::Internal(
            "a review needs a permit for a review".to_owned(),
        ));
    }
    let json = HeaderValue::from_static("application/json");
    let request = http::Request::post(lease.permit().target().path.as_str())
        .header(header::CONTENT_TYPE, json.clone())
        .header(header::ACCEPT, json)
        .header(audit::AUDIT_ID, &request_id)
        .body(())
        .map_err(|error| Refused::Internal(error.to_string()))?;
    let (head, ()) = request.into_parts();
    Ok(Outbound {
        lease,
        head,
        body: CallerBody::own(review),
        request_id,
        nested: None,
        proof: None,
    })
}

impl Outbound {
    /// The lease, held for as long as the request runs.
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The request's id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Whom the caller asks to be instead; the cluster has yet to say whether they may.
    pub const fn nested(&self) -> Option<&Nested> {
        self.nested.as_ref()
    }

    /// The caller's own proof of who they are, for an agent that wants one.
    pub(crate) const fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }

    /// What a tunnel sends: the caller's method, headers and body.
    pub(crate) fn into_parts(self) -> (Lease, Method, HeaderMap, CallerBody) {
        (self.lease, self.head.method, self.head.headers, self.body)
    }
}

/// Servers behind the API server (aggregated ones, proxied pods) may do what such a header says, and IAM has permitted
/// what the method says.
fn refuse_other_methods(headers: &HeaderMap) -> Result<(), Refused> {
    let other = |name: &&HeaderName| {
        matches!(
            canonical(name.as_str()).as_str(),
            "x-http-method-override" | "x-http-method" | "x-method-override"
        )
    };
    match headers.keys().find(other) {
        Some(name) => Err(Refused::Header(format!(
            "header {:?} would say another method than the request's; send the method itself",
            name.as_str()
        ))),
        None => Ok(()),
    }
}

/// Proxies and CGI-like servers take `_` for `-`, so both count.
fn canonical(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// What a proxy in front says of a request: who it is from, or which URL it had. kube-apiserver's audit log takes
/// addresses from `X-Real-Ip`, and there are servers that serve the path in `X-Original-URL` or `X-Rewrite-URL`.
const CLAIMS: [&str; 5] = [
    "x-remote-",
    "x-forwarded-",
    "x-real-ip",
    "x-original-",
    "x-rewrite-",
];

/// The caller's credential never goes down the tunnel, nor what a front proxy would vouch for.
fn strip_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::COOKIE);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(header::FORWARDED);
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = canonical(name.as_str());
            CLAIMS.iter().any(|claim| name.starts_with(claim))
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    if offered
        .iter()
        .any(|protocol| protocol.starts_with(BEARER_SUBPROTOCOL))
    {
        let kept: Vec<&str> = offered
            .into_iter()
            .filter(|protocol| !protocol.starts_with(BEARER_SUBPROTOCOL))
            .collect();
        let kept = HeaderValue::from_str(&kept.join(", "));
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Ok(kept) = kept
            && !kept.is_empty()
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
        }
    }
}

/// The caller's body: trailers can't speak for anybody either, and half of one is never taken for all of it.
#[derive(Debug)]
pub struct CallerBody {
    body: Source,
    http2: bool,
    fault: Fault,
}

#[derive(Debug)]
enum Source {
    Caller(Incoming),
    /// The gateway's own words.
    Own(Full<Bytes>),
}

/// What was wrong with a body while it travelled, for the answer to say it.
pub(crate) type Fault = Arc<OnceLock<String>>;

impl CallerBody {
    fn new(body: Incoming, http2: bool) -> Self {
        Self {
            body: Source::Caller(body),
            http2,
            fault: Fault::default(),
        }
    }

    fn own(body: Bytes) -> Self {
        Self {
            body: Source::Own(Full::new(body)),
            http2: false,
            fault: Fault::default(),
        }
    }

    /// Whether the caller sends no body at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_end_stream()
    }

    /// Where it will stand what was wrong.
    pub(crate) fn fault(&self) -> Fault {
        Arc::clone(&self.fault)
    }

    fn check(
        &self,
        frame: Option<Result<Frame<Bytes>, hyper::Error>>,
    ) -> Option<Result<Frame<Bytes>, String>> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Some(Err(format!("the request's body broke off: {error}"))),
            // The HTTP library reports a reset with NO_ERROR as an end; only a stream that was finished says so.
            None if self.http2 && !self.is_end_stream() => {
                return Some(Err(
                    "the request's body broke off: the caller reset the stream".to_owned(),
                ));
            }
            None => return None,
        };
        let trailer = |wrong: fn(&str) -> bool| {
            frame
                .trailers_ref()
                .and_then(|trailers| trailers.keys().find(|name| wrong(name.as_str())))
        };
        if let Some(name) = trailer(nested::impersonates) {
            return Some(Err(format!(
                "trailer {:?} would impersonate",
                name.as_str()
            )));
        }
        if let Some(name) = trailer(|name| name.starts_with(wire::PREFIX)) {
            return Some(Err(format!(
                "trailer {:?} is the tunnel's own",
                name.as_str()
            )));
        }
        Some(Ok(frame))
    }
}

impl HttpBody for CallerBody {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let frame = match &mut self.body {
            Source::Caller(body) => ready!(Pin::new(body).poll_frame(cx)),
            Source::Own(body) => ready!(Pin::new(body).poll_frame(cx))
                .map(|frame| frame.map_err(|never| match never {})),
        };
        Poll::Ready(self.check(frame).map(|checked| {
            checked.map_err(|fault| {
                drop(self.fault.set(fault.clone()));
                Aborted(fault)
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Source::Caller(body) => body.is_end_stream(),
            Source::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Source::Caller(body) => body.size_hint(),
            Source::Own(body) => body.size_hint(),
        }
    }
}

/// Whether a request is an upgrade, and to what.
pub(crate) const fn upgrade(kind: &Kind) -> Option<&String> {
    match kind {
        Kind::Upgrade { protocol } => Some(protocol),
        Kind::Short | Kind::LongRunning { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn credentials_stay_here() {
        let mut headers = headers(&[
            ("authorization", "Bearer t"),
            ("cookie", "a=b"),
            ("proxy-authorization", "Basic x"),
            ("x-remote-user", "root"),
            ("X-Remote-Extra-Scopes", "x"),
            ("x_remote_group", "system:masters"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=1"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4",
            ),
            ("accept", "application/json"),
        ]);
        strip_credentials(&mut headers);
        let left: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            left,
            [
                ("accept", "application/json"),
                ("sec-websocket-protocol", "v5.channel.k8s.io")
            ]
        );
    }
}
