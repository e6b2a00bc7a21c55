//! How a session begins: the agent's hello, the gateway's proof, and the key that only the two know.
//!
//! Threat: whoever carries the bytes (a load balancer that ends TLS, a proxy, another gateway) plays one
//! end to the other, or replays what it saw.
//! Decision: the hello is signed by the agent's enrolled key and the proof by a key under the pinned root;
//! each carries a fresh X25519 share, and the proof names the hello it answers.
//! Consequence: a carrier can cut a session, but can neither open one nor add a request to one.
//!
//! A session outlives its connection: the hello of another connection may ask to go on with a session ([`Resume`]).
//! Whoever asks proves the agent's key, as at the beginning, and that it knows the secret of this session; the proof
//! says that the gateway knows it, too. Both are over the hello's own number, so each is good once.
//!
//! The hello travels in [`HELLO`] of the agent's `GET /agent/v1/connect`, chain and proof in [`CHAIN`] and
//! [`PROOF`] of the `101 Switching Protocols`.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{agreement, digest, hkdf, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

use crate::{
    assertion::SessionKey,
    jws::{InvalidStatement, KeyPair, Kind, PublicKey, fingerprint},
    keys::{Chain, InvalidChain},
    names::Membership,
};

/// The protocol that the agent asks for in `Upgrade`.
pub const PROTOCOL: &str = "towline";

/// Request header: the version of the wire between agent and gateway.
pub const VERSION_HEADER: &str = "towline-version";

/// The version that this code speaks.
pub const VERSION: u32 = 2;

/// Request header: the agent's [`Hello`].
pub const HELLO: &str = "towline-hello";

/// Response header: the gateway's [`Chain`].
pub const CHAIN: &str = "towline-chain";

/// Response header: the gateway's [`Proof`].
pub const PROOF: &str = "towline-proof";

/// Response header of a refused hello: the gateway's time in Unix seconds, so that an agent whose clock is
/// off can try again at once.
pub const TIME: &str = "towline-time";

/// How long a session is kept without a connection, unless an operator says otherwise.
pub const GRACE: Duration = Duration::from_secs(60);

/// How far a hello's time may be from the gateway's, in seconds.
pub const HELLO_SECONDS: u64 = 60;

/// How far an agent's clock may be from the gateway's before the agent refuses, in seconds.
///
/// An agent believes the gateway's signed time. The bound keeps a signing key that was stolen long ago
/// from being of use by signing old times, to any agent whose clock is right to the day.
pub const CLOCK_BOUND_SECONDS: u64 = 24 * 3600;

/// What an agent says of itself when it opens a session; signed with its enrolled key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Which cluster it serves. The gateway looks the key up by it and believes nothing else.
    pub membership: Membership,
    /// Id of the root key that it has pinned: a hello for one gateway is worth nothing at another.
    pub root: String,
    /// When it was made, in Unix seconds.
    pub iat: u64,
    /// Random; a hello is accepted once.
    pub jti: String,
    /// The agent's X25519 share, base64url.
    pub share: String,
    /// The agent's own version.
    pub agent_version: String,
    /// `gitVersion` of the API server, empty when it could not be asked.
    pub kubernetes_version: String,
    /// UID of the `kube-system` namespace, empty when it could not be asked.
    pub external_id: String,
    /// The machine or pod that it runs on.
    pub host: String,
    /// Random, one for each start of an agent.
    pub process: String,
    /// The session to go on with, where it is not a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// Which session an agent goes on with, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The session's id.
    pub session: String,
    /// Counts the connections that were tried for it; a lower one than was seen is refused.
    pub generation: u64,
    /// How many bytes the agent has received; the end of the gateway's stream counts as one.
    pub position: u64,
    /// Made with the session's [`ResumptionKey`].
    pub mac: String,
}

/// From where the gateway goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// How many bytes the gateway has received; the end of the agent's stream counts as one.
    pub position: u64,
    /// Made with the session's [`ResumptionKey`].
    pub mac: String,
}

/// What the gateway answers; signed with the key at the end of its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The session's id.
    pub session: String,
    /// Whose session it is.
    pub membership: Membership,
    /// Fingerprint of the hello that it answers.
    pub hello: String,
    /// The gateway's time, in Unix seconds.
    pub iat: u64,
    /// The gateway's X25519 share, base64url; empty where it is not a new session.
    pub share: String,
    /// How long the session is kept without a connection, in seconds.
    pub grace: u64,
    /// Where it is not a new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Resumed>,
}

