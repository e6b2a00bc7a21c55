//! A gateway's tokens on disk.
//!
//! Threat: kubectl is run many times at once, and each run asks for a token. A refresh token rotates: whoever
//! presents one that was used before looks like a thief, and everybody is signed out.
//! Decision: one file per gateway, replaced whole; a refresh happens under a lock that the operating system
//! lets go of when its holder dies, and whoever got the lock reads again before it asks the gateway.
//! Consequence: of any number of processes one asks, the others find what it got.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    atomic::{self, WriteError},
    clock,
};

/// The tokens of one gateway.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
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
    /// The next refresh token; the old one goes on when there is none.
    pub refresh_token: Option<SecretString>,
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

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cache {
    #[serde(
        default,
        serialize_with = "exposed_option",
        skip_serializing_if = "Option::is_none"
    )]
    refresh_token: Option<SecretString>,
    /// By audience: the gateway itself, or a membership's resource name.
    #[serde(default)]
    access_tokens: BTreeMap<String, Token>,
}

/// What a refresh came to.
#[derive(Debug)]
pub enum Refreshed<E> {
    /// The gateway gave a new one.
    Issued(Issued),
    /// The gateway takes the refresh token no longer.
    Ended,
    /// Neither; an old token may still serve.
    Failed(E),
}

impl Tokens {
    /// Those kept at `path`.
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
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

    /// A token that is good for a while; `refresh` asks for a new one with the refresh token it is given.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn token<E, F>(
        &self,
        audience: &str,
        refresh: impl FnOnce(SecretString) -> F,
    ) -> Result<Token, TokensError<E>>
    where
        E: std::error::Error + 'static,
        F: Future<Output = Refreshed<E>>,
    {
        if let Some(token) = self.kept(audience) {
            return Ok(token);
        }
        // Without this, a lock file would be made where nobody ever signed in.
        if self.read()?.refresh_token.is_none() {
            return Err(TokensError::SignedOut);
        }
        let _lock = self.lock().await?;
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
        let Some(refresh_token) = cache.refresh_token.clone() else {
            return Err(TokensError::SignedOut);
        };
        match refresh(refresh_token).await {
            Refreshed::Issued(issued) => {
                let token = cache.take(audience, issued, now);
                self.write(&cache)?;
                Ok(token)
            }
            Refreshed::Ended => {
                self.write(&Cache::default())?;
                Err(TokensError::SignedOut)
            }
            // A gateway that is away for a minute need not be noticed.
            Refreshed::Failed(error) => kept.ok_or(TokensError::Refresh(error)),
        }
    }

    /// Replaces everything with what a sign-in gave.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn signed_in<E: std::error::Error + 'static>(
        &self,
        audience: &str,
        issued: Issued,
    ) -> Result<(), TokensError<E>> {
        let _lock = self.lock().await?;
        let mut cache = Cache::default();
        cache.take(audience, issued, clock::unix_now());
        Ok(self.write(&cache)?)
    }

    /// Forgets everything; the refresh token that was there is to be revoked.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub async fn forget<E: std::error::Error + 'static>(
        &self,
    ) -> Result<Option<SecretString>, TokensError<E>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let _lock = self.lock().await?;
        // A file that can't be read has nothing that could be revoked, and is to go all the same.
        let refresh_token = self.read::<E>().unwrap_or_default().refresh_token;
        fs::remove_file(&self.path).map_err(|e| TokensError::Read(self.path.clone(), e))?;
        Ok(refresh_token)
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
        if issued.refresh_token.is_some() {
            self.refresh_token = issued.refresh_token;
        }
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

fn exposed<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

fn exposed_option<S: Serializer>(
    secret: &Option<SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    secret
        .as_ref()
        .map(ExposeSecret::expose_secret)
        .serialize(serializer)
}

/// How long before its end a token is renewed, so that a request on its way is not caught by the end.
const EARLY: u64 = 60;

/// Longer than a refresh may take (see `http`).
const LOCK_WAIT: Duration = Duration::from_secs(45);

/// Short enough not to be felt.
const LOCK_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
