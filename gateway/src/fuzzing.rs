//! Parsers of what comes from outside, for the properties in `tests/fuzz`. No interface of this package.

use std::net::IpAddr;

use http::{HeaderMap, Response};
use towline_proto::assertion::Nested;

use crate::{api, assert, authn, error::Refused, forward, login, request::Body, server};

/// The bearer token of a request.
///
/// # Errors
/// What is no bearer token.
pub fn bearer(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    authn::bearer(headers)
}

/// Whether a Close frame could stand after each of these pieces of a WebSocket's bytes.
pub fn boundaries<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<bool> {
    forward::framed::boundaries(pieces)
}

/// For a query of the sign-in form that is taken: the redirect as asked for, the redirect with a code, the page.
pub fn sign_in(query: &str) -> Option<(String, String, Response<Body>)> {
    login::authorize::rehearse(query)
}

/// A message to the management API in JSON, read and written again.
pub fn json(path: &str, json: &[u8]) -> Option<String> {
    api::json::again(path, json)
}

/// Whose address counts.
pub fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[ipnet::IpNet]) -> IpAddr {
    server::client(peer, headers, proxies)
}

/// Whom headers ask to be instead, taken out of them.
///
/// # Errors
/// What looks like that and isn't.
pub fn nested(headers: &mut HeaderMap) -> Result<Option<Nested>, Refused> {
    assert::nested::take(headers)
}
