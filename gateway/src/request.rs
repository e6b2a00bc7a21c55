//! One request, from its head to the end of its answer.

use std::net::IpAddr;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use towline_proto::body::Aborted;

use crate::{
    app::Gateway,
    assert,
    audit::{self, Record},
    authn, authz,
    error::Refused,
    forward, route,
    target::Target,
};

/// What callers are answered with.
pub type Body = UnsyncBoxBody<Bytes, Aborted>;

/// Serves one request.
pub async fn serve(
    gateway: &Gateway,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let method = request.method().clone();
    let discovers = discovers(&request);
    audit::recorded(gateway, client, request, async |request, record: Record| {
        let refused = match run(gateway, client, request, &record).await {
            Ok(response) => return response,
            Err(refused) => refused,
        };
        let request_id = record.id();
        tracing::info!(request_id, %client, %method, layer = refused.layer(), reason = %refused, "refused");
        record.refused(&refused);
        if discovers {
            refused.into_text_response(&request_id)
        } else {
            refused.into_response(&request_id)
        }
    })
    .await
}

/// Whether kubectl asks which APIs there are, as it does before all else: it reads no `Status` there (client-go's
/// `Request.Raw`) and prints `unknown` in place of its message, but passes on plain text.
fn discovers(request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    let accept = request.headers().get(header::ACCEPT);
    (path.ends_with("/api") || path.ends_with("/apis"))
        && accept
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("g=apidiscovery.k8s.io"))
}

/// The stages in their order, each used up by the next.
async fn run(
    gateway: &Gateway,
    client: IpAddr,
    request: Request<Incoming>,
    record: &Record,
) -> Result<Response<Body>, Refused> {
    let (mut head, body) = request.into_parts();

    // Everything that decides, before anything has an effect.
    let target = Target::parse(&head)?;
    record.target(&target);
    let upgrade = head.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let caller = authn::identify(gateway, &head.headers, &target).await?;
    record.caller(&caller);
    let permit = authz::permit(gateway, caller, target).await?;
    record.permit(&permit);
    let lease = gateway.quotas.lease(permit).await?;
    let origin = forward::Origin::of(&head);
    let outbound = assert::outbound(lease, head, body, record.id(), client)?;
    record.outbound(&outbound);

    // Everything that may fail before the answer's head.
    let sent = route::send(gateway, outbound).await?;

    // From here on errors can't be HTTP any more.
    forward::answer(gateway, sent, upgrade, &origin, record).await
}
