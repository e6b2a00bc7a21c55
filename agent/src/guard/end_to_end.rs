//! End-to-end mode: callers prove to the agent itself who they are.
//!
//! Threat: a gateway that was taken over names people whom nobody signed in.
//! Decision: the cluster's owner gives the agent a file with the identity providers that may say who people are
//! (Kubernetes' `AuthenticationConfiguration`). A request needs the caller's [`Proof`]: an ID token that one of them
//! signed, whose nonce commits to the caller's key, and a statement by that key for this membership. Name, groups, UID
//! and extra come from there, by the file's own mappings; a grant that names somebody else is refused. Times are the
//! agent's own: a gateway's clock has no say here.
//! Consequence: the gateway can refuse people, and can invent none. An ID token is taken for longer than it says itself
//! ([`Settings::max_age`]), because no provider signs a nonce again when a sign-in is renewed; that the sign-in goes on
//! is what the gateway looks at.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use towline_oidc::{AuthenticationConfiguration, Authenticator, Rules};
use towline_proto::{
    assertion::Grant,
    end_to_end::{InvalidProof, Proof},
    names::Membership,
};

use super::impersonation::{AUTHENTICATED, Person};
use crate::clock;

/// How often the file is looked at: a mounted ConfigMap changes within a minute or two.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What begins the names that a gateway gives to its own service accounts, and to the workloads that it exchanged a
/// token for; no identity provider may give them.
const OF_A_GATEWAY: [&str; 2] = ["serviceAccount:", "principal://"];

/// What begins the groups of such.
const GROUPS_OF_A_GATEWAY: &str = "principalSet://";

/// What a cluster's owner has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file with the issuers.
    pub file: PathBuf,
    /// How old an ID token may be.
    pub max_age: Duration,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFile {
    /// It can't be read.
    #[error("--end-to-end {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is wrong.
    #[error("--end-to-end {}: {source}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Why.
        source: towline_oidc::Invalid,
    },
    /// Nobody could be believed.
    #[error("--end-to-end {}: it names no issuer (jwt is empty)", .0.display())]
    Empty(PathBuf),
}

/// Why the agent does not believe whom the gateway names.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// There is no proof.
    #[error(
        "this cluster's agent takes nobody's word for who you are but your identity provider's, and the request has no \
         proof of it; sign in with your provider (towline login), then write the kubeconfig with: \
         towline get-credentials {0} --end-to-end"
    )]
    Missing(String),
    /// A service account or workload of a gateway that the owner doesn't trust with them.
    #[error(
        "this cluster's agent takes no service accounts or workloads of the gateway: {0:?} is not among the issuers in \
         its --end-to-end file"
    )]
    OfTheGateway(String),
    /// See [`InvalidProof`].
    #[error("the proof of who you are is refused: {0}; sign in again: towline login")]
    Proof(#[from] InvalidProof),
    /// The ID token in it.
    #[error("the proof of who you are is refused: {0}; sign in again: towline login")]
    IdToken(#[from] towline_oidc::Refused),
    /// The gateway names somebody else.
    #[error("the proof is of user {proven:?}, and the gateway names user {named:?}")]
    User {
        /// By the proof.
        proven: String,
        /// By the gateway.
        named: String,
    },
    /// The gateway says other groups.
    #[error(
        "the proof and the gateway do not say the same groups (only in the proof: {proven}; only by the gateway: \
         {named}); if they have changed, sign in again: towline login"
    )]
    Groups {
        /// Only by the proof.
        proven: String,
        /// Only by the gateway.
        named: String,
    },
}

/// Identity providers that the cluster's owner believes.
#[derive(Debug)]
pub struct EndToEnd {
    settings: Settings,
    membership: Membership,
    /// The gateway as an issuer of tokens.
    gateway: String,
    current: RwLock<Arc<Current>>,
}

#[derive(Debug)]
struct Current {
    authenticator: Authenticator,
    /// The file lists the gateway too.
    lists_gateway: bool,
}

