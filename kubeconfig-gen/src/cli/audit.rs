//! Commands about the audit log.

use clap::{Args, Subcommand};

use super::{LocationArg, MembershipName};

/// `towline audit …`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List what was done in a project, the latest first
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline audit list --project team-a
  towline audit list --membership prod --since 2h
  towline audit list --user alice --since 2026-11-21T08:00:00Z --limit 500
  towline audit list --request-id 0b57e1a2-9e6c-4f5e-8a54-2b6f3a6d1f11 -o json
  towline audit list --all-projects --since 10m"
    )]
    List(Box<ListAudit>),
}

/// `towline audit list`.
#[derive(Debug, Args)]
pub struct ListAudit {
    /// Only this membership, by its name or as projects/P/locations/L/memberships/M; it may be deleted
    #[arg(long, value_name = "NAME")]
    pub membership: Option<MembershipName>,
    /// Where in the project.
    #[command(flatten)]
    pub location: LocationArg,
    /// Only this user: a name as clusters see it, or a principal such as user:alice
    #[arg(long, value_name = "USER|PRINCIPAL")]
    pub user: Option<String>,
    /// Not before: so long ago (30m, 2h, 7d), or a time (2026-11-21T08:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// At most so many; the gateway tells 1,000 at a time
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Only the request with this id, as refusals and the header Audit-ID name it
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Of all projects and of none, sign-ins included (for a gatewayOperator)
    #[arg(long, conflicts_with = "membership")]
    pub all_projects: bool,
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So many seconds ago.
    Ago(u64),
    /// At this time, in Unix seconds.
    At(u64),
}

fn since(text: &str) -> Result<Since, String> {
    let wrong = || {
        format!("{text:?} is neither how long ago (30m, 2h, 7d) nor a time (2026-11-21T08:00:00Z)")
    };
    if let Ok(at) = text.parse::<prost_types::Timestamp>() {
        return u64::try_from(at.seconds)
            .map(Since::At)
            .map_err(|_| wrong());
    }
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number = text.get(..text.len() - 1).unwrap_or_default();
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .map(Since::Ago)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative_or_absolute() {
        assert_eq!(since("90s"), Ok(Since::Ago(90)));
        assert_eq!(since("2h"), Ok(Since::Ago(7_200)));
        assert_eq!(since("7d"), Ok(Since::Ago(604_800)));
        assert_eq!(since("1970-01-02T00:00:00Z"), Ok(Since::At(86_400)));
        for bad in [
            "",
            "h",
            "2",
            "ü",
            "-2h",
            "yesterday",
            "99999999999999999999d",
        ] {
            assert!(since(bad).unwrap_err().contains("30m"), "{bad}");
        }
    }
}
