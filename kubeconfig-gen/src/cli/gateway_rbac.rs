//! `towline memberships generate-gateway-rbac`.

use std::path::PathBuf;

use clap::Args;
use towline_proto::names::MembershipId;

use super::MembershipRef;
use crate::rbac::VERBS;

pub(super) const EXAMPLES: &str = "Examples:
  towline memberships generate-gateway-rbac prod --users alice,bob --role clusterrole/view
  towline memberships generate-gateway-rbac prod --groups developers --role role/team-a/editor --apply --context prod-admin
  towline memberships generate-gateway-rbac prod --users serviceAccount:deployer@team-a --role clusterrole/edit \\
    --namespace team-a --rbac-output-file rbac.yaml
  towline memberships generate-gateway-rbac prod --users alice --revoke --context prod-admin

A run adds: what an earlier run wrote stays until --revoke. --apply and --revoke run kubectl against the cluster itself, \
with a kubeconfig of yours, and refuse a context that is another cluster than the membership's.";

/// `towline memberships generate-gateway-rbac`.
#[derive(Debug, Args)]
pub struct GatewayRbac {
    /// The cluster.
    #[command(flatten)]
    pub membership: MembershipRef,
    /// Users that may reach the cluster: names, serviceAccount:NAME@PROJECT, principal://…/subject/…
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub users: Vec<String>,
    /// Groups that the cluster is told of: names, principalSet://…/group/…
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub groups: Vec<String>,
    /// Whoever the gateway names; this makes the gateway an administrator of the cluster
    #[arg(long, conflicts_with_all = ["users", "groups", "uids", "extra", "cluster_service_accounts"])]
    pub anyone: bool,
    /// What those users and groups may do: clusterrole/NAME, role/NAMESPACE/NAME, or role/NAME with --namespace
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Where the role holds; a ClusterRole holds everywhere without it
    #[arg(long, value_name = "NAMESPACE", requires = "role")]
    pub namespace: Option<MembershipId>,
    /// UIDs that the cluster is told of; a user's UID is left out where it isn't named
    #[arg(long, value_name = "UID,…", value_delimiter = ',')]
    pub uids: Vec<String>,
    /// Extra attributes that the cluster is told of; all values, without one
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub extra: Vec<String>,
    /// The cluster's own service accounts that callers may be with `kubectl --as`, if RBAC lets those callers
    #[arg(long, value_name = "NAMESPACE/NAME,…", value_delimiter = ',')]
    pub cluster_service_accounts: Vec<String>,
    /// Use constrained impersonation (KEP-5284) alone: for clusters that have it, from Kubernetes 1.36 on
    #[arg(long)]
    pub constrained: bool,
    /// With --constrained: all that the agent may do as anybody
    #[arg(
        long,
        value_name = "VERB,…",
        value_delimiter = ',',
        requires = "constrained",
        value_parser = clap::builder::PossibleValuesParser::new(VERBS)
    )]
    pub verbs: Vec<String>,
    /// The namespace of the agent
    #[arg(long, value_name = "NAMESPACE", default_value = crate::manifest::DEFAULT_NAMESPACE)]
    pub agent_namespace: MembershipId,
    /// Where to write the objects; `-` is standard output, which is the default without --apply and --revoke
    #[arg(long, value_name = "FILE|-")]
    pub rbac_output_file: Option<PathBuf>,
    /// Apply the objects to the cluster
    #[arg(long, conflicts_with = "rbac_output_file")]
    pub apply: bool,
    /// Delete what runs for these names applied; with --role only that role
    #[arg(long, conflicts_with_all = ["apply", "rbac_output_file", "constrained"])]
    pub revoke: bool,
    /// With --apply or --revoke: let the cluster check it, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --apply or --revoke: the kubeconfig's context to use
    #[arg(long)]
    pub context: Option<String>,
    /// With --apply or --revoke: the kubeconfig to use
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Don't ask
    #[arg(short, long)]
    pub yes: bool,
}
