//! Signing in at a provider, and renewing what came of it.

use std::time::Duration;

use oauth2::{
    AuthUrl, AuthorizationCode, Client, ClientId, CsrfToken, DeviceAuthorizationUrl,
    DeviceCodeErrorResponseType, EndpointNotSet, EndpointSet, ExtraTokenFields, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, Scope,
    StandardDeviceAuthorizationResponse, StandardRevocableToken,
    StandardTokenIntrospectionResponse, StandardTokenResponse, TokenResponse as _, TokenUrl,
    basic::{
        BasicErrorResponse, BasicErrorResponseType, BasicRevocationErrorResponse, BasicTokenType,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    Provider, ProviderError,
    id_token::{Expected, IdToken},
};
use crate::{
    clock,
    http::Unreachable,
    proof::{NewKey, OwnKey},
};

/// A sign-in in a browser that has begun.
#[derive(Debug)]
pub struct Attempt {
    /// What the browser is to open.
    pub url: Url,
    redirect: RedirectUrl,
    verifier: PkceCodeVerifier,
    state: CsrfToken,
    key: NewKey,
}

/// What a provider gave.
#[derive(Debug, Clone)]
pub struct Granted {
    /// Who signed in, for the gateway to check.
    pub id_token: SecretString,
    /// When it ends, in Unix seconds by this machine's clock.
    pub expires: u64,
    /// The provider's name for the user.
    pub subject: String,
    /// For the next one; the old one goes on when there is none.
    pub refresh_token: Option<SecretString>,
    /// What the ID token says to which sign-in it belongs.
    pub nonce: Option<String>,
    /// The key that the nonce commits to.
    pub own_key: Option<OwnKey>,
}

/// A renewal that did not come about.
#[derive(Debug)]
pub enum NotRenewed {
    /// The provider takes the refresh token no longer.
    Ended,
    /// It may work later.
    Failed(ProviderError),
}

/// What OpenID Connect adds to OAuth's answer.
#[derive(Debug, Serialize, Deserialize)]
struct Extra {
    #[serde(skip_serializing)]
    id_token: Option<SecretString>,
}

impl ExtraTokenFields for Extra {}

type Answer = StandardTokenResponse<Extra, BasicTokenType>;

type OpenId<HasAuthUrl = EndpointNotSet, HasTokenUrl = EndpointNotSet> = Client<
    BasicErrorResponse,
    Answer,
    StandardTokenIntrospectionResponse<Extra, BasicTokenType>,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    HasAuthUrl,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    HasTokenUrl,
>;

impl Attempt {
    /// Whether a redirect is the answer to this attempt, be it good or bad. Any page can send a browser here.
    pub fn is_answered_by(&self, callback: &Url) -> bool {
        parameter(callback, "state").as_deref() == Some(self.state.secret().as_str())
    }
}

impl Provider {
    /// Begins a sign-in whose answer comes to `redirect` (a loopback address).
    ///
    /// # Errors
    /// See [`ProviderError::Key`].
    pub fn begin(&self, redirect: Url) -> Result<Attempt, ProviderError> {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let redirect = RedirectUrl::from_url(redirect);
        let key = NewKey::generate()?;
        let client = self.client().set_redirect_uri(redirect.clone());
        let mut request = client
            .authorize_url(CsrfToken::new_random)
            .add_scopes(self.scopes())
            .add_extra_param("nonce", key.nonce())
            .set_pkce_challenge(challenge);
        if let Some(audience) = &self.issuer.audience {
            request = request.add_extra_param("audience", audience);
        }
        let (url, state) = request.url();
        Ok(Attempt {
            url,
            redirect,
            verifier,
            state,
            key,
        })
    }

    /// Ends a sign-in with what came to its redirect address.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn finish(&self, attempt: Attempt, callback: &Url) -> Result<Granted, ProviderError> {
        if !attempt.is_answered_by(callback) {
            return Err(ProviderError::Mismatch("another state".to_owned()));
        }
        // RFC 9207: before anything else is believed of it.
        match parameter(callback, "iss") {
            Some(issuer) if issuer != self.issuer.issuer => {
                return Err(ProviderError::Mismatch(format!("it comes from {issuer:?}")));
            }
            None if self
                .endpoints
                .authorization_response_iss_parameter_supported =>
            {
                return Err(ProviderError::Mismatch(
                    "it does not say which provider it comes from".to_owned(),
                ));
            }
            _ => {}
        }
        if let Some(error) = parameter(callback, "error") {
            let description = parameter(callback, "error_description");
            return Err(self.refused(description.unwrap_or(error)));
        }
        let code = parameter(callback, "code")
            .ok_or_else(|| ProviderError::Mismatch("there is no code in it".to_owned()))?;
        let client = self.client().set_redirect_uri(attempt.redirect);
        let answer = client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(attempt.verifier)
            .request_async(&|request| self.call(request))
            .await
            .map_err(|error| self.sort(error).1)?;
        let mut granted = self.granted(&answer, Some(&attempt.key.nonce()), None)?;
        granted.own_key = Some(attempt.key.committed_by(granted.id_token.clone()));
        Ok(granted)
    }

    /// Signs in on another device (RFC 8628); `show` is told what to open there.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn on_device(
        &self,
        show: impl FnOnce(&StandardDeviceAuthorizationResponse),
    ) -> Result<Granted, ProviderError> {
        let endpoint = self
            .endpoints
            .device_authorization_endpoint
            .clone()
            .ok_or_else(|| ProviderError::NoDeviceFlow(self.issuer.issuer.clone()))?;
        let client = self
            .client()
            .set_device_authorization_url(DeviceAuthorizationUrl::from_url(endpoint));
        // Keycloak asks it of clients that have to use PKCE, in this flow too; others pass over it.
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let key = NewKey::generate()?;
        let begun: StandardDeviceAuthorizationResponse = client
            .exchange_device_code()
            .add_scopes(self.scopes())
            .add_extra_param("code_challenge", challenge.as_str())
            .add_extra_param("code_challenge_method", challenge.method().as_str())
            // RFC 8628 says nothing of it; a provider that passes it on makes end-to-end mode possible.
            .add_extra_param("nonce", key.nonce())
            .request_async(&|request| self.call(request))
            .await
            .map_err(|error| self.sort(error).1)?;
        show(&begun);
        // Asks in the interval that the provider wants, slower when it says so, until the code has expired.
        let answer = client
            .exchange_device_access_token(&begun)
            .add_extra_param("code_verifier", verifier.secret())
            .set_max_backoff_interval(SLOWEST)
            .request_async(&|request| self.call(request), tokio::time::sleep, None)
            .await
            .map_err(|error| match error {
                RequestTokenError::ServerResponse(answer) => match answer.error() {
                    DeviceCodeErrorResponseType::ExpiredToken => ProviderError::Expired,
                    other => self.refused(
                        answer
                            .error_description()
                            .cloned()
                            .unwrap_or_else(|| other.to_string()),
                    ),
                },
                RequestTokenError::Request(unreachable) => ProviderError::Unreachable(unreachable),
                RequestTokenError::Parse(..) => self.refused("its answer was not understood"),
                RequestTokenError::Other(text) => self.refused(text),
            })?;
        let mut granted = self.granted(&answer, None, None)?;
        if granted.nonce.as_ref() == Some(&key.nonce()) {
            granted.own_key = Some(key.committed_by(granted.id_token.clone()));
        }
        Ok(granted)
    }

    /// Asks for a new ID token of `subject`.
    ///
    /// An answer that got lost may have used the refresh token up: some providers take it once more for a moment, so
    /// it is asked again at once.
    ///
    /// # Errors
    /// See [`NotRenewed`].
    pub async fn renew(
        &self,
        refresh_token: &SecretString,
        subject: &str,
    ) -> Result<Granted, NotRenewed> {
        let client = self.client();
        let token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let mut lost = false;
        loop {
            let request = client.exchange_refresh_token(&token);
            let answer = request.request_async(&|request| self.call(request)).await;
            match answer {
                Ok(answer) => {
                    return self
                        .granted(&answer, None, Some(subject))
                        .map_err(NotRenewed::Failed);
                }
                Err(error) => match self.sort(error) {
                    (true, _) => return Err(NotRenewed::Ended),
                    (false, ProviderError::Unreachable(error))
                        if error.may_have_arrived() && !lost =>
                    {
                        lost = true;
                    }
                    (false, error) => return Err(NotRenewed::Failed(error)),
                },
            }
        }
    }

    fn granted(
        &self,
        answer: &Answer,
        nonce: Option<&str>,
        subject: Option<&str>,
    ) -> Result<Granted, ProviderError> {
        let id_token = answer.extra_fields().id_token.clone().ok_or_else(|| {
            self.refused("it gave no ID token; is `openid` among the issuer's scopes?")
        })?;
        let expected = Expected {
            issuer: &self.issuer.issuer,
            client_id: &self.issuer.client_id,
            nonce,
            subject,
        };
        let claims = IdToken::read(id_token.expose_secret(), expected).map_err(|why| {
            ProviderError::IdToken {
                issuer: self.issuer.issuer.clone(),
                why,
            }
        })?;
        Ok(Granted {
            expires: claims.ends(clock::unix_now()),
            id_token,
            subject: claims.sub,
            nonce: claims.nonce,
            own_key: None,
            refresh_token: answer
                .refresh_token()
                .map(|token| token.secret().as_str().into()),
        })
    }

    fn client(&self) -> OpenId<EndpointSet, EndpointSet> {
        <OpenId>::new(ClientId::new(self.issuer.client_id.clone()))
            .set_auth_uri(AuthUrl::from_url(
                self.endpoints.authorization_endpoint.clone(),
            ))
            .set_token_uri(TokenUrl::from_url(self.endpoints.token_endpoint.clone()))
            .set_auth_type(oauth2::AuthType::RequestBody)
    }

    fn scopes(&self) -> impl Iterator<Item = Scope> {
        self.issuer.scopes.iter().cloned().map(Scope::new)
    }

    /// What went wrong at the token endpoint, and whether the grant itself is over.
    fn sort(
        &self,
        error: RequestTokenError<Unreachable, BasicErrorResponse>,
    ) -> (bool, ProviderError) {
        match error {
            RequestTokenError::Request(unreachable) => (false, unreachable.into()),
            RequestTokenError::ServerResponse(answer) => {
                let ended = matches!(answer.error(), BasicErrorResponseType::InvalidGrant);
                let description = match answer.error_description() {
                    Some(description) => description.clone(),
                    None => answer.error().to_string(),
                };
                (ended, self.refused(description))
            }
            RequestTokenError::Parse(..) => (false, self.refused("its answer was not understood")),
            RequestTokenError::Other(text) => (false, self.refused(text)),
        }
    }
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// Between two questions to a provider that can't be reached for the moment.
const SLOWEST: Duration = Duration::from_secs(30);
