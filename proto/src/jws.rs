//! Ed25519 keys and the statements signed with them (RFC 7515 compact JWS, `alg: EdDSA`).
//!
//! Threat: a statement made for one purpose is presented for another.
//! Decision: every kind of statement has a `typ` of its own, in the signed header, and verifying names it.
//! Consequence: a grant is no proof, a proof no certificate, whatever their claims look like.
//!
//! No time is checked here: there is no clock in this crate. Claims carry Unix seconds, and the callers
//! that read them take `now` as an argument.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest statement that is looked at, in bytes; a grant for a caller in thousands of groups fits.
pub const MAX_LENGTH: usize = 512 * 1024;

/// A statement's kind, its `typ` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One key vouches for another (`keys`).
    Certificate,
    /// An agent opens a session (`handshake`).
    Hello,
    /// A gateway answers (`handshake`).
    Proof,
    /// Who is calling (`assertion`).
    Grant,
    /// An access token (RFC 9068), for callers rather than agents.
    AccessToken,
    /// Whoever sends it has a key (`end_to_end`).
    Possession,
    /// A replica of the gateway to another, for callers and agents of no concern.
    Replica,
}

impl Kind {
    /// The `typ` header.
    pub const fn typ(self) -> &'static str {
        match self {
            Self::Certificate => "towline-certificate+jwt",
            Self::Hello => "towline-hello+jwt",
            Self::Proof => "towline-proof+jwt",
            Self::Grant => "towline-grant+jwt",
            Self::AccessToken => "at+jwt",
            Self::Possession => "towline-possession+jwt",
            Self::Replica => "towline-replica+jwt",
        }
    }
}

/// Why a statement is not believed.
#[derive(Debug, thiserror::Error)]
pub enum InvalidStatement {
    /// Longer than [`MAX_LENGTH`].
    #[error("the statement is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// No JWS, another algorithm, or a signature of another key.
    #[error("the statement's signature or form is wrong")]
    Signature(#[source] jsonwebtoken::errors::Error),
    /// The header says that there is more to it than is known here (RFC 7515 §4.1.11).
    #[error("the statement has critical headers, and none are known here")]
    Critical,
    /// Signed, but for another purpose.
    #[error("the statement is of type {found:?}, not {wanted:?}")]
    Kind {
        /// What was asked for.
        wanted: &'static str,
        /// What the header says.
        found: Option<String>,
    },
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// Text or bytes that are no Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 public key (32 bytes, base64url without padding)")]
pub struct InvalidPublicKey;

impl PublicKey {
    /// From the raw 32 bytes.
    ///
    /// # Errors
    /// Another length, or a point of small order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidPublicKey> {
        let point: [u8; 32] = bytes.try_into().map_err(|_| InvalidPublicKey)?;
        let mut unsigned = point;
        unsigned[31] &= 0x7f;
        if SMALL_ORDER.contains(&unsigned) {
            return Err(InvalidPublicKey);
        }
        Ok(Self(point))
    }

    /// The raw 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A short name for logs and `kid`: the first 16 characters of its SHA-256 in base64url.
    pub fn id(&self) -> String {
        let mut id = BASE64URL.encode(digest::digest(&digest::SHA256, &self.0));
        id.truncate(16);
        id
    }

    /// The claims of a statement of this kind signed by this key.
    ///
    /// # Errors
    /// See [`InvalidStatement`].
    pub fn verify<T: DeserializeOwned>(
        &self,
        kind: Kind,
        statement: &str,
    ) -> Result<T, InvalidStatement> {
        if statement.len() > MAX_LENGTH {
            return Err(InvalidStatement::TooLong);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let key = DecodingKey::from_ed_der(&self.0);
        let token = jsonwebtoken::decode::<T>(statement, &key, &validation)
            .map_err(InvalidStatement::Signature)?;
        if has_critical_headers(statement) {
            return Err(InvalidStatement::Critical);
        }
        if token.header.typ.as_deref() == Some(kind.typ()) {
            Ok(token.claims)
        } else {
            Err(InvalidStatement::Kind {
                wanted: kind.typ(),
                found: token.header.typ,
            })
        }
    }
}

/// The library passes over `crit`.
fn has_critical_headers(statement: &str) -> bool {
    let header = statement.split('.').next().unwrap_or_default();
    let header = BASE64URL.decode(header).unwrap_or_default();
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&header)
        .map_or(true, |header| header.contains_key("crit"))
}

/// Points of small order (RFC 7748 §7), without the sign: under such a key one signature fits many messages, and nobody
/// need have made it.
const SMALL_ORDER: [[u8; 32]; 7] = {
    const fn around(first: u8) -> [u8; 32] {
        let mut point = [0xff; 32];
        point[0] = first;
        point[31] = 0x7f;
        point
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10,
            0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77,
            0x92, 0xac, 0x03, 0x7a,
        ],
        around(0xec),
        around(0xed),
        around(0xee),
    ]
};

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;
    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        Self::from_bytes(
            &BASE64URL
                .decode(text.trim())
                .map_err(|_| InvalidPublicKey)?,
        )
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidPublicKey;
    fn try_from(text: String) -> Result<Self, InvalidPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// An Ed25519 key pair; the private half never prints.
