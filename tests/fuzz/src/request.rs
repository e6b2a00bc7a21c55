//! A request's head: what the gateway reads in it is what the API server will read.

use std::net::IpAddr;

use http::{HeaderMap, Method, header};
use percent_encoding::percent_decode_str;
use towline_gateway::{
    fuzzing,
    iam::Permission,
    target::{Kind, Place, Target},
};
use towline_proto::{
    assertion::Nested,
    endpoint,
    names::{Location, Membership, MembershipId, Project},
};

use crate::head;

/// Nothing is rewritten, and path, verb and watch are those that kube-apiserver finds in the same bytes.
pub(crate) fn target(data: &[u8]) {
    let Some(head) = head::parse(data) else {
        return;
    };
    let Ok(target) = Target::parse(&head) else {
        return;
    };
    let url = head.uri.path_and_query().map_or("/", |both| both.as_str());
    let sent = match &target.place {
        Place::Named(membership) => format!("{}{}", endpoint::path(membership), target.path),
        Place::OfToken => target.path.clone(),
    };
    // A slash where there was no path is all that may be added.
    assert!(
        sent == url
            || sent.replacen("/?", "?", 1) == url
            || sent.strip_suffix('/') == Some(url)
            || sent == format!("/{url}"),
        "{url:?} became {sent:?}"
    );
    let read = ApiServer::read(&head.method, &target.path);
    read.assert_one_reading();
    let info = &target.info;
    assert_eq!(info.path, read.decoded);
    assert_eq!(
        (
            info.verb.as_str(),
            info.is_resource,
            info.api_group.as_str(),
            info.api_version.as_str()
        ),
        (
            read.verb.as_str(),
            read.is_resource,
            read.group.as_str(),
            read.version.as_str()
        ),
        "{}",
        target.path
    );
    assert_eq!(
        (
            info.namespace.as_str(),
            info.resource.as_str(),
            info.subresource.as_str()
        ),
        (
            read.namespace.as_str(),
            read.resource.as_str(),
            read.subresource.as_str()
        ),
        "{}",
        target.path
    );
    // A field selector may name one object, too.
    assert!(
        info.name == read.name || target.path.contains("ieldSelector"),
        "{}",
        target.path
    );
    match target.kind {
        Kind::Upgrade { .. } => assert!(asks_to_upgrade(&head.headers)),
        Kind::LongRunning { watch: true } => assert_eq!(read.verb, "watch", "{}", target.path),
        Kind::LongRunning { watch: false } | Kind::Short => {
            assert!(
                read.verb != "watch" || read.proxied || !read.reads,
                "a watch was missed: {}",
                target.path
            );
        }
    }
    let permission = match head.method {
        _ if matches!(target.kind, Kind::Upgrade { .. }) => Permission::Stream,
        Method::GET | Method::HEAD | Method::OPTIONS => Permission::Get,
        Method::POST if read.is_review_of_oneself() => Permission::Get,
        Method::POST => Permission::Post,
        Method::PUT => Permission::Put,
        Method::PATCH => Permission::Patch,
        Method::DELETE => Permission::Delete,
        ref other => panic!("{other} was permitted"),
    };
    assert_eq!(target.permission, permission);
}

/// How kube-apiserver reads a request (`RequestInfoFactory`, `net/url`), written from its source and not from ours.
#[derive(Default)]
struct ApiServer {
    decoded: String,
    parts: Vec<String>,
    reads: bool,
    verb: String,
    is_resource: bool,
    group: String,
    version: String,
    namespace: String,
    resource: String,
    subresource: String,
    name: String,
    /// Whether the subresource is `proxy`.
    proxied: bool,
}

impl ApiServer {
    fn read(method: &Method, path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        // `net/url` decodes the whole path, and only then is it split.
        let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let trimmed = decoded.trim_matches('/');
        let parts: Vec<String> = match trimmed {
            "" => Vec::new(),
            trimmed => trimmed.split('/').map(str::to_owned).collect(),
        };
        let mut info = Self {
            verb: method.as_str().to_lowercase(),
            reads: matches!(*method, Method::GET | Method::HEAD),
            decoded,
            parts: parts.clone(),
            ..Self::default()
        };
        info.resource_info(method, &parts, query);
        info
    }

