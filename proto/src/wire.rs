//! How one request travels down a tunnel: the headers beside the caller's own.
//!
//! A tunnel is HTTP/2 with the roles reversed: the gateway is the client. Each request is one stream with the
//! caller's method, path, query, headers and body. An `Upgrade` request travels as a `POST` whose two bodies
//! stream both ways (extended CONNECT can't tell an abort from an end), with the caller's method in [`METHOD`]
//! and the protocol in [`UPGRADE`]; the answer `200` with [`UPGRADED`] means that the API server answered 101,
//! and every other answer is the API server's own, untouched.
//!
//! A body that ends early ends with the trailer [`ABORT`], so that the bytes before it are delivered and the
//! end is not mistaken for a clean one.
//!
//! All names begin with [`PREFIX`]; both ends drop such headers from what they forward.

use std::{fmt, str::FromStr};

/// What every header of the tunnel's own begins with.
pub const PREFIX: &str = "towline-";

/// The signed grant (`assertion::Grant`).
pub const GRANT: &str = "towline-grant";
/// The certificates from the root to the key that signed the grant (`keys::Chain`), where that isn't the key that signed
/// the session's proof: another replica's, or a newer one.
pub const GRANT_CHAIN: &str = "towline-grant-chain";
/// The request's id, as the caller was told it.
pub const REQUEST_ID: &str = "towline-request-id";
/// The request's number within the session, in decimal.
pub const SEQUENCE: &str = "towline-sequence";
/// The MAC over the request (`assertion::Sealed`), base64url.
pub const MAC: &str = "towline-mac";
/// Whom the caller asks to be instead (`assertion::Nested`); only where they ask.
pub const NESTED: &str = "towline-nested";
/// The caller's own proof of who they are (`end_to_end::Proof`), for an agent that wants one. Not under the MAC: it
/// speaks for itself, and an agent that wants one takes no request without.
pub const PROOF: &str = "towline-proof";
/// An upgrade's original method.
pub const METHOD: &str = "towline-method";
/// An upgrade's protocol, as in the caller's `Upgrade` header.
pub const UPGRADE: &str = "towline-upgrade";
/// Answer: the API server switched to this protocol.
pub const UPGRADED: &str = "towline-upgraded";
/// Answer: how many of the caller's groups the agent did not name to the API server, in decimal; only where there
/// are any.
pub const GROUPS_LEFT_OUT: &str = "towline-groups-left-out";
/// Answer: the agent's own refusal, a [`Refusal`]; the body is the sentence, in UTF-8.
pub const REFUSAL: &str = "towline-refusal";
/// Trailer: the body ended early; the value is the reason, percent-encoded.
pub const ABORT: &str = "towline-abort";

/// The longest sentence that an agent's refusal may carry, in bytes.
pub const MAX_REFUSAL: usize = 8 * 1024;

/// Why an agent did not pass a request on, or has no answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The assertion is missing or wrong: the gateway (or who plays it) is at fault.
    Assertion,
    /// The identity may never be impersonated (`system:`).
    Identity,
    /// The cluster does not let the agent impersonate this caller.
    Impersonation,
    /// The agent wants the caller's own proof of who they are, and there is none, or it does not hold.
    Proof,
    /// The cluster does not let this caller impersonate whom they ask to be.
    Rbac,
    /// The request carries what it must not.
    Malformed,
    /// The API server gave no answer.
    Upstream,
    /// The agent is at its limit of streams.
    Overloaded,
    /// The agent is going away; another session serves the cluster.
    Draining,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::Assertion,
        Self::Identity,
        Self::Impersonation,
        Self::Proof,
        Self::Rbac,
        Self::Malformed,
        Self::Upstream,
        Self::Overloaded,
        Self::Draining,
    ];

    /// The code on the wire.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Assertion => "assertion",
            Self::Identity => "identity",
            Self::Impersonation => "impersonation",
            Self::Proof => "proof",
            Self::Rbac => "rbac",
            Self::Malformed => "malformed",
            Self::Upstream => "upstream",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A code that this version doesn't know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no refusal that this version knows")]
pub struct UnknownRefusal(String);

impl FromStr for Refusal {
    type Err = UnknownRefusal;
    fn from_str(code: &str) -> Result<Self, UnknownRefusal> {
        Self::ALL
            .into_iter()
            .find(|refusal| refusal.code() == code)
            .ok_or_else(|| UnknownRefusal(code.chars().take(64).collect()))
    }
}

/// Hop-by-hop headers (RFC 9110 §7.6.1), which never pass a hop; `Connection` may name more.
pub const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Removes hop-by-hop headers, those that `Connection` names, and the tunnel's own.
pub fn strip_hop_by_hop(headers: &mut http::HeaderMap) {
    let named: Vec<http::HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let own: Vec<http::HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(PREFIX))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for refusal in Refusal::ALL {
            assert_eq!(refusal.code().parse(), Ok(refusal));
        }
        assert!("nonsense".parse::<Refusal>().is_err());
    }

    #[test]
    fn a_hop_keeps_its_headers_to_itself() {
        let mut headers = http::HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("towline-grant", "forged"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(
            headers
                .keys()
                .map(http::HeaderName::as_str)
                .collect::<Vec<_>>(),
            ["accept"]
        );
    }
}