pub struct KeyPair {
    private: EncodingKey,
    pkcs8: Vec<u8>,
    public: PublicKey,
}

/// Bytes that are no Ed25519 key pair in PKCS #8 (RFC 8410).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 private key (PKCS #8 DER)")]
pub struct InvalidKeyPair;

impl KeyPair {
    /// A new key pair from the system's randomness.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, InvalidKeyPair> {
        let pair = Ed25519KeyPair::generate().map_err(|_| InvalidKeyPair)?;
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| InvalidKeyPair)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// From PKCS #8 DER.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, InvalidKeyPair> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| InvalidKeyPair)?;
        let public =
            PublicKey::from_bytes(pair.public_key().as_ref()).map_err(|_| InvalidKeyPair)?;
        Ok(Self {
            private: EncodingKey::from_ed_der(pkcs8),
            pkcs8: pkcs8.to_vec(),
            public,
        })
    }

    /// The private key, to be kept where only its owner reads it.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs claims as a statement of this kind.
    ///
    /// # Panics
    /// Never: the claims that this crate signs serialize, and the key was checked when it was made.
    #[expect(
        clippy::expect_used,
        reason = "the key was parsed, and claims are plain structs"
    )]
    pub fn sign<T: Serialize>(&self, kind: Kind, claims: &T) -> String {
        let header = Header {
            typ: Some(kind.typ().to_owned()),
            kid: Some(self.public.id()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, claims, &self.private)
            .expect("an Ed25519 key signs plain claims")
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public)
    }
}

/// SHA-256 in base64url without padding, for binding one statement to another.
pub fn fingerprint(bytes: &[u8]) -> String {
    BASE64URL.encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_verifies_for_its_kind_and_key_only() {
        let key = KeyPair::generate().unwrap();
        let statement = key.sign(Kind::Grant, &serde_json::json!({"a": 1}));
        let claims: serde_json::Value = key.public().verify(Kind::Grant, &statement).unwrap();
        assert_eq!(claims["a"], 1);
        let other = key
            .public()
            .verify::<serde_json::Value>(Kind::Proof, &statement);
        assert!(matches!(other, Err(InvalidStatement::Kind { .. })));
        let stranger = KeyPair::generate().unwrap().public();
        assert!(matches!(
            stranger.verify::<serde_json::Value>(Kind::Grant, &statement),
            Err(InvalidStatement::Signature(_))
        ));
    }

    #[test]
    fn other_algorithms_are_refused() {
        let key = KeyPair::generate().unwrap();
        // "none", and HMAC keyed with the public key: the two classic confusions.
        let none = format!(
            "{}.{}.",
            BASE64URL.encode(r#"{"alg":"none","typ":"towline-grant+jwt"}"#),
            BASE64URL.encode(r#"{"a":1}"#)
        );
        assert!(
            key.public()
                .verify::<serde_json::Value>(Kind::Grant, &none)
                .is_err()
        );
        let header = Header {
            typ: Some(Kind::Grant.typ().to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        let hmac = jsonwebtoken::encode(
            &header,
            &serde_json::json!({"a": 1}),
            &EncodingKey::from_secret(key.public().as_bytes()),
        )
        .unwrap();
        assert!(
            key.public()
                .verify::<serde_json::Value>(Kind::Grant, &hmac)
                .is_err()
        );
    }

    #[test]
    fn critical_headers_are_refused_though_signed() {
        let key = KeyPair::generate().unwrap();
        let good = key.sign(Kind::Grant, &serde_json::json!({"a": 1}));
        let (_, rest) = good.split_once('.').unwrap();
        let (claims, _) = rest.split_once('.').unwrap();
        let header = BASE64URL
            .encode(r#"{"alg":"EdDSA","typ":"towline-grant+jwt","crit":["exp2"],"exp2":1}"#);
        let signed = format!("{header}.{claims}");
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &key.private, Algorithm::EdDSA).unwrap();
        let refused = key
            .public()
            .verify::<serde_json::Value>(Kind::Grant, &format!("{signed}.{signature}"));
        assert!(matches!(refused, Err(InvalidStatement::Critical)));
    }

    #[test]
    fn points_of_small_order_are_no_keys() {
        for point in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut point = point;
                point[31] |= sign;
                assert_eq!(PublicKey::from_bytes(&point), Err(InvalidPublicKey));
            }
        }
    }

    #[test]
    fn keys_round_trip_and_never_print() {
        let key = KeyPair::generate().unwrap();
        let again = KeyPair::from_pkcs8(key.to_pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(
            key.public().to_string().parse::<PublicKey>().unwrap(),
            key.public()
        );
        assert_eq!(format!("{key:?}"), format!("KeyPair({})", key.public()));
    }
}
