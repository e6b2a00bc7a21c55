//! The other door: accepts an agent, and proves who both are.
//!
//! Threat: somebody serves a cluster that isn't theirs, or takes a session over.
//! Decision: the key that was enrolled for a membership is looked up by the name that the hello claims, and only
//! a hello signed by that key, made within a minute and seen for the first time, opens a session, and only once the
//! other end has shown on the connection that the hello is its own. To go on with a session takes all of that, the same
//! key, and the session's own secret.
//! Consequence: a second agent that claims a name is refused, and an agent can't become another cluster. A membership
//! that is deleted or registered anew ends its sessions at their next connection at the latest.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use towline_proto::{
    handshake::{self, HandshakeError, Here},
    names::Membership,
};

use crate::{
    app::Gateway,
    replicas::{self, Holder},
    request::Body,
    tunnels::{MAX_SESSIONS, Tunnel},
};
use session::{Beginning, Upgraded};

pub(crate) use session::let_go;

mod session;

/// Answer header: the gateway itself answered, no box on the way.
pub const OWN_ANSWER: &str = "towline-gateway";

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
    #[error(
        "membership {0} has {MAX_SESSIONS} sessions here, and may have no more; end agents that are not needed"
    )]
    TooMany(Membership),
    #[error("the agent has a session at this replica; dial again to reach another")]
    Elsewhere,
    #[error("this replica is going and opens no new session; dial again to reach another")]
    Leaving,
    #[error("session {0} is not here; open a new one")]
    Gone(String),
    #[error("another replica holds the session")]
    Held((String, String)),
    #[error("{0}")]
    Unreached(String),
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
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Gone(_) => StatusCode::GONE,
            Self::Elsewhere => StatusCode::MISDIRECTED_REQUEST,
            Self::Leaving | Self::Held(_) | Self::Unreached(_) | Self::Store(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
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

/// Answers an agent's connect request; the session runs on after the 101. One that another replica holds goes on there.
pub async fn connect(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    match accept(gateway, &mut request).await {
        Err(Refused::Held(holder)) => {
            let passed = replicas::pass_on(gateway, client, request, holder).await;
            passed.unwrap_or_else(|reason| {
                tracing::info!(%client, reason, "an agent was not passed on");
                refuse(gateway, &Refused::Unreached(reason))
            })
        }
        accepted => open(gateway, client, accepted),
    }
}

/// Answers an agent that another replica has passed on: for a session that is held here, or not at all.
pub(crate) async fn connect_to_session(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let accepted = match accept(gateway, &mut request).await {
        Ok((
            _,
            Opening {
                purpose: Purpose::Begin(_),
                ..
            },
        )) => Err(Refused::NotAnAgent),
        Err(Refused::Held(_)) => Err(Refused::Gone("passed on".to_owned())),
        accepted => accepted,
    };
    open(gateway, client, accepted)
}

fn open(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    accepted: Result<(Response<Body>, Opening), Refused>,
) -> Response<Body> {
    match accepted {
        Ok((response, opening)) => {
            let gateway = Arc::clone(gateway);
            gateway.tasks.clone().spawn(async move {
                let Opening { upgraded, purpose } = opening;
                match purpose {
                    Purpose::Begin(beginning) => {
                        session::run(&gateway, client, upgraded, *beginning).await;
                    }
                    Purpose::Resume(resumption) => {
                        session::resume(&gateway, client, upgraded, resumption).await;
                    }
                }
            });
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

/// A connection between its 101 and its first byte.
struct Opening {
    upgraded: Upgraded,
    purpose: Purpose,
}

/// What a connection is for.
enum Purpose {
    Begin(Box<Beginning>),
    Resume(Resumption),
}

/// A session that was taken from its connection and goes on over another.
struct Resumption {
    tunnel: Arc<Tunnel>,
    generation: u64,
    /// How many bytes have arrived at the agent.
    position: u64,
}

async fn accept(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
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
    let membership =
        handshake::claimed_membership(&statement).ok_or(Refused::Header(handshake::HELLO))?;
    let row = gateway
        .store
        .enrolled(&membership)
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
    if let Some(resume) = &hello.resume
        && gateway
            .tunnels
            .session(&hello.membership, &resume.session)
            .is_none()
    {
        // The hello is counted where it is answered.
        let holder = gateway.replicas.holder(&resume.replica).await;
        let named = |text: &str| text.chars().take(64).collect::<String>();
        return Err(match holder {
            Holder::At(address) => Refused::Held((resume.replica.clone(), address)),
            Holder::Gone => Refused::Gone(named(&resume.session)),
            Holder::Unreached => Refused::Unreached(format!(
                "replica {}, which holds the session, is not reached just now",
                named(&resume.replica)
            )),
        });
    }
    if !gateway.hellos.first_time(&hello.jti, now) {
        return Err(Refused::Repeated);
    }
    let upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .ok_or(Refused::NotAnAgent)?;
    let (signing, chain) = gateway.keys.signing_with_chain();
    let here = Here {
        replica: gateway.replicas.id(),
        replicas: u32::try_from(gateway.replicas.live()).unwrap_or(u32::MAX),
        grace: gateway.config.session_grace,
    };
    let (proof, purpose) = if let Some(resume) = &hello.resume {
        let gone = || Refused::Gone(resume.session.chars().take(64).collect());
        let tunnel = gateway
            .tunnels
            .session(&hello.membership, &resume.session)
            .filter(|tunnel| *tunnel.agent() == enrolled)
            .ok_or_else(gone)?;
        let key = tunnel.resumption();
        handshake::verify_resume(&hello, resume, key).map_err(Refused::Handshake)?;
        // From here on nothing arrives over the connection before, so the position holds.
        let ours = tunnel
            .handle()
            .fence(resume.generation)
            .map_err(|_| gone())?;
        let proof = handshake::resume(
            &signing,
            &statement,
            &hello,
            resume,
            key,
            &here,
            (ours, now),
        );
        let resumption = Resumption {
            tunnel,
            generation: resume.generation,
            position: resume.position,
        };
        (proof, Purpose::Resume(resumption))
    } else {
        // It is served here, or this replica is going: whoever dials again may come to another.
        if hello.avoid.iter().any(|named| named == here.replica) {
            return Err(Refused::Elsewhere);
        }
        if gateway.leaving.is_cancelled() {
            return Err(Refused::Leaving);
        }
        if !gateway.tunnels.room(&hello.membership) {
            return Err(Refused::TooMany(hello.membership));
        }
        let accepted = handshake::accept(&signing, &statement, &hello, &here, now)
            .map_err(Refused::Handshake)?;
        let proof = accepted.proof.clone();
        let beginning = Beginning {
            accepted,
            signing: signing.public(),
            hello,
            agent: enrolled,
        };
        (proof, Purpose::Begin(Box::new(beginning)))
    };

    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(OWN_ANSWER, HeaderValue::from_static("1"));
    for (name, value) in [
        (handshake::CHAIN, chain.to_header()),
        (handshake::PROOF, proof),
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
            upgraded: Upgraded { upgrade, carrier },
            purpose,
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
