//! Commands about who may do what: bindings, roles, and why.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{MembershipName, MembershipRef, workload_identity::PoolsCommand};

/// Who gets or loses which role, and when they hold it.
#[derive(Debug, Clone, Args)]
pub struct BindingArgs {
    /// Who: user:NAME, group:NAME, serviceAccount:NAME@PROJECT, principal://… or principalSet://…
    #[arg(long, value_parser = member)]
    pub member: String,
    /// What: a predefined role, or projects/P/roles/NAME; see: towline iam roles list
    #[arg(long)]
    pub role: String,
    /// When: expression=CEL,title=TITLE[,description=TEXT]
    #[arg(long, value_name = "CONDITION", value_parser = condition)]
    pub condition: Option<Condition>,
}

/// When a binding holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// For people, in a line.
    pub title: String,
    /// For people.
    pub description: String,
    /// CEL.
    pub expression: String,
}

/// The policy of one thing.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show who has which role on this membership itself, besides the project's policy
    #[command(after_help = "Examples:
  towline memberships get-iam-policy prod
  towline memberships get-iam-policy prod -o yaml > policy.yaml")]
    GetIamPolicy(MembershipRef),
    /// Replace the whole policy of this membership; refused when it changed since the file was made
    #[command(after_help = "Examples:
  towline memberships set-iam-policy prod policy.yaml")]
    SetIamPolicy {
        /// Which one.
        #[command(flatten)]
        membership: MembershipRef,
        /// As `get-iam-policy -o yaml` (or json) printed it, changed
        file: PathBuf,
    },
    /// Give somebody a role on this membership alone
    #[command(after_help = "Examples:
  towline memberships add-iam-policy-binding prod --member user:bob --role gatewayReader
  towline memberships add-iam-policy-binding prod --member group:on-call --role gatewayAdmin")]
    AddIamPolicyBinding {
        /// Which one.
        #[command(flatten)]
        membership: MembershipRef,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
    },
    /// Take a role on this membership from somebody
    #[command(after_help = "Examples:
  towline memberships remove-iam-policy-binding prod --member user:bob --role gatewayReader
  towline memberships remove-iam-policy-binding prod --member user:bob --role gatewayReader --all")]
    RemoveIamPolicyBinding {
        /// Which one.
        #[command(flatten)]
        membership: MembershipRef,
        /// Who and what.
        #[command(flatten)]
        binding: BindingArgs,
        /// Under whatever condition they have it
        #[arg(long, conflicts_with = "condition")]
        all: bool,
    },
}

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
    /// Roles: the predefined ones, and those that a project makes for itself
    #[command(subcommand, visible_alias = "role", arg_required_else_help = true)]
    Roles(RolesCommand),
    /// Say what somebody may do on a cluster, and why
    #[command(after_help = "Examples:
  towline iam explain --member user:alice --verb list --resource pods --membership prod
  towline iam explain --member user:alice --groups ops --verb create --resource pods \\
    --subresource exec --namespace web --membership prod
  towline iam explain --member user:alice --verb delete --resource deployments.apps \\
    --namespace web --membership prod -o json")]
    Explain(Box<Explain>),
}

