//! A session's opening, and its other connections: hello, proof, and what either end learns of the other's clock.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::{io::AsyncWriteExt as _, time::timeout};
use towline_proto::{
    handshake::{Facts, HandshakeError, NoRandomness, Opened, Opening, Resumption, ResumptionKey},
    jws::{KeyPair, PublicKey},
    names::Membership,
    session::{Handle, ResumeError, Session},
};

use crate::{
    clock::{self, GatewayClock},
    dial::{Carrier, DialError, Dialer, Switched},
    guard::lock,
};

/// From how many seconds of difference on the operator is told to set the clock.
const WORTH_A_WARNING: u64 = 60;

/// How long a new connection may take to take the first bytes.
const CONFIRMING: Duration = Duration::from_secs(5);

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
    /// The connection broke right after the 101.
    #[error("the connection to the gateway broke before the session began")]
    Confirm(#[source] io::Error),
    /// The session doesn't take the connection.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

impl OpenError {
    /// The session can't go on, whatever is tried: the gateway doesn't know it or doesn't take the agent any more, or
    /// it is over.
    pub fn ends_session(&self) -> bool {
        match self {
            Self::Dial(DialError::Refused { status, time, .. }) => {
                time.is_none() && status.is_client_error()
            }
            Self::Dial(_) | Self::Randomness(_) | Self::Confirm(_) => false,
            Self::Handshake(_) | Self::Resume(_) => true,
        }
    }

    /// The replica that was met is not the one for a new session, but another may be: the agent has a session there, or
    /// it is going.
    pub fn elsewhere(&self) -> bool {
        use StatusCode as S;
        let Self::Dial(DialError::Refused { status, .. }) = self else {
            return false;
        };
        [S::MISDIRECTED_REQUEST, S::SERVICE_UNAVAILABLE].contains(status)
    }

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

    /// Opens a session, at another replica than these.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        &self,
        facts: &Facts,
        avoid: &[String],
    ) -> Result<(Opened, Session), OpenError> {
        let (opening, switched) = self
            .dial(|now| {
                let membership = self.membership.clone();
                Ok(Opening::avoiding(
                    &self.key, membership, self.root, facts, avoid, now,
                )?)
            })
            .await?;
        let (chain, proof) = (&switched.chain, &switched.proof);
        let opened = opening.finish(self.root, chain, proof, clock::unix_now())?;
        self.set_offset(opened.time);
        tracing::info!(session = opened.session, replica = opened.replica, carrier = ?*lock(&self.carrier), "session open");
        let mut connection = switched.connection;
        let confirmed = async {
            connection.write_all(opened.confirmation.bytes()).await?;
            connection.flush().await
        };
        timeout(CONFIRMING, confirmed)
            .await
            .map_err(|_| io::ErrorKind::TimedOut.into())
            .flatten()
            .map_err(OpenError::Confirm)?;
        let session = Session::new(opened.session.clone(), connection);
        Ok((opened, session))
    }

    /// Gives a session that a replica holds another connection; how many bytes were sent again.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn resume(
        &self,
        facts: &Facts,
        (handle, replica): (&Handle, &str),
        key: &ResumptionKey,
        clock: &GatewayClock,
    ) -> Result<u64, OpenError> {
        let (opening, switched) = self
            .dial(|now| {
                let membership = self.membership.clone();
                let generation = handle.generation() + 1;
                let asked = Resumption {
                    replica,
                    session: handle.id(),
                    key,
                    generation,
                    position: handle.fence(generation)?,
                };
                Ok(Opening::resume(
                    &self.key, membership, self.root, facts, now, &asked,
                )?)
            })
            .await?;
        let (chain, proof) = (&switched.chain, &switched.proof);
        let (position, time) =
            opening.resumed(handle.id(), key, self.root, chain, proof, clock::unix_now())?;
        self.set_offset(time);
        clock.set(time);
        Ok(handle.attach(handle.generation(), switched.connection, position)?)
    }

    /// A connection on which the gateway has answered a hello: with the carrier that passed last, else with the other.
    /// A hello is good for one try.
    async fn dial(
        &self,
        hello: impl Fn(u64) -> Result<Opening, OpenError>,
    ) -> Result<(Opening, Switched), OpenError> {
        let carrier = *lock(&self.carrier);
        let (dialled, carrier) = match self.attempt(carrier, &hello).await {
            Err(OpenError::Dial(error)) if error.wants_other_carrier() => {
                let other = carrier.other();
                tracing::info!(error = %crate::upstream::chain(&error), "{carrier:?} does not pass, trying {other:?}");
                // The first failure is the one to report: most often nothing passes at all.
                match self.attempt(other, &hello).await {
                    Err(OpenError::Dial(second)) if second.wants_other_carrier() => {
                        return Err(error.into());
                    }
                    dialled => (dialled?, other),
                }
            }
            dialled => (dialled?, carrier),
        };
        *lock(&self.carrier) = carrier;
        Ok(dialled)
    }

    /// One try, and a second where the clock alone was wrong.
    async fn attempt(
        &self,
        carrier: Carrier,
        hello: &impl Fn(u64) -> Result<Opening, OpenError>,
    ) -> Result<(Opening, Switched), OpenError> {
        let switch = async || {
            let now = clock::unix_now().saturating_add_signed(self.offset.load(Ordering::Relaxed));
            let opening = hello(now)?;
            let switched = self.dialer.switch(carrier, opening.hello()).await?;
            Ok((opening, switched))
        };
        match switch().await {
            Err(OpenError::Dial(DialError::Refused {
                time: Some(time), ..
            })) => {
                self.set_offset(time);
                switch().await
            }
            answered => answered,
        }
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
