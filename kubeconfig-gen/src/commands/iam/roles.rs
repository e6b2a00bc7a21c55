//! `towline iam roles …`.

use towline_proto::api::{
    CreateRoleRequest, DeleteRoleRequest, DeleteRoleResponse, GetRoleRequest, ListRolesRequest,
    ListRolesResponse, Role, UpdateRoleRequest,
};

use super::super::{
    Error,
    context::{Context, call},
};
use crate::{api::Api, cli::RolesCommand, output::remark, table::Table};

pub(super) async fn run(context: &Context, command: RolesCommand) -> Result<(), Error> {
    let api = context.api()?;
    match command {
        RolesCommand::List => list(context, &api).await,
        RolesCommand::Describe { role } => {
            let name = name(context, &api, role).await?;
            let role = read(&api, name).await?;
            show(context, &role)
        }
        RolesCommand::Create {
            role,
            permissions,
            title,
            description,
        } => {
            let role = Role {
                name: own_name(context, &api, role).await?,
                title,
                description,
                permissions,
                ..Role::default()
            };
            let request = CreateRoleRequest { role: Some(role) };
            let role: Role = call(&api, "Iam/CreateRole", &request).await?;
            remark(&format!("Created role {}.", role.name));
            show(context, &role)
        }
        RolesCommand::Update {
            role,
            permissions,
            add_permissions,
            remove_permissions,
            title,
            description,
        } => {
            let mut role = read(&api, own_name(context, &api, role).await?).await?;
            if !permissions.is_empty() {
                role.permissions = permissions;
            }
            role.permissions.extend(add_permissions);
            role.permissions
                .retain(|held| !remove_permissions.contains(held));
            role.title = title.unwrap_or(role.title);
            role.description = description.unwrap_or(role.description);
            let request = UpdateRoleRequest { role: Some(role) };
            let role: Role = call(&api, "Iam/UpdateRole", &request).await?;
            show(context, &role)
        }
        RolesCommand::Delete { role, yes } => {
            let name = own_name(context, &api, role).await?;
            if !yes {
                context.confirm(
                    &format!("Delete role {name}?"),
                    &format!("deleting role {name} needs a yes; add --yes"),
                )?;
            }
            let request = DeleteRoleRequest { name: name.clone() };
            let _: DeleteRoleResponse = call(&api, "Iam/DeleteRole", &request).await?;
            remark(&format!("Deleted role {name}."));
            Ok(())
        }
    }
}

async fn list(context: &Context, api: &Api) -> Result<(), Error> {
    let project = context.project()?;
    let request = ListRolesRequest {
        project: project
            .map(|project| project.to_string())
            .unwrap_or_default(),
    };
    let answer: ListRolesResponse = call(api, "Iam/ListRoles", &request).await?;
    let wide = context.output.is_wide();
    let table = || {
        let mut titles = vec!["NAME", "TITLE"];
        if wide {
            titles.push("PERMISSIONS");
        }
        let mut table = Table::new(titles);
        for role in &answer.roles {
            let mut cells = vec![role.name.clone(), role.title.clone()];
            if wide {
                cells.push(role.permissions.join(" "));
            }
            table.row(cells);
        }
        table
    };
    Ok(context
        .output
        .list(&answer.roles, |role| role.name.clone(), table)?)
}

async fn read(api: &Api, name: String) -> Result<Role, Error> {
    call(api, "Iam/GetRole", &GetRoleRequest { name }).await
}

/// A predefined role's name as it is, or a project's own as [`own_name`] has it.
async fn name(context: &Context, api: &Api, role: String) -> Result<String, Error> {
    let request = ListRolesRequest::default();
    let predefined: ListRolesResponse = call(api, "Iam/ListRoles", &request).await?;
    if predefined.roles.iter().any(|known| known.name == role) {
        return Ok(role);
    }
    own_name(context, api, role).await
}

/// `projects/P/roles/NAME`, where the name alone may have been typed.
async fn own_name(context: &Context, api: &Api, role: String) -> Result<String, Error> {
    if role.contains('/') {
        return Ok(role);
    }
    let project = context.project_or_only(api).await?;
    Ok(format!("projects/{project}/roles/{role}"))
}

fn show(context: &Context, role: &Role) -> Result<(), Error> {
    let text = || {
        let mut text = format!("Name:        {}\n", role.name);
        for (title, value) in [("Title:", &role.title), ("Description:", &role.description)] {
            if !value.is_empty() {
                text += &format!("{title:<13}{value}\n");
            }
        }
        text += "Permissions:\n";
        for permission in &role.permissions {
            text += &format!("  {permission}\n");
        }
        text
    };
    Ok(context.output.one(role, &role.name, text)?)
}
