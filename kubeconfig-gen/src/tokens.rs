//! A gateway's tokens on disk, and the sign-in that they come of.
//!
//! Threat: kubectl is run many times at once, and each run asks for a token. A refresh token rotates, a provider's as
//! well as the gateway's: whoever presents one that was used before looks like a thief, and everybody is signed out.
//! Decision: one file per gateway, replaced whole; a renewal happens under a lock that the operating system
//! lets go of when its holder dies, and whoever got the lock reads again before it asks anybody.
//! Consequence: of any number of processes one asks, the others find what it got.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{
    atomic::{self, WriteError},
    clock,
    sign_in::{SignIn, exposed},
};

/// The tokens of one gateway.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
    /// A sign-in that was given with the command, and is never forgotten.
    given: Option<SignIn>,
}

/// An access token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What goes behind `Bearer`.
    #[serde(serialize_with = "exposed")]
    pub token: SecretString,
    /// When a new one is to be had, in Unix seconds: a minute before it ends.
    pub renew_at: u64,
    /// When it ends, in Unix seconds.
    pub expires: u64,
}

/// What the gateway's token endpoint answered.
#[derive(Debug)]
pub struct Issued {
    /// The access token.
    pub access_token: SecretString,
    /// For how long the access token is good.
    pub lifetime: Duration,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokensError<E: std::error::Error + 'static> {
    /// Nobody has signed in, or the sign-in has ended.
    #[error("not signed in")]
    SignedOut,
    /// The file is there but can't be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// See [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Can't be locked at all.
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// Another process has held the lock for too long.
    #[error(
        "another towline has been renewing the sign-in for {0} seconds; try again, or end that process"
    )]
    Busy(u64),
    /// The gateway gave no new one.
    #[error(transparent)]
    Refresh(E),
}

/// What has to be kept before going on can't be.
#[derive(Debug, thiserror::Error)]
#[error("the sign-in that was just renewed can't be kept")]
pub struct KeepError(#[source] WriteError);

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cache {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sign_in: Option<SignIn>,
    /// By audience: the gateway itself, or a membership's resource name; and as whom.
    #[serde(default)]
    access_tokens: BTreeMap<String, Token>,
}

/// What was kept, and is no more.
#[derive(Debug)]
pub struct Forgotten {
    /// The sign-in.
    pub sign_in: SignIn,
    /// Access tokens that have not ended by themselves.
    pub access_tokens: Vec<SecretString>,
}

/// A sign-in that only this process renews at the moment.
#[derive(Debug)]
pub struct Renewal<'a> {
    tokens: &'a Tokens,
    cache: &'a mut Cache,
    sign_in: SignIn,
}

/// What a refresh came to.
#[derive(Debug)]
pub enum Refreshed<E> {
    /// The gateway gave a new one.
    Issued(Issued),
    /// The sign-in is over.
    Ended,
    /// Neither; an old token may still serve.
    Failed(E),
}

impl Renewal<'_> {
    /// The sign-in as it is.
    pub const fn sign_in(&self) -> &SignIn {
        &self.sign_in
    }

    /// Replaces it; kept together with the access token that comes of it.
    pub fn replace(&mut self, sign_in: SignIn) {
        if self.tokens.given.is_none() {
            self.cache.sign_in = Some(sign_in.clone());
        }
        self.sign_in = sign_in;
    }

    /// Replaces it, and keeps it at once.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn keep(&mut self, sign_in: SignIn) -> Result<(), KeepError> {
        self.replace(sign_in);
        self.tokens.write(self.cache).map_err(KeepError)
    }
}

impl Tokens {
    /// Those kept at `path`.
    pub const fn at(path: PathBuf) -> Self {
        Self { path, given: None }
    }

    /// Those of a sign-in that is given with every command; access tokens are kept at `path` where that can be.
    pub const fn of(sign_in: SignIn, path: PathBuf) -> Self {
        Self {
            path,
            given: Some(sign_in),
        }
    }

    /// A kept token that is good for a while, without asking anybody.
    pub fn kept(&self, audience: &str) -> Option<Token> {
        // What can't be read is found out about again, and told, when a new token is to be had.
        let token = self
            .read::<io::Error>()
            .ok()?
            .access_tokens
            .remove(audience)?;
        (token.renew_at > clock::unix_now()).then_some(token)
    }

    /// The sign-in as it is kept; none where that can't be read.
    pub fn sign_in(&self) -> Option<SignIn> {
        self.read::<io::Error>().ok()?.sign_in
    }

