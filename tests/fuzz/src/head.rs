//! A request's head as text, for corpora that people can read: a line `METHOD URL`, then lines `name: value`.

use http::{HeaderName, HeaderValue, Method, Request, Uri, request::Parts};

/// The head, where it is one that an HTTP library would hand over.
pub(crate) fn parse(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let line = lines.next()?;
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (method, url) = (&line[..space], &line[space + 1..]);
    let mut request = Request::builder()
        .method(Method::from_bytes(method).ok()?)
        .uri(Uri::try_from(url).ok()?)
        .body(())
        .ok()?;
    for line in lines.take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Some(request.into_parts().0)
}
