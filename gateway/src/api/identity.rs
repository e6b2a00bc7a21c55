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
            principal: caller.identity.principal.to_string(),
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
