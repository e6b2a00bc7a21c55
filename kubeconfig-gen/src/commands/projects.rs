//! `towline projects …`.

use towline_proto::{
    api::{
        Binding, CreateProjectRequest, DeleteProjectRequest, DeleteProjectResponse,
        GetIamPolicyRequest, ListProjectsRequest, ListProjectsResponse, Policy, Project,
        SetIamPolicyRequest, from_json,
    },
    names,
};

use super::{
    Error,
    context::{Context, call, refused},
    memberships::since,
};
use crate::{
    api::{Api, CallError},
    bounded,
    cli::ProjectsCommand,
    clock,
    output::remark,
    table::Table,
};

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
        ProjectsCommand::GetIamPolicy { name } => {
            let policy = policy(&api, &name).await?;
            show(context, &policy)
        }
        ProjectsCommand::SetIamPolicy { name, file } => {
            let text = bounded::read_to_string(&file)
                .map_err(|e| Error::Read(file.display().to_string(), e))?;
            let policy = parse(&text).map_err(|e| refused(format!("{}: {e}", file.display())))?;
            if policy.etag.is_empty() {
                return Err(refused(format!(
                    "{} has no etag, so a change made meanwhile would be lost; \
                     begin with: towline projects get-iam-policy {name} -o yaml > FILE",
                    file.display()
                )));
            }
            let request = SetIamPolicyRequest {
                project: name.to_string(),
                policy: Some(policy),
            };
            let policy: Policy = call(&api, "Projects/SetIamPolicy", &request).await?;
            show(context, &policy)
        }
        ProjectsCommand::AddIamPolicyBinding { name, member, role } => {
            change(context, &api, &name, |policy| {
                Ok(add(policy, &role, &member))
            })
            .await
        }
        ProjectsCommand::RemoveIamPolicyBinding { name, member, role } => {
            change(context, &api, &name, |policy| {
                if remove(policy, &role, &member) {
                    Ok(true)
                } else {
                    Err(refused(format!(
                        "{member} does not have {role} on project {name}; nothing was changed"
                    )))
                }
            })
            .await
        }
    }
}

/// Reads, changes and writes a policy; again when somebody else was faster.
async fn change(
    context: &Context,
    api: &Api,
    project: &names::Project,
    edit: impl Fn(&mut Policy) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut tries = TRIES;
    loop {
        let mut policy = policy(api, project).await?;
        if !edit(&mut policy)? {
            return show(context, &policy);
        }
        let request = SetIamPolicyRequest {
            project: project.to_string(),
            policy: Some(policy),
        };
        match call(api, "Projects/SetIamPolicy", &request).await {
            Ok(policy) => return show(context, &policy),
            Err(Error::Call(CallError::Refused(refusal)))
                if refusal.code == "aborted" && tries > 0 =>
            {
                tries -= 1
            }
            Err(error) => return Err(error),
        }
    }
}

async fn policy(api: &Api, project: &names::Project) -> Result<Policy, Error> {
    call(
        api,
        "Projects/GetIamPolicy",
        &GetIamPolicyRequest {
            project: project.to_string(),
        },
    )
    .await
}

/// Whether it made a difference.
fn add(policy: &mut Policy, role: &str, member: &str) -> bool {
    match policy
        .bindings
        .iter_mut()
        .find(|binding| binding.role == role)
    {
        Some(binding) if binding.members.iter().any(|known| known == member) => false,
        Some(binding) => {
            binding.members.push(member.to_owned());
            true
        }
        None => {
            policy.bindings.push(Binding {
                role: role.to_owned(),
                members: vec![member.to_owned()],
            });
            true
        }
    }
}

/// Whether it made a difference.
fn remove(policy: &mut Policy, role: &str, member: &str) -> bool {
    let mut removed = false;
    for binding in policy
        .bindings
        .iter_mut()
        .filter(|binding| binding.role == role)
    {
        let before = binding.members.len();
        binding.members.retain(|known| known != member);
        removed |= binding.members.len() < before;
    }
    policy
        .bindings
        .retain(|binding| !binding.members.is_empty());
    removed
}

/// JSON is YAML too.
fn parse(text: &str) -> Result<Policy, String> {
    let tree: serde_json::Value =
        serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string())?;
    from_json(tree.to_string().as_bytes()).map_err(|e| e.to_string())
}

fn show(context: &Context, policy: &Policy) -> Result<(), Error> {
    let text = || {
        let mut table = Table::new(["ROLE", "MEMBER"]);
        for binding in &policy.bindings {
            for member in &binding.members {
                table.row([binding.role.clone(), member.clone()]);
            }
        }
        table.render()
    };
    Ok(context.output.one(policy, &policy.etag, text)?)
}

/// As often as somebody else may be faster.
const TRIES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_come_and_go() {
        let mut policy = Policy {
            etag: "e".into(),
            ..Policy::default()
        };
        assert!(add(&mut policy, "owner", "user:a"));
        assert!(add(&mut policy, "owner", "user:b"));
        assert!(!add(&mut policy, "owner", "user:b"));
        assert_eq!(policy.bindings.len(), 1);
        assert!(!remove(&mut policy, "owner", "user:c"));
        assert!(remove(&mut policy, "owner", "user:a"));
        assert!(remove(&mut policy, "owner", "user:b"));
        assert!(policy.bindings.is_empty());
    }

    #[test]
    fn a_policy_is_read_as_it_is_printed() {
        let text = "bindings:\n- role: owner\n  members:\n  - user:a\netag: '1'\n";
        let policy = parse(text).unwrap();
        assert_eq!(
            (policy.bindings[0].members[0].as_str(), policy.etag.as_str()),
            ("user:a", "1")
        );
        assert_eq!(parse(r#"{"etag": "1"}"#).unwrap().etag, "1");
        assert!(parse("bindigns: []").unwrap_err().contains("bindigns"));
    }
}
