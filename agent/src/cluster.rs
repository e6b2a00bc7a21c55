//! The agent's own questions to its cluster, asked in its own name: what cluster it is, and where its key lies.
//!
//! Requests of a session never come this way: those go through `upstream`, which knows no name but a caller's.

use std::{collections::BTreeMap, path::Path, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{
        authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
        core::v1::{Namespace, Secret},
    },
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::timeout;
use towline_proto::handshake::Facts;

use crate::{config::SecretName, upstream::chain};

/// How long the API server may take to say what it is; an agent that can't ask goes on without.
const FACTS: Duration = Duration::from_secs(5);

/// The Secret's key that holds the agent's private key.
const KEY: &str = "agent.key";

/// Why the cluster isn't found or doesn't answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no kubeconfig, or it is wrong.
    #[error("the kubeconfig {0} cannot be used")]
    Kubeconfig(String, #[source] kube::config::KubeconfigError),
    /// This isn't a pod.
    #[error("this is no pod with a service account; outside a cluster, give --kubeconfig")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client can't be made.
    #[error("the API server cannot be asked")]
    Client(#[source] kube::Error),
    /// The Secret can't be read or written.
    #[error("the Secret {0} cannot be {1}: {2}")]
    Secret(String, &'static str, String),
}

/// Where the API server is and how the agent shows itself there.
///
/// # Errors
/// See [`ClusterError`].
pub async fn config(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> Result<Config, ClusterError> {
    let Some(path) = kubeconfig else {
        return Config::incluster().map_err(ClusterError::InCluster);
    };
    let wrong = |error| ClusterError::Kubeconfig(path.display().to_string(), error);
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let read = Kubeconfig::read_from(path).map_err(wrong)?;
    let mut config = Config::from_custom_kubeconfig(read, &options)
        .await
        .map_err(wrong)?;
    // The library takes it from the environment, where it is meant for the way to the gateway.
    config.proxy_url = None;
    Ok(config)
}

/// The cluster, asked as the agent.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// As [`config`] found it.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(config: Config) -> Result<Self, ClusterError> {
        Ok(Self {
            client: Client::try_from(config).map_err(ClusterError::Client)?,
        })
    }

    /// What the gateway is told about the cluster; empty where it can't be asked in time.
    pub async fn facts(&self) -> Facts {
        let version = async {
            self.client
                .apiserver_version()
                .await
                .map(|version| version.git_version)
        };
        let uid = async {
            let namespace = Api::<Namespace>::all(self.client.clone())
                .get("kube-system")
                .await?;
            Ok::<_, kube::Error>(namespace.metadata.uid.unwrap_or_default())
        };
        let (kubernetes_version, external_id) = tokio::join!(
            asked("the API server's version", version),
            asked("kube-system's UID", uid)
        );
        Facts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kubernetes_version,
            external_id,
            ..Facts::default()
        }
    }

    /// What the agent's own role lets it do, as far as the API server tells.
    pub(crate) async fn own_rules(&self) -> Option<Vec<ResourceRule>> {
        let spec = SelfSubjectRulesReviewSpec {
            // Rules for the whole cluster are told with those of any namespace.
            namespace: Some("default".to_owned()),
        };
        let review = SelfSubjectRulesReview {
            spec,
            ..SelfSubjectRulesReview::default()
        };
        let api = Api::<SelfSubjectRulesReview>::all(self.client.clone());
        let asked = timeout(FACTS, api.create(&PostParams::default(), &review)).await;
        match asked {
            Ok(Ok(review)) => Some(review.status?.resource_rules),
            Ok(Err(error)) => {
                tracing::debug!("the agent's own rules are not known: {}", reason(error));
                None
            }
            Err(_) => None,
        }
    }

    /// The key in the Secret, and the Secret's version for writing.
    pub(crate) async fn load_key(
        &self,
        name: &SecretName,
    ) -> Result<(Option<Vec<u8>>, Option<Secret>), ClusterError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &name.namespace);
        let secret = api
            .get_opt(&name.name)
            .await
            .map_err(|e| failed(name, "read", e))?;
        let key = secret
            .as_ref()
            .and_then(|secret| Some(secret.data.as_ref()?.get(KEY)?.0.clone()));
        Ok((key, secret))
    }

    /// Writes a key where there was none; `false` if somebody else was faster.
    pub(crate) async fn store_key(
        &self,
        name: &SecretName,
        found: Option<Secret>,
        pkcs8: &[u8],
    ) -> Result<bool, ClusterError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), &name.namespace);
        let entry = (KEY.to_owned(), ByteString(pkcs8.to_vec()));
        let written = match found {
            // Carries the version that was read, so that two agents can't overwrite each other's.
            Some(mut secret) => {
                secret.data.get_or_insert_default().extend([entry]);
                api.replace(&name.name, &PostParams::default(), &secret)
                    .await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(name.name.clone()),
                    ..ObjectMeta::default()
                };
                let secret = Secret {
                    metadata,
                    data: Some(BTreeMap::from([entry])),
                    ..Secret::default()
                };
                api.create(&PostParams::default(), &secret).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(failed(name, "written", error)),
        }
    }
}

fn failed(name: &SecretName, what: &'static str, error: kube::Error) -> ClusterError {
    ClusterError::Secret(
        format!("{}/{}", name.namespace, name.name),
        what,
        reason(error),
    )
}

/// What the API server said; the library would print the whole `Status`, twice.
fn reason(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        error => chain(&error),
    }
}

async fn asked(what: &str, answer: impl Future<Output = Result<String, kube::Error>>) -> String {
    match timeout(FACTS, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::warn!("{what} is not known: {}", reason(error));
            String::new()
        }
        Err(_) => {
            tracing::warn!(
                "{what} is not known: no answer within {} s",
                FACTS.as_secs()
            );
            String::new()
        }
    }
}
