//! Signing in at a gateway: OAuth 2.0's authorization code flow with PKCE (RFC 6749, 7636), as a public client.
//!
//! In a browser the gateway shows a form and sends the code to a loopback address (RFC 8252). In a terminal this
//! program is the user agent itself: it posts the form and takes the code from the redirect, which it does not
//! follow. A refresh names the membership that the new token is for (RFC 8707), so that a token which leaks in
//! one cluster opens no other.

use oauth2::{
    AccessToken, AuthUrl, AuthorizationCode, ClientId, CsrfToken, EndpointNotSet, EndpointSet,
    HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken,
    RequestTokenError, RevocationErrorResponseType, RevocationUrl, StandardErrorResponse,
    StandardRevocableToken, TokenResponse as _, TokenUrl,
    basic::{BasicClient, BasicErrorResponse, BasicErrorResponseType, BasicTokenResponse},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::time::Duration;
use url::Url;

use crate::{
    gateway_url::GatewayUrl,
    http::{self, Unreachable},
    provider::Issuer,
    tokens::Issued,
};

mod exchange;

pub use exchange::{Subject, Wanted};

/// A gateway's sign-in.
#[derive(Debug, Clone)]
pub struct OAuth {
    http: reqwest::Client,
    gateway: GatewayUrl,
    endpoints: Endpoints,
}

#[derive(Debug, Clone)]
struct Endpoints {
    authorize: AuthUrl,
    token: TokenUrl,
    revoke: RevocationUrl,
}

/// How a user proves to be one.
#[derive(Debug)]
pub enum Proof {
    /// A local user's password.
    Password(SecretString),
    /// A code that was handed out for setting a new password.
    OneTimeCode {
        /// The code.
        code: SecretString,
        /// The password from now on.
        new_password: SecretString,
    },
}

/// A browser's sign-in that has begun.
#[derive(Debug)]
pub struct Attempt {
    /// What the browser is to open.
    pub url: Url,
    redirect: RedirectUrl,
    verifier: PkceCodeVerifier,
    state: CsrfToken,
}

/// A sign-in that failed.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// What answers is something else.
    #[error("{gateway} answers, but not as a Towline gateway does ({detail}); check the address")]
    NotAGateway {
        /// The address.
        gateway: String,
        /// What was seen.
        detail: String,
    },
    /// The gateway is known to itself by another address; tokens are good for that one only.
    #[error("{gateway} calls itself {own}; run: towline login {own}")]
    OtherAddress {
        /// The address that was given.
        gateway: String,
        /// The gateway's own.
        own: String,
    },
    /// Wrong password, disabled user, a password that is too short, too many attempts.
    #[error("{gateway} refused the sign-in: {description}")]
    Refused {
        /// The address.
        gateway: String,
        /// In the gateway's words.
        description: String,
    },
    /// The redirect is not the answer to what was asked.
    #[error(
        "the answer to the sign-in does not belong to it ({0}); start again with: towline login"
    )]
    Mismatch(&'static str),
}

/// A refresh that failed but may work later.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// In the gateway's words.
    #[error("{gateway} gave no token: {description}")]
    Refused {
        /// The address.
        gateway: String,
        /// Whether it is what was presented for the token that is refused.
        invalid_grant: bool,
        /// In the gateway's words.
        description: String,
    },
}

/// A refresh that did not come about.
#[derive(Debug)]
pub enum NotRefreshed {
    /// The gateway takes the refresh token no longer.
    Ended,
    /// It may work later.
    Failed(RefreshError),
}

