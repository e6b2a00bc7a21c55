//! The one table from a refusal to what the caller is told: a Kubernetes `Status`.
//!
//! `kubectl` prints a `Status`'s message as it is, so the message says which layer refused, why, and what to do.
//! The same words answer whoever may not know whether a cluster exists.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::json;
use towline_proto::names::Membership;

use crate::{
    audit::NoRoom,
    iam::{Permission, Principal},
    quota::Exhausted,
    request::Body,
    store::StoreError,
};

/// Response header: the request's id, the same in logs at both ends.
pub const REQUEST_ID: &str = "towline-request-id";

/// Why a request is refused, by the layer that refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No membership's URL.
    #[error("the requested URL was not found on this server: {0}")]
    NotFound(String),
    /// A path that this gateway and the API server could read differently.
    #[error("the path is refused: {0}")]
    Path(String),
    /// A header that callers may not send, or too much of them.
    #[error("the request is refused: {0}")]
    Header(String),
    /// Too long a head.
    #[error("the request's headers are {size} bytes long; the limit is {limit}")]
    HeadTooLarge {
        /// What came.
        size: usize,
        /// What passes.
        limit: usize,
    },
    /// A method that Kubernetes doesn't have.
    #[error(
        "method {0} is not allowed; Kubernetes has GET, HEAD, OPTIONS, POST, PUT, PATCH and DELETE"
    )]
    Method(String),
    /// No bearer token.
    #[error("no bearer token was sent; run: towline login {0}")]
    NoToken(String),
    /// A token that is not believed.
    #[error("the bearer token is refused: {0}")]
    Token(String),
    /// A token of one membership at another.
    #[error("the bearer token is refused: its audience is {0}, not this membership")]
    Audience(Membership),
    /// IAM says no, or the membership isn't the caller's to know of.
    #[error("{} lacks permission {:?} on {resource}; roles with it: {}", who(.principal), permission.name(), roles(*.permission))]
    Forbidden {
        /// Who asked.
        principal: Principal,
        /// What they lack.
        permission: Permission,
        /// On what.
        resource: String,
    },
    /// There is no such membership, and the caller may know it.
    #[error("membership {:?} not found in project {:?}{}", .membership.id.as_str(), .membership.project.as_str(), near(.nearest))]
    NoMembership {
        /// What was asked for.
        membership: Membership,
        /// Names like it.
        nearest: Vec<String>,
    },
    /// No agent of the cluster is connected.
    #[error("no active connections found for cluster (project: {}, membership: {}); see: towline memberships describe {}", .0.project, .0.id, .0.id)]
    NoAgent(Membership),
    /// The tunnel was lost before there was an answer.
    #[error("failed_precondition: connection to agent terminated")]
    AgentLost,
    /// The agent is at its limit.
    #[error("failed_precondition: the agent is overloaded: {0}")]
    AgentBusy(String),
    /// Over a quota.
    #[error("resource_exhausted: {0}")]
    Quota(#[from] Exhausted),
    /// The cluster doesn't let the agent impersonate the caller.
    #[error("{0}")]
    Impersonation(String),
    /// The cluster doesn't let the caller impersonate whom they ask to be.
    #[error("{0}")]
    Nested(String),
    /// The API server gave no answer.
    #[error("failed_precondition: error encountered within the cluster: {0}")]
    Cluster(String),
    /// The agent does not believe this gateway.
    #[error("failed_precondition: the agent refused the gateway's assertion: {0}")]
    Assertion(String),
    /// The database is away, and what the request rests on isn't remembered.
    #[error(
        "the gateway's database can't be reached, and this request rests on what isn't remembered of it; try again"
    )]
    Away,
    /// A stream that can't be counted, though the database is there.
    #[error("the gateway can't count this stream just now; try again")]
    Uncounted,
    /// There is no room for a record of it.
    #[error("{0}; its operator has to make room")]
    Audit(#[from] NoRoom),
    /// The gateway's own fault.
    #[error("internal error of the gateway: {0}")]
    Internal(String),
}

impl From<StoreError> for Refused {
    /// Whom the gateway can't look up isn't told about its database; its operator reads that in the log.
    fn from(error: StoreError) -> Self {
        if error.is_away() {
            tracing::debug!(error = &error as &dyn std::error::Error, "not decided");
            Self::Away
        } else {
            Self::Internal(error.to_string())
        }
    }
}

