//! A session's opening: hello, proof, and what either end learns of the other's clock.

use std::sync::{
    Mutex,
    atomic::{AtomicI64, Ordering},
};

use http::StatusCode;
use towline_proto::{
    handshake::{Facts, HandshakeError, NoRandomness, Opened, Opening},
    jws::{KeyPair, PublicKey},
    names::Membership,
    session::Session,
};

use crate::{
    clock,
    dial::{Carrier, DialError, Dialer, Switched},
    guard::lock,
};

/// From how many seconds of difference on the operator is told to set the clock.
const WORTH_A_WARNING: u64 = 60;

/// Why a session isn't opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The gateway isn't reached, or refuses.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Who answers isn't our gateway.
    #[error("the gateway's answer does not hold")]
    Handshake(#[from] HandshakeError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl OpenError {
    /// The gateway doesn't take the agent's key, for another reason than the clock.
    pub fn refused(&self) -> bool {
        use StatusCode as S;
        let Self::Dial(DialError::Refused {
            status, time: None, ..
        }) = self
        else {
            return false;
        };
        [S::UNAUTHORIZED, S::FORBIDDEN, S::NOT_FOUND].contains(status)
    }
}

/// Opens sessions.
pub struct Opener {
    dialer: Dialer,
    key: KeyPair,
    membership: Membership,
    root: PublicKey,
    carrier: Mutex<Carrier>,
    /// The gateway's time less ours, in seconds.
    offset: AtomicI64,
}

impl Opener {
    /// For a membership, as the holder of its key.
    pub const fn new(
        dialer: Dialer,
        key: KeyPair,
        membership: Membership,
        root: PublicKey,
    ) -> Self {
        Self {
            dialer,
            key,
            membership,
            root,
            carrier: Mutex::new(Carrier::Upgrade),
            offset: AtomicI64::new(0),
        }
    }

    /// The way to the gateway.
    pub const fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The agent's key.
    pub const fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Opens a session: with the carrier that passed last, else with the other.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, facts: &Facts) -> Result<(Opened, Session), OpenError> {
        let carrier = *lock(&self.carrier);
        let (opened, carrier) = match self.attempt(carrier, facts).await {
            Err(OpenError::Dial(error)) if error.wants_other_carrier() => {
                let other = carrier.other();
                tracing::info!(error = %crate::upstream::chain(&error), "{carrier:?} does not pass, trying {other:?}");
                // The first failure is the one to report: most often nothing passes at all.
                match self.attempt(other, facts).await {
                    Err(OpenError::Dial(second)) if second.wants_other_carrier() => {
                        return Err(error.into());
                    }
                    opened => (opened?, other),
                }
            }
            opened => (opened?, carrier),
        };
        *lock(&self.carrier) = carrier;
        let (opened, switched) = opened;
        tracing::info!(session = opened.session, ?carrier, "session open");
        let session = Session::new(opened.session.clone(), switched.connection);
        Ok((opened, session))
    }

    /// One try, and a second where the clock alone was wrong.
    async fn attempt(
        &self,
        carrier: Carrier,
        facts: &Facts,
    ) -> Result<(Opened, Switched), OpenError> {
        match self.hello(carrier, facts).await {
            Err(OpenError::Dial(DialError::Refused {
                time: Some(time), ..
            })) => {
                self.set_offset(time);
                self.hello(carrier, facts).await
            }
            answered => answered,
        }
    }

    async fn hello(
        &self,
        carrier: Carrier,
        facts: &Facts,
    ) -> Result<(Opened, Switched), OpenError> {
        let now = clock::unix_now().saturating_add_signed(self.offset.load(Ordering::Relaxed));
        let opening = Opening::new(&self.key, self.membership.clone(), self.root, facts, now)?;
        let switched = self.dialer.switch(carrier, opening.hello()).await?;
        let opened = opening.finish(
            self.root,
            &switched.chain,
            &switched.proof,
            clock::unix_now(),
        )?;
        self.set_offset(opened.time);
        Ok((opened, switched))
    }

    fn set_offset(&self, gateway: u64) {
        let ours = clock::unix_now();
        let offset = i64::try_from(gateway)
            .unwrap_or(i64::MAX)
            .saturating_sub_unsigned(ours);
        let before = self.offset.swap(offset, Ordering::Relaxed);
        let (apart, before) = (offset.unsigned_abs(), before.unsigned_abs());
        if apart > WORTH_A_WARNING && before <= WORTH_A_WARNING {
            tracing::warn!(
                seconds = offset,
                "this machine's clock and the gateway's are more than a minute apart; the agent goes by the gateway's"
            );
        }
    }
}
