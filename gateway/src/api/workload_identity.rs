//! Workload identity pools and providers: which foreign workloads a project knows.

use tonic::{Request, Response, Status, metadata::MetadataMap};
use towline_proto::{
    api::{
        self, CreatePoolRequest, DeletePoolResponse, DeleteProviderResponse, ListPoolsRequest,
        ListPoolsResponse, ListProvidersResponse, PoolRequest, ProviderRequest,
        SetPoolDisabledRequest, workload_identity_server::WorkloadIdentity,
    },
    names::Project,
};

use super::{
    Api,
    caller::{name, timestamp},
    internal,
    service_accounts::check_display_name,
};
use crate::{
    authn::workload::{self, Provider},
    iam::{Permission, Pool},
    store::workload_identity::{PoolRow, ProviderRow, Settings, WorkloadIdentityError},
};

#[tonic::async_trait]
impl WorkloadIdentity for Api {
    async fn create_pool(
        &self,
        request: Request<CreatePoolRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let message = request.get_ref();
        let pool = self
            .pool(
                request.metadata(),
                (&message.project, "name", &message.name),
                Permission::WorkloadIdentityPoolsCreate,
            )
            .await?;
        check_display_name(&message.display_name)?;
        let now = self.gateway.clock.unix();
        self.gateway
            .store
            .create_pool(&pool, &message.display_name, now)
            .await
            .map_err(refused)?;
        self.stored_pool(&pool).await
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        self.caller(request.metadata()).await?;
        let project: Project = name("project", &request.get_ref().project)?;
        self.permitted(
            request.metadata(),
            &project,
            Permission::WorkloadIdentityPoolsList,
        )
        .await?;
        let pools = self.gateway.store.pools(&project).await.map_err(internal)?;
        Ok(Response::new(ListPoolsResponse {
            pools: pools.into_iter().map(pool_message).collect(),
        }))
    }

    async fn delete_pool(
        &self,
        request: Request<PoolRequest>,
    ) -> Result<Response<DeletePoolResponse>, Status> {
        let PoolRequest { project, pool } = request.get_ref();
        let pool = self
            .pool(
                request.metadata(),
                (project, "pool", pool),
                Permission::WorkloadIdentityPoolsDelete,
            )
            .await?;
        let deleted = self.gateway.store.delete_pool(&pool).await;
        deleted.map_err(refused)?;
        Ok(Response::new(DeletePoolResponse {}))
    }

    async fn set_pool_disabled(
        &self,
        request: Request<SetPoolDisabledRequest>,
    ) -> Result<Response<api::Pool>, Status> {
        let message = request.get_ref();
        let pool = self
            .pool(
                request.metadata(),
                (&message.project, "pool", &message.pool),
                Permission::WorkloadIdentityPoolsUpdate,
            )
            .await?;
        self.gateway
            .store
            .set_pool_disabled(&pool, message.disabled)
            .await
            .map_err(refused)?;
        self.stored_pool(&pool).await
    }

    async fn create_provider(
        &self,
        request: Request<api::Provider>,
    ) -> Result<Response<api::Provider>, Status> {
        let (provider, settings) = self.written(&request).await?;
        let now = self.gateway.clock.unix();
        self.gateway
            .store
            .create_provider(&provider, &settings, request.get_ref().disabled, now)
            .await
            .map_err(refused)?;
        self.stored_provider(&provider).await
    }

    async fn update_provider(
        &self,
        request: Request<api::Provider>,
    ) -> Result<Response<api::Provider>, Status> {
        let (provider, settings) = self.written(&request).await?;
        self.gateway
            .store
            .update_provider(&provider, &settings, request.get_ref().disabled)
            .await
            .map_err(refused)?;
        self.stored_provider(&provider).await
    }

    async fn list_providers(
        &self,
        request: Request<PoolRequest>,
    ) -> Result<Response<ListProvidersResponse>, Status> {
        let PoolRequest { project, pool } = request.get_ref();
        let pool = self
            .pool(
                request.metadata(),
                (project, "pool", pool),
                Permission::WorkloadIdentityPoolsGet,
            )
            .await?;
        let all = self.gateway.store.providers(&pool.project).await;
        Ok(Response::new(ListProvidersResponse {
            providers: all
                .map_err(internal)?
                .iter()
                .filter(|row| row.provider.pool == pool)
                .map(|row| self.provider_message(row))
                .collect(),
        }))
    }

    async fn get_provider(
        &self,
        request: Request<ProviderRequest>,
    ) -> Result<Response<api::Provider>, Status> {
        let provider = self
            .provider(&request, Permission::WorkloadIdentityPoolsGet)
            .await?;
        self.stored_provider(&provider).await
    }

