//! The commands, one file per noun; [`run`] does what was typed.

use clap::CommandFactory;

use crate::{
    api::CallError,
    atomic::WriteError,
    cli::{Cli, Command},
    credential::{self, CredentialError},
    gateway_url::InvalidGatewayUrl,
    http::ClientError,
    kubeconfig::{files::MergeError, sources::NoKubeconfig},
    oauth::SignInError,
    output::OutputError,
    provider::ProviderError,
    service_account::InvalidServiceAccount,
    settings::SettingsError,
    trust::TrustError,
    workload::WorkloadError,
};

mod audit;
mod config;
mod context;
mod gateway_rbac;
mod get_credentials;
mod iam;
mod login;
mod logout;
mod memberships;
mod policy;
mod projects;
mod quotas;
mod register;
mod service_accounts;
mod streams;
mod users;

use context::Context;

/// A command that did not do what it should; the sentence says what to type next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See [`CallError`].
    #[error(transparent)]
    Call(#[from] CallError),
    /// See [`SignInError`].
    #[error(transparent)]
    SignIn(#[from] SignInError),
    /// See [`ProviderError`].
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// See [`WorkloadError`].
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// See [`InvalidServiceAccount`].
    #[error(transparent)]
    ServiceAccount(#[from] InvalidServiceAccount),
    /// See [`SettingsError`].
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// See [`ClientError`].
    #[error(transparent)]
    Client(#[from] ClientError),
    /// See [`TrustError`].
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// See [`InvalidGatewayUrl`].
    #[error(transparent)]
    GatewayUrl(#[from] InvalidGatewayUrl),
    /// See [`MergeError`].
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// See [`NoKubeconfig`].
    #[error(transparent)]
    NoKubeconfig(#[from] NoKubeconfig),
    /// See [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
    /// See [`OutputError`].
    #[error(transparent)]
    Output(#[from] OutputError),
    /// See [`CredentialError`].
    #[error(transparent)]
    Credential(Box<CredentialError>),
    /// A file that was named can't be read.
    #[error("cannot read {0}")]
    Read(String, #[source] std::io::Error),
    /// What was typed can't be done as it stands.
    #[error("{0}")]
    Refused(String),
}

/// Does what was typed.
///
/// # Errors
/// See [`Error`].
pub fn run(cli: Cli) -> Result<(), Error> {
    match cli.command {
        // Before anything else is set up: kubectl calls it for every command of its own.
        Command::Credential(args) => Ok(credential::run(&cli.global, &args)?),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "towline", &mut text);
            let context = Context::new(cli.global)?;
            Ok(context.output.text(&String::from_utf8_lossy(&text))?)
        }
        Command::Man { directory } => std::fs::create_dir_all(&directory)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
            .map_err(|e| Error::Read(directory.display().to_string(), e)),
        command => {
            let context = Context::new(cli.global)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Error::Refused(format!("cannot start: {e}")))?;
            runtime.block_on(with(&context, command))
        }
    }
}

async fn with(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Login(args) => Box::pin(login::login(context, &args)).await,
        Command::Logout => logout::logout(context).await,
        Command::Whoami => login::whoami(context).await,
        Command::Version => config::version(context),
        Command::Memberships(command) => Box::pin(memberships::run(context, *command)).await,
        Command::GetCredentials(args) => Box::pin(get_credentials::run(context, *args)).await,
        Command::Users(command) => users::run(context, command).await,
        Command::Projects(command) => projects::run(context, command).await,
        Command::Audit(command) => Box::pin(audit::run(context, command)).await,
        Command::Quotas(command) => quotas::run(context, command).await,
        Command::ServiceAccounts(command) => service_accounts::run(context, command).await,
        Command::Iam(command) => Box::pin(iam::run(context, command)).await,
        Command::Streams(command) => streams::run(context, command).await,
        Command::Config(command) => config::run(context, command).await,
        Command::Credential(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}
