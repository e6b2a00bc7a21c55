//! Streams that run, and those that ended last.

use tonic::{Request, Response, Status};
use towline_proto::{
    api::{self, ListStreamsRequest, ListStreamsResponse, streams_server::Streams},
    names::Project,
};

use super::{
    Api,
    caller::{name, timestamp},
};
use crate::{iam::Permission, live::Stream};

#[tonic::async_trait]
impl Streams for Api {
    async fn list(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let project: Project = name("project", &request.get_ref().project)?;
        let caller = self.caller(request.metadata()).await?;
        let resource = (&project).into();
        let all = self
            .may(&caller, &resource, Permission::StreamsList)
            .await?;
        let (live, ended) = (&self.gateway.live, request.get_ref().ended);
        let mut streams = if ended {
            live.ended(Some(&project))
        } else {
            live.running(Some(&project))
        };
        let replicas = &self.gateway.replicas;
        streams.extend(replicas.streams_elsewhere(&project, ended).await);
        if ended {
            streams.sort_by_key(|stream| std::cmp::Reverse(stream.ended));
        }
        if !all.allowed() {
            // One's own, of which somebody with no right here has none.
            let own = caller.identity.principal.to_string();
            streams.retain(|stream| stream.principal == own);
            if streams.is_empty() {
                self.permitted(request.metadata(), &project, Permission::MembershipsList)
                    .await?;
            }
        }
        Ok(Response::new(ListStreamsResponse {
            streams: streams.into_iter().map(message).collect(),
        }))
    }
}

fn message(stream: Stream) -> api::Stream {
    api::Stream {
        request_id: stream.request_id,
        principal: stream.principal,
        membership: stream.membership.to_string(),
        path: stream.path,
        protocol: stream.protocol,
        started: Some(timestamp(stream.started)),
        ended: (stream.ended > 0).then(|| timestamp(stream.ended)),
        reason: stream.reason,
    }
}