impl Refused {
    /// HTTP status and Kubernetes `reason`.
    pub const fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound(_) | Self::NoMembership { .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Path(_) | Self::Header(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::HeadTooLarge { .. } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "RequestHeaderFieldsTooLarge",
            ),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::NoToken(_) | Self::Token(_) | Self::Audience(_) => {
                (StatusCode::UNAUTHORIZED, "Unauthorized")
            }
            Self::Forbidden { .. } | Self::Impersonation(_) | Self::Nested(_) => {
                (StatusCode::FORBIDDEN, "Forbidden")
            }
            Self::NoAgent(_)
            | Self::AgentLost
            | Self::AgentBusy(_)
            | Self::Away
            | Self::Uncounted
            | Self::Audit(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Quota(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Cluster(_) | Self::Assertion(_) => (StatusCode::BAD_GATEWAY, "BadGateway"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        }
    }

    /// The layer that refused, in logs and in the `Status`'s causes.
    pub const fn layer(&self) -> &'static str {
        match self {
            Self::NotFound(_)
            | Self::Path(_)
            | Self::Header(_)
            | Self::HeadTooLarge { .. }
            | Self::Method(_) => "request",
            Self::NoToken(_) | Self::Token(_) | Self::Audience(_) => "authentication",
            Self::Forbidden { .. } | Self::NoMembership { .. } => "authorization",
            Self::Quota(_) => "quota",
            Self::NoAgent(_) | Self::AgentLost | Self::AgentBusy(_) => "tunnel",
            Self::Impersonation(_) | Self::Cluster(_) | Self::Assertion(_) => "agent",
            Self::Audit(_) => "audit",
            Self::Nested(_) => "RBAC",
            Self::Away | Self::Uncounted | Self::Internal(_) => "gateway",
        }
    }

    /// In how many seconds the same request may pass. client-go sleeps and tries again, up to ten times, before it shows
    /// a refusal that has it; so it stands only where waiting helps.
    const fn retry_after(&self) -> Option<u8> {
        match self {
            Self::Quota(Exhausted::Requests { retry_after, .. }) => *retry_after,
            _ => None,
        }
    }

    /// The answer.
    pub fn into_response(self, request_id: &str) -> Response<Body> {
        let (code, _) = self.status();
        let retry_after = self.retry_after();
        let mut response = Response::new(
            Full::new(Bytes::from(self.to_status(request_id).to_string()))
                .map_err(|never| match never {})
                .boxed_unsync(),
        );
        *response.status_mut() = code;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if code == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if code == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"),
            );
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, id);
        }
        response
    }

    /// The same answer with its message alone as the body, for clients that read no `Status`. They ask five times
    /// over, and sleeping ten times each time would show nothing for most of a minute: so no `Retry-After`.
    pub fn into_text_response(self, request_id: &str) -> Response<Body> {
        let text = self.message(request_id);
        let mut response = self.into_response(request_id);
        *response.body_mut() = Full::new(Bytes::from(text))
            .map_err(|never| match never {})
            .boxed_unsync();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, plain);
        headers.remove(header::RETRY_AFTER);
        response
    }

    fn message(&self, request_id: &str) -> String {
        format!("{self} (towline: {}, request {request_id})", self.layer())
    }

    /// The `Status` object (`meta/v1`).
    pub fn to_status(&self, request_id: &str) -> serde_json::Value {
        let (code, reason) = self.status();
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message(request_id),
            "reason": reason,
            "details": {
                "causes": [
                    {"reason": "TowlineLayer", "message": self.layer()},
                    {"reason": "TowlineRequest", "message": request_id},
                ],
            },
            "code": code.as_u16(),
        });
        if let (Some(seconds), Some(details)) = (self.retry_after(), status.get_mut("details")) {
            details["retryAfterSeconds"] = seconds.into();
        }
        status
    }
}

