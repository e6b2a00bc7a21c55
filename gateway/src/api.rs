//! The management API: gRPC, and JSON on the same paths.
//!
//! Each service of `towline/v1/*.proto` is a file below; `caller` decides who may, `json` lets HTTP/1.1
//! clients and those without gRPC in.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::timeout;
use tonic::Status;
use tower_service::Service as _;
use towline_proto::{
    api::{
        audit_server::AuditServer, enrolment_server::EnrolmentServer, iam_server::IamServer,
        identity_server::IdentityServer, memberships_server::MembershipsServer,
        projects_server::ProjectsServer, quotas_server::QuotasServer,
        service_accounts_server::ServiceAccountsServer, streams_server::StreamsServer,
        users_server::UsersServer, workload_identity_server::WorkloadIdentityServer,
    },
    body::Aborted,
};

use crate::{agents::OWN_ANSWER, app::Gateway, request::Body, store::StoreError};

mod audit;
mod caller;
mod enrolment;
mod iam;
mod identity;
pub(crate) mod json;
mod memberships;
mod projects;
mod quotas;
mod record;
mod service_accounts;
mod streams;
mod users;
mod workload_identity;

/// How long a call may take, its message's arrival included: nobody is known before that.
const LIMIT: Duration = Duration::from_secs(30);

/// The longest request message, in bytes.
const MAX_MESSAGE: usize = 1024 * 1024;

/// Implements every service of the API.
#[derive(Debug, Clone)]
pub struct Api {
    gateway: Arc<Gateway>,
}

/// Whose address a call is from.
#[derive(Debug, Clone, Copy)]
struct From(IpAddr);

/// Answers a request to `/towline.v1.SERVICE/METHOD`.
pub async fn serve(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    request.extensions_mut().insert(From(client));
    let api = Api {
        gateway: Arc::clone(gateway),
    };
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let mut response = if content_type.starts_with(b"application/grpc") {
        let request = request.map(tonic::body::Body::new);
        let late = |_| {
            Status::deadline_exceeded(format!("the call took longer than {LIMIT:?}")).into_http()
        };
        let answered = timeout(LIMIT, api.call(request)).await.unwrap_or_else(late);
        answered.map(|body| {
            body.map_err(|status| Aborted(status.message().to_owned()))
                .boxed_unsync()
        })
    } else {
        json::serve(&api, request).await
    };
    response
        .headers_mut()
        .insert(OWN_ANSWER, HeaderValue::from_static("1"));
    response
}

impl Api {
    /// One gRPC call; the service is named by the path.
    async fn call(&self, request: Request<tonic::body::Body>) -> Response<tonic::body::Body> {
        let api = self.clone();
        let request = match record::noted(request).await {
            Ok(request) => request,
            Err(status) => return status.into_http(),
        };
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let answered = match service {
            "towline.v1.Identity" => {
                IdentityServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Projects" => {
                ProjectsServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Iam" => {
                IamServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Memberships" => {
                MembershipsServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Users" => {
                UsersServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Enrolment" => {
                EnrolmentServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Audit" => {
                AuditServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Quotas" => {
                QuotasServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.ServiceAccounts" => {
                ServiceAccountsServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.WorkloadIdentity" => {
                WorkloadIdentityServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            "towline.v1.Streams" => {
                StreamsServer::new(api)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
                    .await
            }
            other => {
                Ok(Status::unimplemented(format!("there is no service {other:?}")).into_http())
            }
        };
        let response = answered.unwrap_or_else(|never| match never {});
        record::answered(&response);
        response
    }
}

/// What went wrong underneath is for the log; the caller learns that it isn't theirs to mend.
fn internal(error: StoreError) -> Status {
    tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
    Status::unavailable(format!("the gateway's store failed: {error}"))
}

/// An answer of the JSON mapping.
fn answer(status: StatusCode, json: String) -> Response<Body> {
    let mut response = Response::new(
        Full::from(json)
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.headers_mut() = headers;
    response
}
