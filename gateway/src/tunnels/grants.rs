//! A session's grants: who is calling, signed for that session and good for a minute.
//!
//! Each replica signs with its own key, and an agent knows that of the replica at which its session began. A grant of
//! another, or of a newer key, comes with the certificates that lead to it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderValue;
use towline_proto::{
    assertion::{GRANT_SECONDS, Grant},
    jws::PublicKey,
    names::Membership,
};

use super::text;
use crate::{authn::Identity, clock::Clock, error::Refused, keys::Keys};

/// How far the clock of the replica that holds a session may be from this one's, in seconds.
const EARLY: u64 = 20;

/// Signs the grants of one session.
#[derive(Debug)]
pub(crate) struct Grants {
    membership: Membership,
    session: String,
    /// What the agent believes without a chain.
    believed: Option<PublicKey>,
    keys: Arc<Keys>,
    clock: Clock,
    signed: Mutex<HashMap<String, Signed>>,
}

#[derive(Debug)]
struct Signed {
    identity: Arc<Identity>,
    granted: Granted,
    exp: u64,
}

/// One grant as it travels.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    /// The statement.
    pub(super) statement: HeaderValue,
    /// The certificates to the key that signed it, where the agent wants them.
    pub(super) chain: Option<HeaderValue>,
}

impl Grants {
    pub(crate) fn new(
        membership: Membership,
        session: String,
        believed: Option<PublicKey>,
        keys: Arc<Keys>,
        clock: Clock,
    ) -> Self {
        Self {
            membership,
            session,
            believed,
            keys,
            clock,
            signed: Mutex::default(),
        }
    }

    /// How many seconds a grant has to be good for still.
    const fn least_left(&self) -> u64 {
        match self.believed {
            Some(_) => GRANT_SECONDS / 2,
            None => EARLY,
        }
    }

    /// A grant for this identity, signed anew only when the last one is past half its time.
    pub(crate) fn of(&self, identity: &Arc<Identity>) -> Result<Granted, Refused> {
        let now = self.clock.unix();
        let principal = identity.principal.to_string();
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = signed.get(&principal)
            && last.exp > now + self.least_left()
            && last.identity == *identity
        {
            return Ok(last.granted.clone());
        }
        signed.retain(|_, signed| signed.exp > now);
        // Another replica's clock may be behind or ahead, and the agent goes by that one.
        let from = match self.believed {
            Some(_) => now,
            None => now.saturating_sub(EARLY),
        };
        let exp = from + GRANT_SECONDS;
        let grant = Grant {
            membership: self.membership.clone(),
            session: self.session.clone(),
            principal: principal.clone(),
            user: identity.user.clone(),
            uid: identity.uid.clone(),
            groups: identity.groups.clone(),
            extra: identity.extra.clone(),
            iat: from,
            exp,
        };
        let (key, chain) = self.keys.signing_with_chain();
        let granted = Granted {
            statement: text(&grant.sign(&key))?,
            chain: (self.believed != Some(key.public()))
                .then(|| text(&chain.to_header()))
                .transpose()?,
        };
        signed.insert(
            principal,
            Signed {
                identity: Arc::clone(identity),
                granted: granted.clone(),
                exp,
            },
        );
        Ok(granted)
    }
}
