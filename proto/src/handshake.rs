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
//! Threat: a hello is accepted once, but each replica of a gateway only knows those that it has seen itself; whoever
//! replays one at another replica would be sent callers' requests, though it could answer none of them.
//! Decision: the first bytes on a new session's connection are the agent's [`Confirmation`], which takes the private half
//! of the hello's share.
//! Consequence: a hello without it is worth a connection for a few seconds, and no session.
//!
//! The hello travels in [`HELLO`] of the agent's `GET /agent/v1/connect`, chain and proof in [`CHAIN`] and
//! [`PROOF`] of the `101 Switching Protocols`.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

use crate::{
    assertion::SessionKey,
    jws::{InvalidStatement, KeyPair, Kind, PublicKey, fingerprint},
    keys::{Chain, InvalidChain},
    names::Membership,
};
pub use secrets::{Confirmation, ResumptionKey};
use secrets::{Share, holds};

mod secrets;

/// The protocol that the agent asks for in `Upgrade`.
pub const PROTOCOL: &str = "towline";

/// Request header: the version of the wire between agent and gateway.
pub const VERSION_HEADER: &str = "towline-version";

/// The version that this code speaks.
pub const VERSION: u32 = 3;

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

/// How many replicas a hello may name as those that it isn't for.
pub const MAX_AVOIDED: usize = 8;

/// The longest name of a replica, in bytes.
pub const MAX_REPLICA: usize = 64;

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
    /// Replicas that it is not for: this agent has sessions there, or they are going.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
}

/// Which session an agent goes on with, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The replica that holds it, as its proof said.
    pub replica: String,
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
    /// Which replica of the gateway the session is at.
    pub replica: String,
    /// How many replicas there are.
    pub replicas: u32,
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
    /// Who opened a session doesn't know its secrets: it replays another's hello.
    #[error("who sent the hello does not know the private half of its share")]
    Confirmation,
    /// A hello names too many replicas, or what can't be one.
    #[error(
        "the hello names what is no list of replicas to avoid: at most {MAX_AVOIDED}, of at most {MAX_REPLICA} bytes each"
    )]
    Avoid,
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
    /// What to say first.
    pub confirmation: Confirmation,
    /// How long the gateway keeps the session without a connection.
    pub grace: Duration,
    /// Which replica of the gateway the session is at.
    pub replica: String,
    /// How many replicas there are.
    pub replicas: u32,
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
    /// The replica that holds it.
    pub replica: &'a str,
    /// Its id.
    pub session: &'a str,
    /// Its secret.
    pub key: &'a ResumptionKey,
    /// Which try it is.
    pub generation: u64,
    /// How many bytes have arrived here.
    pub position: u64,
}

/// What a hello is for.
enum Purpose<'a> {
    Begin { avoid: &'a [String] },
    Resume(&'a Resumption<'a>),
}

impl Resumption<'_> {
    fn sign(&self, jti: &str) -> Resume {
        let Self {
            replica,
            session,
            key,
            generation,
            position,
        } = *self;
        let mac = key.of_agent(jti, session, generation, position).sign();
        Resume {
            replica: replica.to_owned(),
            session: session.to_owned(),
            generation,
            position,
            mac: BASE64URL.encode(mac),
        }
    }
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
        Self::avoiding(key, membership, root, facts, &[], now)
    }

    /// Signs a hello for a new session at another replica than these, of which the first [`MAX_AVOIDED`] count.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn avoiding(
        key: &KeyPair,
        membership: Membership,
        root: PublicKey,
        facts: &Facts,
        avoid: &[String],
        now: u64,
    ) -> Result<Self, NoRandomness> {
        Self::sign(key, membership, root, facts, now, Purpose::Begin { avoid })
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
        Self::sign(
            key,
            membership,
            root,
            facts,
            now,
            Purpose::Resume(resumption),
        )
    }

    fn sign(
        key: &KeyPair,
        membership: Membership,
        root: PublicKey,
        facts: &Facts,
        now: u64,
        purpose: Purpose<'_>,
    ) -> Result<Self, NoRandomness> {
        let share = Share::generate()?;
        let jti = random_id()?;
        let (resume, avoid) = match purpose {
            Purpose::Begin { avoid } => {
                let named = avoid.iter().take(MAX_AVOIDED).cloned().collect();
                (None, named)
            }
            Purpose::Resume(asked) => (Some(asked.sign(&jti)), Vec::new()),
        };
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
            avoid,
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
        let agreed = self
            .share
            .agree(&claims.share, &self.hello, proof, &claims.session)?;
        Ok(Opened {
            session: claims.session,
            grants,
            root,
            key: agreed.requests,
            resumption: Arc::new(agreed.resumption),
            confirmation: agreed.confirmation,
            grace: Duration::from_secs(claims.grace),
            replica: claims.replica,
            replicas: claims.replicas,
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
    if claims.avoid.len() > MAX_AVOIDED
        || claims.avoid.iter().any(|named| named.len() > MAX_REPLICA)
    {
        return Err(HandshakeError::Avoid);
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
    /// What the agent has to say first.
    pub confirmation: Confirmation,
}

/// Where a session is, and how long it is kept.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// This replica's name.
    pub replica: &'a str,
    /// How many replicas there are, this one included.
    pub replicas: u32,
    /// How long a session is kept without a connection.
    pub grace: Duration,
}

impl Default for Here<'_> {
    fn default() -> Self {
        Self {
            replica: "",
            replicas: 1,
            grace: GRACE,
        }
    }
}

/// Answers a verified hello (`hello` is the statement it came in) with a new session.
///
/// # Errors
/// The agent's share is no key, or there is no randomness.
pub fn accept(
    signing: &KeyPair,
    hello: &str,
    claims: &Hello,
    here: &Here<'_>,
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
            grace: here.grace.as_secs(),
            replica: here.replica.to_owned(),
            replicas: here.replicas,
            resumed: None,
        },
    );
    let agreed = share.agree(&claims.share, hello, &proof, &session)?;
    Ok(Accepted {
        session,
        proof,
        key: agreed.requests,
        resumption: agreed.resumption,
        confirmation: agreed.confirmation,
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
    here: &Here<'_>,
    (position, now): (u64, u64),
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
            grace: here.grace.as_secs(),
            replica: here.replica.to_owned(),
            replicas: here.replicas,
            resumed: Some(Resumed { position, mac }),
        },
    )
}

#[cfg(test)]
mod tests;
