//! `towline service-accounts …`.

use towline_proto::{
    api::{
        CreateServiceAccountRequest, DeleteServiceAccountResponse, ListServiceAccountsRequest,
        ListServiceAccountsResponse, ServiceAccount, ServiceAccountRequest,
        SetServiceAccountDisabledRequest,
    },
    names::Project,
};

use super::{
    Error,
    context::{Context, call, refused},
    memberships::since,
    policy,
};
use crate::{
    api::{Api, CallError},
    cli::ServiceAccountsCommand,
    clock,
    nearest::nearest,
    output::remark,
    service_account,
    table::Table,
};

pub(super) async fn run(context: &Context, command: ServiceAccountsCommand) -> Result<(), Error> {
    let api = context.api()?;
    let Some(name) = command.name() else {
        return list(context, &api).await;
    };
    let (project, name) = resolve(context, &api, name).await?;
    let account = || ServiceAccountRequest {
        project: project.clone(),
        name: name.clone(),
    };
    let resource = || format!("projects/{project}/serviceAccounts/{name}");
    let answer = match command {
        ServiceAccountsCommand::List => return Ok(()),
        ServiceAccountsCommand::GetIamPolicy { .. } => {
            return policy::get(context, &resource()).await;
        }
        ServiceAccountsCommand::SetIamPolicy { file, .. } => {
            return policy::set(context, &resource(), "service-accounts", &file).await;
        }
        ServiceAccountsCommand::AddIamPolicyBinding { binding, .. } => {
            return policy::add(context, &resource(), &binding).await;
        }
        ServiceAccountsCommand::RemoveIamPolicyBinding { binding, all, .. } => {
            return policy::remove(context, &resource(), &binding, all).await;
        }
        ServiceAccountsCommand::Create { display_name, .. } => {
            let request = CreateServiceAccountRequest {
                project,
                name,
                display_name,
            };
            let made: ServiceAccount = call(&api, "ServiceAccounts/Create", &request).await?;
            remark(&format!(
                "Created {0}. Next: towline service-accounts add-iam-policy-binding {0} --member user:NAME --role \
                 serviceAccountTokenCreator",
                made.account
            ));
            return show(context, &made);
        }
        ServiceAccountsCommand::Delete { yes, .. } => {
            if !yes {
                context.confirm(
                    &format!("Delete {name}@{project}? What runs with it ends."),
                    &format!("deleting {name}@{project} needs a yes; add --yes"),
                )?;
            }
            let gone: Result<DeleteServiceAccountResponse, Error> =
                call(&api, "ServiceAccounts/Delete", &account()).await;
            known(&api, &project, &name, gone).await?;
            remark(&format!("Deleted {name}@{project}."));
            return Ok(());
        }
        ServiceAccountsCommand::Disable { .. } | ServiceAccountsCommand::Enable { .. } => {
            let request = SetServiceAccountDisabledRequest {
                project: project.clone(),
                name: name.clone(),
                disabled: matches!(command, ServiceAccountsCommand::Disable { .. }),
            };
            call(&api, "ServiceAccounts/SetDisabled", &request).await
        }
        ServiceAccountsCommand::RevokeTokens { .. } => {
            call(&api, "ServiceAccounts/RevokeTokens", &account()).await
        }
    };
    let changed: ServiceAccount = known(&api, &project, &name, answer).await?;
    show(context, &changed)
}

/// The project and name of an account: NAME@PROJECT, or NAME in the project that is meant.
pub(super) async fn resolve(
    context: &Context,
    api: &Api,
    text: &str,
) -> Result<(String, String), Error> {
    let whole = if text.contains('@') {
        text.to_owned()
    } else {
        format!("{text}@{}", context.project_or_only(api).await?)
    };
    let account = service_account::account(&whole)?;
    match account.split_once('@') {
        Some((name, project)) => Ok((project.to_owned(), name.to_owned())),
        None => Err(refused(format!("{text:?} is no service account"))),
    }
}

/// Says which account may have been meant, where there is none of that name.
async fn known<Answer>(
    api: &Api,
    project: &str,
    name: &str,
    answer: Result<Answer, Error>,
) -> Result<Answer, Error> {
    let refusal = match answer {
        Err(Error::Call(CallError::Refused(refusal))) if refusal.code == "not_found" => refusal,
        other => return other,
    };
    let all = accounts(api, project).await.unwrap_or_default();
    let near = nearest(name, all.iter().map(|account| account.name.as_str()));
    Err(refused(match near {
        Some(near) => format!("{refusal}; did you mean {near}@{project}?"),
        None => {
            format!("{refusal}; run: towline service-accounts list --project {project}")
        }
    }))
}

async fn accounts(api: &Api, project: &str) -> Result<Vec<ServiceAccount>, Error> {
    let request = ListServiceAccountsRequest {
        project: project.to_owned(),
    };
    let answer: ListServiceAccountsResponse = call(api, "ServiceAccounts/List", &request).await?;
    Ok(answer.service_accounts)
}

async fn list(context: &Context, api: &Api) -> Result<(), Error> {
    let project: Project = context.project_or_only(api).await?;
    let accounts = accounts(api, project.as_str()).await?;
    if accounts.is_empty() && context.output.is_for_people() {
        remark(&format!(
            "No service accounts in project {project}. Next: towline service-accounts create NAME"
        ));
        return Ok(());
    }
    Ok(context.output.list(
        &accounts,
        |account| account.account.clone(),
        || table(&accounts),
    )?)
}

fn show(context: &Context, account: &ServiceAccount) -> Result<(), Error> {
    Ok(context.output.one(account, &account.account, || {
        table(std::slice::from_ref(account)).render()
    })?)
}

fn table(accounts: &[ServiceAccount]) -> Table {
    let now = clock::unix_now();
    let mut table = Table::new(["ACCOUNT", "STATUS", "AGE", "FOR"]);
    for account in accounts {
        table.row([
            account.account.clone(),
            if account.disabled {
                "Disabled"
            } else {
                "Enabled"
            }
            .to_owned(),
            since(account.created.as_ref(), now),
            account.display_name.clone(),
        ]);
    }
    table
}