    fn resource_info(&mut self, method: &Method, parts: &[String], query: &str) {
        let at = |index: usize| parts.get(index).map(String::as_str);
        let mut next = match (parts.len(), at(0)) {
            (3.., Some("api")) => 1,
            (4.., Some("apis")) => {
                self.group = parts[1].clone();
                2
            }
            _ => return,
        };
        self.is_resource = true;
        self.version = parts[next].clone();
        next += 1;
        if matches!(at(next), Some("watch" | "proxy")) {
            if parts.len() - next < 2 {
                // An error, and 400.
                self.verb = String::new();
                return;
            }
            self.verb = parts[next].clone();
            next += 1;
        } else {
            self.verb = match method.as_str() {
                "POST" => "create",
                "GET" | "HEAD" => "get",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "",
            }
            .to_owned();
        }
        if at(next) == Some("namespaces") && parts.len() - next > 1 {
            self.namespace = parts[next + 1].clone();
            if parts.len() - next > 2 && !matches!(at(next + 2), Some("status" | "finalize")) {
                next += 2;
            }
        }
        let own = |index: usize| at(next + index).unwrap_or_default().to_owned();
        self.resource = own(0);
        self.name = own(1);
        if self.verb != "proxy" {
            self.subresource = own(2);
        }
        self.proxied = self.subresource == "proxy";
        if self.name.is_empty() && self.verb == "get" {
            let watch = first_true(query, "watch");
            self.verb = if watch { "watch" } else { "list" }.to_owned();
        } else if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
    }

    /// No other server could find another path in it, but behind a proxy, where it is another server's.
    fn assert_one_reading(&self) {
        let proxy = self.parts.iter().position(|part| part == "proxy");
        let end = proxy.filter(|_| self.proxied).unwrap_or(self.parts.len());
        for (at, part) in self.parts.iter().take(end).enumerate() {
            let name = part.split(';').next().unwrap();
            assert!(
                !matches!(name, "." | "..") && !part.contains(['\\', '%', '\0']),
                "part {at} of {:?}",
                self.decoded
            );
        }
        if !self.proxied {
            assert!(!self.decoded.contains("//"), "{:?}", self.decoded);
        }
    }

    fn is_review_of_oneself(&self) -> bool {
        let words: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        let review = matches!(
            words.as_slice(),
            [
                "apis",
                "authorization.k8s.io",
                _,
                "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
            ] | ["apis", "authentication.k8s.io", _, "selfsubjectreviews"]
        );
        review && !self.decoded.ends_with('/')
    }
}

/// `url.ParseQuery`, then the first value as a boolean.
fn first_true(query: &str, wanted: &str) -> bool {
    for pair in query.split('&') {
        if pair.is_empty() || pair.contains(';') {
            continue;
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (unescape(key), unescape(value)) else {
            continue;
        };
        if key == wanted.as_bytes() {
            let value = String::from_utf8_lossy(&value).to_lowercase();
            return value != "0" && value != "false";
        }
    }
    false
}

/// `url.QueryUnescape`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut unescaped = Vec::new();
    while let Some(byte) = bytes.next() {
        unescaped.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(unescaped)
}

fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(header::CONNECTION).iter();
    headers.contains_key(header::UPGRADE)
        && tokens
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.to_lowercase().contains("upgrade"))
}

/// A URL is one membership's or none, and says itself again.
pub(crate) fn membership(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some((membership, rest)) = endpoint::split(text) {
        let path = endpoint::path(&membership);
        assert!(
            text == format!("{path}{rest}") || (text == path && rest == "/"),
            "{text:?}"
        );
        assert!(!path.contains('%') && path == path.to_lowercase());
        assert!(matches!(rest.chars().next(), Some('/' | '?')), "{rest:?}");
    }
    if let Ok(membership) = text.parse::<Membership>() {
        assert_eq!(membership.to_string(), text);
        let split = endpoint::split(&endpoint::path(&membership)).map(|(membership, _)| membership);
        assert_eq!(split.as_ref(), Some(&membership));
    }
    let label = |text: &str| {
        let of_label =
            |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        (1..=63).contains(&text.len())
            && text.bytes().all(|byte| of_label(&byte))
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    assert_eq!(text.parse::<Project>().is_ok(), label(text), "{text:?}");
    assert_eq!(text.parse::<Location>().is_ok(), label(text), "{text:?}");
    assert_eq!(
        text.parse::<MembershipId>().is_ok(),
        label(text),
        "{text:?}"
    );
}

/// An address is the peer's, or one that only trusted proxies passed on.
pub(crate) fn forwarded(data: &[u8]) {
    let Some(head) = head::parse(data) else {
        return;
    };
    let address =
        |name: &str| -> Option<IpAddr> { head.headers.get(name)?.to_str().ok()?.parse().ok() };
    let Some(peer) = address("peer") else {
        return;
    };
    let trusted: Vec<ipnet::IpNet> = head
        .headers
        .get_all("trusted")
        .iter()
        .filter_map(|net| net.to_str().ok()?.parse().ok())
        .collect();
    let trusts = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let client = fuzzing::client(peer, &head.headers, &trusted);
    assert_eq!(client, client.to_canonical());
    let peer = peer.to_canonical();
    if !trusts(peer) {
        assert_eq!(client, peer);
        return;
    }
    let said: Vec<&str> = head
        .headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    // Right to left: every hop between the client and us is trusted.
    let mut hops = vec![Some(peer)];
    hops.extend(
        said.iter()
            .rev()
            .map(|hop| hop.parse::<IpAddr>().ok().map(|hop| hop.to_canonical())),
    );
    let at = hops
        .iter()
        .position(|hop| *hop == Some(client))
        .expect("an address that nobody said");
    assert!(
        hops[..at].iter().all(|hop| hop.is_some_and(trusts)),
        "{hops:?}: {client}"
    );
}

/// A token comes from one place, and no credential is in two.
pub(crate) fn bearer(data: &[u8]) {
    let Some(head) = head::parse(data) else {
        return;
    };
    let headers = &head.headers;
    let said = headers.get_all(header::AUTHORIZATION).iter().count();
    match fuzzing::bearer(headers) {
        Ok(Some(token)) if said > 0 => {
            assert_eq!(said, 1);
            let value = headers[header::AUTHORIZATION].to_str().unwrap();
            assert!(value[..7].eq_ignore_ascii_case("bearer "), "{value:?}");
            // What stands behind it is the caller's proof for an agent, and no credential here.
            let sent = value[7..].trim();
            assert_eq!(sent.split_once('~').map_or(sent, |(token, _)| token), token);
        }
        Ok(Some(_)) => assert!(headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)),
        Ok(None) => assert_eq!(said, 0),
        Err(_) => {}
    }
}

