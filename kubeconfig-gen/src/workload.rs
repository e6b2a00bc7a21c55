//! A workload that has a token of its own: where that is, and how it is read.
//!
//! Threat: whoever writes the file that says where a token is chooses what is read and where it is sent.
//! Decision: the file names a file, a variable or GitHub's own address; it runs nothing, and only the two variables
//! that GitHub sets go into a request, to the address that GitHub names.
//! Consequence: a file from elsewhere can make a job send a token of its own to a gateway, and nothing else; look at
//! `gateway` in it first.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::{
    bounded,
    http::{self, ClientError, Party, Unreachable},
};

/// A credential configuration: no secret, it says where the secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Always `external_account`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The gateway's address.
    pub gateway: String,
    /// PEM certificates that the gateway's is checked against; the system's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// The provider that vouches for the token, `//HOST/projects/…/providers/NAME`.
    pub audience: String,
    /// Where the token is.
    pub credential_source: Source,
    /// The service account to act as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// The one kind that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A token of another issuer.
    #[serde(rename = "external_account")]
    ExternalAccount,
}

/// Where a workload's token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// In a file, read anew each time; a pod's projected token, for one.
    File(PathBuf),
    /// In a variable of the environment; a GitLab job's `id_tokens`, for one.
    EnvironmentVariable(String),
    /// At the address that GitHub Actions gives a job with `permissions: id-token: write`.
    GithubActions {
        /// What the token is to be for.
        audience: String,
    },
}

/// A workload's token can't be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The configuration is none.
    #[error("{path}: {1}; make one with: towline iam workload-identity-pools create-cred-config", path = .0.display())]
    Configuration(PathBuf, String),
    /// The configuration can't be read.
    #[error("cannot read the credential configuration {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The token's file can't be read.
    #[error("cannot read the workload's token from {}", .0.display())]
    TokenFile(PathBuf, #[source] std::io::Error),
    /// The variable isn't set.
    #[error(
        "the variable {0} with the workload's token is not set; in a GitLab job it is declared under id_tokens"
    )]
    Variable(String),
    /// What is there is no token.
    #[error("{0} holds no JSON Web Token (three parts with dots)")]
    NoToken(String),
    /// No GitHub Actions job, or one that may not have a token.
    #[error(
        "GitHub gave this job no address for a token ({0} is not set); its workflow needs `permissions: id-token: write`"
    )]
    NoGithub(&'static str),
    /// GitHub's address is none.
    #[error("ACTIONS_ID_TOKEN_REQUEST_URL is no https:// address")]
    GithubUrl,
    /// GitHub answered something else.
    #[error("GitHub gave no token: {0}")]
    Github(String),
    /// HTTPS can't be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// See [`Unreachable`].
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

impl Workload {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// See [`WorkloadError`].
    pub fn read(path: &Path) -> Result<Self, WorkloadError> {
        let text =
            bounded::read_to_string(path).map_err(|e| WorkloadError::Read(path.to_owned(), e))?;
        let mut workload: Self = serde_json::from_str(&text)
            .map_err(|e| WorkloadError::Configuration(path.to_owned(), e.to_string()))?;
        // A relative path in it is beside it, wherever the command runs.
        if let Source::File(file) = &mut workload.credential_source
            && let (true, Some(beside)) = (file.is_relative(), path.parent())
        {
            *file =
                std::path::absolute(beside.join(&*file)).unwrap_or_else(|_| beside.join(&*file));
        }
        Ok(workload)
    }

    /// Short, and another for each configuration: tokens of one are never used for another.
    pub fn digest(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let bytes = digest.as_ref().iter().take(8);
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    /// The workload's own token, as it is now: such tokens are replaced all the time.
    ///
    /// # Errors
    /// See [`WorkloadError`].
    pub async fn token(&self) -> Result<SecretString, WorkloadError> {
        match &self.credential_source {
            Source::File(path) => {
                let text = bounded::read_to_string(path)
                    .map_err(|e| WorkloadError::TokenFile(path.clone(), e))?;
                token(&text, || path.display().to_string())
            }
            Source::EnvironmentVariable(name) => {
                let text = variable(name).ok_or_else(|| WorkloadError::Variable(name.clone()))?;
                token(&text, || name.clone())
            }
            Source::GithubActions { audience } => github(audience).await,
        }
    }
}

async fn github(audience: &str) -> Result<SecretString, WorkloadError> {
    const URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
    const TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";
    let url = variable(URL).ok_or(WorkloadError::NoGithub(URL))?;
    let mut url = Url::parse(&url).map_err(|_| WorkloadError::GithubUrl)?;
    if url.scheme() != "https" {
        return Err(WorkloadError::GithubUrl);
    }
    let bearer: SecretString = variable(TOKEN)
        .ok_or(WorkloadError::NoGithub(TOKEN))?
        .into();
    url.query_pairs_mut().append_pair("audience", audience);
    let party = Party::Provider(url.origin().ascii_serialization());
    let response = http::client(None)?
        .get(url)
        .bearer_auth(bearer.expose_secret())
        .send()
        .await
        .map_err(|e| Unreachable::new(party.clone(), &e))?;
    let status = response.status();
    let body = http::body(party, response).await?;
    if !status.is_success() {
        return Err(WorkloadError::Github(format!("status {status}")));
    }
    let answer: Value = serde_json::from_slice(&body)
        .map_err(|_| WorkloadError::Github("its answer is not JSON".to_owned()))?;
    let text = answer
        .get("value")
        .and_then(Value::as_str)
        .unwrap_or_default();
    token(text, || "GitHub's answer".to_owned())
}

fn token(text: &str, from: impl FnOnce() -> String) -> Result<SecretString, WorkloadError> {
    let text = text.trim();
    let is_jwt = text.split('.').count() == 3
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte));
    if is_jwt {
        Ok(text.into())
    } else {
        Err(WorkloadError::NoToken(from()))
    }
}

