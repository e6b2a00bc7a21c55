//! What the agent shows to the API server, and whom it believes: read again as it rotates.
//!
//! A service account's token is replaced within its hour and a cluster's CA within its years; both are files
//! that change under a running agent. They are read again each minute, and at once when the API server
//! says 401. Another CA or client certificate begins another *generation*: connections of an older one take
//! no new request.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::HeaderValue;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretBox};

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file can't be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// A file or field doesn't hold what it should.
    #[error("{0} holds no valid {1}")]
    Invalid(String, &'static str),
    /// The kubeconfig asks for what the agent doesn't do.
    #[error(
        "the kubeconfig uses {0}, which an agent does not; give it one with a token or a client certificate"
    )]
    Unsupported(&'static str),
    /// TLS can't be set up with them.
    #[error("the credentials for the API server don't fit together")]
    Tls(#[source] rustls::Error),
}

enum Source {
    File(PathBuf),
    Inline(&'static str, SecretBox<Vec<u8>>),
}

impl Source {
    async fn read(&self) -> Result<Vec<u8>, CredentialsError> {
        match self {
            Self::File(path) => tokio::fs::read(path)
                .await
                .map_err(|e| CredentialsError::Read(path.clone(), e)),
            Self::Inline(_, bytes) => Ok(bytes.expose_secret().clone()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(field, _) => format!("the kubeconfig's {field}"),
        }
    }
}

enum Roots {
    System,
    Given(Vec<CertificateDer<'static>>),
    File(PathBuf),
}

struct Sources {
    token: Option<Source>,
    roots: Roots,
    client: Option<(Source, Source)>,
}

/// What holds at the moment.
pub(super) struct Current {
    /// `Authorization`, where a token is used.
    pub(super) authorization: Option<HeaderValue>,
    /// For HTTP/2.
    pub(super) h2: Arc<ClientConfig>,
    /// For HTTP/1.1.
    pub(super) h1: Arc<ClientConfig>,
    /// Changes with CA and client certificate.
    pub(super) generation: u64,
    material: Material,
}

/// What TLS is made of, to see whether it changed.
#[derive(PartialEq, Eq)]
struct Material {
    roots: Vec<CertificateDer<'static>>,
    client: Option<SecretPair>,
}

#[derive(PartialEq, Eq)]
struct SecretPair(Vec<u8>, Vec<u8>);

/// The agent's credentials towards the API server.
pub struct Credentials {
    sources: Sources,
    current: RwLock<Arc<Current>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// As a kubeconfig or the service account's mount says.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub async fn load(config: &kube::Config) -> Result<Self, CredentialsError> {
        let sources = Sources::from_config(config)?;
        let current = sources.read(None).await?;
        Ok(Self {
            sources,
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// Reads everything again; whether anything changed. What can't be read stays as it was.
    pub async fn reload(&self) -> bool {
        let before = self.current();
        match self.sources.read(Some(&before)).await {
            Ok(current) => {
                let generation = current.generation != before.generation;
                let changed = generation || current.authorization != before.authorization;
                if changed {
                    tracing::info!(
                        generation,
                        "the agent's credentials for the API server changed"
                    );
                    *self
                        .current
                        .write()
                        .unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(current);
                }
                changed
            }
            Err(error) => {
                tracing::warn!(error = %super::chain(&error), "the agent's credentials cannot be read again");
                false
            }
        }
    }

    pub(super) fn current(&self) -> Arc<Current> {
        Arc::clone(
            &self
                .current
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}

impl Sources {
    fn from_config(config: &kube::Config) -> Result<Self, CredentialsError> {
        if config.accept_invalid_certs {
            return Err(CredentialsError::Unsupported("insecure-skip-tls-verify"));
        }
        let auth = &config.auth_info;
        if auth.exec.is_some() || auth.auth_provider.is_some() {
            return Err(CredentialsError::Unsupported("an exec plugin"));
        }
        if auth.username.is_some() {
            return Err(CredentialsError::Unsupported("a password"));
        }
        let inline = |field, text: &str| {
            let bytes = BASE64.decode(text).map_err(|_| {
                CredentialsError::Invalid(format!("the kubeconfig's {field}"), "base64")
            })?;
            Ok(Source::Inline(field, SecretBox::new(Box::new(bytes))))
        };
        let token = match (&auth.token_file, &auth.token) {
            (Some(file), _) => Some(Source::File(file.into())),
            (None, Some(token)) => {
                let bytes = token.expose_secret().as_bytes().to_vec();
                Some(Source::Inline("token", SecretBox::new(Box::new(bytes))))
            }
            (None, None) => None,
        };
        let certificate = match (&auth.client_certificate_data, &auth.client_certificate) {
            (Some(data), _) => Some(inline("client-certificate-data", data)?),
            (None, file) => file.as_ref().map(|file| Source::File(file.into())),
        };
        let key = match (&auth.client_key_data, &auth.client_key) {
            (Some(data), _) => Some(inline("client-key-data", data.expose_secret())?),
            (None, file) => file.as_ref().map(|file| Source::File(file.into())),
        };
        let roots = match (&config.root_cert_file, &config.root_cert) {
            (Some(file), _) => Roots::File(file.clone()),
            (None, Some(given)) => {
                Roots::Given(given.iter().map(|der| der.clone().into()).collect())
            }
            (None, None) => Roots::System,
        };
        Ok(Self {
            token,
            roots,
            client: certificate.zip(key),
        })
    }

    async fn read(&self, before: Option<&Current>) -> Result<Current, CredentialsError> {
        let authorization = match &self.token {
            Some(source) => Some(bearer(source, &source.read().await?)?),
            None => None,
        };
        let client = match &self.client {
            Some((certificate, key)) => {
                Some(SecretPair(certificate.read().await?, key.read().await?))
            }
            None => None,
        };
        let roots = match &self.roots {
            Roots::System => rustls_native_certs::load_native_certs().certs,
            Roots::Given(given) => given.clone(),
            Roots::File(path) => certificates(path).await?,
        };
        let material = Material { roots, client };
        if let Some(before) = before.filter(|before| before.material == material) {
            let (h2, h1) = (Arc::clone(&before.h2), Arc::clone(&before.h1));
            return Ok(Current {
                authorization,
                h2,
                h1,
                generation: before.generation,
                material,
            });
        }
        let mut tls = self.tls(&material)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let h1 = Arc::new(tls.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let generation = before.map_or(0, |before| before.generation + 1);
        Ok(Current {
            authorization,
            h2: Arc::new(tls),
            h1,
            generation,
            material,
        })
    }

    fn tls(&self, material: &Material) -> Result<ClientConfig, CredentialsError> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(material.roots.iter().cloned());
        if added == 0 {
            let name = match &self.roots {
                Roots::System => "the system's store".to_owned(),
                Roots::Given(_) => "the kubeconfig's certificate-authority".to_owned(),
                Roots::File(path) => path.display().to_string(),
            };
            return Err(CredentialsError::Invalid(name, "CA certificate"));
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let (Some((certificate, key)), Some(pair)) = (&self.client, &material.client) else {
            return Ok(builder.with_no_client_auth());
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pair.0)
            .filter_map(Result::ok)
            .collect();
        if chain.is_empty() {
            return Err(CredentialsError::Invalid(certificate.name(), "certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(&pair.1)
            .map_err(|_| CredentialsError::Invalid(key.name(), "private key"))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(CredentialsError::Tls)
    }
}

fn bearer(source: &Source, token: &[u8]) -> Result<HeaderValue, CredentialsError> {
    let invalid = || CredentialsError::Invalid(source.name(), "token");
    let token = token.trim_ascii();
    if token.is_empty() {
        return Err(invalid());
    }
    let mut value =
        HeaderValue::from_bytes(&[b"Bearer ", token].concat()).map_err(|_| invalid())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let pem = tokio::fs::read(path)
        .await
        .map_err(|e| CredentialsError::Read(path.to_owned(), e))?;
    Ok(CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem()
    }

    #[tokio::test]
    async fn a_rotated_token_and_ca_are_read_again() {
        let _ignored = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let (token, roots) = (dir.path().join("token"), dir.path().join("ca.crt"));
        std::fs::write(&token, "first\n").unwrap();
        std::fs::write(&roots, ca()).unwrap();
        let mut config = kube::Config::new("https://10.0.0.1".parse().unwrap());
        config.root_cert_file = Some(roots.clone());
        config.auth_info.token_file = Some(token.display().to_string());
        let credentials = Credentials::load(&config).await.unwrap();
        assert_eq!(
            credentials.current().authorization.as_ref().unwrap(),
            "Bearer first"
        );
        assert!(!credentials.reload().await);

        std::fs::write(&token, "second").unwrap();
        assert!(credentials.reload().await);
        assert_eq!(
            credentials.current().authorization.as_ref().unwrap(),
            "Bearer second"
        );
        assert_eq!(credentials.current().generation, 0);

        std::fs::write(&roots, ca()).unwrap();
        assert!(credentials.reload().await);
        assert_eq!(credentials.current().generation, 1);

        // A file that is being replaced doesn't take away what there is.
        std::fs::write(&roots, "").unwrap();
        std::fs::remove_file(&token).unwrap();
        assert!(!credentials.reload().await);
        assert_eq!(
            credentials.current().authorization.as_ref().unwrap(),
            "Bearer second"
        );
        assert!(
            credentials
                .current()
                .authorization
                .as_ref()
                .unwrap()
                .is_sensitive()
        );
    }

    #[tokio::test]
    async fn what_an_agent_does_not_do_is_said() {
        let mut config = kube::Config::new("https://10.0.0.1".parse().unwrap());
        config.accept_invalid_certs = true;
        let error = Credentials::load(&config).await.unwrap_err().to_string();
        assert!(error.contains("insecure-skip-tls-verify"), "{error}");
    }
}