/// A random identifier: 128 bits in hexadecimal.
///
/// # Errors
/// The system has no randomness to give.
pub fn random_id() -> Result<String, NoRandomness> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

/// One end's half of the key agreement; used up by the handshake.
pub struct Share {
    private: agreement::EphemeralPrivateKey,
    public: String,
}

impl Share {
    /// A fresh share.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, NoRandomness> {
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
    pub fn public(&self) -> &str {
        &self.public
    }

    fn agree(
        self,
        peer: &str,
        hello: &str,
        proof: &str,
    ) -> Result<(SessionKey, ResumptionKey), HandshakeError> {
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
            let requests = SessionKey::new(key(b"towline request mac v1")?);
            let resumption = ResumptionKey(key(b"towline resumption v1")?);
            Ok((requests, resumption))
        })
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
    fn of_agent(&self, jti: &str, session: &str, generation: u64, position: u64) -> hmac::Context {
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
    fn of_gateway(&self, hello: &str, position: u64) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"gateway");
        context.update(&position.to_be_bytes());
        context.update(fingerprint(hello.as_bytes()).as_bytes());
        context
    }
}

/// Whether `mac` is what `context` comes to.
fn holds(context: hmac::Context, mac: &str) -> Result<(), HandshakeError> {
    let mac = BASE64URL
        .decode(mac)
        .map_err(|_| HandshakeError::Resumption)?;
    aws_lc_rs::constant_time::verify_slices_are_equal(context.sign().as_ref(), &mac)
        .map_err(|_| HandshakeError::Resumption)
}

/// Why a handshake fails.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The hello is not signed by the enrolled key.
    #[error("the agent's hello is not signed by the key enrolled for its membership")]
    Hello(#[source] InvalidStatement),
    /// The agent has pinned another gateway's root.
    #[error("the agent has pinned the root key {pinned}, and this gateway's is {ours}")]
    Root {
        /// What the agent said.
        pinned: String,
        /// What it should have been.
        ours: String,
    },
    /// The hello's time is too far off.
    #[error(
        "the agent's clock is off: its hello was made at {made}, and it is {now} here (Unix seconds)"
    )]
    Clock {
        /// When the hello says it was made.
        made: u64,
        /// When it was looked at.
        now: u64,
    },
    /// The gateway's chain does not lead from the pinned root.
    #[error("the gateway's key chain does not hold")]
    Chain(#[source] InvalidChain),
    /// The proof is not signed by the key at the chain's end.
    #[error("the gateway's proof is not signed by the key at its chain's end")]
    Proof(#[source] InvalidStatement),
    /// The proof answers another hello or is for another membership.
    #[error("the gateway's proof answers another hello")]
    Answer,
    /// The gateway's signed time is further from ours than [`CLOCK_BOUND_SECONDS`].
    #[error(
        "the gateway's signed time is {gateway} and ours is {ours} (Unix seconds): more than a day apart"
    )]
    Time {
        /// The gateway's.
        gateway: u64,
        /// Ours.
        ours: u64,
    },
    /// Who goes on with a session doesn't know its secret.
    #[error("the other end does not know the secret of the session to go on with")]
    Resumption,
    /// A key share is no X25519 public key.
    #[error("the key share is not an X25519 public key")]
    Share,
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// An agent's hello on its way, waiting for the proof.
pub struct Opening {
    share: Share,
    hello: String,
    membership: Membership,
}

/// A session as the agent sees it.
#[derive(Debug)]
pub struct Opened {
    /// Its id.
    pub session: String,
    /// The key that the gateway signs grants with, where they don't come with a chain to another.
    pub grants: PublicKey,
    /// The root that such a chain has to begin at.
    pub root: PublicKey,
    /// Checks the MAC of each request.
    pub key: SessionKey,
    /// Goes on with the session on another connection.
    pub resumption: Arc<ResumptionKey>,
    /// How long the gateway keeps the session without a connection.
    pub grace: Duration,
    /// The gateway's signed time, in Unix seconds.
    pub time: u64,
}

/// What an agent tells of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The agent's own version.
    pub agent_version: String,
    /// `gitVersion` of the API server, empty when unknown.
    pub kubernetes_version: String,
    /// UID of the `kube-system` namespace, empty when unknown.
    pub external_id: String,
    /// The machine or pod that it runs on.
    pub host: String,
    /// Random, one for each start of an agent.
    pub process: String,
}

