//! Keys, tokens and issuers for the tests of this crate.

pub(crate) mod server;

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The seconds at which the tests take place.
pub(crate) const NOW: u64 = 1_800_000_000;

/// The time at which the tests take place, and some seconds later.
pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + seconds)
}

/// A private key, as an issuer has it.
pub(crate) enum Signer {
    Ecdsa {
        pair: EcdsaKeyPair,
        algorithm: &'static str,
        curve: &'static str,
    },
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn es256() -> Self {
        Self::ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", "P-256")
    }

    pub(crate) fn es512() -> Self {
        Self::ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING, "ES512", "P-521")
    }

    fn ecdsa(
        signing: &'static EcdsaSigningAlgorithm,
        algorithm: &'static str,
        curve: &'static str,
    ) -> Self {
        Self::Ecdsa {
            pair: EcdsaKeyPair::generate(signing).unwrap(),
            algorithm,
            curve,
        }
    }

    pub(crate) fn rsa() -> Self {
        let key = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        Self::Rsa(key)
    }

    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().unwrap())
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ecdsa { algorithm, .. } => algorithm,
            Self::Rsa(_) => "RS256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// The public key as a JSON Web Key.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Ecdsa { pair, curve, .. } => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "kid": id, "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Self::Rsa(pair) => {
                let public = rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": id, "use": "sig", "n": encode(&public.n), "e": encode(&public.e)})
            }
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "kid": id, "crv": "Ed25519", "x": encode(pair.public_key())})
            }
        }
    }

    /// A JWK Set with this key only.
    pub(crate) fn jwks(&self, id: &str) -> String {
        json!({"keys": [self.jwk(id)]}).to_string()
    }

    /// A token with this key's own algorithm.
    pub(crate) fn token(&self, id: &str, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm(), "kid": id}), claims)
    }

    /// A token with any header: what it says need not be what signs.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.raw(&header.to_string(), &claims.to_string())
    }

    /// A token of any two texts.
    pub(crate) fn raw(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let algorithm = serde_json::from_str::<Value>(header)
            .ok()
            .and_then(|header| Some(header.get("alg")?.as_str()?.to_owned()));
        format!(
            "{signed}.{}",
            encode(self.sign(&signed, algorithm.as_deref()))
        )
    }

    fn sign(&self, signed: &str, algorithm: Option<&str>) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa { pair, .. } => pair
                .sign(&random, signed.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            Self::Rsa(pair) => {
                let encoding: &dyn signature::RsaEncoding = match algorithm {
                    Some("RS384") => &signature::RSA_PKCS1_SHA384,
                    Some("RS512") => &signature::RSA_PKCS1_SHA512,
                    Some("PS256") => &signature::RSA_PSS_SHA256,
                    Some("PS384") => &signature::RSA_PSS_SHA384,
                    Some("PS512") => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut bytes = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, signed.as_bytes(), &mut bytes)
                    .unwrap();
                bytes
            }
            Self::Ed25519(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        }
    }
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The claims of a good token, and then some.
pub(crate) fn claims(more: Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer.example",
        "aud": "towline",
        "sub": "alice",
        "exp": NOW + 300,
    });
    if let (Value::Object(claims), Value::Object(more)) = (&mut claims, more) {
        for (name, value) in more {
            if value.is_null() {
                claims.remove(&name);
            } else {
                claims.insert(name, value);
            }
        }
    }
    claims
}
