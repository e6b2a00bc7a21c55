//! The agent's key, and how the gateway gets to know it.
//!
//! Threat: an agent dies between making its key and the gateway's answer, and its one-time token is spent.
//! Decision: the key is stored first and the token redeemed then; the gateway takes the same key with the same
//! token again until a session was opened with it.
//! Consequence: whatever moment an agent dies at, starting it again goes on from there.

use std::{io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use towline_proto::{
    api::{RedeemRequest, RedeemResponse, from_newer_json, to_json},
    jws::{InvalidKeyPair, KeyPair},
    registration::Registration,
};

use crate::{
    cluster::{Cluster, ClusterError},
    config::SecretName,
    dial::{self, DialError, Dialer},
};

/// The method's path on the public port.
const REDEEM: &str = "/towline.v1.Enrolment/Redeem";

/// How often a Secret is read again because another agent was writing it.
const CONTENTION: usize = 5;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("the key file {0} cannot be {1}")]
    File(String, &'static str, #[source] io::Error),
    /// Others may read it.
    #[error("the key file {0} can be read by others than its owner; type: chmod 600 {0}")]
    Open(String),
    /// What is there is no key.
    #[error("{0} holds no agent key")]
    Invalid(String, #[source] InvalidKeyPair),
    /// The Secret can't be read or written.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Others keep writing the Secret.
    #[error("the Secret keeps changing while the agent's key is put into it")]
    Contention,
    /// No random bytes.
    #[error("no key can be made")]
    Generate(#[source] InvalidKeyPair),
}

/// The agent's key in a Secret, made and stored if there was none; whether it is new.
///
/// # Errors
/// See [`KeyError`].
pub async fn key_in_secret(
    name: &SecretName,
    cluster: &Cluster,
) -> Result<(KeyPair, bool), KeyError> {
    for _ in 0..CONTENTION {
        let (key, found) = cluster.load_key(name).await?;
        if let Some(bytes) = key {
            let at = format!("the Secret {}/{}", name.namespace, name.name);
            return Ok((parse(&bytes, at)?, false));
        }
        let key = KeyPair::generate().map_err(KeyError::Generate)?;
        if cluster.store_key(name, found, pem(&key).as_bytes()).await? {
            return Ok((key, true));
        }
    }
    Err(KeyError::Contention)
}

/// The agent's key in a file, made and stored if there was none; whether it is new.
///
/// # Errors
/// See [`KeyError`].
pub fn key_in_file(path: &Path) -> Result<(KeyPair, bool), KeyError> {
    let name = path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => {
            if readable_by_others(path).map_err(|e| KeyError::File(name.clone(), "read", e))? {
                return Err(KeyError::Open(name));
            }
            Ok((parse(&bytes, name)?, false))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(KeyError::Generate)?;
            create(path, &pem(&key)).map_err(|e| KeyError::File(name, "written", e))?;
            Ok((key, true))
        }
        Err(error) => Err(KeyError::File(name, "read", error)),
    }
}

/// Whole or not at all, and never readable by others.
fn create(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

#[cfg(unix)]
fn readable_by_others(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn readable_by_others(_path: &Path) -> io::Result<bool> {
    Ok(false)
}

fn parse(bytes: &[u8], place: String) -> Result<KeyPair, KeyError> {
    let key = match PrivatePkcs8KeyDer::from_pem_slice(bytes) {
        Ok(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
        Err(_) => KeyPair::from_pkcs8(bytes),
    };
    key.map_err(|error| KeyError::Invalid(place, error))
}

fn pem(key: &KeyPair) -> String {
    let base64 = BASE64.encode(key.to_pkcs8());
    let mut text = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    for (at, character) in base64.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END PRIVATE KEY-----\n");
    text
}

/// Why the gateway doesn't know the key now.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// It wasn't reached: worth another try.
    #[error("the gateway is not reached")]
    Dial(#[source] DialError),
    /// Something between us answered: worth another try.
    #[error("{0} instead of the gateway's answer: {1}")]
    Between(http::StatusCode, String),
    /// It refuses the token.
    #[error(
        "the gateway refuses the registration token: {0}; for a new one, type: towline memberships register --renew {1}"
    )]
    Refused(String, String),
    /// There is no token.
    #[error("the registration holds no token, and the gateway does not know this agent's key")]
    NoToken,
    /// The request can't be written.
    #[error("the request cannot be written")]
    Write(#[source] serde_json::Error),
}

impl RedeemError {
    /// Whether another try may help.
    pub const fn is_network(&self) -> bool {
        matches!(self, Self::Dial(_) | Self::Between(..))
    }
}

/// Makes the key known to the gateway with the registration's token.
///
/// # Errors
/// See [`RedeemError`].
pub async fn redeem(
    dialer: &Dialer,
    registration: &Registration,
    key: &KeyPair,
) -> Result<(), RedeemError> {
    let token = registration.token.clone().ok_or(RedeemError::NoToken)?;
    let membership = &registration.membership;
    let request = RedeemRequest {
        project: membership.project.to_string(),
        location: membership.location.to_string(),
        membership: membership.id.to_string(),
        token,
        public_key: key.public().as_bytes().to_vec(),
    };
    let json = to_json(&request).map_err(RedeemError::Write)?;
    let answer = dialer.call(REDEEM, json).await.map_err(RedeemError::Dial)?;
    let sentence = dial::sentence(&answer.body);
    if answer.status.is_success() && from_newer_json::<RedeemResponse>(&answer.body).is_ok() {
        return Ok(());
    }
    if answer.status.is_client_error() && (answer.marked || is_api_error(&answer.body)) {
        return Err(RedeemError::Refused(sentence, membership.id.to_string()));
    }
    Err(RedeemError::Between(answer.status, sentence))
}

/// `{"code": …, "message": …}`.
fn is_api_error(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body)
        .is_ok_and(|error| error.get("code").is_some_and(serde_json::Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        let (key, new) = key_in_file(&path).unwrap();
        assert!(new && !readable_by_others(&path).unwrap());
        let (again, new) = key_in_file(&path).unwrap();
        assert!(!new && again.public() == key.public());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // DER is as good as PEM.
        std::fs::write(&path, key.to_pkcs8()).unwrap();
        assert_eq!(key_in_file(&path).unwrap().0.public(), key.public());
    }

    #[test]
    fn a_key_that_is_none_or_public_is_refused_and_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        create(&path, "nonsense").unwrap();
        assert!(matches!(key_in_file(&path), Err(KeyError::Invalid(..))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "nonsense");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(key_in_file(&path), Err(KeyError::Open(_))));
    }
}