impl EndToEnd {
    /// Reads the file; `gateway` is the gateway's public address.
    ///
    /// # Errors
    /// See [`InvalidFile`].
    pub fn load(
        settings: Settings,
        membership: Membership,
        gateway: &str,
    ) -> Result<Self, InvalidFile> {
        let gateway = format!("{}/oauth2", gateway.trim_end_matches('/'));
        let current = read(&settings.file, &gateway, None)?;
        Ok(Self {
            settings,
            membership,
            gateway,
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// Reads the file again whenever it changes; what can't be used leaves the old in place.
    pub async fn follow(&self) {
        let mut looked = modified(&self.settings.file);
        self.current()
            .authenticator
            .warm_up(clock::system_now())
            .await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = modified(&self.settings.file);
            if now == looked {
                continue;
            }
            looked = now;
            let old = self.current();
            match read(&self.settings.file, &self.gateway, Some(&old.authenticator)) {
                Ok(fresh) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                    tracing::info!(file = %self.settings.file.display(), "issuers read again");
                }
                Err(error) => tracing::error!(%error, "the old issuers go on"),
            }
        }
    }

    /// Whom a proof names, if the grant names the same.
    ///
    /// # Errors
    /// See [`NotProven`].
    pub(super) async fn person(
        &self,
        grant: &Grant,
        proof: Option<&str>,
        now: SystemTime,
    ) -> Result<Person, NotProven> {
        let current = self.current();
        let Some(proof) = proof else {
            return self.vouched(grant, &current);
        };
        let proof = Proof::from_header(proof)?;
        let person = current
            .authenticator
            .authenticate_issued_within(proof.id_token(), now, self.settings.max_age)
            .await?;
        let nonce = person.claims.get("nonce").and_then(|nonce| nonce.as_str());
        let audience = self.membership.to_string();
        proof
            .possession()
            .verify_at(nonce.unwrap_or_default(), &audience, clock::unix(now))?;
        if person.username != grant.user {
            return Err(NotProven::User {
                proven: person.username,
                named: grant.user.clone(),
            });
        }
        same_groups(&person.groups, &grant.groups)?;
        Ok(Person {
            user: person.username,
            uid: Some(person.uid).filter(|uid| !uid.is_empty()),
            groups: person.groups,
            extra: person.extra,
        })
    }

    /// Who has no proof can be one of the gateway's own, where the owner lets it name those: by their names alone, which
    /// no person can have.
    fn vouched(&self, grant: &Grant, current: &Current) -> Result<Person, NotProven> {
        let own = OF_A_GATEWAY
            .iter()
            .any(|prefix| grant.user.starts_with(prefix))
            && groups(&grant.groups).all(|group| group.starts_with(GROUPS_OF_A_GATEWAY));
        match (own, current.lists_gateway) {
            (true, true) => Ok(Person::of(grant)),
            (true, false) => Err(NotProven::OfTheGateway(self.gateway.clone())),
            (false, _) => Err(NotProven::Missing(self.membership.id.to_string())),
        }
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(
    file: &Path,
    gateway: &str,
    previous: Option<&Authenticator>,
) -> Result<Current, InvalidFile> {
    let text = fs::read_to_string(file).map_err(|source| InvalidFile::Read {
        file: file.to_owned(),
        source,
    })?;
    let invalid = |source| InvalidFile::Invalid {
        file: file.to_owned(),
        source,
    };
    let rules = Rules::towline();
    let configuration = AuthenticationConfiguration::parse(&text, &rules).map_err(invalid)?;
    if configuration.jwt.is_empty() {
        return Err(InvalidFile::Empty(file.to_owned()));
    }
    let authenticator = match previous {
        Some(previous) => previous.rebuild(&configuration),
        None => Authenticator::new(&configuration, rules),
    };
    let mut issuers = configuration.jwt.iter();
    Ok(Current {
        authenticator: authenticator.map_err(invalid)?,
        lists_gateway: issuers.any(|entry| entry.issuer.url == gateway),
    })
}

/// Without what the API server says of everybody.
fn groups(groups: &[String]) -> impl Iterator<Item = &str> {
    let groups = groups.iter().map(String::as_str);
    groups.filter(|group| *group != AUTHENTICATED)
}

fn same_groups(proven: &[String], named: &[String]) -> Result<(), NotProven> {
    let (proven, named): (BTreeSet<&str>, BTreeSet<&str>) =
        (groups(proven).collect(), groups(named).collect());
    if proven == named {
        return Ok(());
    }
    Err(NotProven::Groups {
        proven: few(proven.difference(&named)),
        named: few(named.difference(&proven)),
    })
}

/// Enough of them to know what it is about.
fn few<'a>(groups: impl Iterator<Item = &'a &'a str>) -> String {
    let mut groups = groups.peekable();
    let mut said = Vec::new();
    while said.len() < 5
        && let Some(group) = groups.next()
    {
        said.push(group.chars().take(100).collect::<String>());
    }
    if groups.peek().is_some() {
        said.push("...".to_owned());
    }
    if said.is_empty() {
        "none".to_owned()
    } else {
        said.join(", ")
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).ok()?.modified().ok()
}

#[cfg(test)]
mod tests;
