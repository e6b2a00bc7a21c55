//! Who is at the other end of a connection between replicas.
//!
//! Threat: whoever reaches the peer listener, or plays a replica to another, would send requests under any name that a
//! grant can be had for, and read what callers and clusters say.
//! Decision: TLS 1.3 with certificates at both ends. Each replica makes its own at start, and its name in it is a
//! statement that binds the certificate's key to the replica's id, signed by the replica's signing key, with the
//! certificates that lead from there to the root. No authority of the Web's is asked, and no database is believed.
//! Consequence: only who holds an issuing or signing key under the root that agents have pinned is a replica.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rcgen::{CertificateParams, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use towline_proto::{
    jws::{InvalidStatement, Kind, fingerprint},
    keys::{Chains, InvalidChain},
};
use webpki::EndEntityCert;

use crate::{clock::Clock, keys::Keys};

/// What the name in a certificate begins with; statement and chain follow, divided by [`DIVIDER`].
const SCHEME: &str = "towline-replica:";
const DIVIDER: char = '|';

/// What a replica is called in TLS, below this name that is nobody's.
const DOMAIN: &str = ".towline.invalid";

/// How long a certificate is good, in seconds; another is made at half of it.
const SECONDS: u64 = 12 * 3600;

/// How far replicas' clocks may be apart, in seconds.
const LEEWAY: u64 = 60;

/// Why whoever is at the other end is no replica.
#[derive(Debug, thiserror::Error)]
pub enum NoReplica {
    /// Not a certificate, or none that a replica makes.
    #[error("the certificate is not a replica's")]
    Form,
    /// The statement's key has no chain to the root.
    #[error("the key chain in the certificate does not hold")]
    Chain(#[source] InvalidChain),
    /// The statement isn't signed by it.
    #[error("the statement in the certificate is not signed by its chain's key")]
    Statement(#[source] InvalidStatement),
    /// The statement is of another key.
    #[error("the certificate's key is not the one that was vouched for")]
    Key,
    /// Too old, or from the future.
    #[error("the certificate is good from {from} to {to}, and it is {now} (Unix seconds)")]
    Time {
        /// Its beginning.
        from: u64,
        /// Its end.
        to: u64,
        /// The time here.
        now: u64,
    },
    /// Another replica than was meant to be reached.
    #[error("replica {0} answered for another")]
    Other(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Statement {
    replica: String,
    /// SHA-256 of the certificate's `SubjectPublicKeyInfo`, base64url.
    key: String,
    iat: u64,
    exp: u64,
}

/// This replica to the others, and the others to it.
pub struct Identity {
    replica: String,
    keys: Arc<Keys>,
    clock: Clock,
    chains: Chains,
    algorithms: WebPkiSupportedAlgorithms,
    current: Mutex<Option<(u64, Arc<CertifiedKey>)>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// For this replica, with the gateway's keys.
    pub fn new(replica: String, keys: Arc<Keys>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            replica,
            chains: Chains::new(keys.root()),
            keys,
            clock,
            algorithms: provider().signature_verification_algorithms,
            current: Mutex::default(),
        })
    }

    /// Which replica this is.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Serves other replicas alone.
    ///
    /// # Errors
    /// None that is known of: the settings are these and no others.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(Verifier(Arc::clone(self))))
            .with_cert_resolver(Arc::new(Resolver(Arc::clone(self))));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would skip what the certificate says now.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Reaches other replicas alone, over one protocol.
    ///
    /// # Errors
    /// None that is known of.
    pub fn client_config(self: &Arc<Self>, protocol: &[u8]) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier(Arc::clone(self))))
            .with_client_cert_resolver(Arc::new(Resolver(Arc::clone(self))));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// What a replica is called in TLS; `None` for what can't be one's id.
    pub fn name(replica: &str) -> Option<ServerName<'static>> {
        ServerName::try_from(format!("{replica}{DOMAIN}")).ok()
    }

    /// Which replica's a certificate is, if it is good now.
    ///
    /// # Errors
    /// See [`NoReplica`].
    pub fn replica_of(&self, certificate: &CertificateDer<'_>) -> Result<String, NoReplica> {
        let parsed = EndEntityCert::try_from(certificate).map_err(|_| NoReplica::Form)?;
        let (statement, chain) = parsed
            .valid_uri_names()
            .find_map(|name| name.strip_prefix(SCHEME)?.split_once(DIVIDER))
            .ok_or(NoReplica::Form)?;
        let now = self.clock.unix();
        let key = self
            .chains
            .signing_key(chain, now)
            .map_err(NoReplica::Chain)?;
        let said: Statement = key
            .verify(Kind::Replica, statement)
            .map_err(NoReplica::Statement)?;
        if said.key != fingerprint(parsed.subject_public_key_info().as_ref()) {
            return Err(NoReplica::Key);
        }
        if now.saturating_add(LEEWAY) < said.iat || now >= said.exp.saturating_add(LEEWAY) {
            return Err(NoReplica::Time {
                from: said.iat,
                to: said.exp,
                now,
            });
        }
        Ok(said.replica)
    }

    /// A certificate that is good for a while; `None` only without randomness.
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.unix();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, certified)) = &*current
            && now.abs_diff(*made) < SECONDS / 2
        {
            return Some(Arc::clone(certified));
        }
        match self.make(now) {
            Ok(made) => {
                let made = Arc::new(made);
                *current = Some((now, Arc::clone(&made)));
                Some(made)
            }
            Err(error) => {
                tracing::error!(error, "no certificate for the other replicas could be made");
                None
            }
        }
    }

    fn make(&self, now: u64) -> Result<CertifiedKey, String> {
        let wrong = |error: rcgen::Error| error.to_string();
        let key = rcgen::KeyPair::generate().map_err(wrong)?;
        let (signing, chain) = self.keys.signing_with_chain();
        let statement = signing.sign(
            Kind::Replica,
            &Statement {
                replica: self.replica.clone(),
                key: fingerprint(&rcgen::PublicKeyData::subject_public_key_info(&key)),
                iat: now,
                exp: now + SECONDS,
            },
        );
        let name = format!("{SCHEME}{statement}{DIVIDER}{}", chain.to_header());
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(wrong)?)];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(now.saturating_sub(LEEWAY));
        params.not_after = epoch + Duration::from_secs(now + SECONDS);
        let certificate = params.self_signed(&key).map_err(wrong)?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::from_der(vec![certificate.der().clone()], private, &provider())
            .map_err(|error| error.to_string())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::aws_lc_rs::default_provider())
}

