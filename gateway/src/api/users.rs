//! The gateway's own users, managed by its operators.

use tonic::{Request, Response, Status};
use towline_proto::api::{
    self, CreateUserRequest, CreateUserResponse, GroupRequest, ListUsersRequest, ListUsersResponse,
    ResetPasswordRequest, ResetPasswordResponse, SetDisabledRequest, users_server::Users,
};

use super::{Api, caller::timestamp, internal};
use crate::{
    iam::check_subject,
    login::{CODE_SECONDS, one_time_code},
    store::{User, users::UserError},
};

/// Groups of one user.
const MAX_GROUPS: usize = 2_000;

#[tonic::async_trait]
impl Users for Api {
    async fn create(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<CreateUserResponse>, Status> {
        self.operator(request.metadata()).await?;
        let message = request.into_inner();
        check_subject(&message.name)
            .map_err(|error| Status::invalid_argument(format!("name: {error}")))?;
        check_groups(&message.groups)?;
        let now = self.gateway.clock.unix();
        let user = User {
            name: message.name,
            groups: message.groups,
            disabled: false,
            operator: message.operator,
            created: now,
        };
        let code = one_time_code().map_err(|error| Status::internal(error.to_string()))?;
        let expires = now + CODE_SECONDS;
        self.gateway
            .store
            .create_user(&user, &code, expires)
            .await
            .map_err(refused)?;
        let user = self.stored(&user.name).await?;
        Ok(Response::new(CreateUserResponse {
            user: Some(user),
            one_time_code: code,
            expires: Some(timestamp(expires)),
        }))
    }

    async fn list(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        self.operator(request.metadata()).await?;
        let users = self.gateway.store.users().await.map_err(internal)?;
        Ok(Response::new(ListUsersResponse {
            users: users.into_iter().map(message).collect(),
        }))
    }

    async fn set_disabled(
        &self,
        request: Request<SetDisabledRequest>,
    ) -> Result<Response<api::User>, Status> {
        self.operator(request.metadata()).await?;
        let SetDisabledRequest { name, disabled } = request.into_inner();
        self.gateway
            .store
            .set_disabled(&name, disabled)
            .await
            .map_err(refused)?;
        Ok(Response::new(self.stored(&name).await?))
    }

    async fn reset_password(
        &self,
        request: Request<ResetPasswordRequest>,
    ) -> Result<Response<ResetPasswordResponse>, Status> {
        self.operator(request.metadata()).await?;
        let name = request.into_inner().name;
        let code = one_time_code().map_err(|error| Status::internal(error.to_string()))?;
        let expires = self.gateway.clock.unix() + CODE_SECONDS;
        self.gateway
            .store
            .reset_password(&name, &code, expires)
            .await
            .map_err(refused)?;
        Ok(Response::new(ResetPasswordResponse {
            one_time_code: code,
            expires: Some(timestamp(expires)),
        }))
    }

    async fn add_group(
        &self,
        request: Request<GroupRequest>,
    ) -> Result<Response<api::User>, Status> {
        self.operator(request.metadata()).await?;
        let GroupRequest { name, groups } = request.into_inner();
        check_groups(&groups)?;
        self.gateway
            .store
            .change_groups(&name, &groups, &[])
            .await
            .map_err(refused)?;
        Ok(Response::new(self.stored(&name).await?))
    }

    async fn remove_group(
        &self,
        request: Request<GroupRequest>,
    ) -> Result<Response<api::User>, Status> {
        self.operator(request.metadata()).await?;
        let GroupRequest { name, groups } = request.into_inner();
        self.gateway
            .store
            .change_groups(&name, &[], &groups)
            .await
            .map_err(refused)?;
        Ok(Response::new(self.stored(&name).await?))
    }
}

impl Api {
    async fn stored(&self, name: &str) -> Result<api::User, Status> {
        let user = self.gateway.store.user(name).await.map_err(internal)?;
        user.map(message)
            .ok_or_else(|| refused(UserError::Unknown(name.to_owned())))
    }
}

fn check_groups(groups: &[String]) -> Result<(), Status> {
    if groups.len() > MAX_GROUPS {
        return Err(Status::invalid_argument(format!(
            "groups: {} are too many, {MAX_GROUPS} may be",
            groups.len()
        )));
    }
    groups.iter().try_for_each(|group| {
        check_subject(group).map_err(|error| Status::invalid_argument(format!("groups: {error}")))
    })
}

fn message(user: User) -> api::User {
    api::User {
        name: user.name,
        groups: user.groups,
        disabled: user.disabled,
        operator: user.operator,
        created: Some(timestamp(user.created)),
    }
}

fn refused(error: UserError) -> Status {
    let text = error.to_string();
    match error {
        UserError::Store(error) => internal(error),
        UserError::Exists(_) => Status::already_exists(text),
        UserError::Unknown(_) => Status::not_found(text),
        UserError::LastOperator(_) => Status::failed_precondition(text),
    }
}
