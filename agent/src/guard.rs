//! Who is calling: the gateway's assertion, checked, or a refusal.
//!
//! Threat: impersonation fails open. A request that reaches the API server without `Impersonate-User` is the
//! agent's own, and one with a header that the caller chose is whoever the caller likes to be.
//! Decision: [`Impersonation`] is made by [`Guard::admit`] alone, after MAC, replay window, grant and the names
//! in it were checked; a request upstream is made from an [`Impersonation`] alone, and its headers are set,
//! not added to. What looks like an identity in the caller's own headers is refused, never dropped.
//! Consequence: a gateway that is taken over can name people, but not the cluster's own identities, and
//! whoever carries the bytes can name nobody.
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

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts, uri::PathAndQuery};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use towline_proto::{
    assertion::{Grant, Refused, ReplayWindow, Sealed},
    handshake::Opened,
    names::Membership,
    wire::{self, Refusal},
};

use crate::clock::GatewayClock;

mod grants;

use grants::Grants;

/// What the API server adds to everybody; it is not sent.
const AUTHENTICATED: &str = "system:authenticated";

/// What the cluster's own identities begin with.
const SYSTEM: &str = "system:";

/// Headers that carry a caller's credentials, which never come down a tunnel.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// What a subprotocol begins with that is a bearer token.
const PROTOCOL_TOKEN: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// Whom the gateway named, and for which request. Only [`Guard::admit`] makes one.
#[derive(Debug)]
pub struct Impersonation {
    user: HeaderValue,
    groups: Vec<HeaderValue>,
    extra: Vec<(HeaderName, HeaderValue)>,
    name: String,
    principal: String,
    request_id: String,
    method: Method,
    path: PathAndQuery,
    upgrade: Option<HeaderValue>,
    headers: HeaderMap,
}

impl Impersonation {
    /// The user's name as RBAC sees it.
    pub fn user(&self) -> &str {
        &self.name
    }

    /// Whom the gateway authenticated.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The request's id, as the caller was told it.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The caller's method.
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query, byte by byte as the caller sent them.
    pub const fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// The protocol of an upgrade.
    pub const fn upgrade(&self) -> Option<&HeaderValue> {
        self.upgrade.as_ref()
    }

    /// Drops groups, which can only take rights away; how many.
    pub fn keep_groups(&mut self, keep: impl Fn(&[u8]) -> bool) -> usize {
        let before = self.groups.len();
        self.groups.retain(|group| keep(group.as_bytes()));
        before - self.groups.len()
    }

    /// The caller's headers with the impersonation's: all that goes upstream but for the agent's own.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(USER, self.user.clone());
        for group in &self.groups {
            headers.append(GROUP, group.clone());
        }
        for (name, value) in &self.extra {
            headers.append(name, value.clone());
        }
        headers
    }
}

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";

/// What may stand unencoded in an extra's key: the characters of a header's name, but for `%`.
const EXTRA_KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

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
        /// `user`, `group` or `extra`.
        what: &'static str,
        /// Which.
        name: String,
    },
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
            Self::Header(_) | Self::Upgrade | Self::Path => Refusal::Malformed,
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
    clock: GatewayClock,
    allowed: Arc<AllowedSystem>,
    replay: Mutex<ReplayWindow>,
    grants: Mutex<Grants>,
}

impl Guard {
    /// For a session that has just been opened.
    pub fn new(session: Opened, membership: Membership, allowed: Arc<AllowedSystem>) -> Self {
        Self {
            clock: GatewayClock::new(session.time),
            session,
            membership,
            allowed,
            replay: Mutex::default(),
            grants: Mutex::default(),
        }
    }

    /// Whom a request is to be made as.
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn admit(&self, parts: Parts) -> Result<Impersonation, Denied> {
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
        self.allowed.check("user", &grant.user)?;
        let mut groups = Vec::with_capacity(grant.groups.len());
        for group in grant.groups.iter().filter(|group| *group != AUTHENTICATED) {
            self.allowed.check("group", group)?;
            groups.push(sayable("group", group)?);
        }
        let mut extra = Vec::new();
        for (key, values) in &grant.extra {
            let name = extra_name(key)?;
            for value in values {
                extra.push((name.clone(), sayable("extra", value)?));
            }
        }
        Ok(Impersonation {
            user: sayable("user", &grant.user)?,
            groups,
            extra,
            name: grant.user.clone(),
            principal: grant.principal.clone(),
            request_id,
            method,
            path,
            upgrade,
            headers,
        })
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
        let sealed = Sealed {
            grant: statement,
            request_id,
            method: method.as_str(),
            upgrade,
            path,
        };
        self.session.key.verify(&sealed, sequence, mac)?;
        // Only a number whose MAC holds may move the window.
        lock(&self.replay).accept(sequence)?;
        let grant = self.grant(statement)?;
        Ok((grant, request_id.to_owned()))
    }

    fn grant(&self, statement: &str) -> Result<Arc<Grant>, Refused> {
        let now = self.clock.now();
        if let Some(grant) = lock(&self.grants).get(statement) {
            grant.check_time(now)?;
            return Ok(grant);
        }
        let Opened {
            session, grants, ..
        } = &self.session;
        let grant = Arc::new(Grant::verify(
            statement,
            *grants,
            &self.membership,
            session,
            now,
        )?);
        lock(&self.grants).insert(statement, Arc::clone(&grant), now);
        Ok(grant)
    }
}

/// Whether a header, however spelled, says who is calling or proves it.
pub(crate) fn names_an_identity(name: &HeaderName) -> bool {
    // Some servers take `_` for `-`.
    let name = name.as_str().replace('_', "-");
    name.starts_with("impersonate-")
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

/// A name as a header's value, if the API server will read the very same name out of it.
fn sayable(what: &'static str, name: &str) -> Result<HeaderValue, Denied> {
    let unsayable = || Denied::Unsayable {
        what,
        name: name.chars().take(200).collect(),
    };
    // Servers trim what stands around a value; `" admin"` must not become `admin`. An extra may be empty.
    if (name.is_empty() && what != "extra")
        || name.trim() != name
        || name.chars().any(char::is_control)
    {
        return Err(unsayable());
    }
    HeaderValue::from_bytes(name.as_bytes()).map_err(|_| unsayable())
}

fn extra_name(key: &str) -> Result<HeaderName, Denied> {
    let unsayable = || Denied::Unsayable {
        what: "extra",
        name: key.chars().take(200).collect(),
    };
    if key.is_empty() {
        return Err(unsayable());
    }
    let encoded = percent_encode(key.to_lowercase().as_bytes(), EXTRA_KEY).to_string();
    HeaderName::from_bytes(format!("{EXTRA}{encoded}").as_bytes()).map_err(|_| unsayable())
}

/// A lock that a panic elsewhere doesn't close: what is inside is valid at every moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
