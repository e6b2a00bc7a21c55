//! The public port's certificate, read again when its files change.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A certificate that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error("{path} can't be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no PEM of the kind that is needed.
    #[error("{path} holds no {what} in PEM")]
    Pem {
        /// Which.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// Key and certificate don't belong together, or the key is of no known kind.
    #[error("the private key in {path} can't serve the certificate")]
    Key {
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate and key in files.
#[derive(Debug, Clone)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    /// When the files that were read were last changed.
    modified: Modified,
}

/// A file that was replaced within the clock's tick is another one all the same.
type Modified = [Option<(SystemTime, u64)>; 2];

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        // Before they are read: a change in between is seen as one.
        let modified = modified(certificate, key);
        let current = Arc::new(Current(RwLock::new(Arc::new(read(certificate, key)?))));
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current,
            modified,
        })
    }

    /// For the public port: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Current>::clone(&self.current);
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map(|builder| builder.with_no_client_auth().with_cert_resolver(resolver))
                .unwrap_or_else(|error| {
                    unreachable!("the provider has the default protocol versions: {error}")
                });
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Reads the files again whenever they change; a pair that can't be used leaves the old one in place.
    pub async fn watch(self) {
        let mut seen = self.modified;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = modified(&self.certificate, &self.key);
            if now == seen {
                continue;
            }
            match read(&self.certificate, &self.key) {
                Ok(fresh) => {
                    *self
                        .current
                        .0
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                    seen = now;
                    tracing::info!(certificate = %self.certificate.display(), "certificate reloaded");
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the new certificate can't be used"
                    );
                }
            }
        }
    }
}

fn modified(certificate: &Path, key: &Path) -> Modified {
    [certificate, key].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.ino()))
    })
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let bytes = |path: &Path| {
        std::fs::read(path).map_err(|source| CertificateError::Read {
            path: path.to_owned(),
            source,
        })
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes(certificate)?)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if chain.is_empty() {
        return Err(CertificateError::Pem {
            path: certificate.to_owned(),
            what: "certificate",
        });
    }
    let der = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(|_| CertificateError::Pem {
        path: key.to_owned(),
        what: "private key",
    })?;
    CertifiedKey::from_der(chain, der, &aws_lc_rs::default_provider()).map_err(|source| {
        CertificateError::Key {
            path: key.to_owned(),
            source,
        }
    })
}
