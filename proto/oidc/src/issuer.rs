//! One issuer: its keys, its audiences, and the claims of the tokens it signed.
//!
//! Threat: a token of another issuer, for another audience, of another time, or signed by nobody.
//! Decision: the token's own `iss` only chooses the issuer; issuer, times, audience and signature
//! are then all checked, and only all of them together make [`Claims`]. The cheap checks come
//! first, so that old tokens of a retired key don't make anybody ask the issuer again.
//! Consequence: what a refusal says about expiry or audience is the token's own word; it is only
//! ever used to refuse.

mod addresses;
mod source;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::configuration::Invalid;
use crate::keys::{KeySet, Outcome};
use crate::token::{Refused, Token};
use source::Source;
pub(crate) use source::read_certificates;

/// How far clocks may differ for `nbf` and `iat`; kube-apiserver has the same minute for `nbf`,
/// and none for `exp`.
const LEEWAY: Duration = Duration::from_secs(60);

/// 9999-12-31T23:59:59Z in seconds: later expiry is taken as this.
const LATEST: u64 = 253_402_300_799;

/// What is needed to know an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerConfiguration {
    /// The `iss` of its tokens; discovery is below it.
    pub url: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Where the discovery document is when not below `url`.
    pub discovery_url: Option<String>,
    /// PEM certificates that are trusted instead of the system's.
    pub certificate_authority: Option<String>,
    /// A JWK Set, for an issuer that cannot be reached: nothing is fetched then.
    pub jwks: Option<String>,
    /// `http://` is taken: for tests.
    pub allow_http: bool,
    /// Nothing is fetched from private, loopback or link-local addresses: for issuers that a
    /// stranger names.
    pub public_addresses: bool,
}

/// An issuer and what is known of its keys. Use it inside a tokio runtime.
#[derive(Debug)]
pub struct Issuer {
    url: String,
    audiences: Vec<String>,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    Given(KeySet),
    Fetched(Arc<Source>),
}

/// The payload of a token that was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// All claims.
    pub values: Map<String, Value>,
    /// The issuer's URL as configured.
    pub issuer: String,
    /// `exp`.
    pub expires: SystemTime,
    /// `iat`.
    pub issued: Option<SystemTime>,
}

impl Claims {
    /// `sub`.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.values.get("sub").and_then(Value::as_str)
    }

    /// `jti`: the token's own name.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.values
            .get("jti")
            .and_then(Value::as_str)
            .filter(|id| !id.is_empty())
    }
}

impl Issuer {
    /// An issuer whose keys are fetched when they are first needed (or with [`Issuer::refresh`]).
    ///
    /// # Errors
    /// [`Invalid`] naming the field: a URL that isn't `https`, no audience, certificates or keys
    /// that cannot be read.
    pub fn new(configuration: IssuerConfiguration) -> Result<Self, Invalid> {
        Self::like(configuration, None)
    }

    /// As [`Issuer::new`], with the keys that `previous` already knows when both have the same
    /// URLs and certificates.
    ///
    /// # Errors
    /// As [`Issuer::new`].
    pub fn like(
        configuration: IssuerConfiguration,
        previous: Option<&Self>,
    ) -> Result<Self, Invalid> {
        configuration.validate()?;
        let keys = match &configuration.jwks {
            Some(jwks) => Keys::Given(
                KeySet::parse(jwks.as_bytes()).map_err(|error| Invalid::one("jwks", error))?,
            ),
            None => Keys::Fetched(match previous.map(|issuer| &issuer.keys) {
                Some(Keys::Fetched(source)) if source.is_for(&configuration) => source.clone(),
                _ => Arc::new(Source::new(&configuration)?),
            }),
        };
        Ok(Self {
            url: configuration.url,
            audiences: configuration.audiences,
            keys,
        })
    }

    /// The `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Fetches the keys, and waits for them; not more often than thrice in thirty seconds.
    ///
    /// # Errors
    /// [`Refused::KeysUnavailable`] when there are no keys, old ones included.
    pub async fn refresh(&self, now: SystemTime) -> Result<(), Refused> {
        let Keys::Fetched(source) = &self.keys else {
            return Ok(());
        };
        source.ask_again(now).await;
        match source.keys() {
            Some(_) => Ok(()),
            None => Err(self.unavailable(source)),
        }
    }

