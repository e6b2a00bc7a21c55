//! The management API, called as JSON so that it passes wherever HTTP/1.1 does.

use std::fmt;

use prost_reflect::ReflectMessage;
use reqwest::{StatusCode, header};
use secrecy::ExposeSecret;
use serde::Deserialize;
use towline_proto::{api, names::Membership};

use crate::{
    gateway_url::GatewayUrl,
    http::{self, Unreachable},
    oauth::{OAuth, RefreshError, Wanted},
    service_account::ActAs,
    sign_in::{self, RenewError},
    tokens::{Token, Tokens, TokensError},
};

/// A gateway, as somebody who signed in there.
#[derive(Debug)]
pub struct Api {
    http: reqwest::Client,
    gateway: GatewayUrl,
    oauth: OAuth,
    tokens: Tokens,
    act_as: Option<ActAs>,
    verbose: bool,
}

/// A call that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody has signed in, or the sign-in has ended.
    #[error("not signed in to {0} (any more); run: towline login {0}")]
    SignedOut(String),
    /// The tokens on disk can't be used.
    #[error(transparent)]
    Tokens(TokensError<RenewError>),
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// See [`RenewError`].
    #[error(transparent)]
    Renew(Box<RenewError>),
    /// The gateway doesn't let the caller act as the service account.
    #[error("{gateway} gave no token to act as {account}: {description}")]
    ActAs {
        /// The address.
        gateway: String,
        /// The service account, or the chain of them.
        account: String,
        /// In the gateway's words.
        description: String,
    },
    /// The gateway answered with a refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The gateway's answer is none.
    #[error(
        "{gateway} answered {method} with something that is not understood ({detail}); are gateway and towline of about the same version?"
    )]
    Answer {
        /// The address.
        gateway: String,
        /// What was called.
        method: &'static str,
        /// What was seen.
        detail: String,
    },
}

/// A refusal in the gateway's own words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// `not_found`, `permission_denied` and so on.
    pub code: String,
    /// The sentence.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            f.write_str(&self.code)
        } else {
            f.write_str(&self.message)
        }
    }
}

impl std::error::Error for Refusal {}

impl Api {
    /// `gateway` reached with `http`, with the tokens kept in `tokens`.
    pub fn new(http: reqwest::Client, gateway: GatewayUrl, tokens: Tokens, verbose: bool) -> Self {
        let oauth = OAuth::new(http.clone(), gateway.clone());
        Self {
            http,
            gateway,
            oauth,
            tokens,
            act_as: None,
            verbose,
        }
    }

    /// The same, acting as a service account.
    #[must_use]
    pub fn acting_as(self, act_as: Option<ActAs>) -> Self {
        Self { act_as, ..self }
    }

    /// The same, with the tokens of another sign-in.
    #[must_use]
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Self { tokens, ..self }
    }

    /// The gateway's address.
    pub const fn gateway(&self) -> &GatewayUrl {
        &self.gateway
    }

    /// Calls one method, such as `Memberships/List`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<Request, Answer>(
        &self,
        method: &'static str,
        request: &Request,
    ) -> Result<Answer, CallError>
    where
        Request: ReflectMessage,
        Answer: ReflectMessage + Default,
    {
        let not_understood = |detail: String| CallError::Answer {
            gateway: self.gateway.to_string(),
            method,
            detail: detail
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect(),
        };
        let body = api::to_json(request).map_err(|e| not_understood(e.to_string()))?;
        let token = self.token(None).await?;
        let url = self.gateway.at(&format!("/towline.v1.{method}"));
        if self.verbose {
            self.say(&format!("POST {url} {body}"));
        }
        let response = self
            .http
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .bearer_auth(token.token.expose_secret())
            .body(body)
            .send()
            .await
            .map_err(|e| Unreachable::new(&self.gateway, &e))?;
        let status = response.status();
        if self.verbose {
            self.say(&format!("{status}"));
        }
        let body = http::body(&self.gateway, response).await?;
        if status.is_success() {
            return api::from_newer_json(&body).map_err(|e| not_understood(e.to_string()));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if refusal.code == "unauthenticated" => {
                Err(CallError::SignedOut(self.gateway.to_string()))
            }
            Ok(refusal) => Err(refusal.into()),
            Err(_) if status == StatusCode::UNAUTHORIZED => {
                Err(CallError::SignedOut(self.gateway.to_string()))
            }
            Err(_) => Err(not_understood(format!(
                "status {status}: {}",
                String::from_utf8_lossy(&body)
            ))),
        }
    }

    /// A token for the gateway itself, or for one membership and nothing else.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn token(&self, membership: Option<&Membership>) -> Result<Token, CallError> {
        let audience = audience(membership, self.act_as.as_ref());
        let resource = match membership {
            Some(membership) => self.gateway.of_membership(membership),
            None => self.gateway.to_string(),
        };
        let account = self.act_as.as_ref().map(ToString::to_string);
        let wanted = Wanted {
            resource: Some(&resource),
            service_account: account.as_deref(),
        };
        let token = self
            .tokens
            .token(&audience, async |renewal| {
                sign_in::renew(&self.oauth, renewal, wanted).await
            })
            .await;
        token.map_err(|error| match (error, &account) {
            (TokensError::SignedOut, _) => CallError::SignedOut(self.gateway.to_string()),
            (
                TokensError::Refresh(RenewError::Gateway(RefreshError::Unreachable(unreachable))),
                _,
            ) => CallError::Unreachable(unreachable),
            (
                TokensError::Refresh(RenewError::Gateway(RefreshError::Refused {
                    gateway,
                    description,
                    ..
                })),
                Some(account),
            ) => CallError::ActAs {
                gateway,
                account: account.clone(),
                description,
            },
            (TokensError::Refresh(error), _) => CallError::Renew(Box::new(error)),
            (other, _) => CallError::Tokens(other),
        })
    }

    #[expect(clippy::print_stderr, reason = "what -v is for")]
    fn say(&self, text: &str) {
        eprintln!("{text}");
    }
}

/// The key under which a token is kept.
pub fn audience(membership: Option<&Membership>, act_as: Option<&ActAs>) -> String {
    let mut key = match membership {
        None => "gateway".to_owned(),
        Some(membership) => membership.to_string(),
    };
    if let Some(act_as) = act_as {
        key.push_str(&format!(" as {act_as}"));
    }
    key
}
