//! A certificate authority of the gateway's own, where the operator has none: one directory, one server certificate.
//!
//! | file | what |
//! | --- | --- |
//! | `ca.crt`, `ca.key` | the authority, good for ten years |
//! | `server.crt`, `server.key` | the public port's certificate with the authority's behind it, and its key |
//! | `server.json` | which names it is for, and when it ends |
//!
//! The certificate is renewed under the same key when two thirds of its time are over: one file changes, so the
//! pair on disk always belongs together.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use crate::private;

/// How long the authority is good for, in seconds: ten years.
const AUTHORITY_SECONDS: u64 = 3653 * 24 * 3600;

/// How long the server's certificate is good for, in seconds: what no client finds too long.
const SERVER_SECONDS: u64 = 397 * 24 * 3600;

/// How far callers' clocks may be behind, in seconds.
const EARLY_SECONDS: u64 = 3600;

/// An authority that can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name that can't stand in a certificate.
    #[error("no certificate can be made for {hosts:?}")]
    Certificate {
        /// The names.
        hosts: Vec<String>,
        /// What is wrong.
        #[source]
        source: rcgen::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {what}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Server {
    hosts: Vec<String>,
    expires: u64,
}

/// Makes the authority and a certificate for `hosts` (names and addresses), unless they are there.
///
/// # Errors
/// See [`AuthorityError`].
pub fn create(dir: &Path, hosts: &[String], now: u64) -> Result<(), AuthorityError> {
    private::make_dir(dir).map_err(|source| file("make", dir, source))?;
    let wrong = |source| AuthorityError::Certificate {
        hosts: hosts.to_vec(),
        source,
    };
    if !dir.join(AUTHORITY).exists() {
        let key = KeyPair::generate().map_err(wrong)?;
        let mut params = CertificateParams::default();
        name(&mut params, "Towline gateway authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        window(&mut params, now, AUTHORITY_SECONDS);
        let certificate = params.self_signed(&key).map_err(wrong)?;
        // The certificate last: it says that both are there.
        write(&dir.join(AUTHORITY_KEY), &key.serialize_pem())?;
        write(&dir.join(AUTHORITY), &certificate.pem())?;
    }
    if !dir.join(SERVER).exists() {
        let key = KeyPair::generate().map_err(wrong)?;
        write(&dir.join(SERVER_KEY), &key.serialize_pem())?;
        sign_server(dir, hosts, now)?;
    }
    Ok(())
}

/// Renews the server's certificate when it is due; `false` when it isn't, or isn't this authority's to renew.
///
/// # Errors
/// See [`AuthorityError`].
pub fn renew_due(dir: &Path, now: u64) -> Result<bool, AuthorityError> {
    let path = dir.join(SERVER_FACTS);
    if !path.exists() || !dir.join(AUTHORITY_KEY).exists() {
        return Ok(false);
    }
    let server: Server = serde_json::from_str(&read(&path)?).map_err(|_| AuthorityError::Form {
        path,
        what: "a note of what the server's certificate is for",
    })?;
    if now < server.expires.saturating_sub(SERVER_SECONDS / 3) {
        return Ok(false);
    }
    sign_server(dir, &server.hosts, now)?;
    tracing::info!(hosts = ?server.hosts, "a new certificate for the public port");
    Ok(true)
}

/// The SHA-256 of the first certificate in a PEM file, as `towline login` shows it.
///
/// # Errors
/// See [`AuthorityError`].
pub fn fingerprint(path: &Path) -> Result<String, AuthorityError> {
    let pem = read(path)?;
    let certificate =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| AuthorityError::Form {
            path: path.to_owned(),
            what: "a certificate in PEM",
        })?;
    let digest = digest::digest(&digest::SHA256, &certificate);
    Ok(digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(":"))
}

fn sign_server(dir: &Path, hosts: &[String], now: u64) -> Result<(), AuthorityError> {
    let wrong = |source| AuthorityError::Certificate {
        hosts: hosts.to_vec(),
        source,
    };
    let key = |name: &str| KeyPair::from_pem(&read(&dir.join(name))?).map_err(wrong);
    let authority_pem = read(&dir.join(AUTHORITY))?;
    let authority = Issuer::from_ca_cert_pem(&authority_pem, key(AUTHORITY_KEY)?).map_err(wrong)?;
    let mut params = CertificateParams::new(hosts).map_err(wrong)?;
    name(
        &mut params,
        hosts.first().map_or("towline-gateway", String::as_str),
    );
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    window(&mut params, now, SERVER_SECONDS);
    let certificate: Certificate = params
        .signed_by(&key(SERVER_KEY)?, &authority)
        .map_err(wrong)?;
    let facts = Server {
        hosts: hosts.to_vec(),
        expires: now + SERVER_SECONDS,
    };
    write(
        &dir.join(SERVER),
        &format!("{}{authority_pem}", certificate.pem()),
    )?;
    write(
        &dir.join(SERVER_FACTS),
        &serde_json::to_string_pretty(&facts).unwrap_or_default(),
    )
}

fn name(params: &mut CertificateParams, common: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
}

fn window(params: &mut CertificateParams, now: u64, seconds: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(EARLY_SECONDS));
    params.not_after = epoch + Duration::from_secs(now + seconds);
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| file("read", path, source))
}

