//! People whom other issuers vouch for: the operator's `authentication_config`.
//!
//! Threat: a file that was changed by mistake locks everybody out, or lets everybody in; a name from outside reaches
//! a right that was given to somebody else.
//! Decision: the file is Kubernetes' `AuthenticationConfiguration` and is read again when it changes; what can't be
//! used as a whole changes nothing. Names that other kinds of principals have are refused, and so is whoever has
//! the name of one of the gateway's own users, which `standing` looks at on every request.
//! Consequence: an issuer that is taken out of the file has nobody signed in from then on.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::Serialize;
use towline_oidc::{Authenticated, AuthenticationConfiguration, Authenticator, Invalid, Rules};
use towline_proto::end_to_end::{self, InvalidProof, Possession};

use super::standing::{Base, Foreign, Standing};
use crate::{
    clock::Clock,
    config::{Config, Login},
    iam::{InvalidSubject, Principal, check_subject},
    login,
    store::Store,
};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Groups of one person.
pub const MAX_GROUPS: usize = 2_000;

/// Extra attributes that are the gateway's own to set.
const OWN_EXTRA: &str = "towline.dev/";

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PeopleError {
    /// It can't be read.
    #[error("authentication_config = {0:?} can't be read")]
    Read(PathBuf, #[source] std::io::Error),
    /// It is wrong.
    #[error("authentication_config = {0:?} can't be used")]
    Invalid(PathBuf, #[source] Invalid),
    /// A `[[login]]` without its issuer.
    #[error(
        "login {name:?}: its issuer {issuer:?} is not in {}",
        .file.as_ref().map_or_else(|| "an authentication_config; set that key".to_owned(), |file| format!("authentication_config = {file:?}"))
    )]
    Login {
        /// The entry's name.
        name: String,
        /// Its issuer.
        issuer: String,
        /// The file.
        file: Option<PathBuf>,
    },
}

/// Why a token signs nobody in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There are no issuers but the gateway's own.
    #[error(
        "this gateway takes no other issuer's tokens: its operator has set no authentication_config"
    )]
    NoIssuers,
    /// See [`towline_oidc::Refused`].
    #[error(transparent)]
    Token(#[from] towline_oidc::Refused),
    /// Its nonce commits to a key that whoever sends it has not shown to have: clusters see such tokens too.
    #[error(
        "its nonce commits to a key, and there is no possession of that key with it; sign in with: towline login"
    )]
    NoPossession,
    /// See [`InvalidProof`].
    #[error("the possession of the key that its nonce commits to is not shown: {0}")]
    Possession(#[from] InvalidProof),
    /// A name that may not be a person's or group's.
    #[error("{what} {source}")]
    Name {
        /// `username:` or `groups:`.
        what: &'static str,
        /// Why.
        source: InvalidSubject,
    },
    /// More groups than are kept.
    #[error("it has {0} groups; {MAX_GROUPS} may be: narrow the claim mapping of groups")]
    Groups(usize),
    /// An attribute that is the gateway's own.
    #[error("extra attribute {0:?} is this gateway's own to set")]
    Extra(String),
}

/// Issuers of people, as the file says now.
#[derive(Debug)]
pub struct People {
    file: Option<PathBuf>,
    rules: Rules,
    logins: Vec<Login>,
    current: RwLock<Arc<Current>>,
    reloads: AtomicU64,
    failed: AtomicBool,
}

#[derive(Debug)]
struct Current {
    configuration: AuthenticationConfiguration,
    authenticator: Option<Authenticator>,
    seen: Seen,
}

/// A file that was replaced within the clock's tick is another one all the same.
type Seen = Option<(SystemTime, u64)>;

/// What `towline login` needs to know of an issuer.
#[derive(Debug, Clone, Serialize)]
pub struct Offered {
    name: String,
    issuer: String,
    client_id: String,
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<String>,
    /// PEM in base64, as in a kubeconfig.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority_data: Option<String>,
}

impl People {
    /// Reads the file that the configuration names.
    ///
    /// # Errors
    /// See [`PeopleError`].
    pub fn load(config: &Config) -> Result<Self, PeopleError> {
        let rules = Rules {
            disallowed_issuers: vec![login::issuer(config)],
            ..Rules::towline()
        };
        let mut people = Self {
            file: config.authentication_config.clone(),
            rules,
            logins: config.logins.clone(),
            current: RwLock::new(Arc::new(Current {
                configuration: AuthenticationConfiguration::default(),
                authenticator: None,
                seen: None,
            })),
            reloads: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        };
        let current = people.read(None)?;
        people.current = RwLock::new(Arc::new(current));
        Ok(people)
    }

    fn read(&self, previous: Option<&Authenticator>) -> Result<Current, PeopleError> {
        let Some(file) = &self.file else {
            self.check_logins(&AuthenticationConfiguration::default())?;
            return Ok(Current {
                configuration: AuthenticationConfiguration::default(),
                authenticator: None,
                seen: None,
            });
        };
        // Before it is read: a change in between is seen as one.
        let seen = seen(file);
        let text = std::fs::read_to_string(file)
            .map_err(|source| PeopleError::Read(file.clone(), source))?;
        let invalid = |source| PeopleError::Invalid(file.clone(), source);
        let configuration =
            AuthenticationConfiguration::parse(&text, &self.rules).map_err(invalid)?;
        self.check_logins(&configuration)?;
        let authenticator = match previous {
            Some(previous) => previous.rebuild(&configuration),
            None => Authenticator::new(&configuration, self.rules.clone()),
        };
        Ok(Current {
            authenticator: Some(authenticator.map_err(invalid)?),
            configuration,
            seen,
        })
    }

