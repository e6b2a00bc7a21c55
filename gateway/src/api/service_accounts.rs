//! Service accounts: principals of a project that others are let to act as.
//!
//! The right comes before the look-up: whoever lacks it doesn't learn which accounts there are.

use tonic::{Request, Response, Status, metadata::MetadataMap};
use towline_proto::{
    api::{
        self, CreateServiceAccountRequest, DeleteServiceAccountResponse,
        ListServiceAccountsRequest, ListServiceAccountsResponse, ServiceAccountRequest,
        SetServiceAccountDisabledRequest, service_accounts_server::ServiceAccounts,
    },
    names::Project,
};

use super::{
    Api,
    caller::{name, timestamp},
    internal,
};
use crate::{
    iam::{Permission, ServiceAccount},
    store::service_accounts::{Account, ServiceAccountError},
};

/// The longest display name, in characters.
const MAX_DISPLAY_NAME: usize = 100;

#[tonic::async_trait]
impl ServiceAccounts for Api {
    async fn create(
        &self,
        request: Request<CreateServiceAccountRequest>,
    ) -> Result<Response<api::ServiceAccount>, Status> {
        let message = request.get_ref();
        let account = self
            .account(
                request.metadata(),
                (&message.project, &message.name),
                Permission::ServiceAccountsCreate,
            )
            .await?;
        check_display_name(&message.display_name)?;
        let now = self.gateway.clock.unix();
        self.gateway
            .store
            .create_service_account(&account, &message.display_name, now)
            .await
            .map_err(refused)?;
        self.stored_account(&account).await
    }

    async fn list(
        &self,
        request: Request<ListServiceAccountsRequest>,
    ) -> Result<Response<ListServiceAccountsResponse>, Status> {
        self.caller(request.metadata()).await?;
        let project: Project = name("project", &request.get_ref().project)?;
        self.permitted(
            request.metadata(),
            &project,
            Permission::ServiceAccountsList,
        )
        .await?;
        let accounts = self.gateway.store.service_accounts(&project).await;
        Ok(Response::new(ListServiceAccountsResponse {
            service_accounts: accounts
                .map_err(internal)?
                .into_iter()
                .map(message)
                .collect(),
        }))
    }

    async fn get(
        &self,
        request: Request<ServiceAccountRequest>,
    ) -> Result<Response<api::ServiceAccount>, Status> {
        let ServiceAccountRequest { project, name } = request.get_ref();
        let account = self
            .account(
                request.metadata(),
                (project, name),
                Permission::ServiceAccountsGet,
            )
            .await?;
        self.stored_account(&account).await
    }

    async fn delete(
        &self,
        request: Request<ServiceAccountRequest>,
    ) -> Result<Response<DeleteServiceAccountResponse>, Status> {
        let ServiceAccountRequest { project, name } = request.get_ref();
        let account = self
            .account(
                request.metadata(),
                (project, name),
                Permission::ServiceAccountsDelete,
            )
            .await?;
        self.gateway
            .store
            .delete_service_account(&account)
            .await
            .map_err(refused)?;
        Ok(Response::new(DeleteServiceAccountResponse {}))
    }

    async fn set_disabled(
        &self,
        request: Request<SetServiceAccountDisabledRequest>,
    ) -> Result<Response<api::ServiceAccount>, Status> {
        let message = request.get_ref();
        let account = self
            .account(
                request.metadata(),
                (&message.project, &message.name),
                Permission::ServiceAccountsUpdate,
            )
            .await?;
        self.gateway
            .store
            .set_service_account_disabled(&account, message.disabled)
            .await
            .map_err(refused)?;
        self.stored_account(&account).await
    }

    async fn revoke_tokens(
        &self,
        request: Request<ServiceAccountRequest>,
    ) -> Result<Response<api::ServiceAccount>, Status> {
        let ServiceAccountRequest { project, name } = request.get_ref();
        let account = self
            .account(
                request.metadata(),
                (project, name),
                Permission::ServiceAccountsUpdate,
            )
            .await?;
        self.gateway
            .store
            .revoke_service_account_tokens(&account, self.gateway.clock.unix())
            .await
            .map_err(refused)?;
        self.stored_account(&account).await
    }
}

impl Api {
    /// The account that a request names, for a caller who holds the permission.
    async fn account(
        &self,
        metadata: &MetadataMap,
        (project, id): (&str, &str),
        permission: Permission,
    ) -> Result<ServiceAccount, Status> {
        self.caller(metadata).await?;
        let account = ServiceAccount {
            name: name("name", id)?,
            project: name("project", project)?,
        };
        self.permitted(metadata, &account, permission).await?;
        Ok(account)
    }

    async fn stored_account(
        &self,
        account: &ServiceAccount,
    ) -> Result<Response<api::ServiceAccount>, Status> {
        let stored = self.gateway.store.service_account(account).await;
        stored
            .map_err(internal)?
            .map(|stored| Response::new(message(stored)))
            .ok_or_else(|| refused(ServiceAccountError::Unknown(account.clone())))
    }
}

/// Whether a name for people can be shown to them.
pub(super) fn check_display_name(text: &str) -> Result<(), Status> {
    if text.chars().count() > MAX_DISPLAY_NAME || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "display_name: it is longer than {MAX_DISPLAY_NAME} characters, or not in one line"
        )));
    }
    Ok(())
}

fn message(stored: Account) -> api::ServiceAccount {
    api::ServiceAccount {
        project: stored.account.project.to_string(),
        name: stored.account.name.to_string(),
        account: stored.account.to_string(),
        display_name: stored.display_name,
        disabled: stored.disabled,
        created: Some(timestamp(stored.created)),
        tokens_not_before: Some(timestamp(stored.tokens_not_before)),
    }
}

fn refused(error: ServiceAccountError) -> Status {
    let text = error.to_string();
    match error {
        ServiceAccountError::Store(error) => internal(error),
        ServiceAccountError::Exists(_) => Status::already_exists(text),
        ServiceAccountError::Unknown(_) | ServiceAccountError::NoProject(_) => {
            Status::not_found(text)
        }
        ServiceAccountError::TooMany(_) => Status::resource_exhausted(text),
    }
}
