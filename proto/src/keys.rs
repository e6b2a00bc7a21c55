//! The gateway's key chain: root, issuing key, signing key.
//!
//! Threat: a key on a running gateway is stolen, or must be changed while agents are away.
//! Decision: agents pin the root alone; it signs an issuing key (90 days), which signs each replica's
//! signing key (24 hours). The chain travels in every handshake.
//! Consequence: the root can be offline, a stolen signing key is worth a day, and an agent that slept
//! through any number of rotations follows the chain it is shown.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::jws::{InvalidStatement, KeyPair, Kind, PublicKey};

/// How long an issuing key is good for, in seconds: 90 days.
pub const ISSUING_SECONDS: u64 = 90 * 24 * 3600;

/// How long a signing key is good for, in seconds: 24 hours.
pub const SIGNING_SECONDS: u64 = 24 * 3600;

/// What clocks may differ by when a certificate's window is checked, in seconds.
const LEEWAY_SECONDS: u64 = 60;

/// What a certified key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Sign other keys.
    Issuing,
    /// Sign proofs and grants.
    Signing,
}

#[derive(Debug, Serialize, Deserialize)]
struct Certificate {
    key: PublicKey,
    r#use: Use,
    nbf: u64,
    exp: u64,
}

/// Certificates from the key that the root signed to the replica's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The root's statement about the issuing key.
    issuing: String,
    /// The issuing key's statement about the signing key.
    signing: String,
}

/// Why a chain is not believed.
#[derive(Debug, thiserror::Error)]
pub enum InvalidChain {
    /// Not two statements with a comma between.
    #[error("the key chain is not two statements")]
    Form,
    /// A statement of the chain is not believed.
    #[error("the {0} key's certificate is not signed by the key above it")]
    Statement(&'static str, #[source] InvalidStatement),
    /// A certificate for another use.
    #[error("the {0} key's certificate is for another use")]
    Use(&'static str),
    /// Outside a certificate's window.
    #[error(
        "the {which} key's certificate is good from {nbf} to {exp}, and it is {now} (Unix seconds)"
    )]
    Time {
        /// Whose certificate.
        which: &'static str,
        /// Its beginning.
        nbf: u64,
        /// Its end.
        exp: u64,
        /// The time it was checked at.
        now: u64,
    },
}

/// Certifies `key` with `parent`, from `now` (Unix seconds) for as long as its use allows.
pub fn certify(parent: &KeyPair, key: PublicKey, r#use: Use, now: u64) -> String {
    let seconds = match r#use {
        Use::Issuing => ISSUING_SECONDS,
        Use::Signing => SIGNING_SECONDS,
    };
    parent.sign(
        Kind::Certificate,
        &Certificate {
            key,
            r#use,
            nbf: now,
            exp: now + seconds,
        },
    )
}