/// Whom to act as: the configuration's own account first, then those that were asked for beside it.
pub fn chain(own: Option<&str>, asked: Option<&str>) -> Option<String> {
    match (own, asked) {
        (Some(own), Some(asked)) => Some(format!("{own},{asked}")),
        (own, asked) => own.or(asked).map(str::to_owned),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "which variable it is stands in the user's own configuration"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "type": "external_account",
        "gateway": "https://gw",
        "audience": "//gw/projects/p/locations/global/workloadIdentityPools/ci/providers/x",
        "credential_source": {"file": "token"},
        "service_account": "deployer@p"
    }"#;

    #[tokio::test]
    async fn the_file_is_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cred.json");
        std::fs::write(&path, FILE).unwrap();
        let workload = Workload::read(&path).unwrap();
        let error = workload.token().await.unwrap_err().to_string();
        assert!(
            error.contains("cannot read the workload's token"),
            "{error}"
        );
        for token in ["a.b.c", "d.e.f"] {
            std::fs::write(dir.path().join("token"), format!("{token}\n")).unwrap();
            assert_eq!(workload.token().await.unwrap().expose_secret(), token);
        }
        std::fs::write(dir.path().join("token"), "password\n").unwrap();
        assert!(matches!(
            workload.token().await.unwrap_err(),
            WorkloadError::NoToken(_)
        ));
    }

    #[test]
    fn a_configuration_that_would_run_or_read_more_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cred.json");
        for (from, to, word) in [
            (
                r#"{"file": "token"}"#,
                r#"{"executable": "sh"}"#,
                "executable",
            ),
            (r#""gateway""#, r#""gatway""#, "gatway"),
            ("external_account", "service_account", "service_account"),
        ] {
            std::fs::write(&path, FILE.replacen(from, to, 1)).unwrap();
            let error = Workload::read(&path).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("create-cred-config"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_configurations_own_account_comes_first() {
        assert_eq!(chain(Some("a@p"), Some("b@p")).as_deref(), Some("a@p,b@p"));
        assert_eq!(chain(None, Some("b@p")).as_deref(), Some("b@p"));
        assert_eq!(chain(None, None), None);
    }
}
