//! `towline memberships …`.

use towline_proto::{
    api::{
        DeleteMembershipRequest, DeleteMembershipResponse, GetMembershipRequest,
        ListMembershipsRequest, ListMembershipsResponse, Membership, UpdateMembershipRequest,
        membership::State,
    },
    names,
};

use super::{
    Error,
    context::{Context, call, name_of},
    gateway_rbac, get_credentials, policy, register,
};
use crate::{
    api::Api,
    cli::{MembershipRef, MembershipsCommand, PolicyCommand},
    clock,
    output::remark,
    table::Table,
};

pub(super) async fn run(context: &Context, command: MembershipsCommand) -> Result<(), Error> {
    match command {
        MembershipsCommand::Register(args) => register::run(context, *args).await,
        MembershipsCommand::List => list(context).await,
        MembershipsCommand::Describe(membership) => describe(context, &membership).await,
        MembershipsCommand::Delete { membership, yes } => delete(context, &membership, yes).await,
        MembershipsCommand::Update {
            membership,
            labels,
            remove_labels,
            clear_labels,
        } => {
            let api = context.api()?;
            let name = full(context, &api, &membership).await?;
            let request = UpdateMembershipRequest {
                project: name.project.to_string(),
                location: name.location.to_string(),
                name: name.id.to_string(),
                labels: labels.into_iter().collect(),
                remove_labels,
                clear_labels,
            };
            let found: Membership = call(&api, "Memberships/Update", &request).await?;
            let text = || format!("Labels of {name}: {}\n", labels_of(&found));
            Ok(context.output.one(&found, &name.to_string(), text)?)
        }
        MembershipsCommand::Policy(command) => policies(context, command).await,
        MembershipsCommand::GenerateGatewayRbac(args) => gateway_rbac::run(context, *args).await,
        MembershipsCommand::GetCredentials(args) => get_credentials::run(context, args).await,
    }
}

async fn policies(context: &Context, command: PolicyCommand) -> Result<(), Error> {
    let api = context.api()?;
    let (PolicyCommand::GetIamPolicy(membership)
    | PolicyCommand::SetIamPolicy { membership, .. }
    | PolicyCommand::AddIamPolicyBinding { membership, .. }
    | PolicyCommand::RemoveIamPolicyBinding { membership, .. }) = &command;
    let resource = full(context, &api, membership).await?.to_string();
    match command {
        PolicyCommand::GetIamPolicy(_) => policy::get(context, &resource).await,
        PolicyCommand::SetIamPolicy { file, .. } => {
            policy::set(context, &resource, "memberships", &file).await
        }
        PolicyCommand::AddIamPolicyBinding { binding, .. } => {
            policy::add(context, &resource, &binding).await
        }
        PolicyCommand::RemoveIamPolicyBinding { binding, all, .. } => {
            policy::remove(context, &resource, &binding, all).await
        }
    }
}

/// The whole name of what was typed.
async fn full(
    context: &Context,
    api: &Api,
    membership: &MembershipRef,
) -> Result<names::Membership, Error> {
    let location = membership.location.location.as_ref();
    context.resolve(api, &membership.name, location).await
}

/// `env=prod,team=web`, by key.
fn labels_of(membership: &Membership) -> String {
    let mut labels: Vec<String> = membership
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    labels.join(",")
}

