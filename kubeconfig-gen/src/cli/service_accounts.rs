//! `towline service-accounts …`.

use std::path::PathBuf;

use clap::Subcommand;

use super::iam::BindingArgs;

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
    /// Let somebody act as a service account
    #[command(after_help = "Examples:
  towline service-accounts add-iam-policy-binding deployer@team-a --member user:bob \\
    --role serviceAccountTokenCreator
  towline service-accounts add-iam-policy-binding deployer@team-a --role workloadIdentityUser \\
    --member principalSet://projects/team-a/locations/global/workloadIdentityPools/ci/attribute.repository/acme/shop

Roles: serviceAccountTokenCreator for people and service accounts, workloadIdentityUser for workloads.")]
    AddIamPolicyBinding {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
    },
    /// Take from somebody that they may act as a service account
    #[command(after_help = "Examples:
  towline service-accounts remove-iam-policy-binding deployer@team-a --member user:bob \\
    --role serviceAccountTokenCreator")]
    RemoveIamPolicyBinding {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
        /// Whatever the condition is
        #[arg(long, conflicts_with = "condition")]
        all: bool,
    },
    /// Show who may act as a service account
    #[command(after_help = "Examples:
  towline service-accounts get-iam-policy deployer@team-a")]
    GetIamPolicy {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
    },
    /// Replace the whole policy of a service account; refused when it changed since the file was made
    #[command(after_help = "Examples:
  towline service-accounts set-iam-policy deployer@team-a policy.yaml")]
    SetIamPolicy {
        /// NAME@PROJECT
        #[arg(value_name = "ACCOUNT")]
        name: String,
        /// As `get-iam-policy -o yaml` (or json) printed it, changed
        file: PathBuf,
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
            | Self::AddIamPolicyBinding { name, .. }
            | Self::RemoveIamPolicyBinding { name, .. }
            | Self::GetIamPolicy { name }
            | Self::SetIamPolicy { name, .. }
            | Self::RevokeTokens { name } => Some(name),
        }
    }
}
