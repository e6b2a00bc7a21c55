//! How a caller came to be who they are: who signed in, and whom they act as, link by link.
//!
//! Threat: a token outlives its reason: its user was shut out, the service account deleted, the right to act as it
//! taken back, the provider that vouched for a workload closed.
//! Decision: a token carries no rights and no groups, it names a standing; on every request, and on every change
//! while a stream runs, each link is decided again by what is stored now. An account that is made again under an
//! old name has another generation, so an older token means nothing to it.
//! Consequence: there is nothing to hunt down when a right is taken: the next look at the standing fails.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Identity, people::People, workload::Provider};
use crate::{
    authz,
    clock::Clock,
    error::who,
    iam::{Decision, Permission, Principal, Role, ServiceAccount},
    store::{Store, StoreError},
    target::RequestInfo,
};

/// How many accounts may act one through the other.
pub const MAX_CHAIN: usize = 4;

/// The extra attribute in which a cluster sees who acts as a service account, whoever signed in first.
pub const DELEGATES: &str = "towline.dev/delegates";

/// Who signed in, and whom they act as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Who signed in.
    pub base: Base,
    /// Service accounts, each acted as by the one before; the last is the principal.
    #[serde(default)]
    pub chain: Vec<Link>,
}

/// Who signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// One of the gateway's own users.
    Local {
        /// The name.
        name: String,
        /// The gateway's own issuer.
        issuer: String,
    },
    /// Whom another issuer vouched for.
    Foreign(Box<Foreign>),
}

/// Whom another issuer vouched for, as their token was mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// As policies name them.
    #[serde(with = "text")]
    pub principal: Principal,
    /// See [`Identity::uid`].
    pub uid: Option<String>,
    /// See [`Identity::groups`].
    pub groups: Vec<String>,
    /// See [`Identity::extra`].
    pub extra: BTreeMap<String, Vec<String>>,
    /// See [`Identity::attributes`].
    pub attributes: BTreeMap<String, String>,
    /// Who vouched.
    pub issuer: String,
    /// Under whose settings, for a workload.
    pub provider: Option<Vouched>,
}

/// The provider that a workload came by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// Which.
    #[serde(with = "text")]
    pub provider: Provider,
    /// As it was set then; other settings may give another name or none.
    pub generation: String,
}

/// What a standing is looked at against.
#[derive(Debug, Clone)]
pub(crate) struct Grounds {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) people: Arc<People>,
}

/// One service account that is acted as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Which.
    #[serde(with = "text")]
    pub account: ServiceAccount,
    /// Which of those that had the name, and since when its tokens count.
    pub generation: String,
}

/// Why a standing doesn't hold.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The user is shut out.
    #[error("user {0:?} is disabled")]
    Disabled(String),
    /// The user is gone.
    #[error("user {0:?} does not exist")]
    Unknown(String),
    /// Another issuer's user has the name of one of the gateway's own.
    #[error(
        "user {0:?} of {1} has the name of one of this gateway's own users; give the issuer's names a prefix"
    )]
    Taken(String, String),
    /// The caller, or the link before, may not act as the account. Also where there is no such account, for whoever
    /// may not know that.
    #[error("{} lacks permission {:?} on serviceAccount {account}; roles with it: {}",
        who(.caller), Permission::ServiceAccountsGetAccessToken.name(), roles())]
    Link {
        /// Who may not.
        caller: Principal,
        /// As whom.
        account: ServiceAccount,
    },
    /// The issuer is no longer in the file.
    #[error("its issuer {0:?} is no longer in this gateway's authentication_config")]
    Issuer(String),
    /// The provider is gone or disabled, or says something else now.
    #[error("workload identity provider {0} was {1} since")]
    Provider(Provider, &'static str),
    /// The account is gone.
    #[error("serviceAccount {0} does not exist")]
    NoAccount(ServiceAccount),
    /// The account is disabled.
    #[error("serviceAccount {0} is disabled")]
    AccountDisabled(ServiceAccount),
    /// The account's tokens were revoked since.
    #[error("the tokens of serviceAccount {0} that were made before were revoked")]
    Revoked(ServiceAccount),
    /// Too long a chain.
    #[error("{0} service accounts act one through the other; {MAX_CHAIN} may")]
    TooLong(usize),
    /// What is stored can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn roles() -> String {
    Permission::ServiceAccountsGetAccessToken
        .roles()
        .map(Role::name)
        .collect::<Vec<_>>()
        .join(", ")
}

