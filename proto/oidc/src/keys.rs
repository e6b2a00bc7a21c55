//! An issuer's public keys (RFC 7517), and the signatures they verify (RFC 7518 §3).
//!
//! Threat: algorithm confusion. A token's header chooses the algorithm, so a token with `HS256`
//! and the public key's bytes as the secret, or with `none`, must find nobody who would try it.
//! Decision: the key decides. Every key is read as one kind (RSA, one curve, Ed25519), and an
//! algorithm fits exactly one kind; symmetric keys (`oct`) are not read at all; RSA has 2048 to
//! 8192 bits; a key with `alg` is used for that one only, and one with `use: enc` never.
//! Consequence: an issuer that publishes only keys that are not understood has no keys, and the
//! refusal says so.

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RsaParameters, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// The algorithms that are taken, as shown to people.
pub(crate) const ALGORITHMS: &str =
    "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA";

/// How many keys of one issuer are read; the rest is ignored.
const MAX_KEYS: usize = 128;

/// An issuer's keys.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Curve { name: Curve, point: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
    Ed25519,
}

/// The fields of a JSON Web Key that matter here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

/// What came of looking for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A key verifies the signature.
    Verified,
    /// Keys fit, none verifies.
    Wrong,
    /// No key fits.
    NoKey,
}

impl KeySet {
    /// Reads a JWK Set. Keys of unknown kinds are skipped, as RFC 7517 §5 asks.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let jwks: Jwks =
            serde_json::from_slice(text).map_err(|error| format!("not a JWK Set: {error}"))?;
        let keys: Vec<Key> = jwks
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|key| serde_json::from_value(key).ok().and_then(Key::read))
            .collect();
        if keys.is_empty() {
            return Err(format!("the JWK Set has no key for any of {ALGORITHMS}"));
        }
        Ok(Self { keys })
    }

    /// Whether an algorithm is one that is ever taken.
    pub(crate) fn takes(algorithm: &str) -> bool {
        Scheme::of(algorithm).is_some()
    }

    /// Verifies a signature with every key that fits the header.
    pub(crate) fn verify(
        &self,
        algorithm: &str,
        key_id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Outcome {
        let Some(scheme) = Scheme::of(algorithm) else {
            return Outcome::NoKey;
        };
        let mut outcome = Outcome::NoKey;
        for key in &self.keys {
            if !key.fits(algorithm, key_id, &scheme) {
                continue;
            }
            if key.verifies(&scheme, signed, signature) {
                return Outcome::Verified;
            }
            outcome = Outcome::Wrong;
        }
        outcome
    }
}

/// What an algorithm's name means.
enum Scheme {
    Rsa(&'static RsaParameters),
    Curve(Curve, &'static dyn VerificationAlgorithm),
}

impl Scheme {
    fn of(algorithm: &str) -> Option<Self> {
        Some(match algorithm {
            "RS256" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            "ES256" => Self::Curve(Curve::P256, &ECDSA_P256_SHA256_FIXED),
            "ES384" => Self::Curve(Curve::P384, &ECDSA_P384_SHA384_FIXED),
            "ES512" => Self::Curve(Curve::P521, &ECDSA_P521_SHA512_FIXED),
            "EdDSA" => Self::Curve(Curve::Ed25519, &ED25519),
            _ => return None,
        })
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Self> {
        if jwk.purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let material = match jwk.kty.as_str() {
            "RSA" => Material::Rsa {
                n: unsigned(&jwk.n?)?,
                e: unsigned(&jwk.e?)?,
            },
            "EC" => {
                let (name, size) = match jwk.crv?.as_str() {
                    "P-256" => (Curve::P256, 32),
                    "P-384" => (Curve::P384, 48),
                    "P-521" => (Curve::P521, 66),
                    _ => return None,
                };
                let (x, y) = (decode(&jwk.x?)?, decode(&jwk.y?)?);
                if x.len() != size || y.len() != size {
                    return None;
                }
                // SEC 1 §2.3.3: uncompressed.
                let mut point = vec![4];
                point.extend(x);
                point.extend(y);
                Material::Curve { name, point }
            }
            "OKP" if jwk.crv.as_deref() == Some("Ed25519") => Material::Curve {
                name: Curve::Ed25519,
                point: decode(&jwk.x?).filter(|point| point.len() == 32)?,
            },
            _ => return None,
        };
        Some(Self {
            id: jwk.kid,
            algorithm: jwk.alg,
            material,
        })
    }

    fn fits(&self, algorithm: &str, key_id: Option<&str>, scheme: &Scheme) -> bool {
        let id = key_id.is_none_or(|id| id.is_empty() || self.id.as_deref() == Some(id));
        let named = self.algorithm.as_deref().is_none_or(|own| own == algorithm);
        let kind = match (scheme, &self.material) {
            (Scheme::Rsa(_), Material::Rsa { .. }) => true,
            (Scheme::Curve(wanted, _), Material::Curve { name, .. }) => wanted == name,
            _ => false,
        };
        id && named && kind
    }

    fn verifies(&self, scheme: &Scheme, signed: &[u8], signature: &[u8]) -> bool {
        match (scheme, &self.material) {
            (Scheme::Rsa(parameters), Material::Rsa { n, e }) => PublicKeyComponents { n, e }
                .verify(parameters, signed, signature)
                .is_ok(),
            (Scheme::Curve(_, algorithm), Material::Curve { point, .. }) => {
                UnparsedPublicKey::new(*algorithm, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}

/// A big-endian number without leading zeros.
fn unsigned(text: &str) -> Option<Vec<u8>> {
    let bytes = decode(text)?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    bytes.get(start..).map(<[u8]>::to_vec)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}