fn write(path: &Path, text: &str) -> Result<(), AuthorityError> {
    private::write(path, text.as_bytes()).map_err(|source| file("write", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The authority's certificate.
pub const AUTHORITY: &str = "ca.crt";
/// The public port's certificate.
pub const SERVER: &str = "server.crt";
/// Its private key.
pub const SERVER_KEY: &str = "server.key";
const AUTHORITY_KEY: &str = "ca.key";
const SERVER_FACTS: &str = "server.json";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_certificate_is_made_once_and_renewed_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let hosts = [
            "gw.example".to_owned(),
            "10.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        create(dir, &hosts, NOW).unwrap();
        tls::Certificate::load(&dir.join(SERVER), &dir.join(SERVER_KEY)).unwrap();
        let first = read(&dir.join(SERVER)).unwrap();
        create(dir, &hosts, NOW).unwrap();
        assert_eq!(read(&dir.join(SERVER)).unwrap(), first);
        assert!(!renew_due(dir, NOW + SERVER_SECONDS / 2).unwrap());
        let key = read(&dir.join(SERVER_KEY)).unwrap();
        assert!(renew_due(dir, NOW + SERVER_SECONDS * 2 / 3).unwrap());
        assert_ne!(read(&dir.join(SERVER)).unwrap(), first);
        assert_eq!(read(&dir.join(SERVER_KEY)).unwrap(), key);
        assert!(!renew_due(dir, NOW + SERVER_SECONDS * 2 / 3).unwrap());
        tls::Certificate::load(&dir.join(SERVER), &dir.join(SERVER_KEY)).unwrap();
    }

    #[test]
    fn a_clients_own_check_accepts_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create(dir, &["gw.example".to_owned(), "10.0.0.1".to_owned()], NOW).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(dir.join(AUTHORITY)).unwrap())
            .unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            roots.into(),
            rustls::crypto::aws_lc_rs::default_provider().into(),
        )
        .build()
        .unwrap();
        let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(dir.join(SERVER))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            chain.len(),
            2,
            "the authority is shown, for whoever is asked to trust it"
        );
        let check = |name: &'static str, at: u64| {
            use rustls::client::danger::ServerCertVerifier as _;
            let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(at));
            verifier.verify_server_cert(&chain[0], &chain[1..], &name.try_into().unwrap(), &[], at)
        };
        check("gw.example", NOW).unwrap();
        check("10.0.0.1", NOW - EARLY_SECONDS / 2).unwrap();
        check("other.example", NOW).unwrap_err();
        check("gw.example", NOW + SERVER_SECONDS + 1).unwrap_err();
    }

    #[test]
    fn what_is_somebody_elses_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!renew_due(dir.path(), NOW).unwrap());
        let error = create(&dir.path().join("x"), &["naïve".to_owned()], NOW).unwrap_err();
        assert!(
            matches!(error, AuthorityError::Certificate { .. }),
            "{error}"
        );
    }
}
