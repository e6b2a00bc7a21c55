//! A certificate for a server of the tests, by an authority of its own.

use std::{fs, net::IpAddr, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{gateway::secret_file, place};

/// A certificate for an address, and the authority that signed it; files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The authority's own, in PEM.
    pub authority: PathBuf,
    /// The server's, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// For `ip` and 127.0.0.1, in a directory of its own.
    ///
    /// # Panics
    /// It can't be made.
    pub fn new(name: &str, ip: &str) -> Self {
        let ip: IpAddr = ip.parse().expect("an address");
        let directory = place::directory(&format!("{name}-tls"));
        let authority_key = KeyPair::generate().expect("a key can be made");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, format!("{name} of the tests"));
        let signed = authority
            .self_signed(&authority_key)
            .expect("an authority signs itself");
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = CertificateParams::new([ip.to_string(), "127.0.0.1".to_owned()])
            .expect("addresses are names")
            .signed_by(&key, &Issuer::from_params(&authority, &authority_key))
            .expect("an authority signs");
        let put = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).expect("a file can be written");
            path
        };
        Self {
            authority: put("ca.pem", signed.pem()),
            certificate: put("tls.crt", certificate.pem()),
            key: secret_file(&directory, "tls.key", &key.serialize_pem()),
        }
    }

    /// The authority's, in PEM.
    pub fn authority_pem(&self) -> String {
        fs::read_to_string(&self.authority).expect("a file that was written")
    }
}