async fn list(context: &Context) -> Result<(), Error> {
    let api = context.api()?;
    let project = context.project()?;
    let request = ListMembershipsRequest {
        project: project
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    let answer: ListMembershipsResponse = call(&api, "Memberships/List", &request).await?;
    let found = answer.memberships;
    if found.is_empty() && context.output.is_for_people() {
        let place = project.map_or_else(
            || "any project that you may see".to_owned(),
            |p| format!("project {p}"),
        );
        remark(&format!(
            "No memberships in {place}. Next: towline memberships register NAME"
        ));
        return Ok(());
    }
    let wide = context.output.is_wide();
    let table = || table(&found, &api, wide, clock::unix_now());
    Ok(context.output.list(&found, full_name, table)?)
}

fn table(memberships: &[Membership], api: &Api, wide: bool, now: u64) -> Table {
    let mut titles = vec![
        "NAME",
        "LOCATION",
        "EXTERNAL ID",
        "KUBERNETES",
        "AGENT",
        "STATUS",
        "SINCE",
    ];
    if wide {
        titles.extend(["PROJECT", "SESSIONS", "LABELS", "SERVER"]);
    }
    let mut table = Table::new(titles);
    for membership in memberships {
        let mut cells = vec![
            membership.name.clone(),
            membership.location.clone(),
            membership.external_id.clone(),
            membership.kubernetes_version.clone(),
            membership.agent_version.clone(),
            status(membership).to_owned(),
            since(membership.state_since.as_ref(), now),
        ];
        if wide {
            let server = name_of(membership)
                .map(|name| api.gateway().of_membership(&name))
                .unwrap_or_default();
            cells.extend([
                membership.project.clone(),
                membership.sessions.to_string(),
                labels_of(membership),
                server,
            ]);
        }
        table.row(cells);
    }
    table
}

async fn describe(context: &Context, membership: &MembershipRef) -> Result<(), Error> {
    let api = context.api()?;
    let name = context
        .resolve(
            &api,
            &membership.name,
            membership.location.location.as_ref(),
        )
        .await?;
    let request = GetMembershipRequest {
        project: name.project.to_string(),
        location: name.location.to_string(),
        name: name.id.to_string(),
    };
    let found: Membership = call(&api, "Memberships/Get", &request).await?;
    let text = || {
        let now = clock::unix_now();
        let lines = [
            ("Name:", found.name.clone()),
            ("Project:", found.project.clone()),
            ("Location:", found.location.clone()),
            ("Status:", status(&found).to_owned()),
            ("Since:", since(found.state_since.as_ref(), now)),
            ("Labels:", labels_of(&found)),
            ("Sessions:", found.sessions.to_string()),
            ("Kubernetes:", found.kubernetes_version.clone()),
            ("Agent:", found.agent_version.clone()),
            ("External ID:", found.external_id.clone()),
            (
                "Created:",
                found
                    .created
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            ),
            ("Server:", api.gateway().of_membership(&name)),
        ];
        let none = |value: String| {
            if value.is_empty() {
                "<none>".to_owned()
            } else {
                value
            }
        };
        lines
            .into_iter()
            .map(|(title, value)| format!("{title:<13}{}\n", none(value)))
            .collect()
    };
    Ok(context.output.one(&found, &name.to_string(), text)?)
}

async fn delete(context: &Context, membership: &MembershipRef, yes: bool) -> Result<(), Error> {
    let api = context.api()?;
    let name = context
        .resolve(
            &api,
            &membership.name,
            membership.location.location.as_ref(),
        )
        .await?;
    if !yes {
        context.confirm(
            &format!("Delete {name}? Its agent can't connect any more."),
            &format!("deleting {name} needs a yes; add --yes"),
        )?;
    }
    let request = DeleteMembershipRequest {
        project: name.project.to_string(),
        location: name.location.to_string(),
        name: name.id.to_string(),
    };
    let _: DeleteMembershipResponse = call(&api, "Memberships/Delete", &request).await?;
    remark(&format!(
        "Deleted {name}. Its kubeconfig entries stay; kubectl config delete-context NAME takes them out."
    ));
    Ok(())
}

fn full_name(membership: &Membership) -> String {
    name_of(membership).map_or_else(
        |_| membership.name.clone(),
        |name: names::Membership| name.to_string(),
    )
}

fn status(membership: &Membership) -> &'static str {
    match membership.state() {
        State::Connected => "Connected",
        State::Disconnected => "Disconnected",
        State::Pending => "Pending",
        State::Unspecified => "Unknown",
    }
}

pub(super) fn since(moment: Option<&prost_types::Timestamp>, now: u64) -> String {
    moment.map_or_else(String::new, |moment| {
        clock::age(now.saturating_sub(u64::try_from(moment.seconds).unwrap_or(0)))
    })
}
