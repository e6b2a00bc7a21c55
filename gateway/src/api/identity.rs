//! Who the gateway takes the caller to be.

use tonic::{Request, Response, Status};
use towline_proto::api::{ExtraValues, WhoAmIRequest, WhoAmIResponse, identity_server::Identity};

use super::{Api, caller::timestamp};

#[tonic::async_trait]
impl Identity for Api {
    async fn who_am_i(
        &self,
        request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        Ok(Response::new(WhoAmIResponse {
            principal: caller.identity.principal.to_string(),
            uid: caller.identity.uid.unwrap_or_default(),
            extra: caller
                .identity
                .extra
                .into_iter()
                .map(|(key, values)| (key, ExtraValues { values }))
                .collect(),
            delegates: caller
                .identity
                .delegates
                .iter()
                .map(ToString::to_string)
                .collect(),
            username: caller.identity.user,
            groups: caller.identity.groups,
            issuer: caller.identity.issuer,
            expires: Some(timestamp(caller.expires)),
            roles: if caller.operator {
                vec!["gatewayOperator".to_owned()]
            } else {
                Vec::new()
            },
        }))
    }
}