/// `user "alice"`, `serviceAccount "ci@p"`, `principal "principal://…"`.
pub(crate) fn who(principal: &Principal) -> String {
    match principal {
        Principal::User(name) => format!("user {name:?}"),
        Principal::ServiceAccount(account) => format!("serviceAccount {:?}", account.to_string()),
        Principal::Workload(workload) => format!("principal {:?}", workload.to_string()),
    }
}

fn roles(permission: Permission) -> String {
    permission
        .roles()
        .map(crate::iam::Role::name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn near(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        "projects/p/locations/global/memberships/edge"
            .parse()
            .unwrap()
    }

    /// The table of design.md: status, reason and how the message begins.
    #[test]
    fn callers_are_told_what_the_table_says() {
        let alice = Principal::User("alice".into());
        let rows = [
            (
                Refused::NotFound("/x".into()),
                404,
                "NotFound",
                "the requested URL was not found on this server",
            ),
            (
                Refused::Token("expired".into()),
                401,
                "Unauthorized",
                "the bearer token is refused: expired",
            ),
            (
                Refused::Forbidden {
                    principal: alice,
                    permission: Permission::Stream,
                    resource: membership().to_string(),
                },
                403,
                "Forbidden",
                "user \"alice\" lacks permission \"gateway.stream\" on projects/p/locations/global/memberships/edge; \
                 roles with it: gatewayAdmin, owner",
            ),
            (
                Refused::NoMembership {
                    membership: membership(),
                    nearest: vec!["edge-1".into()],
                },
                404,
                "NotFound",
                "membership \"edge\" not found in project \"p\"; did you mean edge-1?",
            ),
            (
                Refused::NoAgent(membership()),
                503,
                "ServiceUnavailable",
                "no active connections found for cluster (project: p, membership: edge)",
            ),
            (
                Refused::Quota(Exhausted::AtATime {
                    quota: "active_streams",
                    used: 50,
                    limit: 50,
                    holder: "user:U".into(),
                }),
                429,
                "TooManyRequests",
                "resource_exhausted: quota \"active_streams\" exhausted (50 of 50 in use by user:U)",
            ),
            (
                Refused::Cluster("connection refused".into()),
                502,
                "BadGateway",
                "failed_precondition: error encountered within the cluster: connection refused",
            ),
            (
                Refused::Away,
                503,
                "ServiceUnavailable",
                "the gateway's database can't be reached",
            ),
            (
                Refused::Uncounted,
                503,
                "ServiceUnavailable",
                "the gateway can't count this stream just now; try again",
            ),
            (
                Refused::AgentLost,
                503,
                "ServiceUnavailable",
                "failed_precondition: connection to agent terminated",
            ),
        ];
        for (refused, code, reason, begins) in rows {
            let status = refused.to_status("r1");
            assert_eq!(
                (status["code"].as_u64(), status["reason"].as_str()),
                (Some(code), Some(reason))
            );
            assert!(
                status["message"].as_str().unwrap().starts_with(begins),
                "{status}"
            );
            assert!(
                status["message"].as_str().unwrap().contains("request r1"),
                "{status}"
            );
            let response = refused.into_response("r1");
            assert_eq!(response.headers()[REQUEST_ID], "r1");
            assert!(!response.headers().contains_key(header::RETRY_AFTER));
        }
    }

    #[test]
    fn waiting_is_proposed_where_it_helps() {
        for (retry_after, expected) in [(Some(1), Some("1")), (None, None)] {
            let refused = Refused::Quota(Exhausted::Requests {
                limit: 6_000,
                burst: 600,
                holder: "user:U".into(),
                retry_after,
            });
            let status = refused.to_status("r1");
            assert_eq!(
                status["message"].as_str().unwrap(),
                "resource_exhausted: quota \"requests_per_minute\" exhausted (user:U may make 6000 a minute, \
                 600 of them at once) (towline: quota, request r1)"
            );
            assert_eq!(
                status["details"]["retryAfterSeconds"].as_u64(),
                retry_after.map(u64::from)
            );
            let text = refused.clone().into_text_response("r1");
            assert!(!text.headers().contains_key(header::RETRY_AFTER));
            let response = refused.into_response("r1");
            assert_eq!(response.status(), 429);
            let told = response.headers().get(header::RETRY_AFTER);
            assert_eq!(told.map(|value| value.to_str().unwrap()), expected);
        }
    }
}
