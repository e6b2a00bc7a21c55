//! The exec plugin: kubectl runs it for every command, so it is silent, and fast when it can be.
//!
//! A kept token is printed without a look at anything but its file. Else one process among all that run asks the
//! gateway for a new one (see `tokens`). It never opens a browser and never asks: it says what to run.

use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::json;
use towline_proto::{end_to_end::SEPARATOR, names::Membership};

use crate::{
    api::{self, CallError},
    cli::{Credential, Global},
    clock,
    commands::Error,
    gateway_url::{GatewayUrl, InvalidGatewayUrl},
    output::{Output, OutputError},
    service_account::InvalidServiceAccount,
    settings::{ConfigDir, SettingsError},
    sign_in::SignIn,
    tokens::Token,
    workload::{Workload, WorkloadError},
};

/// Why kubectl gets no token.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Nobody has signed in, or the sign-in has ended.
    #[error("run: towline login {0}")]
    SignedOut(String),
    /// The kubeconfig names no gateway.
    #[error("no gateway is named; write the kubeconfig again with: towline get-credentials NAME")]
    NoGateway,
    /// The kubeconfig names what is none.
    #[error(transparent)]
    GatewayUrl(#[from] InvalidGatewayUrl),
    /// kubectl wants another version of the protocol.
    #[error(
        "kubectl asks for {0:?}, and towline speaks client.authentication.k8s.io/v1 (and v1beta1); \
             write the kubeconfig again with: towline get-credentials NAME"
    )]
    Version(String),
    /// What kubectl says about itself isn't understood.
    #[error("KUBERNETES_EXEC_INFO is not what kubectl sets: {0}")]
    ExecInfo(String),
    /// See [`InvalidServiceAccount`].
    #[error(transparent)]
    ServiceAccount(#[from] InvalidServiceAccount),
    /// See [`WorkloadError`].
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// See [`SettingsError`].
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// See [`CallError`].
    #[error(transparent)]
    Call(CallError),
    /// Nobody but the gateway says who the user is.
    #[error(
        "this kubeconfig proves to the cluster who you are by your identity provider's word (--end-to-end), and you \
         signed in at the gateway itself; run: towline login --issuer NAME"
    )]
    NoProvider,
    /// The provider didn't sign the nonce.
    #[error(
        "this kubeconfig proves to the cluster who you are by your identity provider's word (--end-to-end), and the \
         sign-in at {0:?} holds no such proof; run: towline login --issuer {0}, without --device"
    )]
    NoKey(String),
    /// HTTPS can't be set up.
    #[error(transparent)]
    Client(#[from] crate::http::ClientError),
    /// See [`OutputError`].
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Not even begun.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecInfo {
    api_version: String,
}

/// Prints an `ExecCredential` for one membership.
///
/// # Errors
/// See [`CredentialError`].
pub fn run(global: &Global, args: &Credential) -> Result<(), CredentialError> {
    let version = version(args.exec_info.as_deref())?;
    let gateway: GatewayUrl = global
        .gateway
        .as_deref()
        .ok_or(CredentialError::NoGateway)?
        .parse()?;
    let dir = ConfigDir::find(global.config_dir.clone(), global.xdg_config_home.clone())?;
    let workload = global
        .credentials
        .as_deref()
        .map(Workload::read)
        .transpose()?;
    let tokens = dir.tokens(&gateway, workload.as_ref());
    // Only what the kubeconfig or the environment says: settings that change later don't change who kubectl is.
    let act_as = global.act_as()?.flatten();
    // A service account has no key; whether it needs one is for the cluster to say.
    let proves = args.end_to_end && act_as.is_none() && workload.is_none();
    let token = match tokens.kept(&api::audience(Some(&args.membership), act_as.as_ref())) {
        Some(token) => token,
        None => {
            let http = http(&dir, &gateway, workload.as_ref())?;
            let api = api::Api::new(http, gateway, tokens.clone(), global.verbose > 0);
            renewed(&api.acting_as(act_as), args)?
        }
    };
    let token = if proves {
        with_proof(token, tokens.sign_in(), &args.membership)?
    } else {
        token
    };
    Ok(Output::new(None).text(&render(version, &token))?)
}

/// The token with the proof of who the user is behind it.
fn with_proof(
    token: Token,
    sign_in: Option<SignIn>,
    membership: &Membership,
) -> Result<Token, CredentialError> {
    let Some(SignIn::Provider(session)) = sign_in else {
        return Err(CredentialError::NoProvider);
    };
    let own_key = session.own_key.as_ref();
    let (proof, ends) = own_key
        .and_then(|own_key| own_key.proof(membership))
        .ok_or_else(|| CredentialError::NoKey(session.issuer.name.clone()))?;
    let (access, proof) = (token.token.expose_secret(), proof.expose_secret());
    Ok(Token {
        token: format!("{access}{SEPARATOR}{proof}").into(),
        renew_at: token.renew_at.min(ends - EARLY),
        expires: token.expires.min(ends),
    })
}

fn http(
    dir: &ConfigDir,
    gateway: &GatewayUrl,
    workload: Option<&Workload>,
) -> Result<reqwest::Client, CredentialError> {
    let settings = dir.gateway(&gateway.name())?;
    let given = workload.and_then(|workload| workload.certificate_authority_data.as_deref());
    let authority = settings
        .as_ref()
        .and_then(|settings| settings.certificate_authority.as_deref());
    Ok(crate::http::client(given.or(authority))?)
}

fn renewed(api: &api::Api, args: &Credential) -> Result<Token, CredentialError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CredentialError::Start)?;
    let token = runtime.block_on(async {
        // Ctrl-C at kubectl reaches this process too. A refresh that is cut off before its answer is kept costs
        // the user the sign-in, so it is brought to its end, which is bounded.
        let mut interrupts = std::pin::pin!(tokio::signal::ctrl_c());
        let mut token = std::pin::pin!(api.token(Some(&args.membership)));
        loop {
            tokio::select! {
                biased;
                Ok(()) = &mut interrupts => interrupts.set(tokio::signal::ctrl_c()),
                token = &mut token => break token,
            }
        }
    });
    token.map_err(|error| match error {
        CallError::SignedOut(gateway) => CredentialError::SignedOut(gateway),
        other => CredentialError::Call(other),
    })
}

