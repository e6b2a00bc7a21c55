//! Ending a sign-in at its provider.

use secrecy::{ExposeSecret, SecretString};

use super::{Provider, ProviderError};
use crate::http::{self, Unreachable};

impl Provider {
    /// Revokes a refresh token and what came of it (RFC 7009); where the provider has no such endpoint, ends the
    /// session that the ID token is of (OpenID Connect RP-Initiated Logout).
    ///
    /// # Errors
    /// See [`ProviderError`]; it has neither endpoint, for one.
    pub async fn sign_out(
        &self,
        refresh_token: Option<&SecretString>,
        id_token: &SecretString,
    ) -> Result<(), ProviderError> {
        let client_id = self.issuer.client_id.as_str();
        let (url, form) = match (
            &self.endpoints.revocation_endpoint,
            refresh_token,
            &self.endpoints.end_session_endpoint,
        ) {
            (Some(url), Some(token), _) => (
                url,
                [
                    ("token", token.expose_secret()),
                    ("token_type_hint", "refresh_token"),
                    ("client_id", client_id),
                ],
            ),
            (_, _, Some(url)) => (
                url,
                [
                    ("id_token_hint", id_token.expose_secret()),
                    ("logout_hint", ""),
                    ("client_id", client_id),
                ],
            ),
            // Nothing there outlives the ID token.
            (_, None, None) => return Ok(()),
            (None, Some(_), None) => {
                return Err(self.refused("it has no address for that; the sign-in ends by itself"));
            }
        };
        let form: Vec<_> = form.iter().filter(|(_, value)| !value.is_empty()).collect();
        let response = self
            .http
            .post(url.clone())
            .form(&form)
            .send()
            .await
            .map_err(|e| Unreachable::new(self.party(), &e))?;
        let status = response.status();
        http::body(self.party(), response).await?;
        // The end of a session may lead on to a page for people.
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(self.refused(format!("status {status}")))
        }
    }
}