    fn check_logins(&self, configuration: &AuthenticationConfiguration) -> Result<(), PeopleError> {
        let known = |login: &Login| {
            configuration
                .jwt
                .iter()
                .any(|entry| entry.issuer.url == login.issuer)
        };
        match self.logins.iter().find(|login| !known(login)) {
            Some(login) => Err(PeopleError::Login {
                name: login.name.clone(),
                issuer: login.issuer.clone(),
                file: self.file.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Reads the file again whenever it changes; what can't be used leaves the old in place. Streams of people whose
    /// issuer is gone end.
    pub async fn watch(self: Arc<Self>, store: Store, clock: Clock) {
        let Some(file) = &self.file else { return };
        if let Some(authenticator) = &self.current().authenticator {
            authenticator.warm_up(clock.now()).await;
        }
        let mut looked = self.current().seen;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = seen(file);
            if now == looked {
                continue;
            }
            looked = now;
            if self.reload() {
                store.look_again();
            }
        }
    }

    /// Reads the file; whether what it says now is in force.
    pub fn reload(&self) -> bool {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        let old = self.current();
        let read = self.read(old.authenticator.as_ref());
        self.failed.store(read.is_err(), Ordering::Relaxed);
        match read {
            Ok(fresh) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                tracing::info!(file = ?self.file, "authentication_config reloaded");
                true
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the new authentication_config can't be used; the old one goes on"
                );
                false
            }
        }
    }

    /// How often a changed file was read, and whether the last one can't be used.
    pub fn reloads(&self) -> (u64, bool) {
        (
            self.reloads.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }

    /// Whether an issuer is in the file.
    pub(crate) fn knows(&self, issuer: &str) -> bool {
        let current = self.current();
        let mut issuers = current.configuration.jwt.iter();
        issuers.any(|entry| entry.issuer.url == issuer)
    }

    /// Where people may sign in.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let current = self.current();
        let authority = |issuer: &str| {
            let jwt = &current.configuration.jwt;
            let entry = jwt.iter().find(|entry| entry.issuer.url == issuer)?;
            let pem = entry.issuer.certificate_authority.as_ref()?;
            Some(STANDARD.encode(pem))
        };
        let offer = |login: &Login| Offered {
            name: login.name.clone(),
            issuer: login.issuer.clone(),
            client_id: login.client_id.clone(),
            scopes: login.scopes.clone(),
            audience: login.audience.clone(),
            certificate_authority_data: authority(&login.issuer),
        };
        self.logins.iter().map(offer).collect()
    }

    /// Whom an ID token names, and until when it is good (Unix seconds). One that is also a proof for clusters
    /// (`end_to_end`) needs the possession of its key, stated to `audience`.
    ///
    /// # Errors
    /// Which check failed.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        possession: Option<&Possession>,
        audience: &str,
        clock: &Clock,
    ) -> Result<(Standing, u64), Refused> {
        let current = self.current();
        let authenticator = current.authenticator.as_ref().ok_or(Refused::NoIssuers)?;
        let person = authenticator.authenticate(token, clock.now()).await?;
        let expires = person.expires.duration_since(SystemTime::UNIX_EPOCH);
        let expires = expires.map_or(0, |since| since.as_secs());
        let nonce = person.claims.get("nonce").and_then(|nonce| nonce.as_str());
        if let Some(nonce) = nonce.filter(|nonce| nonce.starts_with(end_to_end::NONCE)) {
            // No time: only this gateway ever sees what is stated to it, and people's clocks may be off.
            let possession = possession.ok_or(Refused::NoPossession)?;
            possession.verify(nonce, audience)?;
        }
        Ok((standing(person)?, expires))
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn standing(person: Authenticated) -> Result<Standing, Refused> {
    let named = |what| move |source| Refused::Name { what, source };
    check_subject(&person.username).map_err(named("username:"))?;
    for group in &person.groups {
        check_subject(group).map_err(named("groups:"))?;
    }
    if person.groups.len() > MAX_GROUPS {
        return Err(Refused::Groups(person.groups.len()));
    }
    if let Some(key) = person.extra.keys().find(|key| key.starts_with(OWN_EXTRA)) {
        return Err(Refused::Extra(key.clone()));
    }
    Ok(Standing {
        base: Base::Foreign(Box::new(Foreign {
            principal: Principal::User(person.username),
            uid: Some(person.uid).filter(|uid| !uid.is_empty()),
            groups: person.groups,
            extra: person.extra,
            attributes: std::collections::BTreeMap::new(),
            issuer: person.issuer,
            provider: None,
        })),
        chain: Vec::new(),
    })
}

fn seen(file: &Path) -> Seen {
    let file = std::fs::metadata(file).ok()?;
    Some((file.modified().ok()?, file.ino()))
}
