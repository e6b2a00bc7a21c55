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
    iam::{Member, Permission},
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
            let own = self
                .may(&caller, &(&project).into(), Permission::ProjectsGet)
                .await?
                .allowed();
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
        self.permitted(
            request.metadata(),
            &project,
            Permission::ProjectsGetIamPolicy,
        )
        .await?;
        self.read_policy(&project.into()).await.map(Response::new)
    }

    async fn set_iam_policy(
        &self,
        request: Request<SetIamPolicyRequest>,
    ) -> Result<Response<api::Policy>, Status> {
        let project: Project = name("project", &request.get_ref().project)?;
        self.permitted(
            request.metadata(),
            &project,
            Permission::ProjectsSetIamPolicy,
        )
        .await?;
        let policy = request.into_inner().policy;
        self.write_policy(&project.into(), policy)
            .await
            .map(Response::new)
    }
}

fn refused(error: ProjectError) -> Status {
    let text = error.to_string();
    match error {
        ProjectError::Store(error) => internal(error),
        ProjectError::Exists(_) => Status::already_exists(text),
        ProjectError::Unknown(_) => Status::not_found(text),
        ProjectError::NotEmpty { .. } => Status::failed_precondition(text),
    }
}
