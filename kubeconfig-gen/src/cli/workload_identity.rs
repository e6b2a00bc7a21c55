//! `towline iam workload-identity-pools …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `towline iam workload-identity-pools …`.
#[derive(Debug, Subcommand)]
pub enum PoolsCommand {
    /// Make a pool: where a project's foreign workloads are known
    #[command(after_help = "Examples:
  towline iam workload-identity-pools create ci --project team-a")]
    Create {
        /// The name
        name: String,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        display_name: String,
    },
    /// List a project's pools
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline iam workload-identity-pools list --project team-a"
    )]
    List,
    /// Delete a pool with its providers; tokens that came of it end at once
    #[command(after_help = "Examples:
  towline iam workload-identity-pools delete ci
  towline iam workload-identity-pools delete ci --yes")]
    Delete {
        /// The pool
        #[arg(value_name = "POOL")]
        name: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Issuers that vouch for workloads
    #[command(subcommand, visible_alias = "provider", arg_required_else_help = true)]
    Providers(Box<ProvidersCommand>),
    /// Write a file that says where a workload's token is: no secret, it can be kept with the sources
    #[command(after_help = "Examples:
  towline iam workload-identity-pools create-cred-config \\
    projects/team-a/locations/global/workloadIdentityPools/ci/providers/github --github-actions
  towline iam workload-identity-pools create-cred-config \\
    projects/team-a/locations/global/workloadIdentityPools/ci/providers/gitlab \\
    --credential-source-env TOWLINE_ID_TOKEN --service-account deployer@team-a
  towline iam workload-identity-pools create-cred-config \\
    projects/team-a/locations/global/workloadIdentityPools/ci/providers/cluster \\
    --credential-source-file /var/run/secrets/towline/token --output-file credentials.json

A job signs in with it: towline login --cred-file FILE, or TOWLINE_CREDENTIALS=FILE.")]
    CreateCredConfig(CredConfig),
}

/// `towline iam workload-identity-pools create-cred-config`.
#[derive(Debug, Args)]
pub struct CredConfig {
    /// The provider, projects/P/locations/global/workloadIdentityPools/POOL/providers/NAME
    pub provider: String,
    /// The token is in this file, which is read again each time
    #[arg(long, value_name = "FILE", group = "source", required = true)]
    pub credential_source_file: Option<PathBuf>,
    /// The token is in this variable, as GitLab's `id_tokens` put it
    #[arg(long, value_name = "VARIABLE", group = "source")]
    pub credential_source_env: Option<String>,
    /// GitHub Actions gives the token to a job with `permissions: id-token: write`
    #[arg(long, group = "source")]
    pub github_actions: bool,
    /// What GitHub's token is to be for; the provider's own name otherwise
    #[arg(long, value_name = "AUDIENCE", requires = "github_actions")]
    pub audience: Option<String>,
    /// The service account that the workload acts as
    #[arg(long, value_name = "NAME@PROJECT")]
    pub service_account: Option<String>,
    /// The file to write; `-` is standard output
    #[arg(
        long,
        value_name = "FILE|-",
        default_value = "towline-credentials.json"
    )]
    pub output_file: PathBuf,
}

/// `towline iam workload-identity-pools providers …`.
#[derive(Debug, Subcommand)]
pub enum ProvidersCommand {
    /// Let an issuer's tokens in
    #[command(after_help = "Examples:
  towline iam workload-identity-pools providers create-oidc github --pool ci \\
    --issuer-uri https://token.actions.githubusercontent.com \\
    --attribute-mapping subject=assertion.sub,attribute.repository=assertion.repository \\
    --attribute-condition assertion.repository=='acme/shop'
  towline iam workload-identity-pools providers create-oidc cluster --pool ci --jwks-file jwks.json \\
    --issuer-uri https://kubernetes.default.svc --attribute-mapping subject=assertion.sub --allow-direct-bearer")]
    CreateOidc(OidcProvider),
    /// Change what an issuer's tokens mean; what isn't named stays
    #[command(after_help = "Examples:
  towline iam workload-identity-pools providers update-oidc github --pool ci \\
    --attribute-condition assertion.ref=='refs/heads/main'
  towline iam workload-identity-pools providers update-oidc github --pool ci --disabled true")]
    UpdateOidc(OidcProvider),
    /// List a pool's providers
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline iam workload-identity-pools providers list --pool ci
  towline iam workload-identity-pools providers list --pool ci -o name"
    )]
    List {
        /// The pool
        #[arg(long)]
        pool: String,
    },
    /// Delete a provider; tokens that came of it end at once
    #[command(after_help = "Examples:
  towline iam workload-identity-pools providers delete github --pool ci")]
    Delete {
        /// The provider
        name: String,
        /// The pool
        #[arg(long)]
        pool: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// What a provider's tokens have to be, and mean.
#[derive(Debug, Args)]
pub struct OidcProvider {
    /// The provider
    pub name: String,
    /// The pool
    #[arg(long)]
    pub pool: String,
    /// What the tokens' `iss` is; its keys are at its /.well-known/openid-configuration
    #[arg(long, value_name = "URL")]
    pub issuer_uri: Option<String>,
    /// One of them has to be in the tokens' `aud`; the provider's own name when there is none
    #[arg(long, value_name = "AUDIENCE,…", value_delimiter = ',')]
    pub allowed_audiences: Option<Vec<String>>,
    /// CEL over `assertion`, the token's claims, for `subject`, `groups` and `attribute.NAME`; a comma in an
    /// expression is no separator inside brackets and quotes
    #[arg(long, value_name = "KEY=CEL,…")]
    pub attribute_mapping: Option<String>,
    /// CEL that has to be true of a token
    #[arg(long, value_name = "CEL")]
    pub attribute_condition: Option<String>,
    /// The issuer's keys (a JWK set), where the gateway can't fetch them
    #[arg(long, value_name = "FILE")]
    pub jwks_file: Option<PathBuf>,
    /// Take the tokens themselves as bearer tokens too: for stock clients
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_direct_bearer: Option<bool>,
    /// Refuse the tokens for the time being
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub disabled: Option<bool>,
}
