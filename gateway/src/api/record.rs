//! What the record of a call says: the method, and of its message the names alone.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use prost_reflect::DynamicMessage;
use tonic::Status;
use towline_proto::names::{Location, Membership};

use super::{MAX_MESSAGE, json};
use crate::audit::{self, ObjectRef};

/// Notes what a call is about.
///
/// # Errors
/// The message did not arrive whole, or is too long.
pub(super) async fn noted(
    request: Request<tonic::body::Body>,
) -> Result<Request<tonic::body::Body>, Status> {
    let (head, body) = request.into_parts();
    // A frame's own five bytes come on top.
    let frame = Limited::new(body, MAX_MESSAGE + 5)
        .collect()
        .await
        .map_err(|_| {
            Status::invalid_argument(format!(
                "the message did not arrive whole, or is over {MAX_MESSAGE} bytes"
            ))
        })?
        .to_bytes();
    note(head.uri.path(), &frame);
    let body = tonic::body::Body::new(Full::new(frame));
    Ok(Request::from_parts(head, body))
}

/// Notes how it was answered.
pub(super) fn answered<B>(response: &Response<B>) {
    if let Some(status) = json::status(response.headers()) {
        let (reason, code) = json::name(status.code());
        audit::current(|record| record.answered(code, Some(reason)));
    }
}

fn note(path: &str, frame: &Bytes) {
    let Ok(method) = json::method(path) else {
        return;
    };
    let message = frame
        .get(5..)
        .and_then(|payload| DynamicMessage::decode(method.input(), payload).ok());
    let text = |field: &str| {
        let value = message.as_ref()?.get_field_by_name(field)?;
        let text = value.as_str()?.to_owned();
        (!text.is_empty()).then_some(text)
    };
    let service = method.parent_service().name().to_lowercase();
    let project = text("project").and_then(|project| project.parse().ok());
    audit::current(|record| {
        record.verb(method.name());
        if let Some(project) = &project {
            record.project(project);
        }
        // Of a membership the record is found by its name.
        let membership = match service.as_str() {
            "memberships" => text("name"),
            _ => text("membership"),
        };
        if let (Some(project), Some(id)) = (
            &project,
            membership.as_ref().and_then(|name| name.parse().ok()),
        ) {
            let location = text("location").and_then(|location| location.parse().ok());
            record.membership(&Membership {
                project: project.clone(),
                location: location.unwrap_or_else(Location::global),
                id,
            });
        }
        record.object(ObjectRef {
            resource: service.clone(),
            name: NAMES.into_iter().find_map(text).unwrap_or_default(),
            api_group: "towline".to_owned(),
            api_version: "v1".to_owned(),
            ..ObjectRef::default()
        });
    });
}

/// Fields that hold the name of what a call is about. Others may hold a secret.
const NAMES: [&str; 5] = ["name", "membership", "holder", "resource", "project"];
