//! `towline config …` and `towline version`.

use serde_json::json;

use super::{
    Error,
    context::{Context, refused},
};
use crate::{
    cli::{ConfigCommand, ConfigKey},
    gateway_url::GatewayUrl,
    output::remark,
    service_account::ActAs,
    table::Table,
};

pub(super) async fn run(context: &Context, command: ConfigCommand) -> Result<(), Error> {
    match command {
        ConfigCommand::Set {
            key: ConfigKey::Gateway,
            value,
        } => {
            let known = context.dir.gateways()?;
            let by_url = || {
                value
                    .parse::<GatewayUrl>()
                    .map(|url| url.name())
                    .unwrap_or_default()
            };
            let name = if known.contains(&value) {
                value.clone()
            } else {
                by_url()
            };
            if !known.contains(&name) {
                return Err(refused(format!(
                    "{value:?} is no gateway that you signed in at; run: towline login {value}"
                )));
            }
            context.dir.set_current(Some(name.clone()))?;
            remark(&format!("{name} is the current gateway."));
        }
        ConfigCommand::Set {
            key: ConfigKey::Project,
            value,
        } => {
            let project = value
                .parse()
                .map_err(|e: towline_proto::names::InvalidName| refused(e.to_string()))?;
            let mut known = context.known()?;
            known.settings.project = Some(project);
            context
                .dir
                .set_gateway(&known.url.name(), &known.settings)?;
            remark(&format!(
                "{value} is the default project at {}.",
                known.url.authority()
            ));
        }
        ConfigCommand::Set {
            key: ConfigKey::ImpersonateServiceAccount,
            value,
        } => {
            let act_as: ActAs = value.parse()?;
            let mut known = context.known()?;
            known.settings.impersonate_service_account = Some(act_as.to_string());
            context
                .dir
                .set_gateway(&known.url.name(), &known.settings)?;
            remark(&format!(
                "Commands at {} act as {act_as}, and so will kubectl with kubeconfigs written from now on: \
                 towline get-credentials NAME",
                known.url.authority()
            ));
        }
        ConfigCommand::Get { key } => {
            let known = context.known()?;
            let value = match key {
                ConfigKey::Gateway => Some(known.url.to_string()),
                ConfigKey::Project => known.settings.project.map(|project| project.to_string()),
                ConfigKey::ImpersonateServiceAccount => known.settings.impersonate_service_account,
            };
            let Some(value) = value else {
                return Err(refused(match key {
                    ConfigKey::ImpersonateServiceAccount => {
                        "no service account is set; run: \
                         towline config set auth/impersonate_service_account NAME@PROJECT"
                    }
                    _ => "no project is set; run: towline config set project NAME",
                }));
            };
            context.output.text(&format!("{value}\n"))?;
        }
        ConfigCommand::List => return list(context),
        ConfigCommand::Unset {
            key: ConfigKey::Gateway,
        } => context.dir.set_current(None)?,
        ConfigCommand::Unset {
            key: key @ (ConfigKey::Project | ConfigKey::ImpersonateServiceAccount),
        } => {
            let mut known = context.known()?;
            if key == ConfigKey::Project {
                known.settings.project = None;
            } else {
                known.settings.impersonate_service_account = None;
            }
            context
                .dir
                .set_gateway(&known.url.name(), &known.settings)?;
        }
    }
    Ok(())
}

fn list(context: &Context) -> Result<(), Error> {
    let current = context.dir.current()?;
    let names = context.dir.gateways()?;
    if names.is_empty() && context.output.is_for_people() {
        remark("No gateway is known yet. Next: towline login https://HOST");
        return Ok(());
    }
    let mut table = Table::new(["CURRENT", "NAME", "GATEWAY", "USER", "PROJECT"]);
    let mut values = Vec::new();
    for name in names {
        let Some(settings) = context.dir.gateway(&name)? else {
            continue;
        };
        let is_current = current.as_ref() == Some(&name);
        values.push(json!({
            "name": name,
            "gateway": settings.gateway,
            "username": settings.username,
            "project": settings.project,
            "impersonateServiceAccount": settings.impersonate_service_account,
            "current": is_current,
        }));
        table.row([
            if is_current { "*" } else { " " }.to_owned(),
            name,
            settings.gateway,
            settings.username.unwrap_or_default(),
            settings
                .project
                .map(|project| project.to_string())
                .unwrap_or_default(),
        ]);
    }
    if context.output.is_for_people() {
        Ok(context.output.text(&table.render())?)
    } else {
        Ok(context.output.value(&serde_json::Value::Array(values))?)
    }
}

pub(super) fn version(context: &Context) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.is_for_people() {
        return Ok(context.output.text(&format!("towline {version}\n"))?);
    }
    let value = json!({
        "version": version,
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    });
    Ok(context.output.value(&value)?)
}
