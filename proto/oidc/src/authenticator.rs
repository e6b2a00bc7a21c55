//! From a token to a user, as kube-apiserver goes: the issuer verifies, claims become a name, the
//! rules have their say.
//!
//! Threat: a name that somebody else has: one of Kubernetes' own (`system:masters`), a service
//! account's or a federated workload's (`serviceAccount:`, `principal:`), another issuer's.
//! Decision: such a token is refused as a whole and the sentence names what is wrong. A group that
//! were silently dropped would leave a person to find out why they may do less.
//! Consequence: an issuer whose tokens carry a reserved group needs a prefix or a filter in its
//! `groups` expression.

mod mapping;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::configuration::{
    AuthenticationConfiguration, Invalid, JwtAuthenticator, Rules, prefix_of,
};
use crate::issuer::{Issuer, IssuerConfiguration, Until};
use crate::token::{Refused, Token};
use mapping::Mappings;

/// Names that no issuer may give.
const RESERVED: [(&str, &str); 4] = [
    ("system:", "system: is Kubernetes' own"),
    ("serviceAccount:", "serviceAccount: is for service accounts"),
    ("principal:", "principal: is for federated workloads"),
    ("principalSet:", "principalSet: is for federated workloads"),
];

/// A user that a token names.
#[derive(Clone, Debug, PartialEq)]
pub struct Authenticated {
    /// The user name, with its prefix.
    pub username: String,
    /// The uid; empty when none is mapped.
    pub uid: String,
    /// The groups, with their prefix, as the token has them; without `system:authenticated`.
    pub groups: Vec<String>,
    /// Extra attributes; `authentication.kubernetes.io/credential-id` when the token has a `jti`.
    pub extra: BTreeMap<String, Vec<String>>,
    /// The issuer's URL as configured.
    pub issuer: String,
    /// All claims.
    pub claims: Map<String, Value>,
    /// When the token expires.
    pub expires: SystemTime,
}

/// A configuration that runs.
#[derive(Debug)]
pub struct Authenticator {
    jwt: Vec<Jwt>,
    rules: Rules,
}

#[derive(Debug)]
struct Jwt {
    issuer: Issuer,
    mappings: Mappings,
    username_prefix: Option<String>,
    groups_prefix: Option<String>,
}

impl Authenticator {
    /// Validates a configuration and compiles its expressions. Nothing is fetched yet.
    ///
    /// # Errors
    /// [`Invalid`], as [`AuthenticationConfiguration::validate`].
    pub fn new(configuration: &AuthenticationConfiguration, rules: Rules) -> Result<Self, Invalid> {
        Self::build(configuration, rules, &[])
    }

    /// The same for a changed configuration. Issuers with the same URLs and certificates keep the
    /// keys that are known.
    ///
    /// # Errors
    /// As [`Authenticator::new`].
    pub fn rebuild(&self, configuration: &AuthenticationConfiguration) -> Result<Self, Invalid> {
        Self::build(configuration, self.rules.clone(), &self.jwt)
    }

    fn build(
        configuration: &AuthenticationConfiguration,
        rules: Rules,
        previous: &[Jwt],
    ) -> Result<Self, Invalid> {
        configuration.validate(&rules)?;
        let mut jwt = Vec::with_capacity(configuration.jwt.len());
        for (index, entry) in configuration.jwt.iter().enumerate() {
            jwt.push(Jwt::new(&format!("jwt[{index}]"), entry, &rules, previous)?);
        }
        Ok(Self { jwt, rules })
    }

    /// The issuers, in the file's order.
    pub fn issuers(&self) -> impl Iterator<Item = &Issuer> {
        self.jwt.iter().map(|jwt| &jwt.issuer)
    }

    /// Fetches the keys of all issuers, so that the first sign-in need not wait. Failures are
    /// logged and tried again when they are needed.
    pub async fn warm_up(&self, now: SystemTime) {
        for issuer in self.issuers() {
            if let Err(error) = issuer.refresh(now).await {
                tracing::warn!(%error, "an issuer's keys are not there yet");
            }
        }
    }

