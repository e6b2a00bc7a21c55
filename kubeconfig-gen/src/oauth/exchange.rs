//! Token exchange (RFC 8693): another issuer's token for one of the gateway's.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{CLIENT_ID, Denied, OAuth, RefreshError, UNSAID_LIFETIME};
use crate::{
    http::{self, Unreachable},
    proof::OwnKey,
    tokens::Issued,
};

/// What an access token is to be good for, and as whom.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// A membership's URL; the gateway itself when absent.
    pub resource: Option<&'a str>,
    /// The service account to act as; with a comma, through which others.
    pub service_account: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(super) fn parameters(self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let resource = self.resource.map(|resource| ("resource", resource));
        let account = self.service_account;
        resource
            .into_iter()
            .chain(account.map(|account| ("impersonate_service_account", account)))
    }
}

/// A token of another issuer.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A person's ID token.
    IdToken {
        /// The token.
        token: &'a SecretString,
        /// What a token of this sign-in may commit to.
        own_key: Option<&'a OwnKey>,
    },
    /// A workload's own token.
    Workload {
        /// The token.
        token: &'a SecretString,
        /// The provider in whose name it comes, `//HOST/projects/…/providers/NAME`.
        audience: &'a str,
    },
}

#[derive(Deserialize)]
struct Exchanged {
    access_token: SecretString,
    expires_in: Option<u64>,
}

impl OAuth {
    /// Exchanges a token of another issuer for one of the gateway's (RFC 8693).
    ///
    /// # Errors
    /// See [`RefreshError`].
    pub async fn exchange(
        &self,
        subject: Subject<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Issued, RefreshError> {
        let (token, kind) = match subject {
            Subject::IdToken { token, .. } => (token, "urn:ietf:params:oauth:token-type:id_token"),
            Subject::Workload { token, .. } => (token, "urn:ietf:params:oauth:token-type:jwt"),
        };
        let mut form = vec![
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("client_id", CLIENT_ID),
            ("subject_token", token.expose_secret()),
            ("subject_token_type", kind),
        ];
        if let Subject::Workload { audience, .. } = subject {
            form.push(("audience", audience));
        }
        // Whoever has seen the ID token, as agents of clusters do, can't exchange it.
        let possession = match subject {
            Subject::IdToken { own_key, .. } => {
                own_key.and_then(|key| key.possession(self.endpoints.token.url().as_str()))
            }
            Subject::Workload { .. } => None,
        };
        let possession = possession.map(|possession| possession.to_string());
        if let Some(possession) = &possession {
            form.push(("possession", possession));
        }
        form.extend(wanted.parameters());
        let response = self
            .http
            .post(self.endpoints.token.url().clone())
            .header(reqwest::header::ACCEPT, "application/json")
            .form(&form)
            .send()
            .await
            .map_err(|e| Unreachable::new(&self.gateway, &e))?;
        let status = response.status();
        let body = http::body(&self.gateway, response).await?;
        if let Ok(answer) = serde_json::from_slice::<Exchanged>(&body)
            && status.is_success()
        {
            return Ok(Issued {
                access_token: answer.access_token,
                lifetime: answer
                    .expires_in
                    .map_or(UNSAID_LIFETIME, Duration::from_secs),
            });
        }
        Err(match serde_json::from_slice::<Denied>(&body) {
            Ok(denied) => {
                let invalid_grant = denied.error == "invalid_grant";
                self.refused(
                    denied.error_description.unwrap_or(denied.error),
                    invalid_grant,
                )
            }
            Err(_) => {
                let description = format!("its answer was not understood (status {status})");
                self.refused(description, false)
            }
        })
    }
}
