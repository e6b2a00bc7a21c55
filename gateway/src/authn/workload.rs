//! Workloads that another issuer vouches for: a pipeline, a pod in somebody's cluster.
//!
//! Threat: a token that was made for something else, by somebody else's pipeline, or by an issuer that a tenant
//! runs himself; a tenant who has the gateway fetch from where only the gateway reaches.
//! Decision: a provider believes one issuer, for audiences that name it alone unless its owner says others; what it
//! gives is a subject within its own pool, whose names nobody else's can have. Keys come over HTTPS from public
//! addresses, unless the operator lists the issuer (`federation.allow_issuers`). A provider that lets its tokens be
//! bearer tokens does so for its own project alone.
//! Consequence: whatever a tenant's issuer says, it says nothing about anybody outside the tenant's pools.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use towline_oidc::{Attribute, Condition, Invalid, Issuer, IssuerConfiguration, Mapping};
use towline_proto::{end_to_end, names::ProviderId};

use super::{
    people::MAX_GROUPS,
    standing::{Base, Foreign, Standing, Vouched},
};
use crate::{
    clock::Clock,
    config::Config,
    iam::{Member, Pool, Principal, is_attribute},
    store::workload_identity::{ProviderRow, Settings},
};

/// How many providers are kept ready; then all are made anew when they are needed.
const MOST: usize = 1_000;

/// The longest JWK set, in bytes.
const MAX_JWKS: usize = 32 * 1024;

/// The longest expression, in bytes.
const MAX_EXPRESSION: usize = 4 * 1024;

/// How many audiences a provider may allow.
const MAX_AUDIENCES: usize = 10;

/// How much is mapped at most.
const MAX_MAPPED: usize = 50;

/// A provider: `projects/P/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Provider {
    /// The pool that its workloads are known in.
    pub pool: Pool,
    /// Its name in the pool.
    pub id: ProviderId,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/providers/{}", self.pool, self.id)
    }
}

/// What is no provider's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no workload identity provider: write \
     projects/PROJECT/locations/global/workloadIdentityPools/POOL/providers/PROVIDER"
)]
pub struct InvalidProvider(String);

impl FromStr for Provider {
    type Err = InvalidProvider;

    fn from_str(text: &str) -> Result<Self, InvalidProvider> {
        let wrong = || InvalidProvider(text.chars().take(200).collect());
        let (pool, id) = text.rsplit_once("/providers/").ok_or_else(wrong)?;
        Ok(Self {
            pool: pool.parse().map_err(|_| wrong())?,
            id: id.parse().map_err(|_| wrong())?,
        })
    }
}

impl Provider {
    /// As the `audience` of an exchange names it: `//HOST/projects/…`.
    pub(crate) fn resource(&self, config: &Config) -> String {
        format!("//{}/{self}", authority(config))
    }

    /// The provider that an `audience` names, with or without `https:` before it.
    pub(crate) fn of_resource(config: &Config, audience: &str) -> Option<Self> {
        audience
            .strip_prefix("https:")
            .unwrap_or(audience)
            .strip_prefix("//")?
            .strip_prefix(authority(config))?
            .strip_prefix('/')?
            .parse()
            .ok()
    }
}

/// Host and port of the gateway's public URL.
fn authority(config: &Config) -> &str {
    config.base().trim_start_matches("https://")
}

/// Why settings can't be a provider's.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// Something to be fetched from, or believed, that can't be.
    #[error("issuer_uri: {0}")]
    Issuer(String),
    /// No audience, or too many.
    #[error("allowed_audiences: {0}")]
    Audiences(String),
    /// What is mapped to what.
    #[error("attribute_mapping: {0}")]
    Mapping(String),
    /// The condition.
    #[error("attribute_condition: {0}")]
    Condition(String),
    /// The keys.
    #[error("jwks_json: {0}")]
    Jwks(String),
}

/// Why a workload's token is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such provider, or it is disabled, or its pool is: not told which.
    #[error("workload identity provider {0} is not there or is disabled")]
    NoProvider(Provider),
    /// No provider of the project takes such tokens as they are.
    #[error(
        "its issuer is {issuer:?}, which no workload identity provider here takes bearer tokens of"
    )]
    NoDirect {
        /// What the token says.
        issuer: String,
    },
    /// It was made to prove something to one cluster.
    #[error("its nonce says that it is a proof for one cluster, which is no sign-in")]
    Proof,
    /// What is stored isn't what this version understands.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// See [`towline_oidc::Refused`].
    #[error(transparent)]
    Token(#[from] towline_oidc::Refused),
    /// Nothing, or what can't be one, was mapped to a name.
    #[error("the attribute mapping gives no {what}: {reason}")]
    Mapped {
        /// `subject`, a group, an attribute.
        what: String,
        /// Why.
        reason: String,
    },
}

