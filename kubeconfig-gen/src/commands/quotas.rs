//! `towline quotas …`.

use towline_proto::api::{ListQuotasRequest, ListQuotasResponse, Quota, SetQuotaRequest};

use super::{
    Error,
    context::{Context, call},
};
use crate::{
    cli::{QuotasCommand, SetQuota},
    table::Table,
};

pub(super) async fn run(context: &Context, command: QuotasCommand) -> Result<(), Error> {
    let api = context.api()?;
    let project = context.project_or_only(&api).await?.to_string();
    match command {
        QuotasCommand::List { member } => {
            let request = ListQuotasRequest {
                project,
                member: member.unwrap_or_default(),
            };
            let answer: ListQuotasResponse = call(&api, "Quotas/List", &request).await?;
            Ok(context
                .output
                .list(&answer.quotas, name, || table(&answer.quotas))?)
        }
        QuotasCommand::Set(SetQuota {
            quota,
            member,
            default,
            limit,
            unset: _,
        }) => {
            let holder = match member {
                Some(member) => member,
                None if default => "default".to_owned(),
                None => "project".to_owned(),
            };
            let request = SetQuotaRequest {
                project,
                quota: quota.name().to_owned(),
                holder,
                limit,
            };
            let quota: Quota = call(&api, "Quotas/Set", &request).await?;
            let quotas = std::slice::from_ref(&quota);
            let text = || table(quotas).render();
            Ok(context.output.one(&quota, &name(&quota), text)?)
        }
    }
}

fn name(quota: &Quota) -> String {
    format!("{} {}", quota.holder, quota.quota)
}

fn table(quotas: &[Quota]) -> Table {
    let mut table = Table::new(["HOLDER", "QUOTA", "LIMIT", "IN USE", "LIMIT FROM"]);
    for quota in quotas {
        let from = if quota.set {
            "this holder"
        } else {
            match quota.holder.as_str() {
                "project" | "default" => "the gateway",
                _ => "default",
            }
        };
        table.row([
            quota.holder.clone(),
            quota.quota.clone(),
            quota
                .limit
                .map_or_else(|| "none".to_owned(), |limit| limit.to_string()),
            quota
                .in_use
                .map_or_else(|| "-".to_owned(), |used| used.to_string()),
            from.to_owned(),
        ]);
    }
    table
}
