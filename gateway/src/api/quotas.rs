//! How much principals and projects may use, and what they use now.

use tonic::{Request, Response, Status};
use towline_proto::{
    api::{self, ListQuotasRequest, ListQuotasResponse, SetQuotaRequest, quotas_server::Quotas},
    names::Project,
};

use super::{Api, caller::name, internal};
use crate::{
    iam::{Permission, Principal},
    quota::{MOST_LIMIT, Quota, Row, Whose},
    store::quotas::QuotaError,
};

const PROJECT: &str = "project";
const DEFAULT: &str = "default";

#[tonic::async_trait]
impl Quotas for Api {
    async fn list(
        &self,
        request: Request<ListQuotasRequest>,
    ) -> Result<Response<ListQuotasResponse>, Status> {
        let ListQuotasRequest { project, member } = request.get_ref();
        let project: Project = name("project", project)?;
        self.permitted(request.metadata(), &project, Permission::QuotasGet)
            .await?;
        let rows = self.rows(&project, member).await?;
        Ok(Response::new(ListQuotasResponse {
            quotas: rows.into_iter().map(message).collect(),
        }))
    }

    async fn set(&self, request: Request<SetQuotaRequest>) -> Result<Response<api::Quota>, Status> {
        let SetQuotaRequest {
            project,
            quota,
            holder,
            limit,
        } = request.get_ref();
        let project: Project = name("project", project)?;
        let caller = self
            .permitted(request.metadata(), &project, Permission::QuotasSet)
            .await?;
        let quota: Quota = name("quota", quota)?;
        let whose = whose(holder)?;
        if let Some(limit) = limit
            && !(1..=MOST_LIMIT).contains(limit)
        {
            return Err(Status::invalid_argument(format!(
                "limit: {limit} is not between 1 and {MOST_LIMIT}; who may use nothing is taken out of the policy"
            )));
        }
        self.gateway
            .store
            .set_quota(&project, &whose, quota, *limit)
            .await
            .map_err(|error| {
                let text = error.to_string();
                match error {
                    QuotaError::NoProject(_) => Status::not_found(text),
                    QuotaError::TooMany(_) => Status::resource_exhausted(text),
                    QuotaError::Store(error) => internal(error),
                }
            })?;
        tracing::info!(%project, %quota, holder, ?limit, by = %caller.identity.principal, "quota set");
        let rows = self.rows(&project, &member(&whose)).await?;
        let row = rows
            .into_iter()
            .find(|row| row.quota == quota && row.whose == whose)
            .ok_or_else(|| Status::internal("the quota that was set is gone"))?;
        Ok(Response::new(message(row)))
    }
}

impl Api {
    /// All of a project's, or one principal's.
    async fn rows(&self, project: &Project, member: &str) -> Result<Vec<Row>, Status> {
        let quotas = &self.gateway.quotas;
        if member.is_empty() {
            quotas.rows(project).await.map_err(internal)
        } else {
            let principal: Principal = name("member", member)?;
            let rows = quotas.rows_of(project, &principal).await;
            rows.map_err(internal)
        }
    }
}

fn whose(holder: &str) -> Result<Whose, Status> {
    match holder {
        PROJECT => Ok(Whose::Project),
        DEFAULT => Ok(Whose::EachPrincipal),
        principal => name("holder", principal).map(Whose::Principal),
    }
}

fn member(whose: &Whose) -> String {
    match whose {
        Whose::Principal(principal) => principal.to_string(),
        Whose::Project | Whose::EachPrincipal => String::new(),
    }
}

fn message(row: Row) -> api::Quota {
    api::Quota {
        quota: row.quota.name().to_owned(),
        holder: match row.whose {
            Whose::Project => PROJECT.to_owned(),
            Whose::EachPrincipal => DEFAULT.to_owned(),
            Whose::Principal(principal) => principal.to_string(),
        },
        limit: row.limit,
        in_use: row.in_use,
        set: row.set,
    }
}
