//! JSON on the paths of gRPC: the same services, through proto3's canonical JSON.
//!
//! `POST /towline.v1.Memberships/List` with the request message answers with the response message; an error is
//! `{"code": "not_found", "message": "…"}` with the HTTP status that belongs to the code. There is no table of
//! methods: descriptors tell what each takes and gives.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor};
use tokio::time::timeout;
use tonic::{Code, Status};
use towline_proto::api::DESCRIPTORS;

use super::{Api, LIMIT, MAX_MESSAGE, answer};
use crate::request::Body;

/// Answers one JSON call.
pub(super) async fn serve(api: &Api, request: Request<Incoming>) -> Response<Body> {
    match call(api, request).await {
        Ok(json) => answer(StatusCode::OK, json),
        Err(status) => {
            let (name, code) = name(status.code());
            let error = serde_json::json!({"code": name, "message": status.message()});
            answer(code, error.to_string())
        }
    }
}

async fn call(api: &Api, request: Request<Incoming>) -> Result<String, Status> {
    let method = method(request.uri().path())?;
    if request.method() != Method::POST {
        return Err(Status::unimplemented("the management API takes POST"));
    }
    let (head, body) = request.into_parts();
    let body = timeout(LIMIT, Limited::new(body, MAX_MESSAGE).collect())
        .await
        .map_err(|_| {
            Status::deadline_exceeded(format!("the message did not arrive within {LIMIT:?}"))
        })?
        .map_err(|_| {
            Status::invalid_argument(format!(
                "the message did not arrive whole, or is over {MAX_MESSAGE} bytes"
            ))
        })?
        .to_bytes();
    let message = parse(method.input(), &body)?;

    let mut inner = Request::new(tonic::body::Body::new(Full::new(frame(&message))));
    *inner.method_mut() = Method::POST;
    *inner.uri_mut() = head.uri;
    inner.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    if let Some(authorization) = head.headers.get(header::AUTHORIZATION) {
        inner
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization.clone());
    }
    inner.extensions_mut().extend(head.extensions);

    let (head, body) = api.call(inner).await.into_parts();
    let answered = body.collect().await?;
    let trailers = answered.trailers().cloned().unwrap_or_default();
    status(&head.headers)
        .or_else(|| status(&trailers))
        .map_or(Ok(()), Err)?;
    let message = DynamicMessage::decode(method.output(), payload(answered.to_bytes())?)
        .map_err(|error| Status::internal(error.to_string()))?;
    serde_json::to_string(&message).map_err(|error| Status::internal(error.to_string()))
}

pub(super) fn method(path: &str) -> Result<MethodDescriptor, Status> {
    let found = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .and_then(|(service, name)| {
            DESCRIPTORS
                .get_service_by_name(service)?
                .methods()
                .find(|method| method.name() == name)
        });
    found.ok_or_else(|| Status::unimplemented(format!("there is no method {path:?}")))
}

fn parse(descriptor: MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, Status> {
    if json.is_empty() {
        return Ok(DynamicMessage::new(descriptor));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options)
        .and_then(|message| deserializer.end().map(|()| message));
    message.map_err(|error| {
        Status::invalid_argument(format!(
            "the message is not what this method takes: {error}"
        ))
    })
}

/// A request message read and written again.
pub(crate) fn again(path: &str, json: &[u8]) -> Option<String> {
    let message = parse(method(path).ok()?.input(), json).ok()?;
    serde_json::to_string(&message).ok()
}

/// gRPC's length-prefixed message, not compressed.
fn frame(message: &DynamicMessage) -> Bytes {
    let payload = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(payload.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&payload);
    frame.freeze()
}

fn payload(mut frame: Bytes) -> Result<Bytes, Status> {
    if frame.len() < 5 {
        return Err(Status::internal("the service gave no message"));
    }
    Ok(frame.split_off(5))
}

/// What `grpc-status` says, when it isn't OK.
pub(super) fn status(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?;
    let code = Code::from_bytes(code.as_bytes());
    if code == Code::Ok {
        return None;
    }
    let message = headers
        .get("grpc-message")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    Some(Status::new(
        code,
        percent_decode_str(message).decode_utf8_lossy(),
    ))
}

/// A code's name in JSON and its HTTP status.
pub(super) const fn name(code: Code) -> (&'static str, StatusCode) {
    match code {
        Code::Ok => ("ok", StatusCode::OK),
        Code::Cancelled => ("canceled", StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument => ("invalid_argument", StatusCode::BAD_REQUEST),
        Code::DeadlineExceeded => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
        Code::NotFound => ("not_found", StatusCode::NOT_FOUND),
        Code::AlreadyExists => ("already_exists", StatusCode::CONFLICT),
        Code::PermissionDenied => ("permission_denied", StatusCode::FORBIDDEN),
        Code::ResourceExhausted => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
        Code::FailedPrecondition => ("failed_precondition", StatusCode::BAD_REQUEST),
        Code::Aborted => ("aborted", StatusCode::CONFLICT),
        Code::OutOfRange => ("out_of_range", StatusCode::BAD_REQUEST),
        Code::Unimplemented => ("unimplemented", StatusCode::NOT_FOUND),
        Code::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        Code::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED),
        Code::Unknown => ("unknown", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
        Code::DataLoss => ("data_loss", StatusCode::INTERNAL_SERVER_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_parsed_by_its_descriptor() {
        let method = method("/towline.v1.Memberships/Register").unwrap();
        let message = parse(
            method.input(),
            br#"{"project": "p", "name": "m", "renew": true}"#,
        )
        .unwrap();
        assert_eq!(payload(frame(&message)).unwrap(), message.encode_to_vec());
        let unknown = parse(method.input(), br#"{"projct": "p"}"#).unwrap_err();
        assert!(
            unknown.message().contains("projct"),
            "{}",
            unknown.message()
        );
        assert!(parse(method.input(), b"{} {}").is_err());
        assert!(super::method("/towline.v1.Memberships/Nothing").is_err());
    }
}