/// The version of the protocol that kubectl speaks; by hand it is the current one.
fn version(exec_info: Option<&std::ffi::OsStr>) -> Result<&'static str, CredentialError> {
    let Some(info) = exec_info.filter(|info| !info.is_empty()) else {
        return Ok(V1);
    };
    let info: ExecInfo = serde_json::from_slice(info.as_encoded_bytes())
        .map_err(|e| CredentialError::ExecInfo(e.to_string()))?;
    match info.api_version.as_str() {
        V1 => Ok(V1),
        V1BETA1 => Ok(V1BETA1),
        _ => Err(CredentialError::Version(info.api_version)),
    }
}

fn render(version: &str, token: &Token) -> String {
    json!({
        "kind": "ExecCredential",
        "apiVersion": version,
        "spec": {"interactive": false},
        "status": {
            // Early, so that no request is caught by the end on its way.
            "expirationTimestamp": clock::rfc3339(token.renew_at),
            "token": token.token.expose_secret(),
        },
    })
    .to_string()
        + "\n"
}

impl From<CredentialError> for Error {
    fn from(error: CredentialError) -> Self {
        Self::Credential(Box::new(error))
    }
}

/// How long before its end a proof is made anew, in seconds: this machine's clock may be behind the cluster's.
const EARLY: u64 = 120;

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn kubectls_version_is_answered_with_the_same() {
        assert_eq!(version(None).unwrap(), V1);
        for known in [V1, V1BETA1] {
            let info = format!(
                r#"{{"kind":"ExecCredential","apiVersion":"{known}","spec":{{"interactive":true}}}}"#
            );
            assert_eq!(version(Some(OsStr::new(&info))).unwrap(), known);
        }
        let info = r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1"}"#;
        let error = version(Some(OsStr::new(info))).unwrap_err().to_string();
        assert!(
            error.contains("v1alpha1") && error.contains("get-credentials"),
            "{error}"
        );
        assert!(matches!(
            version(Some(OsStr::new("{"))),
            Err(CredentialError::ExecInfo(_))
        ));
    }

    #[test]
    fn only_a_sign_in_with_a_key_proves_anything() {
        let membership: Membership = "projects/p/locations/global/memberships/m".parse().unwrap();
        let token = || Token {
            token: "access".into(),
            renew_at: u64::MAX,
            expires: u64::MAX,
        };
        let of_gateway = SignIn::Gateway {
            refresh_token: "r".into(),
        };
        for sign_in in [None, Some(of_gateway)] {
            let refused = with_proof(token(), sign_in, &membership).unwrap_err();
            assert!(matches!(refused, CredentialError::NoProvider), "{refused}");
        }
        let provider = |own_key: serde_json::Value| -> SignIn {
            let mut session = json!({
                "kind": "provider", "subject": "ann", "id_token": "a.b.c", "expires": 0,
                "issuer": {"name": "corp", "issuer": "https://idp", "client_id": "towline"},
                "endpoints": {"authorization_endpoint": "https://idp/a", "token_endpoint": "https://idp/t"},
            });
            session["own_key"] = own_key;
            serde_json::from_value(session).unwrap()
        };
        let refused = with_proof(token(), Some(provider(json!(null))), &membership).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("towline login --issuer corp, without --device"),
            "{refused}"
        );
        let key = crate::proof::NewKey::generate().unwrap();
        let own_key = serde_json::to_value(key.committed_by("a.b.c".into())).unwrap();
        let proven = with_proof(token(), Some(provider(own_key)), &membership).unwrap();
        let text = proven.token.expose_secret();
        assert!(text.starts_with("access~a.b.c~"), "{text}");
        // A new proof before this one ends, whatever the token is good for.
        assert!(proven.renew_at < proven.expires && proven.expires < u64::MAX);
    }

    #[test]
    fn golden() {
        let token = Token {
            token: "secret".into(),
            renew_at: 1_800_000_000,
            expires: 1_800_000_060,
        };
        assert_eq!(
            render(V1, &token),
            concat!(
                r#"{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","#,
                r#""spec":{"interactive":false},"status":{"expirationTimestamp":"2027-01-15T08:00:00Z","#,
                r#""token":"secret"}}"#,
                "\n"
            )
        );
    }
}
