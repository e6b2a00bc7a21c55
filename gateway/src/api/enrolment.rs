//! The agent's first contact: a registration token for a key of the agent's own.

use tonic::{Request, Response, Status};
use towline_proto::{
    api::{RedeemRequest, RedeemResponse, enrolment_server::Enrolment},
    jws::PublicKey,
    names::Membership,
};

use super::{Api, caller::name, internal};
use crate::store::memberships::RedeemError;

#[tonic::async_trait]
impl Enrolment for Api {
    async fn redeem(
        &self,
        request: Request<RedeemRequest>,
    ) -> Result<Response<RedeemResponse>, Status> {
        let client = request.extensions().get::<super::From>().copied();
        if let Some(super::From(client)) = client {
            let may = self.gateway.login.may_redeem(client);
            may.map_err(Status::resource_exhausted)?;
        }
        let message = request.into_inner();
        let membership = Membership {
            project: name("project", &message.project)?,
            location: name("location", &message.location)?,
            id: name("membership", &message.membership)?,
        };
        let key = PublicKey::from_bytes(&message.public_key)
            .map_err(|error| Status::invalid_argument(format!("publicKey: {error}")))?;
        let now = self.gateway.clock.unix();
        let redeemed = self
            .gateway
            .store
            .redeem(&membership, &message.token, key, now)
            .await;
        if let (Err(RedeemError::NoToken), Some(super::From(client))) = (&redeemed, client) {
            self.gateway.login.failed_redemption(client);
        }
        let fresh = redeemed.map_err(|error| match error {
            RedeemError::NoToken => Status::permission_denied(error.to_string()),
            RedeemError::Exists => Status::already_exists(error.to_string()),
            RedeemError::Store(error) => internal(error),
        })?;
        if fresh {
            tracing::info!(%membership, key = key.id(), "agent enrolled");
            self.gateway
                .tunnels
                .close(&membership, "the membership was registered anew");
        }
        Ok(Response::new(RedeemResponse {}))
    }
}
