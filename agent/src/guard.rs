//! Who is calling: the gateway's assertion, checked, or a refusal.
//!
//! Threat: impersonation fails open. A request that reaches the API server without `Impersonate-User` is the
//! agent's own, and one with a header that the caller chose is whoever the caller likes to be.
//! Decision: [`Impersonation`] is made by [`Guard::admit`] alone, after MAC, replay window, grant and the names
//! in it were checked; a request upstream is made from an [`Impersonation`] alone, and its headers are set,
//! not added to. What looks like an identity in the caller's own headers is refused, never dropped.
//! Consequence: a gateway that is taken over can name people (but in [`end_to_end`] mode), not the cluster's own
//! identities, and whoever carries the bytes can name nobody.
//!
//! ```compile_fail,E0451
//! use towline_agent::guard::Impersonation;
//! // An identity that nobody verified.
//! fn forge(verified: Impersonation) -> Impersonation {
//!     Impersonation { groups: Vec::new(), ..verified }
//! }
//! ```
//!
//! ```compile_fail,E0451
//! use towline_agent::upstream::Outbound;
//! // A request upstream whose headers name nobody.
//! fn forge(verified: Outbound) -> Outbound {
//!     Outbound { headers: http::HeaderMap::new(), ..verified }
//! }
//! ```
//!
//! ```compile_fail,E0277
//! use towline_agent::upstream::Outbound;
//! // A request upstream from anything else than an impersonation.
//! fn forge(parts: &http::request::Parts) -> Outbound {
//!     Outbound::from(parts)
//! }
//! ```

use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use towline_proto::{
    assertion::{Grant, InvalidNested, Nested, Refused, ReplayWindow, Sealed},
    handshake::Opened,
    keys::Chains,
    names::Membership,
    wire::{self, Refusal},
};

use crate::clock::{self, GatewayClock};

pub mod end_to_end;
mod grants;
mod impersonation;

pub(crate) use impersonation::service_account;
pub use impersonation::{Impersonation, ORIGINAL_USER, Permitted, Wanted};

use end_to_end::{EndToEnd, NotProven};
use grants::Grants;
use impersonation::{Asked, Person};

/// What the cluster's own identities begin with.
const SYSTEM: &str = "system:";