/// What is to end.
#[derive(Debug, Clone, Copy)]
pub enum Revoked<'a> {
    /// A sign-in.
    RefreshToken(&'a SecretString),
    /// One token only.
    AccessToken(&'a SecretString),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    /// Whom people sign in with; the gateway itself when there is none.
    #[serde(default)]
    towline_issuers: Vec<Issuer>,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
    error_description: Option<String>,
}

type Client = BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointSet, EndpointSet>;

impl Attempt {
    /// Whether a redirect is the answer to this attempt, be it good or bad. Any page can send a browser here.
    pub fn is_answered_by(&self, callback: &Url) -> bool {
        callback
            .query_pairs()
            .any(|(key, value)| key == "state" && value == self.state.secret().as_str())
    }
}

impl OAuth {
    /// The sign-in of `gateway`, reached with `http`.
    pub fn new(http: reqwest::Client, gateway: GatewayUrl) -> Self {
        let endpoints = Endpoints {
            authorize: AuthUrl::from_url(gateway.at("/oauth2/authorize")),
            token: TokenUrl::from_url(gateway.at("/oauth2/token")),
            revoke: RevocationUrl::from_url(gateway.at("/oauth2/revoke")),
        };
        Self {
            http,
            gateway,
            endpoints,
        }
    }

    /// Looks whether a gateway answers there, and whether it goes by this address; says whom people sign in with,
    /// which is the gateway itself when nobody is named.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn discover(&self) -> Result<Vec<Issuer>, SignInError> {
        let url = self.gateway.at("/oauth2/.well-known/openid-configuration");
        let response = self
            .http
            .get(url)
            .send()
            .await
            .map_err(|e| Unreachable::new(&self.gateway, &e))?;
        let status = response.status();
        let body = http::body(&self.gateway, response).await?;
        let stranger = |detail: String| SignInError::NotAGateway {
            gateway: self.gateway.to_string(),
            detail,
        };
        if !status.is_success() {
            return Err(stranger(format!("status {status}")));
        }
        let discovery: Discovery = serde_json::from_slice(&body)
            .map_err(|_| stranger("no OpenID configuration".to_owned()))?;
        let own: Option<GatewayUrl> = discovery
            .issuer
            .strip_suffix("/oauth2")
            .and_then(|own| own.parse().ok());
        match own {
            Some(own) if own == self.gateway => Ok(discovery.towline_issuers),
            Some(own) => Err(SignInError::OtherAddress {
                gateway: self.gateway.to_string(),
                own: own.to_string(),
            }),
            None => Err(stranger(format!("issuer {:?}", discovery.issuer))),
        }
    }

    /// Begins a sign-in whose answer comes to `redirect` (a loopback address).
    pub fn begin(&self, redirect: RedirectUrl) -> Attempt {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state) = self
            .client()
            .set_redirect_uri(redirect.clone())
            .authorize_url(CsrfToken::new_random)
            .set_pkce_challenge(challenge)
            .url();
        Attempt {
            url,
            redirect,
            verifier,
            state,
        }
    }

    /// Signs in without a browser.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn sign_in(
        &self,
        username: &str,
        proof: &Proof,
    ) -> Result<(Issued, Option<SecretString>), SignInError> {
        // Nobody listens there: the answer is taken from the redirect itself.
        let redirect = RedirectUrl::from_url(loopback(TERMINAL_PORT));
        let mut attempt = self.begin(redirect);
        let mut form: Vec<(String, String)> = attempt.url.query_pairs().into_owned().collect();
        attempt.url.set_query(None);
        form.push(("username".to_owned(), username.to_owned()));
        match proof {
            Proof::Password(password) => {
                form.push(("password".to_owned(), password.expose_secret().to_owned()));
            }
            Proof::OneTimeCode { code, new_password } => {
                form.push(("one_time_code".to_owned(), code.expose_secret().to_owned()));
                form.push((
                    "new_password".to_owned(),
                    new_password.expose_secret().to_owned(),
                ));
            }
        }
        let request = self
            .http
            .post(attempt.url.clone())
            .header(reqwest::header::ACCEPT, "application/json")
            .form(&form);
        let response = request
            .send()
            .await
            .map_err(|e| Unreachable::new(&self.gateway, &e))?;
        let status = response.status();
        let location = response
            .headers()
            .get(reqwest::header::LOCATION)
            .and_then(|at| at.to_str().ok());
        if status.is_redirection() {
            let to = location
                .and_then(|at| Url::parse(at).ok())
                .ok_or(SignInError::Mismatch("a redirect to nowhere"))?;
            return self.finish(attempt, &to).await;
        }
        let body = http::body(&self.gateway, response).await?;
        let gateway = self.gateway.to_string();
        Err(match serde_json::from_slice::<Denied>(&body) {
            Ok(denied) => SignInError::Refused {
                gateway,
                description: denied.error_description.unwrap_or(denied.error),
            },
            Err(_) => SignInError::NotAGateway {
                gateway,
                detail: format!("status {status}"),
            },
        })
    }

    /// Ends a sign-in with what came to its redirect address.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn finish(
        &self,
        attempt: Attempt,
        callback: &Url,
    ) -> Result<(Issued, Option<SecretString>), SignInError> {
        let parameter = |name: &str| {
            callback
                .query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let redirect = attempt.redirect.url();
        if (callback.host_str(), callback.path()) != (redirect.host_str(), redirect.path()) {
            return Err(SignInError::Mismatch("another address"));
        }
        if parameter("state").as_deref() != Some(attempt.state.secret().as_str()) {
            return Err(SignInError::Mismatch("another state"));
        }
        let refused = |description| SignInError::Refused {
            gateway: self.gateway.to_string(),
            description,
        };
        if let Some(error) = parameter("error") {
            return Err(refused(parameter("error_description").unwrap_or(error)));
        }
        let code = parameter("code").ok_or(SignInError::Mismatch("no code"))?;
        let client = self.client().set_redirect_uri(attempt.redirect);
        let answer = client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(attempt.verifier)
            .request_async(&|request| self.call(request))
            .await;
        match answer {
            Ok(answer) => Ok(issued(&answer)),
            Err(error) => Err(match self.sort(error) {
                (_, RefreshError::Unreachable(unreachable)) => {
                    SignInError::Unreachable(unreachable)
                }
                (_, RefreshError::Refused { description, .. }) => refused(description),
            }),
        }
    }

    /// Asks for a new access token; for one membership only when `resource` (its URL) is given.
    ///
    /// An answer that got lost has used the refresh token up, and the gateway takes it once more for half a minute
    /// only: so it is asked again at once.
    pub async fn refresh(
        &self,
        refresh_token: &SecretString,
        wanted: Wanted<'_>,
    ) -> Result<(Issued, Option<SecretString>), NotRefreshed> {
        let client = self.client();
        let token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        let mut lost = false;
        loop {
            let mut request = client.exchange_refresh_token(&token);
            for (name, value) in wanted.parameters() {
                request = request.add_extra_param(name, value);
            }
            match request.request_async(&|request| self.call(request)).await {
                Ok(answer) => return Ok(issued(&answer)),
                Err(error) => match self.sort(error) {
                    (true, _) => return Err(NotRefreshed::Ended),
                    (false, RefreshError::Unreachable(error))
                        if error.may_have_arrived() && !lost =>
                    {
                        lost = true;
                    }
                    (false, error) => return Err(NotRefreshed::Failed(error)),
                },
            }
        }
    }

    /// Ends a refresh token and all that came from it, or an access token (RFC 7009).
    ///
    /// # Errors
    /// See [`RefreshError`].
    pub async fn revoke(&self, token: Revoked<'_>) -> Result<(), RefreshError> {
        let token = match token {
            Revoked::RefreshToken(token) => StandardRevocableToken::RefreshToken(
                RefreshToken::new(token.expose_secret().to_owned()),
            ),
            Revoked::AccessToken(token) => StandardRevocableToken::AccessToken(AccessToken::new(
                token.expose_secret().to_owned(),
            )),
        };
        let client = self.client();
        let refused = |description| self.refused(description, false);
        client
            .revoke_token(token)
            .map_err(|e| refused(e.to_string()))?
            .request_async(&|request| self.call(request))
            .await
            .map_err(
                |error: RequestTokenError<
                    Unreachable,
                    StandardErrorResponse<RevocationErrorResponseType>,
                >| {
                    match error {
                        RequestTokenError::Request(unreachable) => {
                            RefreshError::Unreachable(unreachable)
                        }
                        other => refused(other.to_string()),
                    }
                },
            )
    }

    fn client(&self) -> Client {
        BasicClient::new(ClientId::new(CLIENT_ID.to_owned()))
            .set_auth_uri(self.endpoints.authorize.clone())
            .set_token_uri(self.endpoints.token.clone())
            .set_revocation_url(self.endpoints.revoke.clone())
    }

    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, Unreachable> {
        http::call(&self.http, (&self.gateway).into(), request).await
    }

    fn refused(&self, description: String, invalid_grant: bool) -> RefreshError {
        RefreshError::Refused {
            gateway: self.gateway.to_string(),
            invalid_grant,
            description,
        }
    }

    /// What went wrong at the token endpoint, and whether the grant itself is over.
    fn sort(
        &self,
        error: RequestTokenError<Unreachable, BasicErrorResponse>,
    ) -> (bool, RefreshError) {
        let refused = |description| self.refused(description, false);
        match error {
            RequestTokenError::Request(unreachable) => {
                (false, RefreshError::Unreachable(unreachable))
            }
            RequestTokenError::ServerResponse(answer) => {
                let ended = matches!(answer.error(), BasicErrorResponseType::InvalidGrant);
                let description = match answer.error_description() {
                    Some(description) => description.clone(),
                    None => answer.error().to_string(),
                };
                (ended, self.refused(description, ended))
            }
            RequestTokenError::Parse(_, body) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                (
                    false,
                    refused(format!("its answer was not understood: {text}")),
                )
            }
            RequestTokenError::Other(text) => (false, refused(text)),
        }
    }
}

/// The loopback address that a code is sent to.
pub fn loopback(port: u16) -> Url {
    #[expect(clippy::expect_used, reason = "a constant address with a number in it")]
    Url::parse(&format!("http://127.0.0.1:{port}/callback")).expect("is a URL")
}

fn issued(answer: &BasicTokenResponse) -> (Issued, Option<SecretString>) {
    let refresh_token = answer.refresh_token();
    let issued = Issued {
        access_token: answer.access_token().secret().as_str().into(),
        lifetime: answer.expires_in().unwrap_or(UNSAID_LIFETIME),
    };
    (
        issued,
        refresh_token.map(|token| token.secret().as_str().into()),
    )
}

/// What the gateway knows this program as.
const CLIENT_ID: &str = "towline";

/// Stands in the redirect address when there is no listener; any port does.
const TERMINAL_PORT: u16 = 1;

/// When the gateway doesn't say how long a token is good.
const UNSAID_LIFETIME: Duration = Duration::from_secs(300);
