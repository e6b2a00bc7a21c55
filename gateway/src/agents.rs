//! The other door: accepts an agent, proves who both are, and runs its session.
//!
//! Threat: somebody serves a cluster that isn't theirs.
//! Decision: the key that was enrolled for a membership is looked up by the name that the hello claims, and only
//! a hello signed by that key, made within a minute and seen for the first time, opens a session.
//! Consequence: a second agent that claims a name is refused, and an agent can't become another cluster.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use towline_proto::{
    handshake::{self, Accepted, HandshakeError, Hello},
    jws::KeyPair,
    names::Membership,
    session::Session,
    tunnel,
    websocket::{End, WebSocketConnection},
};

use crate::{
    app::Gateway,
    request::Body,
    tunnels::{RequestBody, Tunnel},
};

/// Answer header: the gateway itself answered, no box on the way.
pub const OWN_ANSWER: &str = "towline-gateway";

/// How long an agent has from the 101 to HTTP/2.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The subprotocol of a session in a WebSocket.
const SUBPROTOCOL: &str = "towline";

/// Why an agent gets no session.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("this is the agents' door: it takes GET with Upgrade: towline or websocket")]
    NotAnAgent,
    #[error(
        "agent and gateway speak different versions of the tunnel: the agent {agent:?}, this gateway {}; upgrade the older one",
        handshake::VERSION
    )]
    Version { agent: String },
    #[error("the request carries no valid {0} header")]
    Header(&'static str),
    #[error("membership {0} has no agent enrolled under this key; register it again: towline memberships register {name} --renew", name = .0.id)]
    Unknown(Membership),
    #[error("{0}")]
    Handshake(#[source] HandshakeError),
    #[error("the hello was used before")]
    Repeated,
    #[error("the gateway can't look the membership up just now")]
    Store(#[source] crate::store::StoreError),
}

impl Refused {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotAnAgent | Self::Header(_) => StatusCode::BAD_REQUEST,
            Self::Version { .. } => StatusCode::UPGRADE_REQUIRED,
            Self::Handshake(HandshakeError::Clock { .. }) | Self::Repeated => {
                StatusCode::UNAUTHORIZED
            }
            Self::Unknown(_) | Self::Handshake(_) => StatusCode::FORBIDDEN,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Hellos seen within their minute, so that none opens two sessions.
#[derive(Debug, Default)]
pub struct SeenHellos(Mutex<HashMap<String, u64>>);

impl SeenHellos {
    /// Whether `id` is new; forgets those whose time is over.
    fn first_time(&self, id: &str, now: u64) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, until| *until >= now);
        seen.insert(id.to_owned(), now + 2 * handshake::HELLO_SECONDS)
            .is_none()
    }
}

/// Answers an agent's connect request; the session runs on after the 101.
pub async fn connect(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    match accept(gateway, request).await {
        Ok((response, opening)) => {
            let gateway = Arc::clone(gateway);
            gateway
                .tasks
                .clone()
                .spawn(async move { serve(&gateway, client, opening).await });
            response
        }
        Err(refused) => {
            tracing::warn!(%client, error = &refused as &dyn std::error::Error, "agent refused");
            refuse(gateway, &refused)
        }
    }
}

/// How the session's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Plain,
    WebSocket,
}

/// A session between its 101 and its first byte.
struct Opening {
    upgrade: OnUpgrade,
    carrier: Carrier,
    accepted: Accepted,
    signing: Arc<KeyPair>,
    hello: Hello,
}

