//! `towline login`.

use std::path::PathBuf;

use clap::Args;

pub(super) const EXAMPLES: &str = "Examples:
  towline login https://gw.example.com
  towline login https://gw.example.com --device
  towline login https://gw.example.com --issuer corp --no-browser
  towline login https://gw.example.com --certificate-authority ca.pem --username alice
  towline login https://gw.example.com --username alice --one-time-code ABCD-EFGH
  towline login https://gw.example.com --username ci --password-stdin < password
  towline login https://gw.example.com --token-file /var/run/towline/token --service-account deployer@team-a \\
    --workload-identity-provider projects/team-a/locations/global/workloadIdentityPools/ci/providers/github
  towline login --cred-file towline-credentials.json";

/// `towline login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The gateway's address, https://HOST or https://HOST:PORT; that of the current gateway otherwise
    #[arg(value_name = "URL")]
    pub address: Option<String>,
    /// PEM file of the authority that signed the gateway's certificate, where this machine doesn't know it
    #[arg(long, value_name = "FILE")]
    pub certificate_authority: Option<PathBuf>,
    /// Trust the authority that the gateway shows if this is its SHA-256 fingerprint
    #[arg(
        long,
        visible_alias = "insecure-trust-fingerprint",
        value_name = "SHA256",
        conflicts_with = "certificate_authority"
    )]
    pub ca_fingerprint: Option<String>,
    /// With which of the gateway's issuers, where there are several
    #[arg(long, value_name = "NAME", conflicts_with_all = OWN)]
    pub issuer: Option<String>,
    /// Sign in on another device: prints a code and where to type it
    #[arg(long, conflicts_with_all = OWN)]
    pub device: bool,
    /// Print the address to open instead of opening a browser
    #[arg(long, conflicts_with = "device")]
    pub no_browser: bool,
    /// Who signs in, of the gateway's own users
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_stdin", "browser"])]
    pub password_file: Option<PathBuf>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "browser")]
    pub password_stdin: bool,
    /// Set a new password with a code that the gateway's operator gave you
    #[arg(long, value_name = "CODE", conflicts_with_all = ["password_file", "password_stdin", "browser"])]
    pub one_time_code: Option<String>,
    /// Read the new password from a file; it is asked for otherwise
    #[arg(long, value_name = "FILE", requires = "one_time_code")]
    pub new_password_file: Option<PathBuf>,
    /// Sign in in a browser, as one of the gateway's own users
    #[arg(long)]
    pub browser: bool,
    /// Sign in with a workload's own token, which this provider vouches for:
    /// projects/P/locations/global/workloadIdentityPools/POOL/providers/NAME
    #[arg(long, value_name = "PROVIDER", requires = "token_file", conflicts_with_all = OWN)]
    pub workload_identity_provider: Option<String>,
    /// Where the workload's token is; read again whenever a new one is needed
    #[arg(long, value_name = "FILE", requires = "workload_identity_provider")]
    pub token_file: Option<PathBuf>,
    /// The service account that the workload acts as
    #[arg(
        long,
        value_name = "NAME@PROJECT",
        requires = "workload_identity_provider"
    )]
    pub service_account: Option<String>,
    /// Sign in as a credential configuration says
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["workload_identity_provider", "issuer", "device", "no_browser"],
        conflicts_with_all = OWN
    )]
    pub cred_file: Option<PathBuf>,
}

impl Login {
    /// Whether it is one of the gateway's own users that signs in, whatever issuers there are.
    pub const fn is_local(&self) -> bool {
        self.username.is_some()
            || self.password_file.is_some()
            || self.password_stdin
            || self.one_time_code.is_some()
            || self.browser
    }
}

/// What only the gateway's own users have.
const OWN: [&str; 5] = [
    "username",
    "password_file",
    "password_stdin",
    "one_time_code",
    "browser",
];