impl Standing {
    /// One of the gateway's own users, by themselves.
    pub const fn local(name: String, issuer: String) -> Self {
        Self {
            base: Base::Local { name, issuer },
            chain: Vec::new(),
        }
    }

    /// The gateway's own user that this is, by themselves.
    pub fn own_user(&self) -> Option<&str> {
        match (&self.base, self.chain.as_slice()) {
            (Base::Local { name, .. }, []) => Some(name),
            _ => None,
        }
    }

    /// Whom policies know the caller as.
    pub fn principal(&self) -> Principal {
        match self.chain.last() {
            Some(link) => Principal::ServiceAccount(link.account.clone()),
            None => self.base.principal(),
        }
    }

    /// Whom the caller is to be taken for, as things are now.
    ///
    /// # Errors
    /// See [`Lost`].
    pub(crate) async fn identity(&self, grounds: &Grounds) -> Result<Identity, Lost> {
        Ok(self.now(grounds).await?.0)
    }

    /// The same, and whether a link rests on a condition on the time.
    ///
    /// # Errors
    /// See [`Lost`].
    pub(crate) async fn now(&self, grounds: &Grounds) -> Result<(Identity, bool), Lost> {
        let (mut identity, mut timed) = (self.base.identity(grounds).await?, false);
        for Link {
            account,
            generation,
        } in &self.chain
        {
            let acting = act_as(grounds, &identity, account).await?;
            if acting.generation != *generation {
                return Err(Lost::Revoked(account.clone()));
            }
            identity = acting.identity;
            timed |= acting.timed;
        }
        Ok((identity, timed))
    }

    /// The same caller acting as further accounts, each through the one before.
    ///
    /// # Errors
    /// The link that isn't allowed; see [`Lost`].
    pub(crate) async fn acting_as(
        mut self,
        grounds: &Grounds,
        accounts: Vec<ServiceAccount>,
    ) -> Result<Self, Lost> {
        let mut identity = self.identity(grounds).await?;
        let length = self.chain.len() + accounts.len();
        if length > MAX_CHAIN {
            return Err(Lost::TooLong(length));
        }
        for account in accounts {
            let acting = act_as(grounds, &identity, &account).await?;
            identity = acting.identity;
            self.chain.push(Link {
                account,
                generation: acting.generation,
            });
        }
        Ok(self)
    }
}

impl Base {
    /// Who signed in, as policies name them.
    pub fn principal(&self) -> Principal {
        match self {
            Self::Local { name, .. } => Principal::User(name.clone()),
            Self::Foreign(foreign) => foreign.principal.clone(),
        }
    }

    /// The project whose pool knows them; empty for people.
    pub fn realm(&self) -> &str {
        match self {
            Self::Foreign(foreign) => match &foreign.principal {
                Principal::Workload(workload) => workload.pool.project.as_str(),
                Principal::User(_) | Principal::ServiceAccount(_) => "",
            },
            Self::Local { .. } => "",
        }
    }

    async fn identity(&self, grounds: &Grounds) -> Result<Identity, Lost> {
        match self {
            Self::Local { name, issuer } => match grounds.store.user(name).await? {
                Some(user) if user.disabled => Err(Lost::Disabled(user.name)),
                Some(user) => Ok(Identity {
                    issuer: issuer.clone(),
                    ..Identity::user(user.name, user.groups)
                }),
                None => Err(Lost::Unknown(name.clone())),
            },
            Self::Foreign(foreign) => foreign.identity(grounds).await,
        }
    }
}

