//! End-to-end mode: a person's own word to one cluster's agent about who they are.
//!
//! Threat: a gateway that was taken over names whom it likes, and every agent believes it.
//! Decision: the person's program makes a key for each sign-in at the identity provider, and sends a nonce there that
//! commits to the key ([`nonce`]); the provider signs that nonce into the ID token. With a request go the ID token and
//! a [`Possession`], a statement by the key that names one audience and ends within five minutes; the two are a
//! [`Proof`]. An agent that verifies both needs to believe no gateway.
//! Consequence: who sees a proof can show it to the agent that it was made for, for five minutes, and to nobody else:
//! a gateway takes an ID token with such a nonce only together with a statement that names the gateway.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::jws::{InvalidStatement, KeyPair, Kind, PublicKey, fingerprint};

/// What begins the nonce of an ID token that commits to a key.
pub const NONCE: &str = "towline-proof.";

/// For how long a statement is good, in seconds.
pub const LIFETIME: u64 = 300;

/// How far the clock of who states may be ahead of that of who verifies, in seconds.
pub const LEEWAY: u64 = 60;

/// The longest proof, in bytes: it travels in a header.
pub const MAX_PROOF: usize = 32 * 1024;

/// Between the parts of a proof, and between an access token and the proof behind it: RFC 6750 has it in tokens, and
/// base64url has not.
pub const SEPARATOR: char = '~';

/// The nonce of an ID token that commits to `key`.
pub fn nonce(key: &PublicKey) -> String {
    format!("{NONCE}{}", fingerprint(key.as_bytes()))
}

/// Why a proof isn't one.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProof {
    /// Longer than [`MAX_PROOF`].
    #[error("it is longer than {MAX_PROOF} bytes")]
    TooLong,
    /// Not the parts that it has to have.
    #[error("it is not made of ID token, key and statement")]
    Form,
    /// The ID token belongs to another key, or to none.
    #[error("the ID token's nonce does not commit to the key that made the statement")]
    Nonce,
    /// Not by this key.
    #[error(transparent)]
    Statement(#[from] InvalidStatement),
    /// For somebody else.
    #[error("the statement is for {stated:?}, not for {wanted:?}")]
    Audience {
        /// Whom it names.
        stated: String,
        /// Who reads it.
        wanted: String,
    },
    /// Too old, from the future, or good for too long.
    #[error(
        "the statement was made {age} s ago and may be {LIFETIME} s old; are the clocks right, here and there?"
    )]
    Time {
        /// By the reader's clock, in seconds; below zero where it is yet to come.
        age: i64,
    },
}

/// A key, and its statement that whoever sends this has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Possession {
    key: PublicKey,
    statement: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Statement {
    aud: String,
    iat: u64,
    exp: u64,
}

impl Possession {
    /// States to `audience`, at `now` in Unix seconds: a membership's resource name, or the URL of a gateway's token
    /// endpoint.
    pub fn state(key: &KeyPair, audience: &str, now: u64) -> Self {
        let statement = Statement {
            aud: audience.to_owned(),
            iat: now,
            exp: now.saturating_add(LIFETIME),
        };
        Self {
            key: key.public(),
            statement: key.sign(Kind::Possession, &statement),
        }
    }

    /// Verifies that the key which `nonce` commits to made this for `audience`, at whatever time.
    ///
    /// # Errors
    /// See [`InvalidProof`].
    pub fn verify(&self, nonce: &str, audience: &str) -> Result<(), InvalidProof> {
        self.read(nonce, audience).map(drop)
    }

    /// The same, and that it was made in the last five minutes before `now` (Unix seconds).
    ///
    /// # Errors
    /// See [`InvalidProof`].
    pub fn verify_at(&self, nonce: &str, audience: &str, now: u64) -> Result<(), InvalidProof> {
        let Statement { iat, exp, .. } = self.read(nonce, audience)?;
        let brief = exp.saturating_sub(iat) <= LIFETIME;
        let begun = iat <= now.saturating_add(LEEWAY);
        let ended = exp < now;
        if brief && begun && !ended {
            return Ok(());
        }
        Err(InvalidProof::Time {
            age: i64::try_from(i128::from(now) - i128::from(iat)).unwrap_or(i64::MAX),
        })
    }

    fn read(&self, nonce: &str, audience: &str) -> Result<Statement, InvalidProof> {
        if nonce != self::nonce(&self.key) {
            return Err(InvalidProof::Nonce);
        }
        let statement: Statement = self.key.verify(Kind::Possession, &self.statement)?;
        if statement.aud == audience {
            Ok(statement)
        } else {
            Err(InvalidProof::Audience {
                stated: statement.aud.chars().take(200).collect(),
                wanted: audience.to_owned(),
            })
        }
    }
}

impl fmt::Display for Possession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.key, self.statement)
    }
}

impl FromStr for Possession {
    type Err = InvalidProof;

    fn from_str(text: &str) -> Result<Self, InvalidProof> {
        if text.len() > MAX_PROOF {
            return Err(InvalidProof::TooLong);
        }
        let (key, statement) = text.split_once(SEPARATOR).ok_or(InvalidProof::Form)?;
        Ok(Self {
            key: key.parse().map_err(|_| InvalidProof::Form)?,
            statement: statement.to_owned(),
        })
    }
}