    /// A token that is good for a while; `renew` asks for a new one.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn token<E>(
        &self,
        audience: &str,
        renew: impl AsyncFnOnce(&mut Renewal<'_>) -> Refreshed<E>,
    ) -> Result<Token, TokensError<E>>
    where
        E: std::error::Error + 'static,
    {
        if let Some(token) = self.kept(audience) {
            return Ok(token);
        }
        // Without this, a lock file would be made where nobody ever signed in.
        if self.given.is_none() && self.read()?.sign_in.is_none() {
            return Err(TokensError::SignedOut);
        }
        let _lock = match self.lock().await {
            Ok(lock) => Some(lock),
            // A workload's files may be read-only, and asking twice costs it nothing.
            Err(TokensError::Lock(..)) if self.given.is_some() => None,
            Err(error) => return Err(error),
        };
        let mut cache = self.read()?;
        let now = clock::unix_now();
        let kept = cache
            .access_tokens
            .get(audience)
            .filter(|token| token.expires > now)
            .cloned();
        if let Some(token) = kept.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.clone());
        }
        let Some(sign_in) = self.given.clone().or_else(|| cache.sign_in.clone()) else {
            return Err(TokensError::SignedOut);
        };
        let mut renewal = Renewal {
            tokens: self,
            cache: &mut cache,
            sign_in,
        };
        match renew(&mut renewal).await {
            Refreshed::Issued(issued) => {
                let nothing_is_lost = matches!(renewal.sign_in, SignIn::Workload(_));
                let token = cache.take(audience, issued, now);
                match self.write(&cache) {
                    Err(error) if !nothing_is_lost => Err(error.into()),
                    _ => Ok(token),
                }
            }
            Refreshed::Ended => {
                self.write(&Cache::default())?;
                Err(TokensError::SignedOut)
            }
            // Whoever is away for a minute need not be noticed.
            Refreshed::Failed(error) => kept.ok_or(TokensError::Refresh(error)),
        }
    }

    /// Replaces everything with a new sign-in, and an access token that may have come with it.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn signed_in<E: std::error::Error + 'static>(
        &self,
        sign_in: SignIn,
        access: Option<(&str, Issued)>,
    ) -> Result<(), TokensError<E>> {
        let _lock = self.lock().await?;
        let mut cache = Cache {
            sign_in: Some(sign_in),
            ..Cache::default()
        };
        if let Some((audience, issued)) = access {
            cache.take(audience, issued, clock::unix_now());
        }
        Ok(self.write(&cache)?)
    }

    /// Forgets everything; what there was is to be revoked.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn forget<E: std::error::Error + 'static>(
        &self,
    ) -> Result<Option<Forgotten>, TokensError<E>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let _lock = self.lock().await?;
        // A file that can't be read has nothing that could be revoked, and is to go all the same.
        let cache = self.read::<E>().unwrap_or_default();
        fs::remove_file(&self.path).map_err(|e| TokensError::Read(self.path.clone(), e))?;
        let now = clock::unix_now();
        Ok(cache.sign_in.map(|sign_in| Forgotten {
            sign_in,
            access_tokens: cache
                .access_tokens
                .into_values()
                .filter(|token| token.expires > now)
                .map(|token| token.token)
                .collect(),
        }))
    }

    fn read<E: std::error::Error + 'static>(&self) -> Result<Cache, TokensError<E>> {
        match fs::read(&self.path) {
            // Only this program writes the file; one that it doesn't understand is from another version or
            // was meddled with, and signing in again mends it.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Cache::default()),
            Err(e) => Err(TokensError::Read(self.path.clone(), e)),
        }
    }

    fn write(&self, cache: &Cache) -> Result<(), WriteError> {
        atomic::write(
            &self.path,
            serde_json::to_string(cache).unwrap_or_default().as_bytes(),
        )
    }

    /// Waits for the lock; it ends with the file that is returned.
    async fn lock<E: std::error::Error + 'static>(&self) -> Result<fs::File, TokensError<E>> {
        // Beside the file and never replaced, as the file itself is.
        let path = self.path.with_extension("lock");
        let error = |e| TokensError::Lock(path.clone(), e);
        atomic::make_private_dir(path.parent().unwrap_or_else(|| Path::new("."))).map_err(error)?;
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(error)?;
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(TokensError::Busy(LOCK_WAIT.as_secs()));
                }
                Err(fs::TryLockError::Error(e)) => return Err(error(e)),
            }
        }
    }
}

impl Cache {
    fn take(&mut self, audience: &str, issued: Issued, now: u64) -> Token {
        let lifetime = issued.lifetime.as_secs();
        let expires = now.saturating_add(lifetime);
        let token = Token {
            token: issued.access_token,
            // A token that lives shorter than two minutes is used for half its life.
            renew_at: expires - EARLY.min(lifetime / 2),
            expires,
        };
        // What has ended is of no use to anybody.
        self.access_tokens.retain(|_, token| token.expires > now);
        self.access_tokens
            .insert(audience.to_owned(), token.clone());
        token
    }
}

/// How long before its end a token is renewed, so that a request on its way is not caught by the end.
const EARLY: u64 = 60;

/// Longer than a renewal may take (see `http`): two requests to a provider, and an exchange.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Short enough not to be felt.
const LOCK_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
