//! A sign-in that is kept, and how the gateway's access tokens come of it.
//!
//! | kept | what it takes for an access token |
//! | --- | --- |
//! | the gateway's own refresh token | one request; it rotates |
//! | a provider's refresh token and ID token | an exchange; a renewal at the provider before it, when the ID token has ended |
//! | where a workload's token is | the token, read anew, and an exchange |

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    clock,
    oauth::{NotRefreshed, OAuth, RefreshError, Subject, Wanted},
    proof::OwnKey,
    provider::{Endpoints, Granted, Issuer, NotRenewed, Provider, ProviderError},
    tokens::{Refreshed, Renewal},
    workload::{self, Workload},
};

/// A sign-in that is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum SignIn {
    /// At the gateway itself.
    Gateway {
        /// For the next access token.
        #[serde(serialize_with = "exposed")]
        refresh_token: SecretString,
    },
    /// At an identity provider.
    Provider(Box<Session>),
    /// By a workload's own token.
    Workload(Box<Workload>),
}

/// A sign-in at an identity provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The provider.
    pub issuer: Issuer,
    /// Where it does what.
    pub endpoints: Endpoints,
    /// The provider's name for the user.
    pub subject: String,
    /// Who signed in.
    #[serde(serialize_with = "exposed")]
    pub id_token: SecretString,
    /// When the ID token ends, in Unix seconds.
    pub expires: u64,
    /// For the next ID token; some providers give none.
    #[serde(
        default,
        serialize_with = "exposed_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub refresh_token: Option<SecretString>,
    /// What the sign-in's first ID token commits to; not where the provider left the nonce out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_key: Option<OwnKey>,
}

/// No access token came of a sign-in, but it may later.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The gateway didn't give one.
    #[error(transparent)]
    Gateway(#[from] RefreshError),
    /// The provider didn't say who this is.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The workload's own token can't be had.
    #[error(transparent)]
    Workload(#[from] workload::WorkloadError),
    /// What the provider gave can't be kept, and is of no use a second time.
    #[error(transparent)]
    Keep(#[from] crate::tokens::KeepError),
}

impl Session {
    /// What a provider gave for a sign-in.
    pub fn new(provider: &Provider, granted: Granted) -> Self {
        Self {
            issuer: provider.issuer().clone(),
            endpoints: provider.endpoints().clone(),
            subject: granted.subject,
            id_token: granted.id_token,
            expires: granted.expires,
            refresh_token: granted.refresh_token,
            own_key: granted.own_key,
        }
    }

    /// The ID token, to be exchanged.
    pub const fn subject(&self) -> Subject<'_> {
        Subject::IdToken {
            token: &self.id_token,
            own_key: self.own_key.as_ref(),
        }
    }

    fn renewed(&self, granted: Granted) -> Self {
        Self {
            id_token: granted.id_token,
            expires: granted.expires,
            refresh_token: granted.refresh_token.or_else(|| self.refresh_token.clone()),
            ..self.clone()
        }
    }
}

/// Asks for a new access token; no other process does at the same time.
pub async fn renew(
    oauth: &OAuth,
    renewal: &mut Renewal<'_>,
    wanted: Wanted<'_>,
) -> Refreshed<RenewError> {
    match renewal.sign_in().clone() {
        SignIn::Gateway { refresh_token } => match oauth.refresh(&refresh_token, wanted).await {
            Ok((issued, next)) => {
                // Kept together with the access token, in one writing.
                if let Some(refresh_token) = next {
                    renewal.replace(SignIn::Gateway { refresh_token });
                }
                Refreshed::Issued(issued)
            }
            Err(NotRefreshed::Ended) => Refreshed::Ended,
            Err(NotRefreshed::Failed(error)) => Refreshed::Failed(error.into()),
        },
        SignIn::Provider(session) => by_provider(oauth, *session, renewal, wanted).await,
        SignIn::Workload(workload) => {
            let token = match workload.token().await {
                Ok(token) => token,
                Err(error) => return Refreshed::Failed(error.into()),
            };
            let chain =
                workload::chain(workload.service_account.as_deref(), wanted.service_account);
            let wanted = Wanted {
                service_account: chain.as_deref(),
                ..wanted
            };
            let subject = Subject::Workload {
                token: &token,
                audience: &workload.audience,
            };
            Refreshed::of(oauth.exchange(subject, wanted).await)
        }
    }
}

async fn by_provider(
    oauth: &OAuth,
    session: Session,
    renewal: &mut Renewal<'_>,
    wanted: Wanted<'_>,
) -> Refreshed<RenewError> {
    if session.expires > clock::unix_now() + NEARLY {
        match oauth.exchange(session.subject(), wanted).await {
            // A key that the provider has withdrawn, a claim that has changed: a new ID token may do.
            Err(RefreshError::Refused {
                invalid_grant: true,
                ..
            }) if session.refresh_token.is_some() => {}
            exchanged => return Refreshed::of(exchanged),
        }
    }
    match renewed(session, renewal).await {
        Ok(Some(session)) => Refreshed::of(oauth.exchange(session.subject(), wanted).await),
        Ok(None) => Refreshed::Ended,
        Err(error) => Refreshed::Failed(error),
    }
}

/// With a new ID token; none when the sign-in is over.
async fn renewed(
    session: Session,
    renewal: &mut Renewal<'_>,
) -> Result<Option<Session>, RenewError> {
    let Some(refresh_token) = &session.refresh_token else {
        return Ok(None);
    };
    let provider = Provider::known(session.issuer.clone(), session.endpoints.clone())?;
    match provider.renew(refresh_token, &session.subject).await {
        Ok(granted) => {
            let session = session.renewed(granted);
            // Before anything else is asked: the refresh token that was used is worth nothing any more.
            renewal.keep(SignIn::Provider(Box::new(session.clone())))?;
            Ok(Some(session))
        }
        Err(NotRenewed::Ended) => Ok(None),
        Err(NotRenewed::Failed(error)) => Err(error.into()),
    }
}

impl Refreshed<RenewError> {
    fn of(exchanged: Result<crate::tokens::Issued, RefreshError>) -> Self {
        match exchanged {
            Ok(issued) => Self::Issued(issued),
            Err(error) => Self::Failed(error.into()),
        }
    }
}

pub(crate) fn exposed<S: Serializer>(
    secret: &SecretString,
    serializer: S,
) -> Result<S::Ok, S::Error> {
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

/// How long an ID token has to be good to be sent, in seconds: clocks differ, and a request takes its time.
const NEARLY: u64 = 15;
