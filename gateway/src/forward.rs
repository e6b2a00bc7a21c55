//! The answer: from what came up the tunnel to what the caller gets.
//!
//! Before the head a failure is always a `Status`. After it, an end that is not clean is told in the caller's own
//! protocol: an ERROR event in a JSON watch, a Close frame in a WebSocket, and an abort in everything else.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep};
use towline_proto::{
    body::{self, Aborted},
    endpoint,
    upgraded::{self, Ended},
    wire,
};
use url::Url;

use crate::{
    app::Gateway,
    audit::Record,
    error::Refused,
    live::{Running, Stream},
    request::Body,
    slow::HandedOn,
    target::{Kind, Place},
    tunnels::{Held, Sent},
};
use framed::Framed;

pub(crate) mod framed;

/// What a browser would take as said by the gateway for all that stands under its name: a cluster, or a pod behind
/// its API server's proxy, speaks for itself alone. A cookie would come back to the gateway's own pages, and never to
/// the cluster.
const OF_THE_ORIGIN: [&str; 9] = [
    "alt-svc",
    "clear-site-data",
    "nel",
    "public-key-pins",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "strict-transport-security",
];

/// What of the caller's request an answer depends on.
#[derive(Debug)]
pub struct Origin {
    host: Option<String>,
}

impl Origin {
    /// Remembers it.
    pub fn of(head: &Parts) -> Self {
        let host = head.uri.authority().map(ToString::to_string).or_else(|| {
            head.headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
                .map(str::to_owned)
        });
        Self { host }
    }
}

/// How many of the caller's groups the agent did not name to the API server, as it says; for the audit record. In
/// the extensions of every [`answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupsLeftOut(pub u32);

impl GroupsLeftOut {
    fn of(headers: &HeaderMap) -> Self {
        let said = headers.get(wire::GROUPS_LEFT_OUT);
        Self(
            said.and_then(|said| said.to_str().ok()?.parse().ok())
                .unwrap_or_default(),
        )
    }
}

/// Turns the agent's answer into the caller's.
///
/// # Errors
/// The agent's own refusals, and an upgrade that the caller's connection can't make.
pub async fn answer(
    gateway: &Gateway,
    sent: Sent,
    upgrade: Option<OnUpgrade>,
    origin: &Origin,
    record: &Record,
) -> Result<Response<Body>, Refused> {
    let Sent {
        response,
        outgoing,
        held,
    } = sent;
    let (mut head, body) = response.into_parts();
    if let Some(code) = head.headers.get(wire::REFUSAL).cloned() {
        if matches!(held.lease().permit().target().kind, Kind::Upgrade { .. }) {
            held.lease().refused_upgrade();
        }
        return Err(refusal(&code, body).await);
    }
    let upgraded = head.headers.get(wire::UPGRADED).cloned();
    let left_out = GroupsLeftOut::of(&head.headers);
    head.extensions.insert(left_out);
    record.groups_left_out(left_out);
    wire::strip_hop_by_hop(&mut head.headers);
    for name in OF_THE_ORIGIN {
        head.headers.remove(name);
    }
    keep_prefix(head.status, &mut head.headers, &held, origin)?;

    let permit = held.lease().permit();
    let request_id = &record.id();
    let stream = |protocol: &str, status: StatusCode| {
        record.started(status);
        let target = permit.target();
        let stream = Stream {
            request_id: request_id.to_owned(),
            principal: permit.identity().principal.to_string(),
            membership: permit.membership().clone(),
            path: target.path.split('?').next().unwrap_or_default().to_owned(),
            protocol: protocol.to_owned(),
            started: 0,
            ended: 0,
            reason: String::new(),
        };
        gateway.live.start(stream, record.clone())
    };
    match (upgraded, outgoing, &permit.target().kind) {
        (Some(protocol), Some(outgoing), Kind::Upgrade { .. }) => {
            let Some(upgrade) = upgrade else {
                return Err(Refused::Header(
                    "this connection can't be upgraded; use HTTP/1.1".to_owned(),
                ));
            };
            let running = stream(
                &String::from_utf8_lossy(protocol.as_bytes()),
                StatusCode::SWITCHING_PROTOCOLS,
            );
            Ok(switch(
                gateway,
                head,
                protocol,
                Pipe {
                    upgrade,
                    body,
                    outgoing,
                    held,
                    running,
                },
            ))
        }
        (None, _, Kind::LongRunning { watch }) => {
            let running = stream(if *watch { "watch" } else { "long-running" }, head.status);
            let json_watch = *watch && head.status == StatusCode::OK && is_json(&head.headers);
            let revoked = Box::pin(ended(&held));
            let body = LongRunning {
                body: gateway.slow.hand_on(body, held, request_id),
                revoked,
                running: Some(running),
                events: json_watch.then(|| request_id.clone()),
                at_boundary: true,
                over: false,
            };
            Ok(Response::from_parts(
                head,
                LastBytesFirst::new(body).boxed_unsync(),
            ))
        }
        (None, _, kind) => {
            if matches!(kind, Kind::Upgrade { .. }) {
                held.lease().refused_upgrade();
            }
            let body = gateway.slow.hand_on(body, held, request_id);
            Ok(Response::from_parts(
                head,
                LastBytesFirst::new(body).boxed_unsync(),
            ))
        }
        (Some(_), _, _) => Err(Refused::Cluster(
            "the agent switched protocols without being asked".to_owned(),
        )),
    }
}

