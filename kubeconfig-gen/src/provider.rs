//! An identity provider that people sign in with (OpenID Connect), as a gateway names it.
//!
//! ```text
//! gateway's metadata → Issuer → discover → Provider ─┬→ flow     code with PKCE, or the device flow; refresh
//!                                                    └→ sign_out revocation, or the end of the session
//! ```
//!
//! Threat: a page in the same browser sends a code of its own to the loopback address, or another provider's answer
//! is passed off as this one's; then a stranger's sign-in becomes this user's, or a code reaches who should not
//! have it.
//! Decision: PKCE (S256), a state and a nonce for every attempt; an answer with another state is passed over, one
//! whose `iss` (RFC 9207) is not this provider's is refused, and so is a missing one where the provider says that
//! it sends it; endpoints count only over HTTPS and only from a document that names the very issuer.
//! Consequence: what a foreign redirect brings is never redeemed.

use base64::Engine as _;
use oauth2::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::http::{self, ClientError, Party, Unreachable};

mod flow;
pub mod id_token;
mod sign_out;

pub use flow::{Attempt, Granted, NotRenewed};
pub use id_token::InvalidIdToken;

/// An issuer of people's identities, as the gateway's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuer {
    /// What the gateway's operator calls it.
    pub name: String,
    /// Its URL, as in the tokens' `iss`.
    pub issuer: String,
    /// What this program is called there.
    pub client_id: String,
    /// What is asked for.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// The `audience` parameter that some providers want.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Certificates that its certificate is checked against, in PEM, in base64 as in a kubeconfig; the system's own
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
}

/// Where a provider does what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    authorization_endpoint: Url,
    token_endpoint: Url,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device_authorization_endpoint: Option<Url>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocation_endpoint: Option<Url>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end_session_endpoint: Option<Url>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

/// A provider that can be asked.
#[derive(Debug, Clone)]
pub struct Provider {
    http: reqwest::Client,
    issuer: Issuer,
    endpoints: Endpoints,
}

/// A provider that gave no sign-in.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Its certificates can't be used.
    #[error("the certificate authority of the identity provider {0}")]
    Client(String, #[source] ClientError),
    /// No key for this sign-in.
    #[error("the system has no randomness to give")]
    Key(#[from] towline_proto::jws::InvalidKeyPair),
    /// Its configuration is none.
    #[error("the identity provider {issuer} can't be used ({detail}); tell the gateway's operator")]
    Unfit {
        /// The issuer.
        issuer: String,
        /// What is wrong.
        detail: String,
    },
    /// In its own words.
    #[error("{issuer} refused the sign-in: {description}")]
    Refused {
        /// The issuer.
        issuer: String,
        /// In its words.
        description: String,
    },
    /// The answer is not to what was asked.
    #[error(
        "the answer to the sign-in does not belong to it ({0}); start again with: towline login"
    )]
    Mismatch(String),
    /// The ID token is not this sign-in's.
    #[error("the ID token that {issuer} gave is refused: {why}")]
    IdToken {
        /// The issuer.
        issuer: String,
        /// What is wrong with it.
        why: InvalidIdToken,
    },
    /// It has no device flow.
    #[error("{0} has no device flow; sign in in a browser: towline login")]
    NoDeviceFlow(String),
    /// Nobody signed in on the other device.
    #[error("the code has expired before anybody signed in with it; run it again")]
    Expired,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    scopes_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    #[serde(flatten)]
    endpoints: Endpoints,
}

impl Provider {
    /// Asks an issuer where its endpoints are (OpenID Connect Discovery).
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn discover(mut issuer: Issuer) -> Result<Self, ProviderError> {
        let http = client(&issuer)?;
        let party = Party::Provider(issuer.issuer.clone());
        let unfit = |detail: String| ProviderError::Unfit {
            issuer: issuer.issuer.clone(),
            detail,
        };
        let url = format!(
            "{}/.well-known/openid-configuration",
            issuer.issuer.trim_end_matches('/')
        );
        let url = Url::parse(&url).map_err(|e| unfit(format!("its address is no URL: {e}")))?;
        let response = http
            .get(url)
            .send()
            .await
            .map_err(|e| Unreachable::new(party.clone(), &e))?;
        let status = response.status();
        let body = http::body(party, response).await?;
        if !status.is_success() {
            return Err(unfit(format!("its OpenID configuration: status {status}")));
        }
        let document: Document = serde_json::from_slice(&body)
            .map_err(|e| unfit(format!("its OpenID configuration: {e}")))?;
        if document.issuer != issuer.issuer {
            return Err(unfit(format!("it calls itself {:?}", document.issuer)));
        }
        for endpoint in document.endpoints.all() {
            if endpoint.scheme() != "https" {
                return Err(unfit(format!("its endpoint {endpoint} is not HTTPS")));
            }
        }
        let methods = document.code_challenge_methods_supported;
        if methods.is_some_and(|methods| !methods.iter().any(|method| method == "S256")) {
            return Err(unfit("it has no PKCE with S256".to_owned()));
        }
        // Some refuse the whole sign-in for a scope that they don't know.
        if let Some(known) = document.scopes_supported {
            issuer
                .scopes
                .retain(|scope| known.contains(scope) || !OPTIONAL.contains(&scope.as_str()));
        }
        Ok(Self {
            http,
            issuer,
            endpoints: document.endpoints,
        })
    }

    /// One whose endpoints are known from a sign-in.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub fn known(issuer: Issuer, endpoints: Endpoints) -> Result<Self, ProviderError> {
        Ok(Self {
            http: client(&issuer)?,
            issuer,
            endpoints,
        })
    }

    /// Which one it is.
    pub const fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Where it does what.
    pub const fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    fn party(&self) -> Party {
        Party::Provider(self.issuer.issuer.clone())
    }

    fn refused(&self, description: impl Into<String>) -> ProviderError {
        ProviderError::Refused {
            issuer: self.issuer.issuer.clone(),
            description: description.into(),
        }
    }

    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, Unreachable> {
        http::call(&self.http, self.party(), request).await
    }
}

impl Endpoints {
    fn all(&self) -> impl Iterator<Item = &Url> {
        [&self.authorization_endpoint, &self.token_endpoint]
            .into_iter()
            .chain(&self.device_authorization_endpoint)
            .chain(&self.revocation_endpoint)
            .chain(&self.end_session_endpoint)
    }
}

fn client(issuer: &Issuer) -> Result<reqwest::Client, ProviderError> {
    let error = |e| ProviderError::Client(issuer.issuer.clone(), e);
    let pem = issuer.certificate_authority_data.as_deref().map(|data| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(data);
        decoded
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| error(ClientError::NoAuthority))
    });
    http::client(pem.transpose()?.as_deref()).map_err(error)
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email", "groups", "offline_access"]
        .map(str::to_owned)
        .to_vec()
}

/// Left out where the provider says what it has, and has them not.
const OPTIONAL: [&str; 4] = ["profile", "email", "groups", "offline_access"];