impl Refused {
    pub(crate) const fn is_no_direct(&self) -> bool {
        matches!(self, Self::NoDirect { .. })
    }

    pub(crate) const fn is_audience(&self) -> bool {
        matches!(self, Self::Token(towline_oidc::Refused::Audience { .. }))
    }
}

/// Providers that were made ready, by name and generation.
#[derive(Debug, Default)]
pub struct Workloads {
    ready: Mutex<HashMap<Provider, (String, Arc<Ready>)>>,
}

/// A provider's settings, made ready to verify with.
#[derive(Debug)]
struct Ready {
    issuer: Issuer,
    mapping: Mapping,
    condition: Option<Condition>,
}

impl Workloads {
    /// Whom a token names, by one provider's word, and until when it is good (Unix seconds).
    ///
    /// # Errors
    /// Which check failed.
    pub(crate) async fn authenticate(
        &self,
        config: &Config,
        clock: &Clock,
        row: &ProviderRow,
        token: &str,
    ) -> Result<(Standing, u64), Refused> {
        if row.disabled || row.pool_disabled {
            return Err(Refused::NoProvider(row.provider.clone()));
        }
        let ready = self.ready(config, row)?;
        let claims = ready.issuer.verify(token, clock.now()).await?;
        let nonce = claims.values.get("nonce").and_then(|nonce| nonce.as_str());
        if nonce.is_some_and(|nonce| nonce.starts_with(end_to_end::NONCE)) {
            return Err(Refused::Proof);
        }
        let attributes = ready.mapping.map(&claims)?;
        if let Some(condition) = &ready.condition {
            condition.check(&claims, &attributes)?;
        }
        let expires = claims.expires.duration_since(SystemTime::UNIX_EPOCH);
        let foreign = foreign(row, attributes)?;
        Ok((
            Standing {
                base: Base::Foreign(Box::new(foreign)),
                chain: Vec::new(),
            },
            expires.map_or(0, |since| since.as_secs()),
        ))
    }

    fn ready(&self, config: &Config, row: &ProviderRow) -> Result<Arc<Ready>, InvalidSettings> {
        let mut all = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&row.provider);
        if let Some((generation, ready)) = known
            && *generation == row.generation
        {
            return Ok(Arc::clone(ready));
        }
        let previous = known.map(|(_, ready)| &ready.issuer);
        let ready = Arc::new(Ready::new(config, &row.provider, &row.settings, previous)?);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(
            row.provider.clone(),
            (row.generation.clone(), Arc::clone(&ready)),
        );
        Ok(ready)
    }
}

/// Whether settings can be a provider's.
///
/// # Errors
/// The field that is wrong.
pub(crate) fn check(
    config: &Config,
    provider: &Provider,
    settings: &Settings,
) -> Result<(), InvalidSettings> {
    Ready::new(config, provider, settings, None).map(drop)
}

impl Ready {
    fn new(
        config: &Config,
        provider: &Provider,
        settings: &Settings,
        previous: Option<&Issuer>,
    ) -> Result<Self, InvalidSettings> {
        let issuer = Issuer::like(issuer(config, provider, settings)?, previous);
        Ok(Self {
            issuer: issuer.map_err(|invalid| told(&invalid))?,
            mapping: mapping(&settings.mapping)?,
            condition: match settings.condition.as_str() {
                "" => None,
                long if long.len() > MAX_EXPRESSION => {
                    return Err(InvalidSettings::Condition(format!(
                        "it is longer than {MAX_EXPRESSION} bytes"
                    )));
                }
                source => Some(
                    Condition::compile(source)
                        .map_err(|error| InvalidSettings::Condition(error.to_string()))?,
                ),
            },
        })
    }
}