    /// Verifies a token: its issuer, times, audience and signature.
    ///
    /// # Errors
    /// [`Refused`], naming the check.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, Refused> {
        let token = Token::parse(token)?;
        self.verify_parsed(token, now, Until::Expiry).await
    }

    pub(crate) async fn verify_parsed(
        &self,
        token: Token<'_>,
        now: SystemTime,
        until: Until,
    ) -> Result<Claims, Refused> {
        let issuer = token.issuer()?;
        if issuer != self.url {
            return Err(Refused::OtherIssuer {
                issuer: issuer.to_owned(),
                expected: self.url.clone(),
            });
        }
        if !KeySet::takes(&token.algorithm) {
            return Err(Refused::Algorithm {
                algorithm: token.algorithm,
            });
        }
        // As kube-apiserver does, also when nothing is made of them.
        for claim in ["sub", "nonce", "at_hash"] {
            if !matches!(
                token.claims.get(claim),
                None | Some(Value::Null | Value::String(_))
            ) {
                return Err(Refused::Claim {
                    claim,
                    problem: "is not a string",
                });
            }
        }
        let (expires, issued) = times(&token.claims, now, until)?;
        self.verify_audience(&token.claims)?;
        self.verify_signature(&token, now).await?;
        Ok(Claims {
            values: token.claims,
            issuer: self.url.clone(),
            expires,
            issued,
        })
    }

    fn verify_audience(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        let ours = |audience: &str| self.audiences.iter().any(|own| own == audience);
        let (fits, said) = match claims.get("aud") {
            Some(Value::String(audience)) => (ours(audience), audience.clone()),
            Some(Value::Array(list)) => {
                let mut names = Vec::with_capacity(list.len());
                for audience in list {
                    names.push(audience.as_str().ok_or(Refused::Claim {
                        claim: "aud",
                        problem: "is neither a string nor a list of strings",
                    })?);
                }
                (names.iter().any(|name| ours(name)), names.join(", "))
            }
            Some(_) => {
                return Err(Refused::Claim {
                    claim: "aud",
                    problem: "is neither a string nor a list of strings",
                });
            }
            None => (false, String::new()),
        };
        if fits {
            Ok(())
        } else {
            Err(Refused::Audience {
                audience: said,
                expected: self.audiences.join(", "),
            })
        }
    }

    async fn verify_signature(&self, token: &Token<'_>, now: SystemTime) -> Result<(), Refused> {
        let verify = |keys: &KeySet| {
            keys.verify(
                &token.algorithm,
                token.key_id.as_deref(),
                token.signed.as_bytes(),
                &token.signature,
            )
        };
        let outcome = match &self.keys {
            Keys::Given(keys) => verify(keys),
            Keys::Fetched(source) => {
                let known = source.keys();
                let outcome = known.as_deref().map(verify);
                if outcome == Some(Outcome::Verified) {
                    source.refresh_if_stale(now);
                    return Ok(());
                }
                // A key that was just rotated in is not known yet: ask, but not for everybody.
                if source.ask_again(now).await {
                    source.keys().as_deref().map(verify)
                } else {
                    outcome
                }
                .ok_or_else(|| self.unavailable(source))?
            }
        };
        match outcome {
            Outcome::Verified => Ok(()),
            Outcome::Wrong => Err(Refused::Signature {
                issuer: self.url.clone(),
            }),
            Outcome::NoKey => Err(Refused::UnknownKey {
                issuer: self.url.clone(),
                key: token.key_id.clone().unwrap_or_default(),
                algorithm: token.algorithm.clone(),
            }),
        }
    }

    fn unavailable(&self, source: &Source) -> Refused {
        Refused::KeysUnavailable {
            issuer: self.url.clone(),
            reason: source
                .failure()
                .unwrap_or_else(|| "they are still being fetched".to_owned()),
        }
    }
}

/// Until when a token is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// Its own `exp`.
    Expiry,
    /// So long after its `iat`, whatever `exp` says.
    Age(Duration),
}

/// `exp`, `nbf` and `iat`; gives expiry and issue.
fn times(
    claims: &Map<String, Value>,
    now: SystemTime,
    until: Until,
) -> Result<(SystemTime, Option<SystemTime>), Refused> {
    let expires = time(claims, "exp")?.ok_or(Refused::Claim {
        claim: "exp",
        problem: "is missing",
    })?;
    let issued = time(claims, "iat")?;
    let end = match until {
        Until::Expiry => expires,
        Until::Age(age) => issued
            .and_then(|at| at.checked_add(age))
            .ok_or(Refused::Claim {
                claim: "iat",
                problem: "is missing",
            })?,
    };
    if end < now {
        return Err(Refused::Expired { since: end });
    }
    let latest = now.checked_add(LEEWAY).unwrap_or(now);
    for (claim, from) in [("nbf", time(claims, "nbf")?), ("iat", issued)] {
        if let Some(from) = from.filter(|from| *from > latest) {
            return Err(Refused::NotYetValid { claim, from });
        }
    }
    Ok((expires, issued))
}

/// A NumericDate (RFC 7519 §2), in whole seconds.
fn time(claims: &Map<String, Value>, claim: &'static str) -> Result<Option<SystemTime>, Refused> {
    let number = match claims.get(claim) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(_) => {
            return Err(Refused::Claim {
                claim,
                problem: "is not a number of seconds",
            });
        }
    };
    let seconds = number.as_u64().unwrap_or_else(|| whole(number.as_f64()));
    let since = Duration::from_secs(seconds.min(LATEST));
    Ok(SystemTime::UNIX_EPOCH.checked_add(since))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float becomes the nearest whole second in range"
)]
fn whole(seconds: Option<f64>) -> u64 {
    seconds.unwrap_or_default() as u64
}

impl IssuerConfiguration {
    fn validate(&self) -> Result<(), Invalid> {
        let mut errors = Vec::new();
        for (field, url) in [
            ("url", Some(&self.url)),
            ("discoveryURL", self.discovery_url.as_ref()),
        ] {
            if let Some(url) = url {
                crate::configuration::validate_url(field, url, self.allow_http, &mut errors);
            }
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            errors.push(crate::configuration::FieldError::new(
                "audiences",
                "at least one, and none empty, is required",
            ));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Invalid(errors))
        }
    }
}

#[cfg(test)]
mod tests;
