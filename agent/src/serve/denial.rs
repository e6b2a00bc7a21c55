//! Told apart: the cluster doesn't let the *agent* impersonate, or it doesn't let the caller do something.
//!
//! Both are a 403. The first is the operator's to repair, and its sentence, `User "…" cannot impersonate …`,
//! would be a riddle to the caller. Every other 403 passes byte by byte.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::timeout;
use towline_proto::body::Aborted;

use crate::body::Boxed;

/// The longest body that is looked into, in bytes.
const LOOK: u64 = 8 * 1024;

/// How long a body may take to arrive before it passes unseen.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer as it is, or the sentence for the caller if the agent may not impersonate `user`.
pub(super) async fn inspect(
    response: Response<Boxed>,
    user: &str,
) -> Result<Response<Boxed>, String> {
    let length = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    // The API server always says how long its own denial is.
    if response.status() != StatusCode::FORBIDDEN || length.is_none_or(|length: u64| length > LOOK)
    {
        return Ok(response);
    }
    let (head, mut body) = response.into_parts();
    let mut seen = VecDeque::new();
    let whole = timeout(PATIENCE, async {
        while let Some(frame) = body.frame().await {
            seen.push_back(frame);
        }
    })
    .await;
    if whole.is_ok() {
        let bytes: Vec<u8> = seen
            .iter()
            .flatten()
            .filter_map(Frame::data_ref)
            .flatten()
            .copied()
            .collect();
        if let Some(sentence) = sentence(&bytes, user) {
            return Err(sentence);
        }
    }
    Ok(Response::from_parts(head, replay(seen, body)))
}

/// The frames that were seen, then the rest.
fn replay(seen: VecDeque<Result<Frame<Bytes>, Aborted>>, rest: Boxed) -> Boxed {
    let frames = futures_util::stream::unfold((seen, rest), |(mut seen, mut rest)| async move {
        let frame = match seen.pop_front() {
            Some(frame) => frame,
            None => rest.frame().await?,
        };
        Some((frame, (seen, rest)))
    });
    UnsyncBoxBody::new(StreamBody::new(frames))
}

/// JSON, protobuf and CBOR all hold the message as it is, but for JSON's escapes.
fn sentence(body: &[u8], user: &str) -> Option<String> {
    let text = String::from_utf8_lossy(body).replace("\\\"", "\"");
    let (before, after) = text.split_once("\" cannot impersonate resource \"")?;
    // `users "alice" is forbidden: User "system:serviceaccount:towline:agent` …
    let (subject, agent) = before.rsplit_once("User \"")?;
    if agent == user {
        return None;
    }
    let (resource, after) = after.split_once('"')?;
    let group = after
        .strip_prefix(" in API group \"")
        .and_then(|rest| rest.split_once('"'))
        .map_or("", |(g, _)| g);
    let name = subject
        .trim_end()
        .strip_suffix("\" is forbidden:")
        .and_then(|rest| rest.rsplit_once('"'));
    let names = name.map_or_else(String::new, |(_, name)| {
        format!(", resourceNames: [{name:?}]")
    });
    Some(format!(
        "agent is not authorized to impersonate user {user:?}; in the cluster, the ClusterRole gateway-impersonate \
         lacks {{apiGroups: [{group:?}], resources: [{resource:?}], verbs: [\"impersonate\"]{names}}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::text;

    const DENIED: &str = r#"{"kind":"Status","message":"users \"alice\" is forbidden: User \"system:serviceaccount:towline:agent\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope","code":403}"#;

    fn forbidden(body: &'static str) -> Response<Boxed> {
        Response::builder()
            .status(403)
            .header("content-length", body.len())
            .body(text(body))
            .unwrap()
    }

    #[tokio::test]
    async fn the_missing_rule_is_named() {
        let sentence = inspect(forbidden(DENIED), "alice").await.unwrap_err();
        assert_eq!(
            sentence,
            "agent is not authorized to impersonate user \"alice\"; in the cluster, the ClusterRole \
             gateway-impersonate lacks {apiGroups: [\"\"], resources: [\"users\"], verbs: [\"impersonate\"], \
             resourceNames: [\"alice\"]}"
        );
        let extra = sentence_of(
            "userextras.authentication.k8s.io \"v\" is forbidden: User \"a\" cannot impersonate resource \
             \"userextras/k\" in API group \"authentication.k8s.io\" at the cluster scope",
        );
        assert!(
            extra.contains(r#"{apiGroups: ["authentication.k8s.io"], resources: ["userextras/k"]"#),
            "{extra}"
        );
    }

    fn sentence_of(text: &str) -> String {
        sentence(text.as_bytes(), "alice").unwrap()
    }

    #[tokio::test]
    async fn every_other_403_passes() {
        for body in [
            r#"{"kind":"Status","message":"pods is forbidden: User \"alice\" cannot list resource \"pods\""}"#,
            // The caller's own nested impersonation.
            r#"{"message":"users \"bob\" is forbidden: User \"alice\" cannot impersonate resource \"users\""}"#,
            "",
        ] {
            let passed = inspect(forbidden(body), "alice").await.unwrap();
            assert_eq!(passed.into_body().collect().await.unwrap().to_bytes(), body);
        }
        // A body without a length, or a long one, isn't waited for.
        let mut endless = forbidden(DENIED);
        endless.headers_mut().remove("content-length");
        inspect(endless, "alice").await.unwrap();
    }
}