    async fn delete_provider(
        &self,
        request: Request<ProviderRequest>,
    ) -> Result<Response<DeleteProviderResponse>, Status> {
        let provider = self
            .provider(&request, Permission::WorkloadIdentityPoolsUpdate)
            .await?;
        let deleted = self.gateway.store.delete_provider(&provider).await;
        deleted.map_err(refused)?;
        Ok(Response::new(DeleteProviderResponse {}))
    }
}

impl Api {
    /// The pool that a request names, for a caller who holds the permission.
    async fn pool(
        &self,
        metadata: &MetadataMap,
        (project, field, id): (&str, &str, &str),
        permission: Permission,
    ) -> Result<Pool, Status> {
        self.caller(metadata).await?;
        let pool = Pool {
            project: name("project", project)?,
            id: name(field, id)?,
        };
        self.permitted(metadata, &pool, permission).await?;
        Ok(pool)
    }

    async fn provider(
        &self,
        request: &Request<ProviderRequest>,
        permission: Permission,
    ) -> Result<Provider, Status> {
        let message = request.get_ref();
        let pool = (message.project.as_str(), "pool", message.pool.as_str());
        let pool = self.pool(request.metadata(), pool, permission).await?;
        Ok(Provider {
            pool,
            id: name("name", &message.name)?,
        })
    }

    /// The provider that a caller may write, with settings that can be a provider's.
    async fn written(
        &self,
        request: &Request<api::Provider>,
    ) -> Result<(Provider, Settings), Status> {
        let message = request.get_ref();
        let pool = (message.project.as_str(), "pool", message.pool.as_str());
        let pool = self
            .pool(
                request.metadata(),
                pool,
                Permission::WorkloadIdentityPoolsUpdate,
            )
            .await?;
        let provider = Provider {
            pool,
            id: name("name", &message.name)?,
        };
        let settings = Settings {
            issuer: message.issuer_uri.clone(),
            audiences: message.allowed_audiences.clone(),
            mapping: message.attribute_mapping.clone().into_iter().collect(),
            condition: message.attribute_condition.clone(),
            jwks: Some(message.jwks_json.clone()).filter(|jwks| !jwks.is_empty()),
            direct: message.allow_direct_bearer,
        };
        workload::check(&self.gateway.config, &provider, &settings)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok((provider, settings))
    }

    async fn stored_pool(&self, pool: &Pool) -> Result<Response<api::Pool>, Status> {
        let pools = self.gateway.store.pools(&pool.project).await;
        pools
            .map_err(internal)?
            .into_iter()
            .find(|row| row.pool == *pool)
            .map(|row| Response::new(pool_message(row)))
            .ok_or_else(|| refused(WorkloadIdentityError::Unknown(pool.to_string())))
    }

    async fn stored_provider(
        &self,
        provider: &Provider,
    ) -> Result<Response<api::Provider>, Status> {
        let row = self.gateway.store.provider(provider).await;
        row.map_err(internal)?
            .map(|row| Response::new(self.provider_message(&row)))
            .ok_or_else(|| refused(WorkloadIdentityError::Unknown(provider.to_string())))
    }

    fn provider_message(&self, row: &ProviderRow) -> api::Provider {
        let Provider { pool, id } = &row.provider;
        let settings = row.settings.clone();
        api::Provider {
            project: pool.project.to_string(),
            pool: pool.id.to_string(),
            name: id.to_string(),
            resource: row.provider.resource(&self.gateway.config),
            issuer_uri: settings.issuer,
            allowed_audiences: settings.audiences,
            attribute_mapping: settings.mapping.into_iter().collect(),
            attribute_condition: settings.condition,
            jwks_json: settings.jwks.unwrap_or_default(),
            allow_direct_bearer: settings.direct,
            disabled: row.disabled,
            created: Some(timestamp(row.created)),
        }
    }
}

fn pool_message(row: PoolRow) -> api::Pool {
    api::Pool {
        project: row.pool.project.to_string(),
        name: row.pool.id.to_string(),
        resource: row.pool.to_string(),
        display_name: row.display_name,
        disabled: row.disabled,
        created: Some(timestamp(row.created)),
    }
}

fn refused(error: WorkloadIdentityError) -> Status {
    let text = error.to_string();
    match error {
        WorkloadIdentityError::Store(error) => internal(error),
        WorkloadIdentityError::Exists(_) => Status::already_exists(text),
        WorkloadIdentityError::Unknown(_) => Status::not_found(text),
        WorkloadIdentityError::TooMany { .. } => Status::resource_exhausted(text),
    }
}
