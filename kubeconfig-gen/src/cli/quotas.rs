//! Commands about quotas.

use clap::{Args, Subcommand, ValueEnum};

use super::admin::principal;

/// `towline quotas …`.
#[derive(Debug, Subcommand)]
pub enum QuotasCommand {
    /// List a project's quotas: the limits, what is in use now, and by whom
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline quotas list --project team-a
  towline quotas list --member user:alice"
    )]
    List {
        /// Only this principal's
        #[arg(long, value_name = "PRINCIPAL", value_parser = principal)]
        member: Option<String>,
    },
    /// Set a limit, of the whole project unless --member or --default says otherwise; it holds at once
    #[command(after_help = "Examples:
  towline quotas set active_streams --limit 2400
  towline quotas set active_streams --default --limit 10
  towline quotas set requests_per_minute --member user:alice --limit 600
  towline quotas set watches --member user:alice --unset")]
    Set(SetQuota),
}

/// `towline quotas set`.
#[derive(Debug, Args)]
pub struct SetQuota {
    /// What is limited
    pub quota: QuotaName,
    /// The principal whose limit it is
    #[arg(long, value_name = "PRINCIPAL", value_parser = principal, conflicts_with = "default")]
    pub member: Option<String>,
    /// The limit of each principal that has none of its own
    #[arg(long)]
    pub default: bool,
    /// The most that may be used
    #[arg(long, value_name = "N", required_unless_present = "unset", conflicts_with = "unset",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Let the default hold again
    #[arg(long)]
    pub unset: bool,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum QuotaName {
    /// Requests in a minute; a tenth of them may come at once.
    RequestsPerMinute,
    /// Upgraded streams (exec, attach, port-forward) at a time.
    ActiveStreams,
    /// Watches, followed logs and proxied requests at a time.
    Watches,
}

impl QuotaName {
    /// As the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::ActiveStreams => "active_streams",
            Self::Watches => "watches",
        }
    }
}
