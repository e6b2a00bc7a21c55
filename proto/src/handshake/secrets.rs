//! What only the two ends of a session know: agreed on once, and good for that session alone.

use aws_lc_rs::{agreement, digest, hkdf, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};

use super::{HandshakeError, NoRandomness};
use crate::{assertion::SessionKey, jws::fingerprint};

/// One end's half of the key agreement; used up by the handshake.
pub(super) struct Share {
    private: agreement::EphemeralPrivateKey,
    public: String,
}

impl Share {
    /// A fresh share.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn generate() -> Result<Self, NoRandomness> {
        let private = agreement::EphemeralPrivateKey::generate(
            &agreement::X25519,
            &aws_lc_rs::rand::SystemRandom::new(),
        )
        .map_err(|_| NoRandomness)?;
        let public = private.compute_public_key().map_err(|_| NoRandomness)?;
        Ok(Self {
            private,
            public: BASE64URL.encode(public),
        })
    }

    /// What the other end is sent.
    pub(super) fn public(&self) -> &str {
        &self.public
    }

    /// What the two ends of a session come to, from the other's share and all that was said.
    ///
    /// # Errors
    /// The other's share is no key.
    pub(super) fn agree(
        self,
        peer: &str,
        hello: &str,
        proof: &str,
        session: &str,
    ) -> Result<Secrets, HandshakeError> {
        let peer = BASE64URL.decode(peer).map_err(|_| HandshakeError::Share)?;
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
        let mut transcript = digest::Context::new(&digest::SHA256);
        transcript.update(hello.as_bytes());
        transcript.update(b"\n");
        transcript.update(proof.as_bytes());
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, transcript.finish().as_ref());
        agreement::agree_ephemeral(self.private, peer, HandshakeError::Share, |secret| {
            let secret = salt.extract(secret);
            let key = |label: &[u8]| {
                secret
                    .expand(&[label], hmac::HMAC_SHA256)
                    .map(hmac::Key::from)
                    .map_err(|_| HandshakeError::Share)
            };
            Ok(Secrets {
                requests: SessionKey::new(key(b"towline request mac v1")?),
                resumption: ResumptionKey(key(b"towline resumption v1")?),
                confirmation: Confirmation::new(&key(b"towline confirmation v1")?, session),
            })
        })
    }
}

/// What only the two ends of a session can know.
pub(super) struct Secrets {
    pub(super) requests: SessionKey,
    pub(super) resumption: ResumptionKey,
    pub(super) confirmation: Confirmation,
}

/// What an agent says first on the connection of a new session: that it holds the private half of its hello's share.
pub struct Confirmation(hmac::Tag);

impl Confirmation {
    /// Its length, in bytes.
    pub const LENGTH: usize = 32;

    fn new(key: &hmac::Key, session: &str) -> Self {
        Self(hmac::sign(key, session.as_bytes()))
    }

    /// The agent's first bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Whether it is what the agent said.
    ///
    /// # Errors
    /// [`HandshakeError::Confirmation`].
    pub fn check(&self, said: &[u8]) -> Result<(), HandshakeError> {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.bytes(), said)
            .map_err(|_| HandshakeError::Confirmation)
    }
}

impl std::fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Confirmation")
    }
}

/// Proves either end of a session to the other when it gets another connection.
pub struct ResumptionKey(hmac::Key);

impl std::fmt::Debug for ResumptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResumptionKey")
    }
}

impl ResumptionKey {
    /// Over the hello's own number, so that no MAC is good for a second one.
    pub(super) fn of_agent(
        &self,
        jti: &str,
        session: &str,
        generation: u64,
        position: u64,
    ) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"agent");
        for field in [jti, session] {
            context.update(&(field.len() as u64).to_be_bytes());
            context.update(field.as_bytes());
        }
        for number in [generation, position] {
            context.update(&number.to_be_bytes());
        }
        context
    }

    /// Over the hello that it answers, which names the session.
    pub(super) fn of_gateway(&self, hello: &str, position: u64) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"gateway");
        context.update(&position.to_be_bytes());
        context.update(fingerprint(hello.as_bytes()).as_bytes());
        context
    }
}

/// Whether `mac` is what `context` comes to.
pub(super) fn holds(context: hmac::Context, mac: &str) -> Result<(), HandshakeError> {
    let mac = BASE64URL
        .decode(mac)
        .map_err(|_| HandshakeError::Resumption)?;
    aws_lc_rs::constant_time::verify_slices_are_equal(context.sign().as_ref(), &mac)
        .map_err(|_| HandshakeError::Resumption)
}