impl Foreign {
    async fn identity(&self, grounds: &Grounds) -> Result<Identity, Lost> {
        match (&self.principal, &self.provider) {
            (Principal::Workload(_), Some(vouched)) => vouched.holds(grounds).await?,
            (Principal::User(name), None) => {
                if !grounds.people.knows(&self.issuer) {
                    return Err(Lost::Issuer(self.issuer.clone()));
                }
                if grounds.store.user(name).await?.is_some() {
                    return Err(Lost::Taken(name.clone(), self.issuer.clone()));
                }
            }
            // Nobody vouches for others; a row that says so is not one of ours.
            _ => return Err(Lost::Issuer(self.issuer.clone())),
        }
        Ok(Identity {
            principal: self.principal.clone(),
            user: self.principal.subject(),
            uid: self.uid.clone(),
            groups: self.groups.clone(),
            extra: self.extra.clone(),
            attributes: self.attributes.clone(),
            delegates: Vec::new(),
            issuer: self.issuer.clone(),
        })
    }
}

impl Vouched {
    async fn holds(&self, grounds: &Grounds) -> Result<(), Lost> {
        let lost = |what| Err(Lost::Provider(self.provider.clone(), what));
        match grounds.store.provider(&self.provider).await? {
            None => lost("deleted"),
            Some(now) if now.disabled || now.pool_disabled => lost("disabled"),
            Some(now) if now.generation != self.generation => lost("changed"),
            Some(_) => Ok(()),
        }
    }
}

/// A service account that somebody acts as.
struct Acting {
    identity: Identity,
    generation: String,
    /// Whether the right to rests on a condition on the time.
    timed: bool,
}

/// The right comes first: whoever lacks it doesn't learn whether there is such an account.
async fn act_as(
    grounds: &Grounds,
    caller: &Identity,
    account: &ServiceAccount,
) -> Result<Acting, Lost> {
    let decision = may_act_as(grounds, caller, account).await?;
    let refused = || Lost::Link {
        caller: caller.principal.clone(),
        account: account.clone(),
    };
    if !decision.allowed() {
        return Err(refused());
    }
    let stored = grounds.store.service_account(account).await?;
    let stored = match stored {
        Some(stored) => stored,
        None if decision.conditional() => return Err(refused()),
        None => return Err(Lost::NoAccount(account.clone())),
    };
    if stored.disabled {
        return Err(Lost::AccountDisabled(account.clone()));
    }
    let principal = Principal::ServiceAccount(account.clone());
    let mut delegates = caller.delegates.clone();
    delegates.push(caller.principal.clone());
    let named = delegates.iter().map(ToString::to_string).collect();
    let identity = Identity {
        user: principal.subject(),
        principal,
        uid: None,
        groups: Vec::new(),
        extra: BTreeMap::from([(DELEGATES.to_owned(), named)]),
        attributes: BTreeMap::new(),
        delegates,
        issuer: caller.issuer.clone(),
    };
    Ok(Acting {
        identity,
        generation: stored.generation,
        timed: decision.timed(),
    })
}

async fn may_act_as(
    grounds: &Grounds,
    caller: &Identity,
    account: &ServiceAccount,
) -> Result<Decision, StoreError> {
    let ask = async |permission: Permission| {
        let request = RequestInfo {
            verb: permission.verb().to_owned(),
            ..RequestInfo::default()
        };
        let Grounds { store, clock, .. } = grounds;
        authz::on(store, clock, caller, &account.into(), permission, &request).await
    };
    let decision = ask(Permission::ServiceAccountsGetAccessToken).await?;
    // Enough for a workload's own token, and for nobody else's.
    if !decision.allowed() && matches!(caller.principal, Principal::Workload(_)) {
        return ask(Permission::ServiceAccountsActAsWorkload).await;
    }
    Ok(decision)
}

/// What has one text, as that text.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