/// Headers that carry a caller's credentials, which never come down a tunnel.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// What a subprotocol begins with that is a bearer token.
const PROTOCOL_TOKEN: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// Why a request is not passed on.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// The assertion is missing or wrong.
    #[error("the gateway's assertion does not hold: {0}")]
    Assertion(#[from] Refused),
    /// The identity may never be impersonated.
    #[error(
        "{what} {name:?} is the cluster's own and is not impersonated; the agent's --allow-system makes exceptions"
    )]
    System {
        /// `user` or `group`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// The identity can't be said in a header without becoming another.
    #[error(
        "{what} {name:?} cannot be impersonated: it is empty, has white space at an end, or control characters"
    )]
    Unsayable {
        /// `user`, `uid`, `group` or `extra`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// An extra that is Towline's own to set.
    #[error("extra {0:?} is Towline's own to set, and nobody else's")]
    Reserved(String),
    /// Whom the caller asks to be can't be read.
    #[error(transparent)]
    Nested(#[from] InvalidNested),
    /// The caller has to prove who they are to the agent, and does not.
    #[error(transparent)]
    Proof(#[from] NotProven),
    /// The request carries what it must not.
    #[error("the request carries the header {0}, which a caller must not send through the gateway")]
    Header(String),
    /// The request's method and upgrade contradict each other.
    #[error("the request is no valid upgrade")]
    Upgrade,
    /// There is no path.
    #[error("the request has no path")]
    Path,
}

impl Denied {
    /// What the gateway is told.
    pub const fn refusal(&self) -> Refusal {
        match self {
            Self::Assertion(_) => Refusal::Assertion,
            Self::System { .. } | Self::Unsayable { .. } => Refusal::Identity,
            Self::Proof(_) => Refusal::Proof,
            Self::Reserved(_) | Self::Nested(_) | Self::Header(_) | Self::Upgrade | Self::Path => {
                Refusal::Malformed
            }
        }
    }
}

/// `system:` names that the cluster's owner lets the gateway use.
#[derive(Debug, Clone, Default)]
pub struct AllowedSystem(pub Vec<String>);

impl AllowedSystem {
    fn check(&self, what: &'static str, name: &str) -> Result<(), Denied> {
        if name.starts_with(SYSTEM) && !self.0.iter().any(|allowed| allowed == name) {
            return Err(Denied::System {
                what,
                name: name.to_owned(),
            });
        }
        Ok(())
    }
}

/// Checks the requests of one session.
#[derive(Debug)]
pub struct Guard {
    session: Opened,
    membership: Membership,
    /// The membership's own name, for what callers are told.
    cluster: Arc<str>,
    clock: GatewayClock,
    allowed: Arc<AllowedSystem>,
    end_to_end: Option<Arc<EndToEnd>>,
    replay: Mutex<ReplayWindow>,
    grants: Mutex<Grants>,
    /// Of other replicas, and of keys that are newer than the session.
    chains: Chains,
}

impl Guard {
    /// For a session that has just been opened; with `end_to_end`, callers prove who they are.
    pub fn new(
        session: Opened,
        membership: Membership,
        allowed: Arc<AllowedSystem>,
        end_to_end: Option<Arc<EndToEnd>>,
    ) -> Self {
        Self {
            clock: GatewayClock::new(session.time),
            chains: Chains::new(session.root),
            session,
            cluster: membership.id.as_str().into(),
            membership,
            allowed,
            end_to_end,
            replay: Mutex::default(),
            grants: Mutex::default(),
        }
    }

    /// The gateway's time, as far as this session knows it.
    pub const fn clock(&self) -> &GatewayClock {
        &self.clock
    }

    /// Whom a request is to be made as, and whom that caller asks to be instead.
    ///
    /// # Errors
    /// See [`Denied`].
    pub async fn admit(&self, parts: Parts) -> Result<(Impersonation, Option<Wanted>), Denied> {
        let Parts {
            method,
            uri,
            mut headers,
            ..
        } = parts;
        let path = uri.path_and_query().cloned().ok_or(Denied::Path)?;
        let (method, upgrade) = original(&method, &headers)?;
        let (grant, request_id) =
            self.verify(&headers, &method, upgrade.as_ref(), path.as_str())?;
        // Covered by the MAC, as is that there is none.
        let nested = maybe(&headers, wire::NESTED)?.map(str::to_owned);
        let person = match &self.end_to_end {
            Some(own) => {
                let proof = maybe(&headers, wire::PROOF)?;
                own.person(&grant, proof, clock::system_now()).await?
            }
            None => Person::of(&grant),
        };
        if let Some(name) = headers.keys().find(|name| names_an_identity(name)) {
            return Err(Denied::Header(name.to_string()));
        }
        if carries_a_token(&headers) {
            return Err(Denied::Header(format!(
                "{} with a token",
                header::SEC_WEBSOCKET_PROTOCOL
            )));
        }
        wire::strip_hop_by_hop(&mut headers);
        headers.remove(header::HOST);
        let asked = Asked {
            request_id,
            method,
            path,
            upgrade,
            headers,
            cluster: Arc::clone(&self.cluster),
        };
        let principal = grant.principal.clone();
        let caller = Impersonation::new(&person, principal, asked, &self.allowed)?;
        let wanted = match nested {
            Some(nested) => Some(Wanted::new(Nested::from_header(&nested)?, &self.allowed)?),
            None => None,
        };
        Ok((caller, wanted))
    }

    /// The grant that a request carries, if its MAC holds and its number is new.
    fn verify(
        &self,
        headers: &HeaderMap,
        method: &Method,
        upgrade: Option<&HeaderValue>,
        path: &str,
    ) -> Result<(Arc<Grant>, String), Refused> {
        let statement = only(headers, wire::GRANT)?;
        let request_id = only(headers, wire::REQUEST_ID)?;
        let mac = only(headers, wire::MAC)?;
        let sequence: u64 = only(headers, wire::SEQUENCE)?
            .parse()
            .map_err(|_| Refused::Missing(wire::SEQUENCE))?;
        let upgrade = match upgrade {
            Some(value) => value
                .to_str()
                .map_err(|_| Refused::Missing(wire::UPGRADE))?,
            None => "",
        };
        let nested = maybe(headers, wire::NESTED)?.unwrap_or_default();
        let sealed = Sealed {
            grant: statement,
            request_id,
            method: method.as_str(),
            upgrade,
            path,
            nested,
        };
        self.session.key.verify(&sealed, sequence, mac)?;
        // Only a number whose MAC holds may move the window.
        lock(&self.replay).accept(sequence)?;
        let grant = self.grant(statement, maybe(headers, wire::GRANT_CHAIN)?)?;
        Ok((grant, request_id.to_owned()))
    }

    fn grant(&self, statement: &str, chain: Option<&str>) -> Result<Arc<Grant>, Refused> {
        let now = self.clock.now();
        if let Some(grant) = lock(&self.grants).get(statement) {
            grant.check_time(now)?;
            return Ok(grant);
        }
        let signed_by = match chain {
            Some(chain) => self
                .chains
                .signing_key(chain, now)
                .map_err(Refused::Chain)?,
            None => self.session.grants,
        };
        let session = &self.session.session;
        let grant = Grant::verify(statement, signed_by, &self.membership, session, now)?;
        let grant = Arc::new(grant);
        lock(&self.grants).insert(statement, Arc::clone(&grant), now);
        Ok(grant)
    }
}

/// Whether a header, however spelled, says who is calling or proves it.
pub(crate) fn names_an_identity(name: &HeaderName) -> bool {
    // Some servers take `_` for `-`.
    let name = name.as_str().replace('_', "-");
    name.starts_with("impersonate")
        || name.starts_with("x-remote-")
        || CREDENTIALS.contains(&name.as_str())
}

/// Whether a WebSocket's subprotocols hold a bearer token, as browsers send it to an API server.
fn carries_a_token(headers: &HeaderMap) -> bool {
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let holds = |value: &HeaderValue| {
        let value = value.as_bytes().to_ascii_lowercase();
        value
            .windows(PROTOCOL_TOKEN.len())
            .any(|window| window == PROTOCOL_TOKEN)
    };
    protocols.iter().any(holds)
}

/// The caller's method and the protocol that it asks for.
fn original(method: &Method, headers: &HeaderMap) -> Result<(Method, Option<HeaderValue>), Denied> {
    let (method, protocol) = match (
        headers.contains_key(wire::UPGRADE),
        headers.contains_key(wire::METHOD),
    ) {
        (false, false) => (method.clone(), None),
        (true, true) if *method == Method::POST => {
            let method = only(headers, wire::METHOD).map_err(|_| Denied::Upgrade)?;
            let protocol = only(headers, wire::UPGRADE).map_err(|_| Denied::Upgrade)?;
            let method = Method::from_bytes(method.as_bytes()).map_err(|_| Denied::Upgrade)?;
            (
                method,
                Some(HeaderValue::from_str(protocol).map_err(|_| Denied::Upgrade)?),
            )
        }
        _ => return Err(Denied::Upgrade),
    };
    if method == Method::CONNECT {
        Err(Denied::Upgrade)
    } else {
        Ok((method, protocol))
    }
}

/// The value of a header that stands there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Refused> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Refused::Missing(name)),
        _ => Err(Refused::Missing(name)),
    }
}

/// The same, where it may be absent.
fn maybe<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Refused> {
    if headers.contains_key(name) {
        only(headers, name).map(Some)
    } else {
        Ok(None)
    }
}

/// A lock that a panic elsewhere doesn't close: what is inside is valid at every moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) use tests::impersonation_of;

#[cfg(test)]
mod tests;
