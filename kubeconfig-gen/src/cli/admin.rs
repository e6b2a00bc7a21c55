//! Commands of those who run a gateway or a project.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use towline_proto::names::Project;

use super::BindingArgs;

/// `towline users …`.
#[derive(Debug, Subcommand)]
pub enum UsersCommand {
    /// Make a user, and a code with which they set their password
    #[command(after_help = "Examples:
  towline users create alice
  towline users create bob --group developers --group on-call
  towline users create carol --operator")]
    Create {
        /// The name.
        name: String,
        /// A group that the user is in (again for more)
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// May make projects and users
        #[arg(long)]
        operator: bool,
    },
    /// List the users
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline users list
  towline users list -o json"
    )]
    List,
    /// Lock a user out; what they have running ends
    #[command(after_help = "Examples:
  towline users disable alice")]
    Disable {
        /// The name.
        name: String,
    },
    /// Let a user in again
    #[command(after_help = "Examples:
  towline users enable alice")]
    Enable {
        /// The name.
        name: String,
    },
    /// End a user's password and sign-ins, and get a code for setting a new one
    #[command(after_help = "Examples:
  towline users reset-password alice")]
    ResetPassword {
        /// The name.
        name: String,
    },
    /// Put a user into groups
    #[command(after_help = "Examples:
  towline users add-group alice developers on-call")]
    AddGroup {
        /// The name.
        name: String,
        /// The groups.
        #[arg(required = true, value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Take a user out of groups
    #[command(after_help = "Examples:
  towline users remove-group alice on-call")]
    RemoveGroup {
        /// The name.
        name: String,
        /// The groups.
        #[arg(required = true, value_name = "GROUP")]
        groups: Vec<String>,
    },
}

/// `towline projects …`.
#[derive(Debug, Subcommand)]
pub enum ProjectsCommand {
    /// Make a project
    #[command(after_help = "Examples:
  towline projects create team-a
  towline projects create team-a --owner user:alice")]
    Create {
        /// The name.
        name: Project,
        /// Who owns it, user:NAME; you otherwise
        #[arg(long, value_name = "PRINCIPAL", value_parser = principal)]
        owner: Option<String>,
    },
    /// List the projects that you may see
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline projects list
  towline projects list -o name"
    )]
    List,
    /// Delete a project that has no memberships
    #[command(after_help = "Examples:
  towline projects delete team-a
  towline projects delete team-a --yes")]
    Delete {
        /// The name.
        name: Project,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Give somebody a role
    #[command(after_help = "Examples:
  towline projects add-iam-policy-binding team-a --member user:bob --role gatewayReader
  towline projects add-iam-policy-binding team-a --member group:developers --role gatewayAdmin
  towline projects add-iam-policy-binding team-a --member user:bob --role gatewayEditor \\
    --condition expression=resource.labels.env=='dev',title=dev

Roles: gatewayReader (get, list, watch, logs), gatewayEditor (and changes),
gatewayAdmin (and exec, attach, cp, port-forward), owner (and memberships and roles);
all of them: towline iam roles list")]
    AddIamPolicyBinding {
        /// The project.
        #[arg(value_name = "PROJECT")]
        name: Project,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
    },
    /// Take a role from somebody
    #[command(after_help = "Examples:
  towline projects remove-iam-policy-binding team-a --member user:bob --role gatewayReader")]
    RemoveIamPolicyBinding {
        /// The project.
        #[arg(value_name = "PROJECT")]
        name: Project,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
        /// Under whatever condition they have it
        #[arg(long, conflicts_with = "condition")]
        all: bool,
    },
    /// Show who has which role
    #[command(after_help = "Examples:
  towline projects get-iam-policy team-a
  towline projects get-iam-policy team-a -o yaml > policy.yaml")]
    GetIamPolicy {
        /// The project.
        #[arg(value_name = "PROJECT")]
        name: Project,
    },
    /// Replace the whole policy; refused when it changed since the file was made
    #[command(after_help = "Examples:
  towline projects set-iam-policy team-a policy.yaml")]
    SetIamPolicy {
        /// The project.
        #[arg(value_name = "PROJECT")]
        name: Project,
        /// As `get-iam-policy -o yaml` (or json) printed it, changed
        file: PathBuf,
    },
}

/// `towline streams …`.
#[derive(Debug, Subcommand)]
pub enum StreamsCommand {
    /// List running streams of a project, or those that ended, with the reason
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline streams list --project team-a
  towline streams list --ended"
    )]
    List {
        /// Those that ended last
        #[arg(long)]
        ended: bool,
    },
}

/// `towline config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Set a default
    #[command(after_help = "Examples:
  towline config set project team-a
  towline config set gateway gw.example.com
  towline config set auth/impersonate_service_account deployer@team-a")]
    Set {
        /// Which one.
        key: ConfigKey,
        /// To what.
        value: String,
    },
    /// Print a default
    #[command(after_help = "Examples:
  towline config get project")]
    Get {
        /// Which one.
        key: ConfigKey,
    },
    /// List the gateways that you signed in at, and their defaults
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline config list"
    )]
    List,
    /// Remove a default
    #[command(after_help = "Examples:
  towline config unset project
  towline config unset auth/impersonate_service_account")]
    Unset {
        /// Which one.
        key: ConfigKey,
    },
}

/// What has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConfigKey {
    /// The gateway that is meant when none is named.
    Gateway,
    /// The project that is meant when none is named, for the current gateway.
    Project,
    /// The service account to act as when none is named, for the current gateway.
    #[value(name = "auth/impersonate_service_account")]
    ImpersonateServiceAccount,
}

pub(super) fn principal(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!(
            "give it as user:NAME, for example user:{}",
            if text.is_empty() { "alice" } else { text }
        )),
    }
}
