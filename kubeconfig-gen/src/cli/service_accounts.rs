//! `towline service-accounts …`.

use clap::Subcommand;

/// `towline service-accounts …`.
#[derive(Debug, Subcommand)]
pub enum ServiceAccountsCommand {
    /// Make a service account; nobody may act as it until a binding says so
    #[command(after_help = "Examples:
  towline service-accounts create deployer --project team-a
  towline service-accounts create deployer@team-a --display-name shop")]
    Create {
        /// The name, or NAME@PROJECT
        name: String,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        display_name: String,
    },
    /// List a project's service accounts
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline service-accounts list --project team-a
  towline service-accounts list -o name"
    )]
    List,
    /// Delete a service account; its tokens end at once
    #[command(after_help = "Examples:
  towline service-accounts delete deployer@team-a
  towline service-accounts delete deployer@team-a --yes")]
    Delete {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Refuse a service account's tokens until it is enabled again
    #[command(after_help = "Examples:
  towline service-accounts disable deployer@team-a")]
    Disable {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
    },
    /// Take a service account's tokens again
    #[command(after_help = "Examples:
  towline service-accounts enable deployer@team-a")]
    Enable {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
    },
    /// End every token that a service account has, and the streams that began with one
    #[command(after_help = "Examples:
  towline service-accounts revoke-tokens deployer@team-a")]
    RevokeTokens {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
    },
}

impl ServiceAccountsCommand {
    /// The account that is meant.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::List => None,
            Self::Create { name, .. }
            | Self::Delete { name, .. }
            | Self::Disable { name }
            | Self::Enable { name }
            | Self::RevokeTokens { name } => Some(name),
        }
    }
}
