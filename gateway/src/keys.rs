//! The gateway's own keys on disk: root, issuing, signing.
//!
//! Threat: a running gateway is broken into, or dies at any moment while it changes its keys.
//! Decision: keys are files that only the gateway's user reads, never rows of the database. The root's private
//! half need not be on a running gateway: without it the issuing key lives out its 90 days. A key and its
//! certificate are one file, replaced whole; the public half of a new signing key is written before the key
//! signs anything, and kept until every token that it signed has ended.
//! Consequence: a gateway that restarts believes its own tokens, and one that dies half-way starts again.
//!
//! | file | what |
//! | --- | --- |
//! | `root.pub` | the root's public key, which agents pin |
//! | `root.key` | its private key; may be elsewhere |
//! | `issuing.key` | the issuing key and the root's certificate of it |
//! | `signing.key` | this replica's signing key and the issuing key's certificate of it |
//! | `tokens.json` | public halves of signing keys whose tokens may still be good |

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use towline_proto::{
    jws::{InvalidKeyPair, KeyPair, PublicKey},
    keys::{Chain, ISSUING_SECONDS, InvalidChain, SIGNING_SECONDS, Use, certified, certify},
};

use crate::{clock::Clock, private};

/// How long the public half of a signing key is kept after its last signature, in seconds: longer than any token lives.
pub const TOKEN_KEY_SECONDS: u64 = 24 * 3600;

/// How often it is looked whether a key is at half its life. Not one long sleep: a suspended machine oversleeps.
const LOOK: Duration = Duration::from_secs(60);

/// The gateway's keys, renewed as they age.
#[derive(Debug)]
pub struct Keys {
    dir: PathBuf,
    clock: Clock,
    root: PublicKey,
    state: RwLock<State>,
    /// Of other replicas.
    others: RwLock<BTreeMap<String, TokenKey>>,
}

/// New keys, before anything is signed with them.
#[derive(Debug)]
pub struct Renewed(State);

/// What other replicas have to know of a signing key.
#[derive(Debug, Clone)]
pub struct Published {
    /// The key's id.
    pub id: String,
    /// The certificates from the root to it.
    pub chain: Chain,
    /// Until when tokens may come that it signed, in Unix seconds.
    pub until: u64,
}

#[derive(Debug)]
struct State {
    issuing: Certified,
    signing: Certified,
    tokens: BTreeMap<String, TokenKey>,
}

/// A key with its parent's certificate.
#[derive(Debug, Clone)]
struct Certified {
    pair: Arc<KeyPair>,
    certificate: String,
    expires: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TokenKey {
    key: PublicKey,
    until: u64,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file can't be read or written.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {what}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// A root without `root.pub`.
    #[error("there is no root key in {}; run: towline-gateway init", .0.display())]
    NoRoot(PathBuf),
    /// `root.key` and `root.pub` are not one pair.
    #[error("{} is not the private half of root.pub; agents have pinned root.pub", .0.display())]
    OtherRoot(PathBuf),
    /// The issuing key can't be renewed, and it has to be.
    #[error("the issuing key can't be used and {} is not there to make another; put the root key back and start again", .root.display())]
    OfflineRoot {
        /// Where the root key would be.
        root: PathBuf,
        /// What is wrong with the issuing key.
        #[source]
        source: Option<InvalidChain>,
    },
    /// No randomness.
    #[error("no key could be made")]
    Generate(#[from] InvalidKeyPair),
}

impl Keys {
    /// Makes the root key if there is none, then opens.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn create(dir: &Path, clock: Clock) -> Result<Self, KeysError> {
        private::make_dir(dir).map_err(|source| file("make", dir, source))?;
        let public = dir.join(ROOT_PUBLIC);
        if !public.exists() {
            let path = dir.join(ROOT);
            // A run that died in between has left the private half.
            let root = match read_root(&path)? {
                Some(root) => root,
                None => {
                    let root = KeyPair::generate()?;
                    write(&path, &pem(&root))?;
                    root
                }
            };
            write(&public, &format!("{}\n", root.public()))?;
        }
        Self::open(dir, clock)
    }

    /// Reads the keys and renews what is missing or old.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, KeysError> {
        let public = dir.join(ROOT_PUBLIC);
        let root: PublicKey = match fs::read_to_string(&public) {
            Ok(text) => text.parse().map_err(|_| KeysError::Form {
                path: public,
                what: "an Ed25519 public key",
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeysError::NoRoot(dir.to_owned()));
            }
            Err(source) => return Err(file("read", &public, source)),
        };
        let now = clock.unix();
        let issuing = open_issuing(dir, root, now)?;
        let mut tokens = read_tokens(dir)?;
        tokens.retain(|_, key| key.until > now);
        let signing =
            match read_certified(&dir.join(SIGNING), issuing.pair.public(), Use::Signing, now)? {
                Ok(signing) if now < half_life(signing.expires, SIGNING_SECONDS) => signing,
                _ => make_signing(dir, &issuing, &mut tokens, now)?,
            };
        Ok(Self {
            dir: dir.to_owned(),
            clock,
            root,
            state: RwLock::new(State {
                issuing,
                signing,
                tokens,
            }),
            others: RwLock::default(),
        })
    }

