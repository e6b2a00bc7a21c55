//! The management API, called as JSON so that it passes wherever HTTP/1.1 does.

use std::{fmt, fmt::Write};

use prost_reflect::ReflectMessage;
use reqwest::{StatusCode, header};
use secrecy::ExposeSecret;
use serde::Deserialize;
use towline_proto::{api, names::Membership};

use crate::{
    gateway_url::GatewayUrl,
    http::{self, Unreachable},
    oauth::{OAuth, RefreshError},
    tokens::{Token, Tokens, TokensError},
};

/// A gateway, as somebody who signed in there.
#[derive(Debug)]
pub struct Api {
    http: reqwest::Client,
    gateway: GatewayUrl,
    oauth: OAuth,
    tokens: Tokens,
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
    Tokens(TokensError<RefreshError>),
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// See [`RefreshError`].
    #[error(transparent)]
    Refresh(RefreshError),
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
            verbose,
        }
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
        let audience = audience(membership);
        let resource = membership.map(|membership| self.gateway.of_membership(membership));
        let token = self
            .tokens
            .token(&audience, |refresh_token| {
                self.oauth.refresh(refresh_token, resource.as_deref())
            })
            .await;
        token.map_err(|error| match error {
            TokensError::SignedOut => CallError::SignedOut(self.gateway.to_string()),
            TokensError::Refresh(RefreshError::Unreachable(unreachable)) => {
                CallError::Unreachable(unreachable)
            }
            TokensError::Refresh(error) => CallError::Refresh(error),
            other => CallError::Tokens(other),
        })
    }

    #[expect(clippy::print_stderr, reason = "what -v is for")]
    fn say(&self, text: &str) {
        eprintln!("{text}");
    }
}

/// The key under which a token is kept.
pub fn audience(membership: Option<&Membership>) -> String {
    let mut key = String::new();
    match membership {
        None => key.push_str("gateway"),
        Some(membership) => drop(write!(key, "{membership}")),
    }
    key
}