/// A session that is to go on.
#[derive(Debug, Clone, Copy)]
pub struct Resumption<'a> {
    /// Its id.
    pub session: &'a str,
    /// Its secret.
    pub key: &'a ResumptionKey,
    /// Which try it is.
    pub generation: u64,
    /// How many bytes have arrived here.
    pub position: u64,
}

impl Opening {
    /// Signs a hello for a new session at `now` (Unix seconds by the gateway's clock, as far as the agent knows it).
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new(
        key: &KeyPair,
        membership: Membership,
        root: PublicKey,
        facts: &Facts,
        now: u64,
    ) -> Result<Self, NoRandomness> {
        Self::sign(key, membership, root, facts, now, None)
    }

    /// Signs a hello that goes on with a session.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn resume(
        key: &KeyPair,
        membership: Membership,
        root: PublicKey,
        facts: &Facts,
        now: u64,
        resumption: &Resumption<'_>,
    ) -> Result<Self, NoRandomness> {
        Self::sign(key, membership, root, facts, now, Some(resumption))
    }

    fn sign(
        key: &KeyPair,
        membership: Membership,
        root: PublicKey,
        facts: &Facts,
        now: u64,
        resumption: Option<&Resumption<'_>>,
    ) -> Result<Self, NoRandomness> {
        let share = Share::generate()?;
        let jti = random_id()?;
        let resume = resumption.map(|asked| {
            let Resumption {
                session,
                key,
                generation,
                position,
            } = *asked;
            let mac = key.of_agent(&jti, session, generation, position).sign();
            Resume {
                session: session.to_owned(),
                generation,
                position,
                mac: BASE64URL.encode(mac),
            }
        });
        let claims = Hello {
            membership,
            root: root.id(),
            iat: now,
            jti,
            share: share.public().to_owned(),
            agent_version: facts.agent_version.clone(),
            kubernetes_version: facts.kubernetes_version.clone(),
            external_id: facts.external_id.clone(),
            host: facts.host.clone(),
            process: facts.process.clone(),
            resume,
        };
        let hello = key.sign(Kind::Hello, &claims);
        Ok(Self {
            share,
            hello,
            membership: claims.membership,
        })
    }

    /// The value of [`HELLO`].
    pub fn hello(&self) -> &str {
        &self.hello
    }

    /// Checks the gateway's answer against the pinned root; `now` is the agent's own clock.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the connection is to be dropped.
    pub fn finish(
        self,
        root: PublicKey,
        chain: &str,
        proof: &str,
        now: u64,
    ) -> Result<Opened, HandshakeError> {
        let (grants, claims) = self.verify(root, chain, proof, now)?;
        if claims.resumed.is_some() {
            return Err(HandshakeError::Answer);
        }
        let (key, resumption) = self.share.agree(&claims.share, &self.hello, proof)?;
        Ok(Opened {
            session: claims.session,
            grants,
            root,
            key,
            resumption: Arc::new(resumption),
            grace: Duration::from_secs(claims.grace),
            time: claims.iat,
        })
    }

    /// Checks the answer to a hello that goes on with a session; how many bytes have arrived at the gateway, and its
    /// time.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the connection is to be dropped.
    pub fn resumed(
        self,
        session: &str,
        key: &ResumptionKey,
        root: PublicKey,
        chain: &str,
        proof: &str,
        now: u64,
    ) -> Result<(u64, u64), HandshakeError> {
        let (_, claims) = self.verify(root, chain, proof, now)?;
        let resumed = claims.resumed.ok_or(HandshakeError::Answer)?;
        if claims.session != session {
            return Err(HandshakeError::Answer);
        }
        holds(key.of_gateway(&self.hello, resumed.position), &resumed.mac)?;
        Ok((resumed.position, claims.iat))
    }

    /// What the proof says, and the key that it is signed with.
    fn verify(
        &self,
        root: PublicKey,
        chain: &str,
        proof: &str,
        now: u64,
    ) -> Result<(PublicKey, Proof), HandshakeError> {
        let chain = Chain::from_header(chain).map_err(HandshakeError::Chain)?;
        // The time is signed by the key that the chain vouches for, and the chain is checked at that time:
        // peek, then verify both.
        let peeked = peek_time(proof);
        let (grants, _) = chain
            .verify(root, peeked.unwrap_or(now))
            .map_err(HandshakeError::Chain)?;
        let claims: Proof = grants
            .verify(Kind::Proof, proof)
            .map_err(HandshakeError::Proof)?;
        if claims.iat.abs_diff(now) > CLOCK_BOUND_SECONDS {
            return Err(HandshakeError::Time {
                gateway: claims.iat,
                ours: now,
            });
        }
        if claims.hello != fingerprint(self.hello.as_bytes())
            || claims.membership != self.membership
        {
            return Err(HandshakeError::Answer);
        }
        Ok((grants, claims))
    }
}