/// Resolves with the reason why a stream that runs has to end.
fn ended(held: &Held) -> impl Future<Output = String> + Send + 'static {
    let closed = held.closed.clone();
    let revoked = held.lease().permit().revoked();
    async move {
        tokio::select! {
            biased;
            reason = revoked => reason,
            () = closed.cancelled() => Refused::AgentLost.to_string(),
        }
    }
}

/// The agent's refusal in the gateway's words.
pub(crate) async fn refusal(code: &HeaderValue, body: Incoming) -> Refused {
    let sentence = match Limited::new(body, wire::MAX_REFUSAL).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(_) => "the agent gave no reason".to_owned(),
    };
    match code.to_str().unwrap_or_default().parse() {
        Ok(wire::Refusal::Impersonation) => Refused::Impersonation(sentence),
        Ok(wire::Refusal::Identity | wire::Refusal::Proof) => Refused::Impersonation(sentence),
        Ok(wire::Refusal::Rbac) => Refused::Nested(sentence),
        Ok(wire::Refusal::Upstream) => Refused::Cluster(sentence),
        Ok(wire::Refusal::Malformed) => Refused::Header(sentence),
        Ok(wire::Refusal::Overloaded) => Refused::AgentBusy(sentence),
        Ok(wire::Refusal::Draining) => Refused::AgentLost,
        Ok(wire::Refusal::Assertion) => Refused::Assertion(sentence),
        Err(unknown) => Refused::Cluster(format!("{sentence} ({unknown})")),
    }
}

/// A redirect stays within the membership's URL, or isn't passed on: clients send their token to wherever it leads
/// (CVE-2022-3172), and a cluster may not lead them to another.
///
/// # Errors
/// It leads elsewhere.
fn keep_prefix(
    status: StatusCode,
    headers: &mut HeaderMap,
    held: &Held,
    origin: &Origin,
) -> Result<(), Refused> {
    let Some(location) = headers.get(header::LOCATION) else {
        return Ok(());
    };
    let permit = held.lease().permit();
    let prefix = match permit.target().place {
        Place::OfToken => String::new(),
        Place::Named(_) => endpoint::path(permit.membership()),
    };
    let within = location.to_str().ok().and_then(|location| {
        let host = origin.host.as_deref()?;
        within(location, host, &prefix, &permit.target().path)
    });
    let kept = within.and_then(|within| HeaderValue::from_str(&within).ok());
    match kept {
        Some(kept) => {
            headers.insert(header::LOCATION, kept);
            Ok(())
        }
        // Of a 201, say: nobody follows it.
        None if !status.is_redirection() => Ok(()),
        None => {
            let location: String = String::from_utf8_lossy(location.as_bytes())
                .chars()
                .take(200)
                .collect();
            Err(Refused::Cluster(format!(
                "it redirects to {location:?}, out of this cluster's reach, which is not passed on"
            )))
        }
    }
}

