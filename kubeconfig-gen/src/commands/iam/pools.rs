//! `towline iam workload-identity-pools …`.

use towline_proto::api::{
    CreatePoolRequest, DeletePoolResponse, DeleteProviderResponse, ListPoolsRequest,
    ListPoolsResponse, ListProvidersResponse, Pool, PoolRequest, Provider, ProviderRequest,
};

use super::{
    super::{
        Error,
        context::{Context, call, refused},
        memberships::since,
    },
    cred_config, mapping,
};
use crate::{
    api::Api,
    bounded,
    cli::{OidcProvider, PoolsCommand, ProvidersCommand},
    clock,
    output::remark,
    table::Table,
};

pub(super) async fn run(context: &Context, command: PoolsCommand) -> Result<(), Error> {
    let command = match command {
        PoolsCommand::CreateCredConfig(args) => return cred_config::run(context, args),
        other => other,
    };
    let api = context.api()?;
    let project = context.project_or_only(&api).await?.to_string();
    match command {
        PoolsCommand::Create { name, display_name } => {
            let request = CreatePoolRequest {
                project,
                name,
                display_name,
            };
            let pool: Pool = call(&api, "WorkloadIdentity/CreatePool", &request).await?;
            remark(&format!(
                "Created {0}. Next: towline iam workload-identity-pools providers create-oidc NAME --pool {0}",
                pool.name
            ));
            Ok(context.output.one(&pool, &pool.resource, || {
                pools(std::slice::from_ref(&pool)).render()
            })?)
        }
        PoolsCommand::List => {
            let answer: ListPoolsResponse = call(
                &api,
                "WorkloadIdentity/ListPools",
                &ListPoolsRequest { project },
            )
            .await?;
            Ok(context.output.list(
                &answer.pools,
                |pool| pool.resource.clone(),
                || pools(&answer.pools),
            )?)
        }
        PoolsCommand::Delete { name, yes } => {
            if !yes {
                context.confirm(
                    &format!("Delete pool {name} with its providers? What runs with them ends."),
                    &format!("deleting pool {name} needs a yes; add --yes"),
                )?;
            }
            let request = PoolRequest {
                project,
                pool: name,
            };
            let _: DeletePoolResponse = call(&api, "WorkloadIdentity/DeletePool", &request).await?;
            remark(&format!("Deleted pool {}.", request.pool));
            Ok(())
        }
        PoolsCommand::Providers(command) => provider(context, &api, project, *command).await,
        PoolsCommand::CreateCredConfig(_) => Ok(()),
    }
}

async fn provider(
    context: &Context,
    api: &Api,
    project: String,
    command: ProvidersCommand,
) -> Result<(), Error> {
    match command {
        ProvidersCommand::CreateOidc(args) => {
            for (given, flag) in [
                (args.issuer_uri.is_some(), "--issuer-uri"),
                (args.attribute_mapping.is_some(), "--attribute-mapping"),
            ] {
                if !given {
                    return Err(refused(format!("a provider needs {flag}")));
                }
            }
            let new = Provider {
                project,
                pool: args.pool.clone(),
                name: args.name.clone(),
                ..Provider::default()
            };
            let request = changed(new, args)?;
            let made: Provider = call(api, "WorkloadIdentity/CreateProvider", &request).await?;
            remark(&format!(
                "Created {}; workloads name it so when they sign in.",
                made.name
            ));
            show(context, &made)
        }
        ProvidersCommand::UpdateOidc(args) => {
            let request = ProviderRequest {
                project,
                pool: args.pool.clone(),
                name: args.name.clone(),
            };
            let old: Provider = call(api, "WorkloadIdentity/GetProvider", &request).await?;
            let request = changed(old, args)?;
            let updated: Provider = call(api, "WorkloadIdentity/UpdateProvider", &request).await?;
            remark("Tokens that came of it before have ended.");
            show(context, &updated)
        }
        ProvidersCommand::List { pool } => {
            let request = PoolRequest { project, pool };
            let answer: ListProvidersResponse =
                call(api, "WorkloadIdentity/ListProviders", &request).await?;
            Ok(context.output.list(
                &answer.providers,
                |provider| provider.resource.clone(),
                || providers(&answer.providers),
            )?)
        }
        ProvidersCommand::Delete { name, pool, yes } => {
            if !yes {
                context.confirm(
                    &format!("Delete provider {name} of {pool}? What runs with it ends."),
                    &format!("deleting provider {name} needs a yes; add --yes"),
                )?;
            }
            let request = ProviderRequest {
                project,
                pool,
                name,
            };
            let _: DeleteProviderResponse =
                call(api, "WorkloadIdentity/DeleteProvider", &request).await?;
            remark(&format!("Deleted provider {}.", request.name));
            Ok(())
        }
    }
}

/// A provider with what was typed over what it had.
fn changed(old: Provider, args: OidcProvider) -> Result<Provider, Error> {
    let mapping = match args.attribute_mapping {
        Some(text) => mapping::parse(&text)
            .map_err(refused)?
            .into_iter()
            .collect(),
        None => old.attribute_mapping,
    };
    let keys = match args.jwks_file {
        Some(file) => bounded::read_to_string(&file)
            .map_err(|e| Error::Read(file.display().to_string(), e))?,
        None => old.jwks_json,
    };
    Ok(Provider {
        issuer_uri: args.issuer_uri.unwrap_or(old.issuer_uri),
        allowed_audiences: args.allowed_audiences.unwrap_or(old.allowed_audiences),
        attribute_mapping: mapping,
        attribute_condition: args.attribute_condition.unwrap_or(old.attribute_condition),
        jwks_json: keys,
        allow_direct_bearer: args.allow_direct_bearer.unwrap_or(old.allow_direct_bearer),
        disabled: args.disabled.unwrap_or(old.disabled),
        // The gateway sets these.
        resource: String::new(),
        created: None,
        project: old.project,
        pool: old.pool,
        name: old.name,
    })
}

fn show(context: &Context, provider: &Provider) -> Result<(), Error> {
    Ok(context.output.one(provider, &provider.resource, || {
        providers(std::slice::from_ref(provider)).render()
    })?)
}

fn pools(pools: &[Pool]) -> Table {
    let now = clock::unix_now();
    let mut table = Table::new(["POOL", "STATUS", "AGE", "RESOURCE"]);
    for pool in pools {
        table.row([
            pool.name.clone(),
            status(pool.disabled),
            since(pool.created.as_ref(), now),
            pool.resource.clone(),
        ]);
    }
    table
}

fn providers(providers: &[Provider]) -> Table {
    let now = clock::unix_now();
    let mut table = Table::new([
        "PROVIDER",
        "ISSUER",
        "STATUS",
        "AGE",
        "CONDITION",
        "RESOURCE",
    ]);
    for provider in providers {
        table.row([
            provider.name.clone(),
            provider.issuer_uri.clone(),
            status(provider.disabled),
            since(provider.created.as_ref(), now),
            provider.attribute_condition.clone(),
            provider.resource.clone(),
        ]);
    }
    table
}

fn status(disabled: bool) -> String {
    if disabled { "Disabled" } else { "Enabled" }.to_owned()
}