/// The unverified time in a proof, to look the chain up at.
fn peek_time(proof: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Time {
        iat: u64,
    }
    let payload = BASE64URL.decode(proof.split('.').nth(1)?).ok()?;
    Some(serde_json::from_slice::<Time>(&payload).ok()?.iat)
}

/// The membership that a hello names, *unverified*: only to look its key up.
pub fn claimed_membership(hello: &str) -> Option<Membership> {
    #[derive(Deserialize)]
    struct Claim {
        membership: Membership,
    }
    if hello.len() > 16 * 1024 {
        return None;
    }
    let payload = BASE64URL.decode(hello.split('.').nth(1)?).ok()?;
    Some(serde_json::from_slice::<Claim>(&payload).ok()?.membership)
}

/// Verifies a hello with the key enrolled for its membership.
///
/// The caller refuses a `jti` that it has seen within [`HELLO_SECONDS`] on either side of `now`.
///
/// # Errors
/// See [`HandshakeError`].
pub fn verify_hello(
    enrolled: PublicKey,
    root: PublicKey,
    hello: &str,
    now: u64,
) -> Result<Hello, HandshakeError> {
    let claims: Hello = enrolled
        .verify(Kind::Hello, hello)
        .map_err(HandshakeError::Hello)?;
    if claims.root != root.id() {
        return Err(HandshakeError::Root {
            pinned: claims.root,
            ours: root.id(),
        });
    }
    if claims.iat.abs_diff(now) > HELLO_SECONDS {
        return Err(HandshakeError::Clock {
            made: claims.iat,
            now,
        });
    }
    Ok(claims)
}

/// A session as the gateway sees it, and the proof to answer with.
#[derive(Debug)]
pub struct Accepted {
    /// Its id.
    pub session: String,
    /// The value of [`PROOF`].
    pub proof: String,
    /// Makes the MAC of each request.
    pub key: SessionKey,
    /// Goes on with the session on another connection.
    pub resumption: ResumptionKey,
}

/// Answers a verified hello (`hello` is the statement it came in) with a new session, which is kept without a
/// connection for `grace`.
///
/// # Errors
/// The agent's share is no key, or there is no randomness.
pub fn accept(
    signing: &KeyPair,
    hello: &str,
    claims: &Hello,
    grace: Duration,
    now: u64,
) -> Result<Accepted, HandshakeError> {
    let share = Share::generate()?;
    let session = random_id()?;
    let proof = signing.sign(
        Kind::Proof,
        &Proof {
            session: session.clone(),
            membership: claims.membership.clone(),
            hello: fingerprint(hello.as_bytes()),
            iat: now,
            share: share.public().to_owned(),
            grace: grace.as_secs(),
            resumed: None,
        },
    );
    let (key, resumption) = share.agree(&claims.share, hello, &proof)?;
    Ok(Accepted {
        session,
        proof,
        key,
        resumption,
    })
}

/// Whether a verified hello knows the secret of the session that it goes on with.
///
/// # Errors
/// [`HandshakeError::Resumption`].
pub fn verify_resume(
    claims: &Hello,
    resume: &Resume,
    key: &ResumptionKey,
) -> Result<(), HandshakeError> {
    let expected = key.of_agent(
        &claims.jti,
        &resume.session,
        resume.generation,
        resume.position,
    );
    holds(expected, &resume.mac)
}

/// The proof that answers a hello which goes on with a session, of which `position` bytes have arrived here.
pub fn resume(
    signing: &KeyPair,
    hello: &str,
    claims: &Hello,
    resume: &Resume,
    key: &ResumptionKey,
    (position, grace, now): (u64, Duration, u64),
) -> String {
    let mac = BASE64URL.encode(key.of_gateway(hello, position).sign());
    signing.sign(
        Kind::Proof,
        &Proof {
            session: resume.session.clone(),
            membership: claims.membership.clone(),
            hello: fingerprint(hello.as_bytes()),
            iat: now,
            share: String::new(),
            grace: grace.as_secs(),
            resumed: Some(Resumed { position, mac }),
        },
    )
}

#[cfg(test)]
mod tests;
