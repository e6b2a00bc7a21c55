//! `towline iam …`.

use clap::Subcommand;

use super::workload_identity::PoolsCommand;

/// `towline iam …`.
#[derive(Debug, Subcommand)]
pub enum IamCommand {
    /// Pipelines and clusters that come with tokens of their own, instead of stored secrets
    #[command(
        subcommand,
        visible_alias = "workload-identity-pool",
        arg_required_else_help = true
    )]
    WorkloadIdentityPools(Box<PoolsCommand>),
}
