//! Access tokens whose signature was verified before: a caller shows the same one for minutes, request after request.
//!
//! Threat: a token goes on being good because it once was.
//! Decision: only that its signature is by a key of ours is remembered, under the token's SHA-256, and what it says.
//! Whether that key still counts and the time are looked at each time, and whom it speaks for is nobody's business
//! here.
//! Consequence: a key that is taken back takes its tokens along at once, and what is remembered signs nobody in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::AccessToken;

/// How many are remembered. Each has a few names in it.
const MOST: usize = 10_000;

/// Tokens that were verified.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Name, Arc<Known>>>);

/// What a token is remembered by; it can't be used as one.
type Name = [u8; SHA256_OUTPUT_LEN];

/// What a verified token says.
#[derive(Debug)]
pub(super) struct Known {
    /// The id of the key that signed it.
    pub(super) key: String,
    /// When it begins to be good, in Unix seconds.
    pub(super) from: u64,
    /// The rest.
    pub(super) token: AccessToken,
}

impl Verified {
    /// What is known of a token.
    pub(super) fn recall(&self, token: &str) -> Option<Arc<Known>> {
        self.lock().get(&name(token)?).cloned()
    }

    /// Remembers what a token says that was verified at `now`.
    pub(super) fn remember(&self, token: &str, known: Arc<Known>, now: u64) {
        let Some(name) = name(token) else {
            return;
        };
        let mut tokens = self.lock();
        if tokens.len() >= MOST {
            tokens.retain(|_, known| known.token.expires > now);
        }
        if tokens.len() >= MOST {
            tokens.clear();
        }
        tokens.insert(name, known);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Arc<Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(token: &str) -> Option<Name> {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::Audience;

    fn known(expires: u64) -> Arc<Known> {
        Arc::new(Known {
            key: "k".to_owned(),
            from: 0,
            token: AccessToken {
                subject: "alice".to_owned(),
                sign_in: None,
                audience: Audience::Gateway,
                expires,
            },
        })
    }

    #[test]
    fn as_many_are_remembered_as_may_be() {
        let tokens = Verified::default();
        for number in 0..MOST {
            let expires = if number % 2 == 0 { 5 } else { 50 };
            tokens.remember(&number.to_string(), known(expires), 0);
        }
        assert_eq!(tokens.lock().len(), MOST);
        // What is over goes first.
        tokens.remember("one more", known(50), 10);
        assert_eq!(tokens.lock().len(), MOST / 2 + 1);
        assert!(tokens.recall("1").is_some() && tokens.recall("2").is_none());
        for number in 0..MOST {
            tokens.remember(&format!("more {number}"), known(50), 10);
        }
        assert!(tokens.lock().len() <= MOST);
    }
}
