//! `towline projects …`.

use towline_proto::{
    api::{
        CreateProjectRequest, DeleteProjectRequest, DeleteProjectResponse, ListProjectsRequest,
        ListProjectsResponse, Project,
    },
    names,
};

use super::{
    Error,
    context::{Context, call},
    memberships::since,
    policy,
};
use crate::{cli::ProjectsCommand, clock, output::remark, table::Table};

pub(super) async fn run(context: &Context, command: ProjectsCommand) -> Result<(), Error> {
    let api = context.api()?;
    match command {
        ProjectsCommand::Create { name, owner } => {
            let request = CreateProjectRequest {
                name: name.to_string(),
                owner: owner.unwrap_or_default(),
            };
            let project: Project = call(&api, "Projects/Create", &request).await?;
            remark(&format!("Created project {name}."));
            let text = || format!("Next: towline memberships register NAME --project {name}\n");
            Ok(context.output.one(&project, &project.name, text)?)
        }
        ProjectsCommand::List => {
            let answer: ListProjectsResponse =
                call(&api, "Projects/List", &ListProjectsRequest {}).await?;
            if answer.projects.is_empty() && context.output.is_for_people() {
                remark(
                    "No projects that you may see. Next, as a gateway operator: towline projects create NAME",
                );
                return Ok(());
            }
            let now = clock::unix_now();
            let table = || {
                let mut table = Table::new(["NAME", "AGE"]);
                for project in &answer.projects {
                    table.row([project.name.clone(), since(project.created.as_ref(), now)]);
                }
                table
            };
            Ok(context
                .output
                .list(&answer.projects, |project| project.name.clone(), table)?)
        }
        ProjectsCommand::Delete { name, yes } => {
            if !yes {
                context.confirm(
                    &format!("Delete project {name} with its policy?"),
                    &format!("deleting project {name} needs a yes; add --yes"),
                )?;
            }
            let request = DeleteProjectRequest {
                name: name.to_string(),
            };
            let _: DeleteProjectResponse = call(&api, "Projects/Delete", &request).await?;
            remark(&format!("Deleted project {name}."));
            Ok(())
        }
        ProjectsCommand::GetIamPolicy { name } => policy::get(context, &resource(&name)).await,
        ProjectsCommand::SetIamPolicy { name, file } => {
            policy::set(context, &resource(&name), "projects", &file).await
        }
        ProjectsCommand::AddIamPolicyBinding { name, binding } => {
            policy::add(context, &resource(&name), &binding).await
        }
        ProjectsCommand::RemoveIamPolicyBinding { name, binding, all } => {
            policy::remove(context, &resource(&name), &binding, all).await
        }
    }
}

fn resource(project: &names::Project) -> String {
    format!("projects/{project}")
}