/// An ID token, and the possession of the key that it commits to. It doesn't print: an ID token says much of a person.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof {
    id_token: String,
    possession: Possession,
}

impl Proof {
    /// Puts the two together.
    pub const fn new(id_token: String, possession: Possession) -> Self {
        Self {
            id_token,
            possession,
        }
    }

    /// The ID token, which is to be verified with the issuer's keys.
    pub fn id_token(&self) -> &str {
        &self.id_token
    }

    /// The possession of the key that the ID token's nonce has to commit to.
    pub const fn possession(&self) -> &Possession {
        &self.possession
    }

    /// As it travels, in a header or behind an access token.
    pub fn to_header(&self) -> String {
        format!("{}{SEPARATOR}{}", self.id_token, self.possession)
    }

    /// Reads it.
    ///
    /// # Errors
    /// See [`InvalidProof`].
    pub fn from_header(text: &str) -> Result<Self, InvalidProof> {
        if text.len() > MAX_PROOF {
            return Err(InvalidProof::TooLong);
        }
        let (id_token, possession) = text.split_once(SEPARATOR).ok_or(InvalidProof::Form)?;
        Ok(Self {
            id_token: id_token.to_owned(),
            possession: possession.parse()?,
        })
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "projects/p/locations/global/memberships/m";
    const NOW: u64 = 1_800_000_000;

    fn stated() -> (KeyPair, Possession, String) {
        let key = KeyPair::generate().unwrap();
        let possession = Possession::state(&key, AUDIENCE, NOW);
        let nonce = nonce(&key.public());
        (key, possession, nonce)
    }

    #[test]
    fn a_statement_is_good_for_one_audience_and_five_minutes() {
        let (_, possession, nonce) = stated();
        for now in [NOW - LEEWAY, NOW, NOW + LIFETIME] {
            possession.verify_at(&nonce, AUDIENCE, now).unwrap();
        }
        for now in [NOW - LEEWAY - 1, NOW + LIFETIME + 1, 0, u64::MAX] {
            let refused = possession.verify_at(&nonce, AUDIENCE, now).unwrap_err();
            assert!(matches!(refused, InvalidProof::Time { .. }), "{refused}");
        }
        let refused = possession
            .verify_at(&nonce, "projects/p/locations/global/memberships/n", NOW)
            .unwrap_err();
        assert!(
            matches!(refused, InvalidProof::Audience { .. }),
            "{refused}"
        );
    }

    #[test]
    fn a_statement_that_is_good_for_longer_is_refused() {
        let key = KeyPair::generate().unwrap();
        let long = Statement {
            aud: AUDIENCE.to_owned(),
            iat: NOW,
            exp: NOW + LIFETIME + 1,
        };
        let possession = Possession {
            key: key.public(),
            statement: key.sign(Kind::Possession, &long),
        };
        let refused = possession.verify_at(&nonce(&key.public()), AUDIENCE, NOW);
        assert!(matches!(refused, Err(InvalidProof::Time { .. })));
    }

    #[test]
    fn only_the_key_that_the_nonce_commits_to_may_state() {
        let (_, possession, own) = stated();
        let (other, others, others_nonce) = stated();
        for (possession, nonce) in [(&possession, &others_nonce), (&others, &own)] {
            let refused = possession.verify(nonce, AUDIENCE).unwrap_err();
            assert!(matches!(refused, InvalidProof::Nonce), "{refused}");
        }
        // The right key's name with another key's statement.
        let mixed = Possession {
            statement: Possession::state(&other, AUDIENCE, NOW).statement,
            ..possession
        };
        assert!(matches!(
            mixed.verify(&own, AUDIENCE),
            Err(InvalidProof::Statement(_))
        ));
    }

    #[test]
    fn another_kind_of_statement_by_the_same_key_is_none() {
        let key = KeyPair::generate().unwrap();
        let claims = serde_json::json!({"aud": AUDIENCE, "iat": NOW, "exp": NOW + 60});
        let possession = Possession {
            key: key.public(),
            statement: key.sign(Kind::Hello, &claims),
        };
        let refused = possession.verify_at(&nonce(&key.public()), AUDIENCE, NOW);
        assert!(matches!(refused, Err(InvalidProof::Statement(_))));
    }

    #[test]
    fn proofs_travel_and_do_not_print() {
        let (_, possession, _) = stated();
        let proof = Proof::new("a.b.c".to_owned(), possession);
        assert_eq!(Proof::from_header(&proof.to_header()).unwrap(), proof);
        assert_eq!(format!("{proof:?}"), "Proof");
        for bad in ["", "a.b.c", "a.b.c~", "a.b.c~key~statement", "~~"] {
            assert!(matches!(Proof::from_header(bad), Err(InvalidProof::Form)));
        }
        let long = format!("a~b~{}", "c".repeat(MAX_PROOF));
        assert!(matches!(
            Proof::from_header(&long),
            Err(InvalidProof::TooLong)
        ));
    }
}
