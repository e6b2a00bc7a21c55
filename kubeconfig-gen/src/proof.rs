//! Who somebody is, proven to clusters themselves (`towline_proto::end_to_end`): the key of a sign-in.
//!
//! Threat: a gateway that was taken over says that this user is at work.
//! Decision: every sign-in at a provider makes a key, and the provider signs a nonce that commits to it. The key never
//! leaves the file of tokens; for each membership and every few minutes it signs a new statement.
//! Consequence: an ID token alone, wherever it was seen, is nobody.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use towline_proto::{
    end_to_end::{LIFETIME, Possession, Proof, nonce},
    jws::{InvalidKeyPair, KeyPair},
    names::Membership,
};

use crate::{clock, sign_in::exposed};

/// A key that an ID token is to commit to.
#[derive(Debug)]
pub struct NewKey(KeyPair);

/// A key, and the ID token that commits to it: the first of a sign-in, since providers sign a nonce only once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OwnKey {
    /// PKCS #8 in base64.
    #[serde(serialize_with = "exposed")]
    key: SecretString,
    #[serde(serialize_with = "exposed")]
    id_token: SecretString,
}

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, InvalidKeyPair> {
        KeyPair::generate().map(Self)
    }

    /// What the provider is to put into the ID token.
    pub fn nonce(&self) -> String {
        nonce(&self.0.public())
    }

    /// With the ID token that has the nonce.
    pub fn committed_by(self, id_token: SecretString) -> OwnKey {
        OwnKey {
            key: STANDARD.encode(self.0.to_pkcs8()).into(),
            id_token,
        }
    }
}

impl OwnKey {
    /// States to a gateway's token endpoint that the key is here; `None` for a key that was meddled with.
    pub fn possession(&self, audience: &str) -> Option<Possession> {
        Some(Possession::state(
            &self.pair()?,
            audience,
            clock::unix_now(),
        ))
    }

    /// Proves to a membership's agent who the user is, and until when that is good (Unix seconds).
    pub fn proof(&self, membership: &Membership) -> Option<(SecretString, u64)> {
        let possession = self.possession(&membership.to_string())?;
        let proof = Proof::new(self.id_token.expose_secret().to_owned(), possession);
        Some((proof.to_header().into(), clock::unix_now() + LIFETIME))
    }

    fn pair(&self) -> Option<KeyPair> {
        let pkcs8 = STANDARD.decode(self.key.expose_secret()).ok()?;
        KeyPair::from_pkcs8(&pkcs8).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_key_proves_what_the_nonce_commits_to() {
        let new = NewKey::generate().unwrap();
        let nonce = new.nonce();
        let own = new.committed_by("a.b.c".into());
        let kept = serde_json::to_string(&own).unwrap();
        let own: OwnKey = serde_json::from_str(&kept).unwrap();
        let membership: Membership = "projects/p/locations/global/memberships/m".parse().unwrap();
        let (proof, ends) = own.proof(&membership).unwrap();
        let proof = Proof::from_header(proof.expose_secret()).unwrap();
        assert_eq!(proof.id_token(), "a.b.c");
        let now = ends - LIFETIME;
        let audience = membership.to_string();
        proof
            .possession()
            .verify_at(&nonce, &audience, now)
            .unwrap();
        assert!(!format!("{own:?}").contains("a.b.c"));
    }
}