/// `towline iam roles …`.
#[derive(Debug, Subcommand)]
pub enum RolesCommand {
    /// List the roles that there are
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  towline iam roles list
  towline iam roles list --project team-a -o wide"
    )]
    List,
    /// Show one role with what it holds
    #[command(
        visible_alias = "get",
        after_help = "Examples:
  towline iam roles describe gatewayReader
  towline iam roles describe logReader --project team-a"
    )]
    Describe {
        /// A predefined role, a role of the project, or projects/P/roles/NAME.
        role: String,
    },
    /// Make a role of the project
    #[command(after_help = "Examples:
  towline iam roles create logReader --permissions gateway.get,memberships.get --title 'Reads logs'")]
    Create {
        /// Its name in the project.
        role: String,
        /// What it holds
        #[arg(
            long,
            required = true,
            value_delimiter = ',',
            value_name = "PERMISSION,…"
        )]
        permissions: Vec<String>,
        /// For people, in a line
        #[arg(long, default_value = "")]
        title: String,
        /// For people
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Change a role of the project, and what everybody who has it may
    #[command(after_help = "Examples:
  towline iam roles update logReader --add-permissions gateway.post
  towline iam roles update logReader --remove-permissions gateway.post --title 'Reads logs'")]
    Update {
        /// Its name in the project, or projects/P/roles/NAME.
        role: String,
        /// What it holds from now on
        #[arg(
            long,
            value_delimiter = ',',
            value_name = "PERMISSION,…",
            conflicts_with_all = ["add_permissions", "remove_permissions"]
        )]
        permissions: Vec<String>,
        /// What it also holds
        #[arg(long, value_delimiter = ',', value_name = "PERMISSION,…")]
        add_permissions: Vec<String>,
        /// What it doesn't hold any more
        #[arg(long, value_delimiter = ',', value_name = "PERMISSION,…")]
        remove_permissions: Vec<String>,
        /// For people, in a line
        #[arg(long)]
        title: Option<String>,
        /// For people
        #[arg(long)]
        description: Option<String>,
    },
    /// Delete a role that no policy names
    #[command(after_help = "Examples:
  towline iam roles delete logReader
  towline iam roles delete logReader --yes")]
    Delete {
        /// Its name in the project, or projects/P/roles/NAME.
        role: String,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// `towline iam explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Who: user:NAME, serviceAccount:NAME@PROJECT or principal://…
    #[arg(long, value_parser = member)]
    pub member: String,
    /// Groups that they have, besides those that the gateway knows
    #[arg(long, value_delimiter = ',', value_name = "GROUP,…")]
    pub groups: Vec<String>,
    /// What they do: get, list, watch, create, update, patch, delete, deletecollection
    #[arg(long)]
    pub verb: String,
    /// To what: pods, deployments.apps, or a path such as /healthz
    #[arg(long)]
    pub resource: String,
    /// To which part of it: exec, log, status
    #[arg(long)]
    pub subresource: Option<String>,
    /// In which namespace; all of them, or none, otherwise
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Which one
    #[arg(long)]
    pub name: Option<String>,
    /// On which cluster: its name, or projects/P/locations/L/memberships/M
    #[arg(long)]
    pub membership: MembershipName,
}

fn member(text: &str) -> Result<String, String> {
    let well = match text.split_once(':') {
        Some(("user" | "group" | "serviceAccount", name)) => !name.is_empty(),
        Some(("principal" | "principalSet", name)) => name.starts_with("//"),
        _ => false,
    };
    if well {
        return Ok(text.to_owned());
    }
    let name = if text.is_empty() || text.contains(':') {
        "alice"
    } else {
        text
    };
    Err(format!(
        "write user:NAME, group:NAME, serviceAccount:NAME@PROJECT, principal://… or principalSet://…, for example user:{name}"
    ))
}

/// `KEY=VALUE,…` where a value may have commas: a key begins the next part only if it is one.
fn condition(text: &str) -> Result<Condition, String> {
    const FORM: &str = "write expression=CEL,title=TITLE[,description=TEXT]";
    let mut condition = Condition::default();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').ok_or(FORM)?;
        let end = ["expression", "title", "description"]
            .iter()
            .filter_map(|key| value.find(&format!(",{key}=")))
            .min()
            .unwrap_or(value.len());
        let (value, after) = value.split_at(end);
        let field = match key {
            "expression" => &mut condition.expression,
            "title" => &mut condition.title,
            "description" => &mut condition.description,
            _ => return Err(format!("there is no {key:?} in a condition: {FORM}")),
        };
        if !field.is_empty() {
            return Err(format!("{key} is there twice: {FORM}"));
        }
        value.clone_into(field);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    if condition.expression.is_empty() || condition.title.is_empty() {
        return Err(format!("a condition has an expression and a title: {FORM}"));
    }
    Ok(condition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_as_gcloud_has_it() {
        let read = condition(
            "expression=request.verb in ['get', 'list'],title=Reads, only,description=a=b",
        );
        assert_eq!(
            read,
            Ok(Condition {
                expression: "request.verb in ['get', 'list']".into(),
                title: "Reads, only".into(),
                description: "a=b".into(),
            })
        );
        let other = condition("title=t,expression=request.path == '/a'").unwrap();
        assert_eq!(other.expression, "request.path == '/a'");
        for wrong in [
            "",
            "request.path == '/a'",
            "expression=true",
            "title=t",
            "titel=t,expression=true",
            "title=a,title=b,expression=true",
        ] {
            assert!(condition(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_member_says_of_which_kind_it_is() {
        for good in [
            "user:a:b",
            "group:Ops Team",
            "serviceAccount:ci@p",
            "principal://x",
            "principalSet://x/*",
        ] {
            assert!(member(good).is_ok(), "{good}");
        }
        for (wrong, says) in [
            ("alice", "user:alice"),
            ("users:alice", "user:alice"),
            ("user:", "user:alice"),
            ("principal:x", "principal://"),
        ] {
            assert!(member(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }
}
