//! Who the gateway takes the caller to be.

use tonic::{Request, Response, Status};
use towline_proto::api::{WhoAmIRequest, WhoAmIResponse, identity_server::Identity};

use super::{Api, caller::timestamp};

#[tonic::async_trait]
impl Identity for Api {
    async fn who_am_i(
        &self,
        request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        Ok(Response::new(WhoAmIResponse {
            principal: caller.principal.to_string(),
            username: caller.user.name,
            groups: caller.user.groups,
            issuer: crate::login::issuer(&self.gateway.config),
            expires: Some(timestamp(caller.token.expires)),
            roles: if caller.user.operator {
                vec!["gatewayOperator".to_owned()]
            } else {
                Vec::new()
            },
        }))
    }
}
