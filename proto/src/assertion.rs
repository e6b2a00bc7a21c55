//! The gateway's statement to the agent of who is calling and what for.
//!
//! Threat: impersonation fails open: a request without an identity is the agent's own.
//! Decision: every request carries a *grant* (who, signed, at most 60 s) and a *MAC* (what, under the key
//! that only the two ends of this session know) over grant, request id, sequence, method, upgrade protocol,
//! the exact path with its query, and whom the caller asks to be instead. Both are checked on every request.
//! Consequence: a grant moved to another request, session, membership or path is refused, and so is
//! the same request a second time.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

use crate::{
    jws::{InvalidStatement, KeyPair, Kind, PublicKey},
    keys::InvalidChain,
    names::Membership,
};

mod nested;

pub use nested::{InvalidNested, MAX_NAMES, Nested};

/// How long a grant is good for, in seconds.
pub const GRANT_SECONDS: u64 = 60;

/// What the gateway's time may have drifted by since the handshake, in seconds.
const LEEWAY_SECONDS: u64 = 5;

/// Who is calling, for one session of one membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The cluster it is good for.
    pub membership: Membership,
    /// The session it is good for.
    pub session: String,
    /// Whom the gateway authenticated, `user:alice`.
    pub principal: String,
    /// `Impersonate-User`.
    pub user: String,
    /// `Impersonate-Uid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `Impersonate-Group`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `Impersonate-Extra-*`, keys in lower case and not encoded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
    /// When it was made, in Unix seconds.
    pub iat: u64,
    /// When it ends, in Unix seconds.
    pub exp: u64,
}

impl Grant {
    /// Signs it.
    pub fn sign(&self, key: &KeyPair) -> String {
        key.sign(Kind::Grant, self)
    }

    /// A grant signed by `key` for this session, good at `now` (the gateway's time in Unix seconds).
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn verify(
        statement: &str,
        key: PublicKey,
        membership: &Membership,
        session: &str,
        now: u64,
    ) -> Result<Self, Refused> {
        let grant: Self = key
            .verify(Kind::Grant, statement)
            .map_err(Refused::Signature)?;
        if grant.membership != *membership {
            return Err(Refused::Membership(grant.membership));
        }
        if grant.session != session {
            return Err(Refused::Session);
        }
        grant.check_time(now)?;
        if grant.user.is_empty() {
            return Err(Refused::Anonymous);
        }
        Ok(grant)
    }

    /// Whether it is still good at `now`; for a grant that was verified before.
    ///
    /// # Errors
    /// [`Refused::Time`].
    pub fn check_time(&self, now: u64) -> Result<(), Refused> {
        let long = self.exp.saturating_sub(self.iat) > GRANT_SECONDS;
        if long
            || now.saturating_add(LEEWAY_SECONDS) < self.iat
            || now > self.exp.saturating_add(LEEWAY_SECONDS)
        {
            return Err(Refused::Time {
                iat: self.iat,
                exp: self.exp,
                now,
            });
        }
        Ok(())
    }
}

