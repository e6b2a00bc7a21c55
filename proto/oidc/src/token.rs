//! A JSON Web Token in compact form (RFC 7515 §3.1, RFC 7519), taken apart but not yet believed.
//!
//! Threat: everything in it is the sender's choice until the signature is verified, and some of it
//! must be read before (which issuer, which key).
//! Decision: the size is bounded before anything is decoded, JSON by depth; a name that occurs
//! twice in one object is refused (RFC 7519 §4 allows it), because two readers of one token could
//! believe different halves; `crit` is refused, because nothing critical is understood here;
//! `jku`, `x5u`, `jwk` and `x5c` are never looked at, and a `kid` is only compared.
//! Consequence: a token that another library takes with a doubled name is refused here.

mod json;
mod refused;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

pub use refused::Refused;
pub(crate) use refused::quoted;

/// The longest token that is read, in bytes. Tokens with hundreds of groups have some 20 KiB.
pub(crate) const MAX_TOKEN: usize = 64 * 1024;

/// Google's tokens may name their issuer without the scheme
/// (<https://openid.net/specs/openid-connect-core-1_0.html#GoogleIss>).
const GOOGLE: (&str, &str) = ("accounts.google.com", "https://accounts.google.com");

/// A token's parts, decoded.
pub(crate) struct Token<'a> {
    /// `alg` of the header.
    pub(crate) algorithm: String,
    /// `kid` of the header.
    pub(crate) key_id: Option<String>,
    /// Header and payload as they were signed.
    pub(crate) signed: &'a str,
    /// The signature's bytes.
    pub(crate) signature: Vec<u8>,
    /// The payload.
    pub(crate) claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    pub(crate) fn parse(token: &'a str) -> Result<Self, Refused> {
        if token.len() > MAX_TOKEN {
            return Err(Refused::TooLarge { size: token.len() });
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(NOT_COMPACT)?;
        let (header, payload) = signed.split_once('.').ok_or(NOT_COMPACT)?;
        if payload.contains('.') {
            return Err(NOT_COMPACT);
        }
        let header = object(header, "header")?;
        if header.contains_key("crit") {
            return Err(Refused::Critical);
        }
        let algorithm = match header.get("alg") {
            Some(Value::String(algorithm)) => algorithm.clone(),
            _ => return Err(Refused::Malformed("its header has no alg")),
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Refused::Malformed("the kid of its header is not a string")),
        };
        Ok(Self {
            algorithm,
            key_id,
            signed,
            signature: bytes(signature, "signature")?,
            claims: object(payload, "payload")?,
        })
    }

    /// The issuer that the token names, unverified.
    pub(crate) fn issuer(&self) -> Result<&str, Refused> {
        match self.claims.get("iss") {
            Some(Value::String(issuer)) if issuer == GOOGLE.0 => Ok(GOOGLE.1),
            Some(Value::String(issuer)) => Ok(issuer),
            Some(_) => Err(Refused::Claim {
                claim: "iss",
                problem: "is not a string",
            }),
            None => Err(Refused::Claim {
                claim: "iss",
                problem: "is missing",
            }),
        }
    }
}

/// The issuer that a token names, without any check: to choose who shall verify it, and for
/// nothing else.
///
/// # Errors
/// [`Refused`] when it is no JSON Web Token or names no issuer.
pub fn unverified_issuer(token: &str) -> Result<String, Refused> {
    Token::parse(token)?.issuer().map(str::to_owned)
}

const NOT_COMPACT: Refused =
    Refused::Malformed("it does not have the three parts of a JSON Web Token");

fn bytes(part: &str, name: &'static str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Refused::Encoding { part: name })
}

fn object(part: &str, name: &'static str) -> Result<Map<String, Value>, Refused> {
    json::object(&bytes(part, name)?).map_err(|error| Refused::Json {
        part: name,
        error: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