    /// The root's public key, which agents pin.
    pub const fn root(&self) -> PublicKey {
        self.root
    }

    /// The key that signs proofs, grants and access tokens now.
    pub fn signing(&self) -> Arc<KeyPair> {
        Arc::clone(&self.read().signing.pair)
    }

    /// Certificates from the root to [`Keys::signing`].
    pub fn chain(&self) -> Chain {
        let state = self.read();
        Chain::new(
            state.issuing.certificate.clone(),
            state.signing.certificate.clone(),
        )
    }

    /// The signing key and the certificates that lead to it, of one moment.
    pub fn signing_with_chain(&self) -> (Arc<KeyPair>, Chain) {
        let state = self.read();
        let chain = Chain::new(
            state.issuing.certificate.clone(),
            state.signing.certificate.clone(),
        );
        (Arc::clone(&state.signing.pair), chain)
    }

    /// What other replicas have to know of [`Keys::signing`].
    pub fn published(&self) -> Published {
        self.read().published()
    }

    /// A public key that may have signed access tokens which are still good.
    pub fn token_key(&self, id: &str) -> Option<PublicKey> {
        let now = self.clock.unix();
        let known = |keys: &BTreeMap<String, TokenKey>| {
            let key = keys.get(id).filter(|key| key.until > now)?;
            Some(key.key)
        };
        known(&self.read().tokens).or_else(|| known(&self.others()))
    }

