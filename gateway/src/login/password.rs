//! Passwords: argon2id, a few at a time, and the same work for whoever doesn't exist.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread::available_parallelism,
    time::Duration,
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _},
};
use http::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::Refusal;

/// The shortest password that is taken, in characters.
pub(super) const SHORTEST: usize = 12;
/// The longest, in bytes: a hash takes them all.
const LONGEST: usize = 1024;
/// How long a sign-in waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// What is hashed when there is nothing to compare with.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash(b"nobody's password").ok());

/// Takes turns at hashing: each takes 19 MiB and a core for some 20 ms.
#[derive(Debug)]
pub(super) struct Passwords {
    turns: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(
                available_parallelism().map_or(2, NonZeroUsize::get),
            )),
        }
    }
}

impl Passwords {
    /// Whether it is the password; `None` where there is none, which takes as long.
    pub(super) async fn verify(
        &self,
        password: SecretString,
        stored: Option<String>,
    ) -> Result<bool, Refusal> {
        self.work(move || {
            let exists = stored.is_some();
            let against = stored.or_else(|| NOBODY.clone());
            let password = password.expose_secret().as_bytes();
            let matches = against.is_some_and(|hash| {
                Argon2::default()
                    .verify_password(password, hash.as_str())
                    .is_ok()
            });
            exists && matches
        })
        .await
    }

    /// The hash of a new password.
    pub(super) async fn hash(&self, password: SecretString) -> Result<String, Refusal> {
        let hash = self
            .work(move || hash(password.expose_secret().as_bytes()))
            .await?;
        hash.map_err(|error| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                error.to_string(),
            )
        })
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let busy = || {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "too many people sign in just now; try again",
            )
        };
        let turn = timeout(TURN, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| busy())?;
        let turn = turn.map_err(|_| busy())?;
        let done = spawn_blocking(move || {
            // Given back by the work, not by a caller that has gone away.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| busy())
    }
}

fn hash(password: &[u8]) -> Result<String, argon2::password_hash::Error> {
    Ok(Argon2::default().hash_password(password)?.to_string())
}

/// Whether a password may be set.
pub(super) fn check(user: &str, password: &str) -> Result<(), String> {
    if password.chars().count() < SHORTEST {
        Err(format!(
            "the new password is too short: it needs {SHORTEST} characters"
        ))
    } else if password.len() > LONGEST {
        Err(format!(
            "the new password is too long: {LONGEST} bytes are the most"
        ))
    } else if password.to_lowercase().contains(&user.to_lowercase())
        && password.len() < user.len() + SHORTEST
    {
        Err("the new password is little more than the user name".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_verified_and_nobody_has_none() {
        let passwords = Passwords::default();
        let stored = passwords.hash("correct horse".into()).await.unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert!(
            passwords
                .verify("correct horse".into(), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("correct house".into(), Some(stored))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("nobody's password".into(), None)
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify("x".into(), Some("not a hash".into()))
                .await
                .unwrap()
        );
    }

    #[test]
    fn a_password_needs_some_length() {
        assert!(check("alice", "correct horse").is_ok());
        assert!(check("alice", "alice loves long passwords").is_ok());
        for (user, password) in [
            ("alice", "short"),
            ("alice-smith", "Alice-Smith1"),
            ("a", &"x".repeat(2_000)),
        ] {
            assert!(check(user, password).is_err(), "{password}");
        }
    }
}