/// Shows the certificate of the moment.
#[derive(Debug)]
struct Resolver(Arc<Identity>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.certified()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes the certificates of replicas.
#[derive(Debug)]
struct Verifier(Arc<Identity>);

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<String, Error> {
        self.0.replica_of(certificate).map_err(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "not a replica of this gateway"
            );
            Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)
        })
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.0.algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let replica = self.check(certificate)?;
        if Identity::name(&replica).as_ref() == Some(name) {
            return Ok(ServerCertVerified::assertion());
        }
        // Another process has its address now.
        tracing::info!(error = %NoReplica::Other(replica), "not the replica that was meant");
        Err(Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName,
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 alone".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 alone".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, join};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    fn keys(dir: &tempfile::TempDir) -> Arc<Keys> {
        Keys::create(dir.path(), Clock::System).unwrap().into()
    }

    /// Whether two ends believe each other: the client's view of the server, and the server's of the client.
    async fn shake(server: &Arc<Identity>, client: &Arc<Identity>, meant: &str) -> (bool, bool) {
        let (near, far) = duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(Arc::new(server.server_config().unwrap()));
        let connector = TlsConnector::from(Arc::new(client.client_config(b"h2").unwrap()));
        let name = Identity::name(meant).unwrap();
        let (accepted, connected) = join!(acceptor.accept(far), connector.connect(name, near));
        (connected.is_ok(), accepted.is_ok())
    }

    #[tokio::test]
    async fn replicas_under_one_root_believe_each_other_and_nobody_else() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (keys(&dir), keys(&other));
        let one = Identity::new("1".to_owned(), Arc::clone(&ours), Clock::System);
        let two = Identity::new("2".to_owned(), ours, Clock::System);
        let stranger = Identity::new("2".to_owned(), theirs, Clock::System);
        assert_eq!(shake(&one, &two, "1").await, (true, true));
        // Somebody else has the address now.
        assert!(!shake(&one, &two, "3").await.0);
        assert!(!shake(&stranger, &one, "2").await.0);
        assert!(!shake(&one, &stranger, "1").await.1);
    }

    #[test]
    fn a_statement_is_good_for_its_own_key_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(&dir);
        let one = Identity::new("1".to_owned(), Arc::clone(&keys), Clock::System);
        let certificate = one.certified().unwrap().cert[0].clone();
        assert_eq!(one.replica_of(&certificate).unwrap(), "1");
        // The same name over another key.
        let parsed = EndEntityCert::try_from(&certificate).unwrap();
        let name = parsed.valid_uri_names().next().unwrap().to_owned();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        let key = rcgen::KeyPair::generate().unwrap();
        let moved = params.self_signed(&key).unwrap();
        assert!(matches!(one.replica_of(moved.der()), Err(NoReplica::Key)));
        let plain = CertificateParams::default().self_signed(&key).unwrap();
        assert!(matches!(one.replica_of(plain.der()), Err(NoReplica::Form)));
        let later = one.clock.unix() + SECONDS + LEEWAY;
        let tomorrow = Identity::new("1".to_owned(), keys, Clock::fixed(later).0);
        assert!(matches!(
            tomorrow.replica_of(&certificate),
            Err(NoReplica::Time { .. })
        ));
    }
}