    /// Takes the keys that other replicas sign tokens with, each with its chain and until when such tokens may come;
    /// those before are forgotten, and what doesn't lead to the root is left out.
    pub fn believe(&self, chains: &[(String, u64)]) {
        let mut others = BTreeMap::new();
        for (chain, until) in chains {
            let vouched =
                Chain::from_header(chain).and_then(|chain| chain.verify_at_its_time(self.root));
            match vouched {
                Ok((key, expires)) => {
                    let until = (*until).min(expires + TOKEN_KEY_SECONDS);
                    others.insert(key.id(), TokenKey { key, until });
                }
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the database holds a signing key that does not lead to the root"
                ),
            }
        }
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = others;
    }

    /// All of them, for other programs to verify tokens with.
    pub fn token_keys(&self) -> Vec<PublicKey> {
        let now = self.clock.unix();
        let mut keys = self.read().tokens.clone();
        keys.extend(self.others().clone());
        let good = keys.into_values().filter(|key| key.until > now);
        good.map(|key| key.key).collect()
    }

    /// Makes what is past half its life anew; `None` when nothing is. The old keys go on until [`Keys::adopt`].
    ///
    /// # Errors
    /// See [`KeysError`]; the old keys go on.
    pub fn renew_due(&self) -> Result<Option<Renewed>, KeysError> {
        let now = self.clock.unix();
        let (mut issuing, signing, mut tokens) = {
            let state = self.read();
            (
                state.issuing.clone(),
                state.signing.clone(),
                state.tokens.clone(),
            )
        };
        let mut due = now >= half_life(signing.expires, SIGNING_SECONDS);
        if now >= half_life(issuing.expires, ISSUING_SECONDS) {
            match make_issuing(&self.dir, self.root, now) {
                Ok(Some(made)) => {
                    issuing = made;
                    due = true;
                }
                // Only worth a word when the end is near: the root is meant to be elsewhere.
                Ok(None) if issuing.expires < now + ISSUING_WARNING => {
                    let days = issuing.expires.saturating_sub(now) / (24 * 3600);
                    tracing::warn!(days, root = %self.dir.join(ROOT).display(), "the issuing key ends soon: put the root key back for an hour");
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        if !due {
            return Ok(None);
        }
        tokens.retain(|_, key| key.until > now);
        let signing = make_signing(&self.dir, &issuing, &mut tokens, now)?;
        Ok(Some(Renewed(State {
            issuing,
            signing,
            tokens,
        })))
    }

    /// Signs with new keys from now on.
    pub fn adopt(&self, renewed: Renewed) {
        let key = renewed.0.signing.pair.public().id();
        tracing::info!(key, "a new signing key");
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = renewed.0;
    }

    /// Renews keys as they age, for as long as it is polled; `publish` tells other replicas of one before anything is
    /// signed with it, and is tried again while it says no.
    pub async fn renew<F>(self: Arc<Self>, publish: impl Fn(Published) -> F)
    where
        F: Future<Output = bool>,
    {
        let mut pending = None;
        loop {
            tokio::time::sleep(LOOK).await;
            if pending.is_none() {
                pending = self.renew_due().unwrap_or_else(|error| {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "keys can't be renewed; the old ones go on"
                    );
                    None
                });
            }
            if let Some(renewed) = pending.take() {
                if publish(renewed.0.published()).await {
                    self.adopt(renewed);
                } else {
                    pending = Some(renewed);
                }
            }
        }
    }

    fn others(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, TokenKey>> {
        self.others.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn published(&self) -> Published {
        Published {
            id: self.signing.pair.public().id(),
            chain: Chain::new(
                self.issuing.certificate.clone(),
                self.signing.certificate.clone(),
            ),
            until: self.signing.expires + TOKEN_KEY_SECONDS,
        }
    }
}

fn open_issuing(dir: &Path, root: PublicKey, now: u64) -> Result<Certified, KeysError> {
    let path = dir.join(ISSUING);
    let found = read_certified(&path, root, Use::Issuing, now)?;
    match found {
        Ok(issuing) if now < half_life(issuing.expires, ISSUING_SECONDS) => Ok(issuing),
        found => match (make_issuing(dir, root, now)?, found) {
            (Some(issuing), _) | (None, Ok(issuing)) => Ok(issuing),
            (None, Err(source)) => Err(KeysError::OfflineRoot {
                root: dir.join(ROOT),
                source,
            }),
        },
    }
}

/// A new issuing key, if the root is here to certify it.
fn make_issuing(dir: &Path, root: PublicKey, now: u64) -> Result<Option<Certified>, KeysError> {
    let path = dir.join(ROOT);
    let Some(private) = read_root(&path)? else {
        return Ok(None);
    };
    if private.public() != root {
        return Err(KeysError::OtherRoot(path));
    }
    make(&dir.join(ISSUING), &private, Use::Issuing, now).map(Some)
}

/// A new signing key, known as a token key before it signs the first.
fn make_signing(
    dir: &Path,
    issuing: &Certified,
    tokens: &mut BTreeMap<String, TokenKey>,
    now: u64,
) -> Result<Certified, KeysError> {
    let pair = KeyPair::generate()?;
    let key = pair.public();
    tokens.insert(
        key.id(),
        TokenKey {
            key,
            until: now + SIGNING_SECONDS + TOKEN_KEY_SECONDS,
        },
    );
    write(
        &dir.join(TOKENS),
        &serde_json::to_string_pretty(tokens).unwrap_or_default(),
    )?;
    store(&dir.join(SIGNING), pair, &issuing.pair, Use::Signing, now)
}

fn make(path: &Path, parent: &KeyPair, r#use: Use, now: u64) -> Result<Certified, KeysError> {
    store(path, KeyPair::generate()?, parent, r#use, now)
}

fn store(
    path: &Path,
    pair: KeyPair,
    parent: &KeyPair,
    r#use: Use,
    now: u64,
) -> Result<Certified, KeysError> {
    let certificate = certify(parent, pair.public(), r#use, now);
    let seconds = match r#use {
        Use::Issuing => ISSUING_SECONDS,
        Use::Signing => SIGNING_SECONDS,
    };
    write(path, &format!("{}{CERTIFICATE}{certificate}\n", pem(&pair)))?;
    Ok(Certified {
        pair: Arc::new(pair),
        certificate,
        expires: now + seconds,
    })
}

/// A key whose certificate holds; else why it doesn't (`None`: there is no such file).
fn read_certified(
    path: &Path,
    parent: PublicKey,
    r#use: Use,
    now: u64,
) -> Result<Result<Certified, Option<InvalidChain>>, KeysError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(None)),
        Err(source) => return Err(file("read", path, source)),
    };
    let pair = parse(path, text.as_bytes())?;
    let certificate = text
        .lines()
        .find_map(|line| line.strip_prefix(CERTIFICATE))
        .ok_or_else(|| KeysError::Form {
            path: path.to_owned(),
            what: "a private key with a certificate",
        })?
        .trim()
        .to_owned();
    Ok(match certified(parent, &certificate, r#use, now) {
        Ok((key, expires)) if key == pair.public() => Ok(Certified {
            pair: Arc::new(pair),
            certificate,
            expires,
        }),
        Ok(_) => {
            return Err(KeysError::Form {
                path: path.to_owned(),
                what: "a private key with its own certificate",
            });
        }
        Err(error) => Err(Some(error)),
    })
}

fn read_root(path: &Path) -> Result<Option<KeyPair>, KeysError> {
    match fs::read(path) {
        Ok(bytes) => parse(path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file("read", path, source)),
    }
}

fn read_tokens(dir: &Path) -> Result<BTreeMap<String, TokenKey>, KeysError> {
    let path = dir.join(TOKENS);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| KeysError::Form {
            path,
            what: "a list of token keys; remove it, and callers sign in again",
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(source) => Err(file("read", &path, source)),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<KeyPair, KeysError> {
    PrivatePkcs8KeyDer::from_pem_slice(bytes)
        .ok()
        .and_then(|der| KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok())
        .ok_or_else(|| KeysError::Form {
            path: path.to_owned(),
            what: "an Ed25519 private key (PKCS #8 PEM)",
        })
}

fn pem(pair: &KeyPair) -> String {
    // An Ed25519 key is one line of base64.
    format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        BASE64.encode(pair.to_pkcs8())
    )
}

fn write(path: &Path, text: &str) -> Result<(), KeysError> {
    private::write(path, text.as_bytes()).map_err(|source| file("write", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> KeysError {
    KeysError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

const fn half_life(expires: u64, seconds: u64) -> u64 {
    expires.saturating_sub(seconds / 2)
}

const ROOT_PUBLIC: &str = "root.pub";
const ROOT: &str = "root.key";
const ISSUING: &str = "issuing.key";
const SIGNING: &str = "signing.key";
const TOKENS: &str = "tokens.json";

/// Begins the line with the certificate, outside the PEM block, where readers of PEM skip it.
const CERTIFICATE: &str = "certificate: ";

/// How long before the end of an issuing key that can't be renewed its operator is told, in seconds: 30 days.
const ISSUING_WARNING: u64 = 30 * 24 * 3600;

#[cfg(test)]
mod tests;