/// Path and query below `prefix` that a `Location` leads to, as a client will read it (RFC 3986 §5), from `path` of the
/// API server; `None` for another origin.
fn within(location: &str, host: &str, prefix: &str, path: &str) -> Option<String> {
    let base = Url::parse(&format!("https://{host}{path}")).ok()?;
    let to = base.join(location).ok()?;
    let bare = to.username().is_empty() && to.password().is_none();
    // The API server's own requests come over TLS; one that says http means its own address all the same.
    let scheme = matches!(to.scheme(), "https" | "http");
    let same = to.host() == base.host()
        && (to.port_or_known_default() == base.port_or_known_default()
            || (to.scheme() == "http" && to.port() == base.port()));
    if !(bare && scheme && same) {
        return None;
    }
    let rest = to.path();
    let mut kept = if !prefix.is_empty() && rest.starts_with(&format!("{prefix}/")) {
        rest.to_owned()
    } else {
        format!("{prefix}{rest}")
    };
    if let Some(query) = to.query() {
        kept.push_str(&format!("?{query}"));
    }
    if let Some(fragment) = to.fragment() {
        kept.push_str(&format!("#{fragment}"));
    }
    // Two slashes at the beginning would name a host.
    (!kept.starts_with("//")).then_some(kept)
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value.split(';').next().unwrap_or_default().trim() == "application/json"
        })
        && !headers.contains_key(header::CONTENT_ENCODING)
}

/// An upgraded stream's parts.
struct Pipe {
    upgrade: OnUpgrade,
    body: Incoming,
    outgoing: body::Sender,
    held: Held,
    running: Running,
}

/// Answers 101 and carries bytes from then on.
fn switch(
    gateway: &Gateway,
    mut head: response::Parts,
    protocol: HeaderValue,
    pipe: Pipe,
) -> Response<Body> {
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let words = framed::Protocol::of(&protocol, &head.headers);
    head.headers.insert(header::UPGRADE, protocol);
    gateway.tasks.spawn(async move {
        let Pipe {
            upgrade,
            body,
            outgoing,
            held,
            running,
        } = pipe;
        let connection = match upgrade.await {
            Ok(connection) => TokioIo::new(connection),
            Err(error) => {
                outgoing.abort(Aborted(format!("the caller went away: {error}")));
                running.end("the caller went away before the switch");
                return;
            }
        };
        let mut connection = Framed::new(connection, words);
        let Ended {
            aborted,
            sent,
            received,
        } = upgraded::join(&mut connection, body, outgoing, ended(&held)).await;
        running.carried(sent, received);
        match aborted {
            None => running.end("ended"),
            Some(aborted) => {
                let reason = reason(aborted);
                tracing::debug!(sent, received, reason, "stream aborted");
                connection.close(&reason, running.request_id()).await;
                running.end(&reason);
            }
        }
        drop(held);
    });
    Response::from_parts(
        head,
        Empty::new().map_err(|never| match never {}).boxed_unsync(),
    )
}

/// Why a stream ended, in the words that callers search for.
fn reason(aborted: Aborted) -> String {
    // A connection that is lost with all its streams shows itself as a reset of each, too.
    if aborted.0.starts_with(body::LOST) || aborted.0 == body::RESET {
        Refused::AgentLost.to_string()
    } else {
        aborted.0
    }
}

/// How long an early end waits for the bytes before it.
const LAST_BYTES: Duration = Duration::from_millis(50);

/// A body whose early end lets the bytes before it go first: when a body fails, the HTTP library throws away what
/// it has not written yet, the head included.
struct LastBytesFirst<B> {
    body: B,
    failed: Option<(Aborted, Pin<Box<Sleep>>)>,
}

impl<B> LastBytesFirst<B> {
    const fn new(body: B) -> Self {
        Self { body, failed: None }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Aborted> + Unpin> HttpBody for LastBytesFirst<B> {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        if self.failed.is_none() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Err(aborted)) => {
                    self.failed = Some((aborted, Box::pin(sleep(LAST_BYTES))));
                }
                frame => return Poll::Ready(frame),
            }
        }
        if let Some((_, written)) = &mut self.failed {
            ready!(written.as_mut().poll(cx));
        }
        Poll::Ready(self.failed.take().map(|(aborted, _)| Err(aborted)))
    }

    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that goes on: it ends when its permission does, and a watch says so.
struct LongRunning<R> {
    body: HandedOn,
    revoked: Pin<Box<R>>,
    running: Option<Running>,
    /// A JSON watch: the request's id, for the event that tells of an early end.
    events: Option<String>,
    /// Whether the last byte sent ended an event.
    at_boundary: bool,
    over: bool,
}

