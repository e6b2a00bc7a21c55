//! What can be typed: every command, flag and environment variable, with examples.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use towline_proto::names::{Location, MembershipId, Project};

use crate::{
    kubeconfig::template::Template,
    service_account::{ActAs, InvalidServiceAccount},
};

mod admin;
mod audit;
mod gateway_rbac;
mod iam;
mod login;
mod memberships;
mod quotas;
mod service_accounts;
mod workload_identity;

pub use admin::{ConfigCommand, ConfigKey, ProjectsCommand, StreamsCommand, UsersCommand};
pub use audit::{AuditCommand, ListAudit, Since};
pub use gateway_rbac::GatewayRbac;
pub use iam::{BindingArgs, Condition, Explain, IamCommand, PolicyCommand, RolesCommand};
pub use login::Login;
pub use memberships::{GetCredentials, Impersonate, MembershipRef, MembershipsCommand, Register};
pub use quotas::{QuotaName, QuotasCommand, SetQuota};
pub use service_accounts::ServiceAccountsCommand;
pub use workload_identity::{CredConfig, OidcProvider, PoolsCommand, ProvidersCommand};

/// Reach Kubernetes clusters behind NAT and firewalls with plain kubectl.
#[derive(Debug, Parser)]
#[command(
    name = "towline",
    version,
    arg_required_else_help = true,
    infer_long_args = false,
    after_help = "Examples:
  towline login https://gw.example.com      sign in at a gateway
  towline memberships list                  which clusters there are
  towline get-credentials prod              kubectl goes to prod from now on
  kubectl get pods -A"
)]
pub struct Cli {
    /// Flags that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The gateway: its address, or the name that `towline config list` shows; the current one otherwise
    #[arg(
        long,
        global = true,
        env = "TOWLINE_GATEWAY",
        hide_env_values = true,
        value_name = "URL|NAME"
    )]
    pub gateway: Option<String>,
    /// The project; the one of `towline config set project` otherwise
    #[arg(long, global = true, env = "TOWLINE_PROJECT", hide_env_values = true)]
    pub project: Option<Project>,
    /// Where towline keeps its own files; $XDG_CONFIG_HOME/towline or ~/.config/towline otherwise
    #[arg(
        long,
        global = true,
        env = "TOWLINE_CONFIG_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub config_dir: Option<PathBuf>,
    /// Act as this service account, with a comma through others; '' is yourself, whatever is set
    #[arg(
        long,
        global = true,
        env = "TOWLINE_IMPERSONATE_SERVICE_ACCOUNT",
        hide_env_values = true,
        value_name = "NAME@PROJECT"
    )]
    pub impersonate_service_account: Option<String>,
    /// A credential configuration (see `iam workload-identity-pools create-cred-config`) instead of a sign-in
    #[arg(
        long,
        global = true,
        env = "TOWLINE_CREDENTIALS",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub credentials: Option<PathBuf>,
    /// Print json, yaml, wide (a table with more columns) or name (names only)
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub output: Option<Format>,
    /// Say on stderr what is asked of the gateway
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Read from the environment only.
    #[arg(
        long = "xdg-config-home",
        env = "XDG_CONFIG_HOME",
        hide = true,
        global = true
    )]
    pub xdg_config_home: Option<PathBuf>,
}

impl Global {
    /// The service account that was named to act as; `Some(None)` is nobody, on purpose.
    ///
    /// # Errors
    /// It is none.
    pub fn act_as(&self) -> Result<Option<Option<ActAs>>, InvalidServiceAccount> {
        match self.impersonate_service_account.as_deref() {
            None => Ok(None),
            Some("") => Ok(Some(None)),
            Some(name) => Ok(Some(Some(name.parse()?))),
        }
    }
}

