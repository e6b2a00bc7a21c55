//! A webhook that takes `EventList`s, as those of kube-apiserver do.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, Client, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::SinkError;
use crate::audit::Event;

/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Where events are posted.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    url: url::Url,
    token_file: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventList<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: serde_json::Map<String, serde_json::Value>,
    items: &'a [Event],
}

impl Webhook {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// A file can't be read or used.
    pub async fn new(
        url: url::Url,
        certificate_authority: Option<&Path>,
        token_file: Option<PathBuf>,
    ) -> Result<Self, SinkError> {
        let mut builder = Client::builder()
            .timeout(LIMIT)
            .redirect(redirect::Policy::none());
        if let Some(path) = certificate_authority {
            let key = "audit.webhook_certificate_authority";
            let pem = read(key, path).await?;
            let own = Certificate::from_pem_bundle(pem.as_bytes()).map_err(SinkError::Client)?;
            builder = builder.tls_certs_only(own);
        }
        let webhook = Self {
            client: builder.build().map_err(SinkError::Client)?,
            url,
            token_file,
        };
        // A file that can't be read is told at the start, not at the first event.
        webhook.token().await?;
        Ok(webhook)
    }

    /// Posts a batch.
    ///
    /// # Errors
    /// It did not answer, or not with 2xx.
    pub async fn post(&self, events: &[Event]) -> Result<(), SinkError> {
        let list = EventList {
            kind: "EventList",
            api_version: "audit.k8s.io/v1",
            metadata: serde_json::Map::new(),
            items: events,
        };
        let mut request = self.client.post(self.url.clone()).json(&list);
        // Read every time: it may be rotated.
        if let Some(token) = self.token().await? {
            request = request.bearer_auth(token.expose_secret());
        }
        let response = request
            .send()
            .await
            .map_err(|error| SinkError::Unreachable(error.without_url()))?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(SinkError::Refused(response.status()))
        }
    }

    async fn token(&self) -> Result<Option<SecretString>, SinkError> {
        match &self.token_file {
            None => Ok(None),
            Some(path) => {
                let token = read("audit.webhook_token_file", path).await?;
                Ok(Some(SecretString::from(token.trim().to_owned())))
            }
        }
    }
}

async fn read(key: &'static str, path: &Path) -> Result<String, SinkError> {
    tokio::fs::read_to_string(path)
        .await
        .map_err(|source| SinkError::Read {
            key,
            path: path.to_owned(),
            source,
        })
}