    /// Who a token is, at a time.
    ///
    /// # Errors
    /// [`Refused`], naming the check that failed.
    pub async fn authenticate(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<Authenticated, Refused> {
        self.identify(token, now, Until::Expiry).await
    }

    /// Who a token is that was issued in the last `age`, whether it has expired or not: for an ID
    /// token whose holder proves in another way that it is still theirs.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`]; also for a token that doesn't say when it was issued.
    pub async fn authenticate_issued_within(
        &self,
        token: &str,
        now: SystemTime,
        age: Duration,
    ) -> Result<Authenticated, Refused> {
        self.identify(token, now, Until::Age(age)).await
    }

    async fn identify(
        &self,
        token: &str,
        now: SystemTime,
        until: Until,
    ) -> Result<Authenticated, Refused> {
        let token = Token::parse(token)?;
        let issuer = token.issuer()?;
        let Some(jwt) = self.jwt.iter().find(|jwt| jwt.issuer.url() == issuer) else {
            return Err(Refused::UnknownIssuer {
                issuer: issuer.to_owned(),
                known: self
                    .issuers()
                    .map(Issuer::url)
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        let claims = jwt.issuer.verify_parsed(token, now, until).await?;
        let user = jwt.mappings.apply(&claims)?;
        if self.rules.reserved_names {
            reserved("username", &user.username)?;
            for group in &user.groups {
                reserved("group", group)?;
            }
        }
        if self.rules.separate_issuers {
            self.separate(jwt, &user)?;
        }
        Ok(user)
    }

    /// No name of an issuer without a prefix may look like one of an issuer that has one.
    fn separate(&self, jwt: &Jwt, user: &Authenticated) -> Result<(), Refused> {
        let taken = |own: &Option<String>, others: fn(&Jwt) -> &Option<String>, name: &str| {
            own.as_deref().is_none_or(str::is_empty)
                && self
                    .jwt
                    .iter()
                    .filter_map(|other| others(other).as_deref())
                    .any(|prefix| !prefix.is_empty() && name.starts_with(prefix))
        };
        let refuse = |what, name: &str| {
            Err(Refused::Reserved {
                what,
                name: name.to_owned(),
                reason: "another issuer's names begin so",
            })
        };
        if taken(
            &jwt.username_prefix,
            |jwt| &jwt.username_prefix,
            &user.username,
        ) {
            return refuse("username", &user.username);
        }
        for group in &user.groups {
            if taken(&jwt.groups_prefix, |jwt| &jwt.groups_prefix, group) {
                return refuse("group", group);
            }
        }
        Ok(())
    }
}

impl Jwt {
    fn new(
        path: &str,
        entry: &JwtAuthenticator,
        rules: &Rules,
        previous: &[Self],
    ) -> Result<Self, Invalid> {
        let configuration = IssuerConfiguration {
            url: entry.issuer.url.clone(),
            audiences: entry.issuer.audiences.clone(),
            discovery_url: entry.issuer.discovery_url.clone(),
            certificate_authority: entry.issuer.certificate_authority.clone(),
            jwks: None,
            allow_http: rules.allow_http,
            // Where the operator says.
            public_addresses: false,
        };
        let known = previous
            .iter()
            .map(|jwt| &jwt.issuer)
            .find(|issuer| issuer.url() == configuration.url);
        Ok(Self {
            issuer: Issuer::like(configuration, known)?,
            mappings: Mappings::new(path, entry)?,
            username_prefix: prefix_of(entry, "username"),
            groups_prefix: prefix_of(entry, "groups"),
        })
    }
}

fn reserved(what: &'static str, name: &str) -> Result<(), Refused> {
    let reason = RESERVED
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map(|(_, reason)| *reason)
        .or_else(|| {
            name.chars()
                .any(char::is_control)
                .then_some("control characters are in no name")
        });
    match reason {
        Some(reason) => Err(Refused::Reserved {
            what,
            name: name.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