async fn accept(
    gateway: &Gateway,
    mut request: Request<Incoming>,
) -> Result<(Response<Body>, Opening), Refused> {
    let headers = request.headers();
    let carrier = match text(headers, header::UPGRADE.as_str()) {
        Some(protocol) if protocol.eq_ignore_ascii_case(handshake::PROTOCOL) => Carrier::Plain,
        Some(protocol) if protocol.eq_ignore_ascii_case("websocket") => Carrier::WebSocket,
        _ => return Err(Refused::NotAnAgent),
    };
    let version = text(headers, handshake::VERSION_HEADER).unwrap_or_default();
    if version.parse() != Ok(handshake::VERSION) {
        return Err(Refused::Version {
            agent: version.chars().take(20).collect(),
        });
    }
    let statement = text(headers, handshake::HELLO)
        .ok_or(Refused::Header(handshake::HELLO))?
        .to_owned();
    let accept_key = match carrier {
        Carrier::Plain => None,
        Carrier::WebSocket => Some(
            headers
                .get(header::SEC_WEBSOCKET_KEY)
                .map(|key| derive_accept_key(key.as_bytes()))
                .ok_or(Refused::Header("sec-websocket-key"))?,
        ),
    };
    let upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .ok_or(Refused::NotAnAgent)?;

    let membership =
        handshake::claimed_membership(&statement).ok_or(Refused::Header(handshake::HELLO))?;
    let row = gateway
        .store
        .membership(&membership)
        .await
        .map_err(Refused::Store)?;
    let enrolled = row
        .and_then(|row| row.public_key)
        .ok_or_else(|| Refused::Unknown(membership.clone()))?;
    let now = gateway.clock.unix();
    let hello = handshake::verify_hello(enrolled, gateway.keys.root(), &statement, now).map_err(
        |error| match error {
            HandshakeError::Hello(_) => Refused::Unknown(membership),
            other => Refused::Handshake(other),
        },
    )?;
    if !gateway.hellos.first_time(&hello.jti, now) {
        return Err(Refused::Repeated);
    }
    let (signing, chain) = gateway.keys.signing_with_chain();
    let accepted =
        handshake::accept(&signing, &statement, &hello, now).map_err(Refused::Handshake)?;

    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(OWN_ANSWER, HeaderValue::from_static("1"));
    for (name, value) in [
        (handshake::CHAIN, chain.to_header()),
        (handshake::PROOF, accepted.proof.clone()),
    ] {
        headers.insert(
            name,
            HeaderValue::from_str(&value).map_err(|_| Refused::Header(name))?,
        );
    }
    match accept_key {
        None => headers.insert(
            header::UPGRADE,
            HeaderValue::from_static(handshake::PROTOCOL),
        ),
        Some(key) => {
            let key =
                HeaderValue::from_str(&key).map_err(|_| Refused::Header("sec-websocket-key"))?;
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
            headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            );
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"))
        }
    };
    Ok((
        response,
        Opening {
            upgrade,
            carrier,
            accepted,
            signing,
            hello,
        },
    ))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn refuse(gateway: &Gateway, refused: &Refused) -> Response<Body> {
    let body = serde_json::json!({"code": "agent_refused", "message": refused.to_string()});
    let mut response = Response::new(
        Full::new(Bytes::from(body.to_string()))
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = refused.status();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(OWN_ANSWER, HeaderValue::from_static("1"));
    if refused.status() == StatusCode::UNAUTHORIZED {
        headers.insert(handshake::TIME, HeaderValue::from(gateway.clock.unix()));
    }
    response
}

/// Runs a session from its first byte to its last.
async fn serve(gateway: &Gateway, client: IpAddr, opening: Opening) {
    let Opening {
        upgrade,
        carrier,
        accepted,
        signing,
        hello,
    } = opening;
    let membership = hello.membership.clone();
    let connect = async {
        let connection = TokioIo::new(upgrade.await?);
        let session = match carrier {
            Carrier::Plain => Session::new(accepted.session.clone(), connection),
            Carrier::WebSocket => Session::new(
                accepted.session.clone(),
                WebSocketConnection::new(connection, End::Server).await,
            ),
        };
        tunnel::client()
            .handshake::<_, RequestBody>(TokioIo::new(session))
            .await
    };
    let (requests, connection) = match tokio::time::timeout(START_LIMIT, connect).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error)) => {
            tracing::warn!(%client, %membership, error = &error as &dyn std::error::Error, "session did not start");
            return;
        }
        Err(_) => {
            tracing::warn!(%client, %membership, "session did not start within {START_LIMIT:?}");
            return;
        }
    };
    let tunnel = Tunnel::new(
        membership.clone(),
        accepted.session.clone(),
        accepted.key,
        signing,
        gateway.clock.clone(),
        requests,
    );
    let tunnel = Arc::new(tunnel);
    let closed = tunnel.closed().clone();
    let registered = gateway.tunnels.register(tunnel);
    tracing::info!(%client, %membership, session = accepted.session, ?carrier, agent = hello.agent_version, "session up");
    if let Err(error) = gateway
        .store
        .agent_connected(&membership, &hello, gateway.clock.unix())
        .await
    {
        tracing::error!(%membership, error = &error as &dyn std::error::Error, "the membership's state was not noted");
    }

    let outcome = tokio::select! {
        biased;
        () = closed.cancelled() => Ok(()),
        outcome = connection => outcome,
    };
    let reason = outcome
        .err()
        .map_or_else(|| "closed".to_owned(), |error| describe(&error));
    let last = registered.is_last();
    drop(registered);
    tracing::info!(%client, %membership, session = accepted.session, reason, "session over");
    if last
        && let Err(error) = gateway
            .store
            .agent_disconnected(&membership, gateway.clock.unix())
            .await
    {
        tracing::error!(%membership, error = &error as &dyn std::error::Error, "the membership's state was not noted");
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_new_once_within_its_time() {
        let seen = SeenHellos::default();
        assert!(seen.first_time("a", 100));
        assert!(!seen.first_time("a", 219));
        assert!(seen.first_time("b", 219));
        assert!(seen.first_time("a", 400));
        assert_eq!(seen.0.lock().unwrap().len(), 1);
    }
}