impl<R: Future<Output = String>> LongRunning<R> {
    fn abort(&mut self, aborted: Aborted) -> Option<Result<Frame<Bytes>, Aborted>> {
        self.over = true;
        if let Some(running) = self.running.take() {
            running.end(&aborted.0);
        }
        match &self.events {
            Some(request_id) if self.at_boundary => {
                let status = serde_json::json!({
                    "type": "ERROR",
                    "object": {
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": format!("{aborted} (towline, request {request_id})"),
                        "reason": "ServiceUnavailable", "code": 503,
                    },
                });
                Some(Ok(Frame::data(Bytes::from(format!("{status}\n")))))
            }
            _ => Some(Err(aborted)),
        }
    }
}

impl<R> Drop for LongRunning<R> {
    fn drop(&mut self) {
        // Of a body with a length the HTTP library doesn't ask for the end.
        if self.body.size_hint().upper() == Some(0)
            && let Some(running) = self.running.take()
        {
            running.end("ended");
        }
    }
}

impl<R: Future<Output = String>> HttpBody for LongRunning<R> {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(reason) = this.revoked.as_mut().poll(cx) {
            return Poll::Ready(this.abort(Aborted(reason)));
        }
        Poll::Ready(match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(last) = frame.data_ref().and_then(|data| data.last()) {
                    this.at_boundary = *last == b'\n';
                }
                Some(Ok(frame))
            }
            Some(Err(aborted)) => this.abort(Aborted(reason(aborted))),
            None => {
                this.over = true;
                if let Some(running) = this.running.take() {
                    running.end("ended");
                }
                None
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_a_connection_was_lost_callers_are_told_the_same() {
        let told = |words: &str| reason(Aborted(words.to_owned()));
        let lost = "failed_precondition: connection to agent terminated";
        for words in [
            body::RESET.to_owned(),
            format!("{}: broken pipe", body::LOST),
        ] {
            assert!(told(&words).starts_with(lost), "{words}");
        }
        assert_eq!(told("the container is gone"), "the container is gone");
    }

    #[test]
    fn redirects_stay_within_the_cluster_however_they_are_spelled() {
        let prefix = "/v1/projects/p/locations/global/memberships/m";
        let to = |location: &str| within(location, "gw.example:8443", prefix, "/api/v1/nodes?x=1");
        for (location, path) in [
            ("/healthz", "/healthz"),
            ("/a/../b?c=d#e", "/b?c=d#e"),
            ("pods", "/api/v1/pods"),
            ("../apis/x", "/api/apis/x"),
            ("?watch=1", "/api/v1/nodes?watch=1"),
            ("https://gw.example:8443/version", "/version"),
            ("http://gw.example:8443/version", "/version"),
            ("HTTPS://GW.EXAMPLE:8443/version", "/version"),
            (&format!("{prefix}/api"), "/api"),
            (&format!("https://gw.example:8443{prefix}/api"), "/api"),
            // Out of the prefix and into another's: what is left is a path of this cluster.
            ("/../n/api", "/n/api"),
            ("/%2e%2e/n/api", "/n/api"),
            (
                "/v1/projects/p/locations/global/memberships/n/api",
                "/v1/projects/p/locations/global/memberships/n/api",
            ),
            ("\\..\\n", "/n"),
            ("../../../../../n", "/n"),
        ] {
            assert_eq!(to(location), Some(format!("{prefix}{path}")), "{location}");
        }
        for location in [
            "https://evil.example/",
            "//evil.example/",
            "\\\\evil.example/",
            "https://gw.example/",
            "https://gw.example:8444/",
            "https://a@gw.example:8443/version",
            "https://a:b@gw.example:8443/version",
            "//a@gw.example:8443/",
            "javascript:alert(1)",
            "data:text/plain,a",
            "ftp://gw.example:8443/",
        ] {
            assert_eq!(to(location), None, "{location}");
        }
        // A server without a path: the token leads to the one membership.
        assert_eq!(
            within("/healthz", "gw.example", "", "/api"),
            Some("/healthz".into())
        );
        assert_eq!(within("//evil.example", "gw.example", "", "/api"), None);
        assert_eq!(within("/.//evil.example", "gw.example", "", "/api"), None);
    }
}