/// Whom a caller asks to be is what the standard's headers say, to the last byte; nothing like them is left.
pub(crate) fn nested(data: &[u8]) {
    let Some(head) = head::parse(data) else {
        return;
    };
    let mut headers = head.headers.clone();
    let Ok(nested) = fuzzing::nested(&mut headers) else {
        return;
    };
    let impersonates = |name: &str| name.replace('_', "-").starts_with("impersonate");
    assert!(
        !headers.keys().any(|name| impersonates(name.as_str())),
        "{headers:?}"
    );
    for list in [header::CONNECTION, header::TRAILER] {
        for value in headers.get_all(list) {
            let value = String::from_utf8_lossy(value.as_bytes()).to_lowercase();
            assert!(
                !value.split(',').any(|name| impersonates(name.trim())),
                "{value:?}"
            );
        }
    }
    let said = |name: &str| -> Vec<&[u8]> {
        head.headers
            .get_all(name)
            .iter()
            .map(|value| value.as_bytes())
            .collect()
    };
    let Some(nested) = nested else {
        assert_eq!(headers.len(), head.headers.len());
        return;
    };
    assert_eq!(said("impersonate-user"), [nested.user.as_bytes()]);
    assert_eq!(
        said("impersonate-uid"),
        nested.uid.iter().map(String::as_bytes).collect::<Vec<_>>()
    );
    assert_eq!(
        said("impersonate-group"),
        nested
            .groups
            .iter()
            .map(String::as_bytes)
            .collect::<Vec<_>>()
    );
    let count = head
        .headers
        .iter()
        .filter(|(name, _)| impersonates(name.as_str()))
        .count();
    assert_eq!(count, nested.names());
    // And it arrives so.
    assert_eq!(Nested::from_header(&nested.to_header()), Ok(nested));
}

/// Boundaries don't depend on how the bytes are cut, and are where RFC 6455 has them.
pub(crate) fn websocket(data: &[u8]) {
    let (Some(cut), Some(bytes)) = (data.first(), data.get(1..)) else {
        return;
    };
    let whole = fuzzing::boundaries(bytes.chunks(1));
    let size = usize::from(*cut).max(1);
    let cut = fuzzing::boundaries(bytes.chunks(size));
    for (number, at_boundary) in cut.into_iter().enumerate() {
        let end = ((number + 1) * size).min(bytes.len());
        assert_eq!(at_boundary, whole[end - 1], "after {end} bytes");
    }
    let mut at = 0;
    let mut ends = Vec::new();
    while let Some(end) = frame_end(bytes, at) {
        ends.push(end);
        at = end;
    }
    for (number, at_boundary) in whole.into_iter().enumerate() {
        assert_eq!(
            at_boundary,
            ends.contains(&(number + 1)),
            "after {} bytes",
            number + 1
        );
    }
}

fn frame_end(bytes: &[u8], at: usize) -> Option<usize> {
    let second = *bytes.get(at + 1)?;
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = bytes.get(at + from..at + to)?;
        Some(
            digits
                .iter()
                .fold(0, |number, digit| number << 8 | u64::from(*digit)),
        )
    };
    let (header, length) = match second & 0x7f {
        126 => (4, number(2, 4)?),
        127 => (10, number(2, 10)?),
        short => (2, u64::from(short)),
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let end = (at as u64 + header + mask).checked_add(length)?;
    (end <= bytes.len() as u64).then(|| usize::try_from(end).unwrap())
}
