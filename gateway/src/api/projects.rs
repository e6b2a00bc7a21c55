//! Projects and their policies.

use tonic::{Request, Response, Status};
use towline_proto::{
    api::{
        self, CreateProjectRequest, DeleteProjectRequest, DeleteProjectResponse,
        GetIamPolicyRequest, ListProjectsRequest, ListProjectsResponse, SetIamPolicyRequest,
        projects_server::Projects,
    },
    names::Project,
};

use super::{
    Api,
    caller::{name, timestamp},
    internal,
};
use crate::{
    iam::{Binding, Member, Permission, Policy, Principal},
    store::projects::ProjectError,
};

#[tonic::async_trait]
impl Projects for Api {
    async fn create(
        &self,
        request: Request<CreateProjectRequest>,
    ) -> Result<Response<api::Project>, Status> {
        let caller = self.operator(request.metadata()).await?;
        let message = request.into_inner();
        let project: Project = name("name", &message.name)?;
        let owner = if message.owner.is_empty() {
            caller.identity.principal
        } else {
            name("owner", &message.owner)?
        };
        self.known(&Member::Principal(owner.clone())).await?;
        let now = self.gateway.clock.unix();
        self.gateway
            .store
            .create_project(&project, &owner, now)
            .await
            .map_err(refused)?;
        Ok(Response::new(api::Project {
            name: project.to_string(),
            created: Some(timestamp(now)),
        }))
    }

    async fn list(
        &self,
        request: Request<ListProjectsRequest>,
    ) -> Result<Response<ListProjectsResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let mut projects = Vec::new();
        for (project, created) in self.gateway.store.projects().await.map_err(internal)? {
            let policy = self
                .gateway
                .store
                .policy(&project)
                .await
                .map_err(internal)?;
            let own =
                policy.is_some_and(|policy| policy.permits(&caller.identity, Permission::View));
            if caller.operator || own {
                projects.push(api::Project {
                    name: project.to_string(),
                    created: Some(timestamp(created)),
                });
            }
        }
        Ok(Response::new(ListProjectsResponse { projects }))
    }

    async fn delete(
        &self,
        request: Request<DeleteProjectRequest>,
    ) -> Result<Response<DeleteProjectResponse>, Status> {
        self.operator(request.metadata()).await?;
        let project: Project = name("name", &request.get_ref().name)?;
        self.gateway
            .store
            .delete_project(&project)
            .await
            .map_err(refused)?;
        Ok(Response::new(DeleteProjectResponse {}))
    }

    async fn get_iam_policy(
        &self,
        request: Request<GetIamPolicyRequest>,
    ) -> Result<Response<api::Policy>, Status> {
        let project: Project = name("project", &request.get_ref().project)?;
        let (_, policy) = self
            .permitted(request.metadata(), &project, Permission::View)
            .await?;
        Ok(Response::new(message(policy)))
    }

    async fn set_iam_policy(
        &self,
        request: Request<SetIamPolicyRequest>,
    ) -> Result<Response<api::Policy>, Status> {
        let project: Project = name("project", &request.get_ref().project)?;
        self.permitted(request.metadata(), &project, Permission::Administer)
            .await?;
        let policy = request
            .into_inner()
            .policy
            .ok_or_else(|| Status::invalid_argument("policy is missing"))?;
        let mut bindings: Vec<Binding> = Vec::new();
        for binding in policy.bindings {
            let role = name("policy.bindings.role", &binding.role)?;
            let members: Vec<Member> = binding
                .members
                .iter()
                .map(|member| name("policy.bindings.members", member))
                .collect::<Result<_, _>>()?;
            for member in &members {
                self.known(member).await?;
            }
            bindings.push(Binding { role, members });
        }
        let policy = Policy {
            etag: policy.etag,
            bindings,
        };
        let stored = self
            .gateway
            .store
            .set_policy(&project, &policy)
            .await
            .map_err(refused)?;
        Ok(Response::new(message(stored)))
    }
}

impl Api {
    /// A policy that names nobody is a typing error: it is refused while it can still be seen.
    async fn known(&self, member: &Member) -> Result<(), Status> {
        let Member::Principal(Principal::User(user)) = member else {
            return Ok(());
        };
        match self.gateway.store.user(user).await.map_err(internal)? {
            Some(_) => Ok(()),
            None => Err(Status::invalid_argument(format!(
                "member {:?} does not exist; create it first: towline users create {user}",
                member.to_string()
            ))),
        }
    }
}

fn message(policy: Policy) -> api::Policy {
    api::Policy {
        etag: policy.etag,
        bindings: policy
            .bindings
            .into_iter()
            .map(|binding| api::Binding {
                role: binding.role.to_string(),
                members: binding.members.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    }
}

fn refused(error: ProjectError) -> Status {
    let text = error.to_string();
    match error {
        ProjectError::Store(error) => internal(error),
        ProjectError::Exists(_) => Status::already_exists(text),
        ProjectError::Unknown(_) => Status::not_found(text),
        ProjectError::Etag(_) => Status::aborted(text),
        ProjectError::NotEmpty { .. } | ProjectError::NoOwner(_) => {
            Status::failed_precondition(text)
        }
    }
}
