//! The audit log, for those who may read it.

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use towline_proto::{
    api::{ListAuditRequest, ListAuditResponse, audit_server},
    names::{Membership, Project},
};

use super::{Api, caller::name};
use crate::{
    audit::search::{self, Query, SearchError},
    iam::Permission,
};

/// How many events are told where no number was asked for.
const FEW: usize = 100;

/// The most that are told.
const MOST: usize = 1_000;

/// Searches at a time: each reads much of a disk.
static SEARCHES: Semaphore = Semaphore::const_new(2);

#[tonic::async_trait]
impl audit_server::Audit for Api {
    async fn list(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let project: Option<Project> = match asked.project.as_str() {
            "" => None,
            project => Some(name("project", project)?),
        };
        match &project {
            Some(project) => drop(
                self.permitted(&metadata, project, Permission::AuditList)
                    .await?,
            ),
            None => drop(self.operator(&metadata).await?),
        }
        if !asked.membership.is_empty() {
            let membership: Membership = name("membership", &asked.membership)?;
            if project
                .as_ref()
                .is_some_and(|project| membership.project != *project)
            {
                return Err(Status::invalid_argument(format!(
                    "membership: {membership} is not in the project that was asked for"
                )));
            }
        }
        let query = Query {
            project: project.map(|project| project.to_string()),
            membership: asked.membership,
            user: asked.user,
            id: asked.request_id,
            since: asked
                .since
                .map_or(0, |since| u64::try_from(since.seconds).unwrap_or_default()),
            limit: match usize::try_from(asked.limit).unwrap_or(MOST) {
                0 => FEW,
                limit => limit.min(MOST),
            },
        };
        let turn = SEARCHES
            .acquire()
            .await
            .map_err(|_| Status::internal("the gateway is shutting down"))?;
        let audit = self.gateway.audit.clone();
        let found = tokio::task::spawn_blocking(move || search::search(&audit, &query)).await;
        drop(turn);
        let found = found
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| {
                tracing::warn!(error = &error as &dyn std::error::Error, "no audit events");
                match error {
                    SearchError::NoFile(_) => Status::failed_precondition(error.to_string()),
                    SearchError::Read(_) => Status::unavailable(error.to_string()),
                }
            })?;
        let events = found.events.iter().map(serde_json::to_string);
        Ok(Response::new(ListAuditResponse {
            events: events
                .collect::<Result<_, _>>()
                .map_err(|error| Status::internal(error.to_string()))?,
            incomplete: found.incomplete,
        }))
    }
}
