//! `towline memberships …` and `towline get-credentials`.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Args, Subcommand};
use towline_proto::names::{Location, MembershipId};

use super::{LocationArg, MembershipName, PolicyCommand, gateway_rbac::GatewayRbac, template};
use crate::kubeconfig::template::Template;

pub(super) const GET_CREDENTIALS_EXAMPLES: &str = "Examples:
  towline get-credentials prod
  towline get-credentials prod staging --no-set-current
  towline get-credentials --all --context-name '{project}-{membership}'
  towline get-credentials projects/p/locations/global/memberships/prod --kubeconfig prod.yaml
  towline get-credentials prod --impersonate-service-account deployer@team-a
  towline get-credentials prod --token-file /var/run/secrets/towline/token

kubectl needs `towline` on its PATH. Entries of other clusters are left as they are.";

/// `towline memberships …`.
#[derive(Debug, Subcommand)]
pub enum MembershipsCommand {
    /// Make a membership, and what its agent needs to connect
    #[command(after_help = "Examples:
  towline memberships register prod
  towline memberships register prod --manifest - --impersonate-users alice,bob | kubectl apply -f -
  towline memberships register prod --manifest agent.yaml --impersonate-groups developers
  towline memberships register prod --renew")]
    Register(Box<Register>),
    /// List the clusters that you may see
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline memberships list
  towline memberships list -o wide
  towline memberships list --project p -o json"
    )]
    List,
    /// Show one membership
    #[command(
        visible_alias = "get",
        after_help = "Examples:
  towline memberships describe prod
  towline memberships describe prod -o yaml"
    )]
    Describe(MembershipRef),
    /// Take a cluster out: its agent can't connect any more
    #[command(after_help = "Examples:
  towline memberships delete prod
  towline memberships delete prod --yes")]
    Delete {
        /// Which one.
        #[command(flatten)]
        membership: MembershipRef,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Change a membership's labels, which conditions in policies see as resource.labels
    #[command(after_help = "Examples:
  towline memberships update prod --labels env=prod,team=web
  towline memberships update prod --remove-labels team")]
    Update {
        /// Which one.
        #[command(flatten)]
        membership: MembershipRef,
        /// Labels to set
        #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',', value_parser = label)]
        labels: Vec<(String, String)>,
        /// Labels to take away
        #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
        remove_labels: Vec<String>,
        /// Take all labels away first
        #[arg(long)]
        clear_labels: bool,
    },
    /// Write, apply or revoke the RBAC that lets people through to a cluster
    #[command(after_help = super::gateway_rbac::EXAMPLES)]
    GenerateGatewayRbac(Box<GatewayRbac>),
    /// Write kubeconfig entries for clusters, so that kubectl goes through the gateway
    #[command(after_help = GET_CREDENTIALS_EXAMPLES)]
    GetCredentials(GetCredentials),
    /// Who has which role on it.
    #[command(flatten)]
    Policy(PolicyCommand),
}

/// One membership.
#[derive(Debug, Clone, Args)]
pub struct MembershipRef {
    /// The membership's name, or projects/P/locations/L/memberships/M
    #[arg(value_name = "NAME")]
    pub name: MembershipName,
    /// Where in the project.
    #[command(flatten)]
    pub location: LocationArg,
}

/// `towline memberships register`.
#[derive(Debug, Args)]
pub struct Register {
    /// What the cluster is to be called
    pub name: MembershipId,
    /// The location; `global` unless the operator made others
    #[arg(long)]
    pub location: Option<Location>,
    /// The membership exists: give it a new token; its agent's old key ends when the token is used
    #[arg(long)]
    pub renew: bool,
    /// Labels of a new membership, which conditions in policies see
    #[arg(
        long,
        value_name = "KEY=VALUE,…",
        value_delimiter = ',',
        value_parser = label,
        conflicts_with = "renew"
    )]
    pub labels: Vec<(String, String)>,
    /// Where to write what the agent needs
    #[arg(
        long,
        value_name = "FILE",
        default_value = "registration.yaml",
        conflicts_with = "manifest"
    )]
    pub output_file: PathBuf,
    /// Write a Kubernetes manifest that runs the agent as a pod instead; `-` is standard output
    #[arg(long, value_name = "FILE|-")]
    pub manifest: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// The agent's image
    #[arg(long, requires = "manifest", default_value = concat!("towline-agent:", env!("CARGO_PKG_VERSION")))]
    pub image: String,
    /// The namespace for the agent
    #[arg(long, requires = "manifest", default_value = crate::manifest::DEFAULT_NAMESPACE)]
    pub namespace: MembershipId,
    /// Have callers prove to the agent who they are, so that no gateway can invent them: a Kubernetes
    /// AuthenticationConfiguration with the identity providers to believe
    #[arg(long, value_name = "FILE", requires = "manifest")]
    pub end_to_end: Option<PathBuf>,
    /// Whom the agent may impersonate.
    #[command(flatten)]
    pub impersonate: Impersonate,
}

/// Whom the agent's role lets it impersonate.
#[derive(Debug, Clone, Default, Args)]
pub struct Impersonate {
    /// Users that may reach the cluster
    #[arg(
        long = "impersonate-users",
        value_name = "NAME,…",
        value_delimiter = ',',
        requires = "manifest"
    )]
    pub users: Vec<String>,
    /// Groups that the cluster is told of
    #[arg(
        long = "impersonate-groups",
        value_name = "NAME,…",
        value_delimiter = ',',
        requires = "manifest"
    )]
    pub groups: Vec<String>,
    /// Whoever the gateway names; this makes the gateway an administrator of the cluster
    #[arg(
        long = "impersonate-anyone",
        requires = "manifest",
        conflicts_with_all = ["users", "groups"]
    )]
    pub anyone: bool,
}

/// `towline get-credentials`.
#[derive(Debug, Args)]
pub struct GetCredentials {
    /// The memberships: names, or projects/P/locations/L/memberships/M
    #[arg(
        value_name = "NAME",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub names: Vec<MembershipName>,
    /// All that you may see (in the project, if one is named)
    #[arg(long)]
    pub all: bool,
    /// Where in the project.
    #[command(flatten)]
    pub location: LocationArg,
    /// The file to change, instead of those in KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What to call contexts; {host}, {project}, {location} and {membership} are filled in
    #[arg(long, value_name = "TEMPLATE", value_parser = template)]
    pub context_name: Option<Template>,
    /// Have kubectl read its token from this file, which somebody keeps up to date, instead of running `towline`: for
    /// programs such as Argo CD, with a workload identity provider that takes its tokens directly
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Have kubectl prove to the cluster's own agent who you are, by your identity provider's word: for clusters whose
    /// agent believes no gateway (towline-agent run --end-to-end)
    #[arg(long, conflicts_with = "token_file")]
    pub end_to_end: bool,
    /// Write the gateway's bare address as the server: for programs that drop a server's path. The exec
    /// plugin's token leads to the one membership
    #[arg(long)]
    pub server_without_path: bool,
    /// Make it the current context (the default for a single one)
    #[arg(long, overrides_with = "no_set_current")]
    pub set_current: bool,
    /// Leave the current context as it is
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_set_current: bool,
    /// Read from the environment only.
    #[arg(long = "kubeconfig-list", env = "KUBECONFIG", hide = true)]
    pub kubeconfig_list: Option<OsString>,
    /// Read from the environment only.
    #[arg(long = "search-path", env = "PATH", hide = true)]
    pub search_path: Option<OsString>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example env=prod".to_owned()),
    }
}
