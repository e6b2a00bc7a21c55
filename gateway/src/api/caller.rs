//! Who calls the management API, and whether they may.
//!
//! Existence isn't told to whoever may not know: a project that isn't there and one that isn't the caller's are
//! refused in the same words.

use http::HeaderMap;
use tonic::{Status, metadata::MetadataMap};

use super::{Api, internal};
use crate::{
    app::Gateway,
    audit,
    authn::{self, Identity},
    authz,
    error::{Refused, who},
    iam::{Decision, Permission, Principal, Resource},
    login::{self, Audience},
    target::RequestInfo,
};

/// A signed-in caller.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) identity: Identity,
    /// A `gatewayOperator`.
    pub(super) operator: bool,
    /// When the token ends, in Unix seconds.
    pub(super) expires: u64,
}

impl Api {
    /// Any signed-in caller.
    pub(super) async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let gateway = &self.gateway;
        let url = &gateway.config.public_url;
        let headers: HeaderMap = metadata.clone().into_headers();
        let token = authn::bearer(&headers)
            .map_err(|refused| Status::unauthenticated(refused.to_string()))?
            .ok_or_else(|| {
                Status::unauthenticated(format!(
                    "no bearer token was sent; run: towline login {url}"
                ))
            })?;
        let unauthenticated = |refused: Refused| match refused {
            Refused::Internal(reason) => Status::internal(reason),
            Refused::Away => Status::unavailable(refused.to_string()),
            refused => Status::unauthenticated(refused.to_string()),
        };
        let (identity, expires) = match login::access_token(gateway, &token).await {
            Ok(token) => {
                if let Audience::Membership(membership) = &token.audience {
                    return Err(Status::unauthenticated(format!(
                        "the bearer token is refused: it is good for {membership} only"
                    )));
                }
                let found = authn::of_token(gateway, &token).await;
                (found.map_err(unauthenticated)?.1, token.expires)
            }
            // A workload's own token is good for memberships of its project, and for nothing here: exchanged, it names
            // an audience of ours.
            Err(error) => {
                return Err(Status::unauthenticated(format!(
                    "the bearer token is refused: {error}"
                )));
            }
        };
        audit::current(|record| record.identity(&identity));
        let operator = match &identity.principal {
            Principal::User(name) => {
                let user = gateway.store.user(name).await.map_err(internal)?;
                user.is_some_and(|user| user.operator)
            }
            Principal::ServiceAccount(_) | Principal::Workload(_) => false,
        };
        Ok(Caller {
            identity,
            operator,
            expires,
        })
    }

    /// A gateway-wide operator.
    pub(super) async fn operator(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.caller(metadata).await?;
        if caller.operator {
            Ok(caller)
        } else {
            Err(Status::permission_denied(format!(
                "{} is not a gatewayOperator",
                who(&caller.identity.principal)
            )))
        }
    }

    /// A caller who holds a permission on a project, or on something in it.
    pub(super) async fn permitted(
        &self,
        metadata: &MetadataMap,
        resource: impl Into<Resource>,
        permission: Permission,
    ) -> Result<Caller, Status> {
        let resource = resource.into();
        audit::current(|record| {
            record.project(resource.project());
            record.permission(permission.name());
        });
        let caller = self.caller(metadata).await?;
        if self.may(&caller, &resource, permission).await?.allowed() {
            return Ok(caller);
        }
        Err(lacks(&caller, &resource, permission))
    }

    /// What IAM says of a call. Conditions see no request but the last word of the permission as its verb: `list`,
    /// `setIamPolicy`.
    pub(super) async fn may(
        &self,
        caller: &Caller,
        resource: &Resource,
        permission: Permission,
    ) -> Result<Decision, Status> {
        let request = RequestInfo {
            verb: permission.verb().to_owned(),
            ..RequestInfo::default()
        };
        let Gateway { store, clock, .. } = &*self.gateway;
        authz::on(
            store,
            clock,
            &caller.identity,
            resource,
            permission,
            &request,
        )
        .await
        .map_err(internal)
    }
}

/// The refusal, in the same words whether the resource is there or not.
pub(super) fn lacks(caller: &Caller, resource: &Resource, permission: Permission) -> Status {
    let roles: Vec<&str> = permission.roles().map(crate::iam::Role::name).collect();
    Status::permission_denied(format!(
        "{} lacks permission {:?} on {resource}; roles with it: {}",
        who(&caller.identity.principal),
        permission.name(),
        roles.join(", ")
    ))
}

/// A name from a request's field.
pub(super) fn name<N: std::str::FromStr>(field: &str, value: &str) -> Result<N, Status>
where
    N::Err: std::fmt::Display,
{
    value
        .parse()
        .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

/// Unix seconds as the API says them.
pub(super) fn timestamp(unix: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(unix).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