fn issuer(
    config: &Config,
    provider: &Provider,
    settings: &Settings,
) -> Result<IssuerConfiguration, InvalidSettings> {
    let audiences = if settings.audiences.is_empty() {
        let own = provider.resource(config);
        vec![format!("https:{own}"), own]
    } else {
        settings.audiences.clone()
    };
    if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|one| one.len() > 512) {
        return Err(InvalidSettings::Audiences(format!(
            "there are over {MAX_AUDIENCES}, or one is longer than 512 bytes"
        )));
    }
    if settings.issuer == crate::login::issuer(config) {
        return Err(InvalidSettings::Issuer(
            "it is this gateway, whose tokens are access tokens already".to_owned(),
        ));
    }
    if settings
        .jwks
        .as_ref()
        .is_some_and(|jwks| jwks.len() > MAX_JWKS)
    {
        return Err(InvalidSettings::Jwks(format!(
            "it is longer than {MAX_JWKS} bytes"
        )));
    }
    Ok(IssuerConfiguration {
        url: settings.issuer.clone(),
        audiences,
        jwks: settings.jwks.clone(),
        public_addresses: !config.allow_issuers.contains(&settings.issuer),
        ..IssuerConfiguration::default()
    })
}

fn told(invalid: &Invalid) -> InvalidSettings {
    let text = invalid.to_string();
    match invalid.0.first().map(|error| error.field.as_str()) {
        Some("audiences") => InvalidSettings::Audiences(text),
        Some("jwks") => InvalidSettings::Jwks(text),
        _ => InvalidSettings::Issuer(text),
    }
}

fn mapping(mapping: &BTreeMap<String, String>) -> Result<Mapping, InvalidSettings> {
    let wrong = |reason: String| Err(InvalidSettings::Mapping(reason));
    if !mapping.contains_key("subject") {
        return wrong(
            "\"subject\" is missing, such as {\"subject\": \"assertion.sub\"}".to_owned(),
        );
    }
    if mapping.len() > MAX_MAPPED {
        return wrong(format!("there are over {MAX_MAPPED}"));
    }
    for (name, expression) in mapping {
        let attribute = name.strip_prefix("attribute.");
        if !matches!(name.as_str(), "subject" | "groups") && !attribute.is_some_and(is_attribute) {
            return wrong(format!(
                "{name:?} is neither subject nor groups nor attribute.NAME with 1 to 64 of a-z, 0-9 and _"
            ));
        }
        if expression.len() > MAX_EXPRESSION {
            return wrong(format!("{name:?} is longer than {MAX_EXPRESSION} bytes"));
        }
    }
    let pairs = mapping
        .iter()
        .map(|(name, source)| (name.as_str(), source.as_str()));
    Mapping::compile(pairs).map_err(|invalid| InvalidSettings::Mapping(invalid.to_string()))
}

/// Who the mapped attributes say that it is.
fn foreign(row: &ProviderRow, mapped: BTreeMap<String, Attribute>) -> Result<Foreign, Refused> {
    let pool = &row.provider.pool;
    let wrong = |what: &str, reason: &str| Refused::Mapped {
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let (mut principal, mut groups, mut attributes) = (None, Vec::new(), BTreeMap::new());
    for (name, value) in mapped {
        match (name.as_str(), value) {
            ("subject", Attribute::One(subject)) => {
                let text = format!("principal://{pool}/subject/{subject}");
                let parsed: Principal = text.parse().map_err(|_| {
                    wrong(
                        "subject",
                        "it is not 1 to 512 printable bytes, or has white space around it",
                    )
                })?;
                principal = Some(parsed);
            }
            ("subject", Attribute::Many(_)) => {
                return Err(wrong("subject", "it is a list; a subject is one string"));
            }
            ("groups", value) => {
                let values = value.values();
                if values.len() > MAX_GROUPS {
                    return Err(wrong("groups", &format!("there are over {MAX_GROUPS}")));
                }
                for group in values {
                    let text = format!("principalSet://{pool}/group/{group}");
                    text.parse::<Member>().map_err(|_| {
                        wrong(
                            "groups",
                            "one is not 1 to 512 printable bytes, or has white space around it",
                        )
                    })?;
                    groups.push(text);
                }
            }
            (name, Attribute::One(value)) => {
                let name = name.strip_prefix("attribute.").unwrap_or(name);
                attributes.insert(name.to_owned(), value);
            }
            (name, Attribute::Many(_)) => {
                return Err(wrong(name, "it is a list; an attribute is one string"));
            }
        }
    }
    Ok(Foreign {
        principal: principal
            .ok_or_else(|| wrong("subject", "it is empty or missing in the token"))?,
        uid: None,
        groups,
        extra: BTreeMap::new(),
        attributes,
        issuer: row.settings.issuer.clone(),
        provider: Some(Vouched {
            provider: row.provider.clone(),
            generation: row.generation.clone(),
        }),
    })
}
