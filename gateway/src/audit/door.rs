//! One request at any of the doors that callers use: with an id and a record from its beginning to its end.

use std::net::IpAddr;

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;

use super::{AUDIT_ID, Followed, Record, id};
use crate::{
    app::Gateway,
    error::{self, Refused},
    request::Body,
};

/// Serves a request whose record is written when nobody holds it any more. The answer tells its id.
pub async fn recorded<B, F>(
    gateway: &Gateway,
    client: IpAddr,
    request: Request<B>,
    serve: impl FnOnce(Request<B>, Record) -> F,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let id = match id() {
        Ok(id) => id,
        Err(error) => return Refused::Internal(error.to_string()).into_response("-"),
    };
    let begun = gateway.audit.begin(
        &id,
        client,
        request.method(),
        request.uri(),
        request.headers(),
    );
    let mut response = match begun {
        Ok(record) => {
            let response = serve(request, record.clone()).await;
            record.answered(response.status(), None);
            response.map(|body| Followed::new(body, record).boxed_unsync())
        }
        Err(full) => {
            let refused = Refused::from(full);
            tracing::warn!(request_id = id, %client, reason = %refused, "refused");
            refused.into_response(&id)
        }
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        let headers = response.headers_mut();
        headers.insert(error::REQUEST_ID, id.clone());
        headers.insert(AUDIT_ID, id);
    }
    response
}
