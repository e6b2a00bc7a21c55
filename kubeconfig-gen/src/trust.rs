//! An authority that this machine doesn't know: showing it, and trusting it by its fingerprint.
//!
//! Threat: whoever stands between could show an authority of their own and take the password.
//! Decision: what was presented is only looked at, on a connection that is never used; nothing is trusted but
//! by a fingerprint that a person compared or gave.
//! Consequence: the connection that carries the password is checked against exactly that authority.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

use base64::Engine as _;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    gateway_url::GatewayUrl,
    http::{self, Unreachable},
};

/// SHA-256 of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// What can't be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not 32 bytes in hexadecimal.
    #[error("{0:?} is not a SHA-256 fingerprint (64 hexadecimal digits, colons allowed)")]
    Fingerprint(String),
    /// The connection failed before a certificate came.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The TLS library can't be set up.
    #[error("cannot set up HTTPS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// None of the certificates that were shown has the fingerprint.
    #[error("{gateway} shows no certificate with the fingerprint {wanted}; it shows {shown}")]
    Other {
        /// The address.
        gateway: String,
        /// What was asked for.
        wanted: Fingerprint,
        /// What there is.
        shown: String,
    },
}

/// The certificates that a gateway shows, its own first.
#[derive(Debug, Clone)]
pub struct Shown {
    gateway: String,
    chain: Vec<CertificateDer<'static>>,
}

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_char(':')?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let error = || TrustError::Fingerprint(text.to_owned());
        let bare = text.trim();
        let bare = match bare.split_at_checked(7) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("sha256:") => rest,
            _ => bare,
        };
        let digits: Vec<u8> = bare
            .chars()
            .filter(|c| *c != ':')
            .map(|c| {
                c.to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
                    .ok_or_else(error)
            })
            .collect::<Result<_, _>>()?;
        if digits.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (to, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *to = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Ok(Self(bytes))
    }
}

impl Shown {
    /// Looks at what a gateway shows; sends it nothing.
    ///
    /// # Errors
    /// See [`TrustError`].
    pub async fn by(gateway: &GatewayUrl) -> Result<Self, TrustError> {
        let seen = Arc::new(Look::default());
        let tls = |e| TrustError::Tls(Box::new(e));
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
        let client = http::base()
            .tls_backend_preconfigured(config)
            .build()
            .map_err(|e| TrustError::Tls(Box::new(e)))?;
        // Ends within the handshake, whatever is shown.
        let answer = client.get(gateway.at("/")).send().await;
        let chain = std::mem::take(&mut *seen.chain.lock().unwrap_or_else(PoisonError::into_inner));
        match answer {
            Err(error) if chain.is_empty() => Err(Unreachable::new(gateway, &error).into()),
            _ => Ok(Self {
                gateway: gateway.to_string(),
                chain,
            }),
        }
    }

    /// The authority at the end of the chain; none when the gateway shows its own certificate alone.
    pub fn authority(&self) -> Option<(Fingerprint, String)> {
        let [_, .., authority] = self.chain.as_slice() else {
            return None;
        };
        Some((Fingerprint::of(authority), pem(authority)))
    }

    /// The certificate with this fingerprint, in PEM.
    ///
    /// # Errors
    /// There is none.
    pub fn with_fingerprint(&self, wanted: Fingerprint) -> Result<String, TrustError> {
        let found = self
            .chain
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == wanted);
        found.map(pem).ok_or_else(|| {
            let shown: Vec<String> = self
                .chain
                .iter()
                .map(|certificate| Fingerprint::of(certificate).to_string())
                .collect();
            TrustError::Other {
                gateway: self.gateway.clone(),
                wanted,
                shown: shown.join(", "),
            }
        })
    }
}

fn pem(certificate: &CertificateDer<'static>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Remembers what is shown and accepts none of it.
#[derive(Debug)]
struct Look {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Default for Look {
    fn default() -> Self {
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Self {
            chain: Mutex::default(),
            algorithms,
        }
    }
}

impl ServerCertVerifier for Look {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        *chain = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .map(CertificateDer::into_owned)
            .collect();
        Err(rustls::Error::General("only looked at".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_write_it() {
        let certificate = CertificateDer::from(vec![1, 2, 3]);
        let fingerprint = Fingerprint::of(&certificate);
        let text = fingerprint.to_string();
        assert!(text.starts_with("03:90:58:C6:F2:C0:CB:49"), "{text}");
        for written in [
            text.clone(),
            text.replace(':', "").to_lowercase(),
            format!("SHA256:{text}\n"),
        ] {
            assert_eq!(
                written.parse::<Fingerprint>().unwrap(),
                fingerprint,
                "{written}"
            );
        }
        for bad in ["", "03:90", "zz", "ä:0390"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_authority_is_the_last_that_is_shown_but_never_the_first() {
        let [leaf, authority] = [1, 2].map(|byte| CertificateDer::from(vec![byte; 100]));
        let alone = Shown {
            gateway: "gw".into(),
            chain: vec![leaf.clone()],
        };
        assert!(alone.authority().is_none());
        let shown = Shown {
            gateway: "gw".into(),
            chain: vec![leaf, authority.clone()],
        };
        let (fingerprint, text) = shown.authority().unwrap();
        assert_eq!(fingerprint, Fingerprint::of(&authority));
        assert_eq!(shown.with_fingerprint(fingerprint).unwrap(), text);
        use rustls_pki_types::pem::PemObject;
        assert_eq!(
            CertificateDer::from_pem_slice(text.as_bytes()).unwrap(),
            authority
        );
        assert!(shown.with_fingerprint(Fingerprint([0; 32])).is_err());
    }
}
