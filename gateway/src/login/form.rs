//! Forms: bounded, and each field once.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;
use url::form_urlencoded;

use super::Refusal;

/// The longest form, in bytes.
const MAX_FORM: usize = 64 * 1024;

/// How long a form may take to arrive: nobody is known before that.
const LIMIT: Duration = Duration::from_secs(30);

/// The fields of a form.
#[derive(Default)]
pub(super) struct Form {
    fields: HashMap<String, String>,
    headers: HeaderMap,
}

impl Form {
    /// The body of a POST.
    pub(super) async fn read<B>(request: Request<B>) -> Result<Self, Refusal>
    where
        B: HttpBody<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let form = head.headers.get(header::CONTENT_TYPE).is_some_and(|value| {
            let value = value
                .as_bytes()
                .split(|byte| *byte == b';')
                .next()
                .unwrap_or_default();
            value
                .trim_ascii()
                .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        });
        if !form {
            return Err(Refusal::bad(
                "invalid_request",
                "send application/x-www-form-urlencoded",
            ));
        }
        let arrived = timeout(LIMIT, Limited::new(body, MAX_FORM).collect());
        let body = arrived.await.map_err(|_| late())?.map_err(|_| {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request",
                format!("the form did not arrive whole, or is over {MAX_FORM} bytes"),
            )
        })?;
        let fields = fields(&body.to_bytes())?;
        Ok(Self {
            fields,
            headers: head.headers,
        })
    }

    /// The query of a GET.
    pub(super) fn query(uri: &Uri) -> Result<Self, Refusal> {
        Ok(Self {
            fields: fields(uri.query().unwrap_or_default().as_bytes())?,
            headers: HeaderMap::new(),
        })
    }

    /// A field's value; an empty one counts as none.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A field that has to be there.
    pub(super) fn required(&self, name: &'static str) -> Result<&str, Refusal> {
        self.field(name)
            .ok_or_else(|| Refusal::bad("invalid_request", format!("{name} is missing")))
    }

    /// The request's headers.
    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are passwords and tokens.
        f.debug_set().entries(self.fields.keys()).finish()
    }
}

fn late() -> Refusal {
    Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        "invalid_request",
        format!("the form did not arrive within {LIMIT:?}"),
    )
}

fn fields(bytes: &[u8]) -> Result<HashMap<String, String>, Refusal> {
    let mut fields = HashMap::new();
    for (name, value) in form_urlencoded::parse(bytes) {
        let name = name.into_owned();
        if fields.contains_key(&name) {
            return Err(Refusal::bad(
                "invalid_request",
                format!(
                    "{:?} is there twice",
                    name.chars().take(80).collect::<String>()
                ),
            ));
        }
        fields.insert(name, value.into_owned());
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_form_that_never_comes_is_not_waited_for() {
        let frames =
            futures_util::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>();
        let request = Request::post("/oauth2/token")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(StreamBody::new(frames))
            .unwrap();
        let refused = timeout(2 * LIMIT, Form::read(request))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(refused.status, StatusCode::REQUEST_TIMEOUT);
    }
}