/// Why a request's assertion is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A header of the assertion is missing or malformed.
    #[error("the request carries no valid {0} header")]
    Missing(&'static str),
    /// The grant is not signed by this session's gateway, nor by the replica whose chain came with it.
    #[error("the grant is not signed by the gateway of this session")]
    Signature(#[source] InvalidStatement),
    /// The chain that came with the grant doesn't hold.
    #[error("the grant's key chain does not hold")]
    Chain(#[source] InvalidChain),
    /// The grant is for another cluster.
    #[error("the grant is for {0}")]
    Membership(Membership),
    /// The grant is for another session.
    #[error("the grant is for another session")]
    Session,
    /// The grant is not good now, or for too long.
    #[error("the grant is good from {iat} to {exp}, and it is {now} (Unix seconds)")]
    Time {
        /// Its beginning.
        iat: u64,
        /// Its end.
        exp: u64,
        /// The time that it was checked at.
        now: u64,
    },
    /// The grant names no user.
    #[error("the grant names no user")]
    Anonymous,
    /// The MAC is not that of this request.
    #[error("the request's MAC does not match its content")]
    Mac,
    /// The sequence number was seen before, or is too old to tell.
    #[error("request number {0} of this session was seen before")]
    Repeated(u64),
}

/// What a MAC is over, beside the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// The grant as it travels.
    pub grant: &'a str,
    /// The request's id, as callers and logs see it.
    pub request_id: &'a str,
    /// The caller's method.
    pub method: &'a str,
    /// The protocol of an upgrade, else empty.
    pub upgrade: &'a str,
    /// Path and query, byte by byte as the API server will get it.
    pub path: &'a str,
    /// Whom the caller asks to be instead ([`Nested::to_header`]), else empty.
    pub nested: &'a str,
}

/// The key that only the two ends of one session know.
pub struct SessionKey {
    key: hmac::Key,
    sent: AtomicU64,
}

impl SessionKey {
    pub(crate) const fn new(key: hmac::Key) -> Self {
        Self {
            key,
            sent: AtomicU64::new(0),
        }
    }

    /// The next sequence number and the MAC over it and the request.
    pub fn seal(&self, sealed: &Sealed<'_>) -> (u64, String) {
        let sequence = self.sent.fetch_add(1, Ordering::Relaxed);
        let mut context = hmac::Context::with_key(&self.key);
        absorb(&mut context, sealed, sequence);
        (sequence, BASE64URL.encode(context.sign()))
    }

    /// Whether the MAC is that of this request.
    ///
    /// # Errors
    /// [`Refused::Mac`].
    pub fn verify(&self, sealed: &Sealed<'_>, sequence: u64, mac: &str) -> Result<(), Refused> {
        let mac = BASE64URL.decode(mac).map_err(|_| Refused::Mac)?;
        let mut context = hmac::Context::with_key(&self.key);
        absorb(&mut context, sealed, sequence);
        aws_lc_rs::constant_time::verify_slices_are_equal(context.sign().as_ref(), &mac)
            .map_err(|_| Refused::Mac)
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// Each field with its length before it, so that no two requests have one encoding.
fn absorb(context: &mut hmac::Context, sealed: &Sealed<'_>, sequence: u64) {
    let Sealed {
        grant,
        request_id,
        method,
        upgrade,
        path,
        nested,
    } = sealed;
    context.update(&sequence.to_be_bytes());
    for field in [grant, request_id, method, upgrade, path, nested] {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field.as_bytes());
    }
}

/// Which of the last sequence numbers were seen; bounded memory, exact within the window.
#[derive(Debug)]
pub struct ReplayWindow {
    /// One bit a number, for the `WINDOW` numbers up to and including `highest`.
    seen: Box<[u64]>,
    highest: Option<u64>,
}

/// How far behind the highest a number may arrive: far more than streams overtake each other.
const WINDOW: u64 = 1 << 16;

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            seen: vec![0; (WINDOW / 64) as usize].into_boxed_slice(),
            highest: None,
        }
    }
}

impl ReplayWindow {
    /// Notes a number whose MAC was verified.
    ///
    /// # Errors
    /// [`Refused::Repeated`] when it was noted before or is too old to tell.
    pub fn accept(&mut self, sequence: u64) -> Result<(), Refused> {
        match self.highest {
            Some(highest) if sequence <= highest => {
                if highest - sequence >= WINDOW {
                    return Err(Refused::Repeated(sequence));
                }
            }
            Some(highest) => {
                if sequence - highest >= WINDOW {
                    self.seen.fill(0);
                } else {
                    for skipped in highest + 1..=sequence {
                        let (word, bit) = self.place(skipped);
                        *word &= !bit;
                    }
                }
                self.highest = Some(sequence);
            }
            None => self.highest = Some(sequence),
        }
        let (word, bit) = self.place(sequence);
        if *word & bit != 0 {
            return Err(Refused::Repeated(sequence));
        }
        *word |= bit;
        Ok(())
    }

    #[expect(clippy::indexing_slicing, reason = "reduced modulo the window")]
    fn place(&mut self, sequence: u64) -> (&mut u64, u64) {
        let at = sequence % WINDOW;
        (&mut self.seen[(at / 64) as usize], 1 << (at % 64))
    }
}

#[cfg(test)]
mod tests;
