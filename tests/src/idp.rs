//! Identity providers, the real ones: Keycloak, and oidc-provider as a second that does some things otherwise.
//!
//! Both are fetched once by `tests/idp/build`, listen on a free port over TLS with an authority of their own, and
//! end with their value. Keycloak takes half a minute and 450 MiB: one per test binary will do.

use std::{fs, net::IpAddr, path::PathBuf, sync::LazyLock, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{command::Cmd, gateway::secret_file, place};

mod browser;
mod keycloak;
mod pipeline;
mod provider;
mod sign_in;

pub use browser::{Browser, Page};
pub use keycloak::{CLIENT, Keycloak, REALM};
pub use pipeline::Pipeline;
pub use provider::Provider;
pub use sign_in::{authentication, entry, in_browser, login, on_device};

/// A certificate for an address, and the authority that signed it; files.
#[derive(Debug, Clone)]
struct Certificate {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// For `ip`, in a directory of its own.
    fn new(name: &str, ip: &str) -> Self {
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
}

/// Where `tests/idp/build` put a program; built when it isn't there.
fn built(name: &str) -> PathBuf {
    static BUILT: LazyLock<String> = LazyLock::new(|| {
        Cmd::new(place::tree().join("tests/idp/build"))
            .limit(Duration::from_secs(600))
            .ok()
    });
    let line = BUILT
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    PathBuf::from(line.unwrap_or_else(|| panic!("tests/idp/build built no {name}: {}", *BUILT)))
}