/// How to print what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON, as the API has it.
    Json,
    /// YAML, with the same fields.
    Yaml,
    /// A table with more columns.
    Wide,
    /// Names only, one a line.
    Name,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in at a gateway, and make it the current one
    #[command(after_help = login::EXAMPLES)]
    Login(Box<Login>),
    /// Sign out: the sign-in ends at the gateway too
    #[command(after_help = "Examples:
  towline logout
  towline logout --gateway https://gw.example.com")]
    Logout,
    /// Show who the gateway takes you for
    #[command(after_help = "Examples:
  towline whoami
  towline whoami -o json")]
    Whoami,
    /// Show this program's version
    #[command(after_help = "Examples:
  towline version
  towline version -o json")]
    Version,
    /// Registered clusters
    #[command(
        subcommand,
        visible_alias = "membership",
        arg_required_else_help = true
    )]
    Memberships(Box<MembershipsCommand>),
    /// Write kubeconfig entries for clusters, so that kubectl goes through the gateway
    #[command(after_help = memberships::GET_CREDENTIALS_EXAMPLES)]
    GetCredentials(Box<GetCredentials>),
    /// The gateway's own users
    #[command(subcommand, visible_alias = "user", arg_required_else_help = true)]
    Users(UsersCommand),
    /// Projects, and who may do what in them
    #[command(subcommand, visible_alias = "project", arg_required_else_help = true)]
    Projects(ProjectsCommand),
    /// What was done, by whom, and how it ended
    #[command(subcommand, arg_required_else_help = true)]
    Audit(AuditCommand),
    /// How much principals and projects may use, and what they use now
    #[command(subcommand, visible_alias = "quota", arg_required_else_help = true)]
    Quotas(QuotasCommand),
    /// Principals of a project that others are let to act as
    #[command(
        subcommand,
        visible_alias = "service-account",
        arg_required_else_help = true
    )]
    ServiceAccounts(ServiceAccountsCommand),
    /// Who may come in, and what they may do
    #[command(subcommand, arg_required_else_help = true)]
    Iam(IamCommand),
    /// Streams (exec, attach, port-forward) through the gateway
    #[command(subcommand, visible_alias = "stream", arg_required_else_help = true)]
    Streams(StreamsCommand),
    /// Defaults: which gateway and which project are meant
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    /// Print a token for kubectl (kubeconfigs call this; you need not)
    #[command(after_help = "Examples:
  towline credential --gateway https://gw.example.com \\
    --membership projects/p/locations/global/memberships/prod")]
    Credential(Credential),
    /// Print a shell's completions
    #[command(after_help = "Examples:
  source <(towline completions bash)
  towline completions zsh > ~/.zfunc/_towline
  towline completions fish > ~/.config/fish/completions/towline.fish")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "Examples:
  towline man /usr/local/share/man/man1")]
    Man {
        /// Where to.
        directory: PathBuf,
    },
}

/// `towline credential`.
#[derive(Debug, Args)]
pub struct Credential {
    /// The membership's resource name, projects/P/locations/L/memberships/M
    #[arg(long, value_name = "NAME")]
    pub membership: towline_proto::names::Membership,
    /// Prove to the cluster's own agent who you are (end-to-end mode)
    #[arg(long)]
    pub end_to_end: bool,
    /// What kubectl says about itself.
    #[arg(
        long = "kubernetes-exec-info",
        env = "KUBERNETES_EXEC_INFO",
        hide = true
    )]
    pub exec_info: Option<OsString>,
}

/// A membership's name, or its whole resource name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipName {
    /// `projects/P/locations/L/memberships/M`.
    Whole(towline_proto::names::Membership),
    /// `M`.
    Short(MembershipId),
}

impl std::str::FromStr for MembershipName {
    type Err = towline_proto::names::InvalidMembership;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            Ok(Self::Whole(text.parse()?))
        } else {
            Ok(Self::Short(text.parse()?))
        }
    }
}

/// Where in a project.
#[derive(Debug, Clone, Args)]
pub struct LocationArg {
    /// The location; `global` unless the operator made others
    #[arg(long)]
    pub location: Option<Location>,
}

pub(crate) fn template(text: &str) -> Result<Template, String> {
    text.parse()
        .map_err(|e: crate::kubeconfig::template::InvalidTemplate| e.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_no_two_words_for_one_thing() {
        fn walk(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(walk);
            } else {
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("towline"),
                    "{} has no examples",
                    command.get_name()
                );
            }
        }
        walk(&Cli::command());
    }

    /// Words as a shell splits them, single and double quotes alike.
    fn shell_words(line: &str) -> Vec<String> {
        let (mut words, mut quote, mut begun) = (vec![String::new()], None, false);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), _) if c == open => quote = None,
                (None, '\'' | '"') => (quote, begun) = (Some(c), true),
                (None, ' ') => {
                    if begun {
                        words.push(String::new());
                    }
                    begun = false;
                }
                _ => {
                    words.last_mut().unwrap().push(c);
                    begun = true;
                }
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn examples_parse() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            found.extend(help.replace("\\\n    ", "").lines().filter_map(|line| {
                let line = line.trim().strip_prefix("towline ")?;
                Some(
                    line.split("  ")
                        .next()?
                        .split(['<', '>', '|'])
                        .next()?
                        .trim()
                        .to_owned(),
                )
            }));
            command
                .get_subcommands()
                .for_each(|command| examples(command, found));
        }
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 40, "{found:?}");
        for example in found {
            let words = std::iter::once("towline".to_owned()).chain(shell_words(&example));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{example}: {error}");
            }
        }
    }
}
