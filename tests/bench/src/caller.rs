//! A plain HTTPS client out of a kubeconfig, as kubectl would use it.

use std::{collections::HashMap, fs, process::Stdio};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::process::Command;

use crate::kubectl::Kubectl;

/// Where the API server is, and who asks.
pub(crate) struct Caller {
    pub(crate) server: String,
    authority: reqwest::Certificate,
    credential: Credential,
}

enum Credential {
    Certificate(reqwest::Identity),
    Token(String),
}

impl Caller {
    /// The current context of a kubeconfig.
    pub(crate) async fn from_kubeconfig(kubectl: &Kubectl) -> anyhow::Result<Self> {
        let config = kubectl
            .output(&[
                "config",
                "view",
                "--raw",
                "--minify",
                "--flatten",
                "-o",
                "json",
            ])
            .await?;
        let config: Value = serde_json::from_str(&config)?;
        let cluster = config
            .pointer("/clusters/0/cluster")
            .context("the kubeconfig has no cluster")?;
        let user = config
            .pointer("/users/0/user")
            .context("the kubeconfig has no user")?;
        let server = cluster
            .get("server")
            .and_then(Value::as_str)
            .context("the cluster has no server")?;
        let authority = pem(cluster, "certificate-authority")?
            .context("the cluster has no certificate-authority")?;
        let credential = match (pem(user, "client-certificate")?, pem(user, "client-key")?) {
            (Some(certificate), Some(key)) => Credential::Certificate(reqwest::Identity::from_pem(
                &[key, b"\n".to_vec(), certificate].concat(),
            )?),
            _ => Credential::Token(token(kubectl, user).await?),
        };
        Ok(Self {
            server: server.trim_end_matches('/').to_owned(),
            authority: reqwest::Certificate::from_pem(&authority)?,
            credential,
        })
    }

    /// A client with connections of its own.
    pub(crate) fn client(&self) -> anyhow::Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([self.authority.clone()]);
        match &self.credential {
            Credential::Certificate(identity) => builder = builder.identity(identity.clone()),
            Credential::Token(token) => {
                let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {token}"))?;
                value.set_sensitive(true);
                builder = builder.default_headers(
                    [(reqwest::header::AUTHORIZATION, value)]
                        .into_iter()
                        .collect(),
                );
            }
        }
        Ok(builder.build()?)
    }
}

fn pem(of: &Value, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = of.get(format!("{key}-data")).and_then(Value::as_str) {
        return Ok(Some(STANDARD.decode(data)?));
    }
    let Some(path) = of.get(key).and_then(Value::as_str) else {
        return Ok(None);
    };
    Ok(Some(
        fs::read(path).with_context(|| format!("cannot read {path}"))?,
    ))
}

/// The exec plugin's token.
async fn token(kubectl: &Kubectl, user: &Value) -> anyhow::Result<String> {
    let exec = user
        .get("exec")
        .context("the user has neither certificate nor exec plugin")?;
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let words = |key: &str| {
        exec.get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let variables: HashMap<_, _> = words("env")
        .iter()
        .map(|variable| (text(variable, "name"), text(variable, "value")))
        .collect();
    let info = serde_json::json!({
        "apiVersion": exec.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": false},
    });
    let output = Command::new(text(exec, "command"))
        .args(words("args").iter().filter_map(Value::as_str))
        .env("KUBECONFIG", kubectl.kubeconfig())
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .envs(variables)
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !output.status.success() {
        bail!("the exec plugin failed: {}", output.status);
    }
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let token = answer.pointer("/status/token").and_then(Value::as_str);
    Ok(token.context("the exec plugin gave no token")?.to_owned())
}