/// The key that a certificate vouches for and the end of its window, if `parent` signed it for this use.
///
/// # Errors
/// See [`InvalidChain`].
pub fn certified(
    parent: PublicKey,
    certificate: &str,
    r#use: Use,
    now: u64,
) -> Result<(PublicKey, u64), InvalidChain> {
    let found = signed(parent, certificate, r#use)?;
    found.check_time(now)?;
    Ok((found.key, found.exp))
}

fn signed(parent: PublicKey, certificate: &str, r#use: Use) -> Result<Certificate, InvalidChain> {
    let found: Certificate = parent
        .verify(Kind::Certificate, certificate)
        .map_err(|e| InvalidChain::Statement(r#use.name(), e))?;
    if found.r#use == r#use {
        Ok(found)
    } else {
        Err(InvalidChain::Use(r#use.name()))
    }
}

impl Use {
    const fn name(self) -> &'static str {
        match self {
            Self::Issuing => "issuing",
            Self::Signing => "signing",
        }
    }
}

impl Certificate {
    fn check_time(&self, now: u64) -> Result<(), InvalidChain> {
        if now.saturating_add(LEEWAY_SECONDS) < self.nbf
            || now >= self.exp.saturating_add(LEEWAY_SECONDS)
        {
            return Err(InvalidChain::Time {
                which: self.r#use.name(),
                nbf: self.nbf,
                exp: self.exp,
                now,
            });
        }
        Ok(())
    }
}

impl Chain {
    /// From the two certificates as [`certify`] makes them.
    pub const fn new(issuing: String, signing: String) -> Self {
        Self { issuing, signing }
    }

    /// The signing key at the chain's end and when its certificate ends, if all of it holds at `now`.
    ///
    /// # Errors
    /// See [`InvalidChain`].
    pub fn verify(&self, root: PublicKey, now: u64) -> Result<(PublicKey, u64), InvalidChain> {
        let (issuing, _) = certified(root, &self.issuing, Use::Issuing, now)?;
        certified(issuing, &self.signing, Use::Signing, now)
    }

    /// The same whatever the time is: for what the key signed while the chain held. It held when the signing key was
    /// certified.
    ///
    /// # Errors
    /// See [`InvalidChain`].
    pub fn verify_at_its_time(&self, root: PublicKey) -> Result<(PublicKey, u64), InvalidChain> {
        let issuing = signed(root, &self.issuing, Use::Issuing)?;
        let signing = signed(issuing.key, &self.signing, Use::Signing)?;
        issuing.check_time(signing.nbf)?;
        // Whoever has an old issuing key says when it signed, and for how long.
        Ok((signing.key, signing.exp.min(signing.nbf + SIGNING_SECONDS)))
    }

    /// For a header: both certificates with a comma between.
    pub fn to_header(&self) -> String {
        format!("{},{}", self.issuing, self.signing)
    }

    /// From a header.
    ///
    /// # Errors
    /// Not two statements.
    pub fn from_header(value: &str) -> Result<Self, InvalidChain> {
        let (issuing, signing) = value.split_once(',').ok_or(InvalidChain::Form)?;
        Ok(Self {
            issuing: issuing.to_owned(),
            signing: signing.to_owned(),
        })
    }
}

/// How many chains that hold are remembered: a few replicas, and each one's key before this.
const KNOWN: usize = 16;

/// Chains that were verified: two signatures cost more than the rest of a small request.
#[derive(Debug)]
pub struct Chains {
    root: PublicKey,
    known: Mutex<Vec<(String, PublicKey, u64)>>,
}

impl Chains {
    /// None yet, below this root.
    pub const fn new(root: PublicKey) -> Self {
        Self {
            root,
            known: Mutex::new(Vec::new()),
        }
    }

    /// The signing key at the end of a chain as a header carries it, if the chain holds at `now` (Unix seconds).
    ///
    /// # Errors
    /// See [`InvalidChain`].
    pub fn signing_key(&self, header: &str, now: u64) -> Result<PublicKey, InvalidChain> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, _, expires)| now < *expires);
        if let Some((_, key, _)) = known.iter().find(|(chain, ..)| chain == header) {
            return Ok(*key);
        }
        let chain = Chain::from_header(header)?;
        let (issuing, ends) = certified(self.root, &chain.issuing, Use::Issuing, now)?;
        let (key, expires) = certified(issuing, &chain.signing, Use::Signing, now)?;
        if known.len() >= KNOWN {
            known.remove(0);
        }
        known.push((header.to_owned(), key, expires.min(ends)));
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn chain() -> (KeyPair, KeyPair, Chain) {
        let [root, issuing, signing] = [0; 3].map(|_| KeyPair::generate().unwrap());
        let chain = Chain::new(
            certify(&root, issuing.public(), Use::Issuing, NOW),
            certify(&issuing, signing.public(), Use::Signing, NOW),
        );
        (root, signing, chain)
    }

    #[test]
    fn a_chain_leads_from_the_root_to_the_signing_key() {
        let (root, signing, chain) = chain();
        let chain = Chain::from_header(&chain.to_header()).unwrap();
        assert_eq!(
            chain.verify(root.public(), NOW).unwrap().0,
            signing.public()
        );
    }

    #[test]
    fn it_ends_with_the_shorter_of_its_windows() {
        let (root, _, chain) = chain();
        let at = |now| chain.verify(root.public(), now);
        assert!(at(NOW + SIGNING_SECONDS - 1).is_ok());
        assert!(matches!(
            at(NOW + SIGNING_SECONDS + 60),
            Err(InvalidChain::Time {
                which: "signing",
                ..
            })
        ));
        assert!(matches!(
            at(NOW + ISSUING_SECONDS + 60),
            Err(InvalidChain::Time {
                which: "issuing",
                ..
            })
        ));
        assert!(matches!(at(NOW - 61), Err(InvalidChain::Time { .. })));
        // What it signed then is another question.
        chain.verify_at_its_time(root.public()).unwrap();
        let late = NOW + ISSUING_SECONDS + 61;
        let issuing = KeyPair::generate().unwrap();
        let too_late = Chain::new(
            certify(&root, issuing.public(), Use::Issuing, NOW),
            certify(&issuing, issuing.public(), Use::Signing, late),
        );
        assert!(too_late.verify_at_its_time(root.public()).is_err());
        assert!(too_late.verify_at_its_time(issuing.public()).is_err());
    }

    #[test]
    fn what_is_remembered_ends_with_the_chain_and_is_bounded() {
        let (root, signing, chain) = chain();
        let chains = Chains::new(root.public());
        let header = chain.to_header();
        for _ in 0..2 {
            assert_eq!(chains.signing_key(&header, NOW).unwrap(), signing.public());
        }
        assert!(
            chains
                .signing_key(&header, NOW + SIGNING_SECONDS + 60)
                .is_err()
        );
        let issuing = KeyPair::generate().unwrap();
        let certificate = certify(&root, issuing.public(), Use::Issuing, NOW);
        for _ in 0..2 * KNOWN {
            let signing = KeyPair::generate().unwrap().public();
            let below = certify(&issuing, signing, Use::Signing, NOW);
            let header = Chain::new(certificate.clone(), below).to_header();
            assert_eq!(chains.signing_key(&header, NOW).unwrap(), signing);
            assert!(chains.known.lock().unwrap().len() <= KNOWN);
        }
        let stranger = Chains::new(KeyPair::generate().unwrap().public());
        assert!(stranger.signing_key(&header, NOW).is_err());
    }

    #[test]
    fn another_root_or_a_swapped_certificate_is_refused() {
        let (root, _, chain) = chain();
        let stranger = KeyPair::generate().unwrap();
        assert!(matches!(
            chain.verify(stranger.public(), NOW),
            Err(InvalidChain::Statement("issuing", _))
        ));
        let swapped = Chain::new(chain.signing.clone(), chain.issuing.clone());
        assert!(swapped.verify(root.public(), NOW).is_err());
        // A signing key can't play the issuing key.
        let root_signs_signing = certify(&root, stranger.public(), Use::Signing, NOW);
        let forged = Chain::new(
            root_signs_signing,
            certify(&stranger, root.public(), Use::Signing, NOW),
        );
        assert!(matches!(
            forged.verify(root.public(), NOW),
            Err(InvalidChain::Use("issuing"))
        ));
    }
}
