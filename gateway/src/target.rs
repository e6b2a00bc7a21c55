//! What a request asks for: which membership, which Kubernetes path, and what that does.
//!
//! Threat: IAM reads a URL one way and the API server, or a proxy in front of it, another.
//! Decision: what could be read two ways (empty or dot segments, an encoded slash, percent sign or backslash, what
//! isn't UTF-8) is refused up to the subresource `proxy`; after it the path is somebody else's and passes byte by
//! byte. What is left is decoded once, as the API server decodes it, to be read here; nothing is rewritten.
//! Consequence: what is authorized is what the API server does.

mod info;

use std::borrow::Cow;

use http::{HeaderMap, Method, header, request::Parts};
use percent_encoding::percent_decode_str;
use towline_proto::{endpoint, names::Membership};

use crate::{error::Refused, iam::Permission};

pub use info::RequestInfo;

/// The longest head that passes, in bytes, well below what a tunnel takes.
pub const MAX_HEAD: usize = 256 * 1024;

/// What each header counts beside its bytes, as in HTTP/2 (RFC 9113 §6.5.2): many short ones cost as much as long ones,
/// here, in a tunnel (which one list that is too long ends), and behind it.
const PER_HEADER: usize = 32;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The URL names the membership.
    Named(Membership),
    /// The URL has no `/v1/projects/…`: the token's own membership.
    OfToken,
}

/// How a request behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An answer that ends.
    Short,
    /// A watch, a followed log, a proxied request: no limit on its length.
    LongRunning {
        /// A watch in JSON: an event of type ERROR can tell of an early end.
        watch: bool,
    },
    /// `Upgrade` to this protocol.
    Upgrade {
        /// As the caller wrote it.
        protocol: String,
    },
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it goes.
    pub place: Place,
    /// Path and query for the API server, byte by byte.
    pub path: String,
    /// How it behaves.
    pub kind: Kind,
    /// What the caller needs.
    pub permission: Permission,
    /// What the API server takes it for.
    pub info: RequestInfo,
}

impl Target {
    /// Reads a request's head.
    ///
    /// # Errors
    /// 400, 404, 405 or 431, see [`Refused`].
    pub fn parse(head: &Parts) -> Result<Self, Refused> {
        let url = head.uri.path_and_query().map_or("/", |both| both.as_str());
        let size = url.len()
            + head
                .headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + PER_HEADER)
                .sum::<usize>();
        if size > MAX_HEAD {
            return Err(Refused::HeadTooLarge {
                size,
                limit: MAX_HEAD,
            });
        }
        let (place, path) = match endpoint::split(url) {
            Some((membership, path)) => (Place::Named(membership), path),
            // Kubernetes has no path under /v1/: it can only be a misspelt membership.
            None if url.starts_with(endpoint::PREFIX) => {
                return Err(Refused::NotFound(url.chars().take(200).collect()));
            }
            None => (Place::OfToken, url),
        };
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let (resource, query) = path.split_once('?').unwrap_or((&path, ""));
        let segments = Segments::read(resource)?;
        let info = RequestInfo::parse(&head.method, resource, query);
        let kind = kind(&head.headers, &info, segments.proxied, query)?;
        let permission = permission(&head.method, &kind, &segments.as_strs())?;
        Ok(Self {
            place,
            kind,
            permission,
            info,
            path: path.clone(),
        })
    }
}

/// A path's segments, decoded, up to the subresource `proxy`, none of which can be read in two ways.
struct Segments<'a> {
    read: Vec<Cow<'a, str>>,
    /// The rest is another server's path.
    proxied: bool,
}

impl<'a> Segments<'a> {
    fn read(path: &'a str) -> Result<Self, Refused> {
        let mut all = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
        let mut read = Vec::new();
        while let Some(segment) = all.next() {
            if segment.is_empty() && all.peek().is_some() {
                return Err(two_readings("an empty segment"));
            }
            read.push(decoded(segment).map_err(two_readings)?);
            if is_proxy(&read) {
                return Ok(Self {
                    read,
                    proxied: true,
                });
            }
        }
        Ok(Self {
            read,
            proxied: false,
        })
    }

    fn as_strs(&self) -> Vec<&str> {
        self.read.iter().map(AsRef::as_ref).collect()
    }
}

fn two_readings(what: &str) -> Refused {
    Refused::Path(format!(
        "it has {what}, which the API server may read otherwise"
    ))
}

/// A segment as the API server decodes it, where nobody can decode it otherwise.
fn decoded(segment: &str) -> Result<Cow<'_, str>, &'static str> {
    if !is_escaped(segment) {
        return Err("a percent sign without two hexadecimal digits");
    }
    let decoded = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| "bytes that aren't UTF-8")?;
    // Some servers cut a parameter off before they look for dots.
    let name = decoded.split(';').next().unwrap_or_default();
    if matches!(name, "." | "..") {
        Err("a dot segment")
    } else if decoded.contains('/') {
        Err("an encoded slash")
    } else if decoded.contains('\\') {
        Err("a backslash")
    } else if decoded.contains('%') {
        // No name in Kubernetes has one; whoever decodes twice sees something else.
        Err("an encoded percent sign")
    } else if decoded.contains(char::is_control) {
        Err("a control character")
    } else {
        Ok(decoded)
    }
}

/// Whether the last segment is the subresource `proxy`: neither a namespace's nor an object's name.
fn is_proxy(read: &[Cow<'_, str>]) -> bool {
    let mut read = read.iter().map(AsRef::as_ref);
    let version = match read.next() {
        Some("api") => read.next(),
        Some("apis") => read.next().and_then(|_| read.next()),
        _ => None,
    };
    let resource: Vec<&str> = read.collect();
    version.is_some()
        && matches!(
            resource.as_slice(),
            ["namespaces", _, _, _, "proxy"] | [_, _, "proxy"]
        )
        && !matches!(resource.as_slice(), ["namespaces", _, "proxy"])
}

fn kind(
    headers: &HeaderMap,
    info: &RequestInfo,
    proxied: bool,
    query: &str,
) -> Result<Kind, Refused> {
    if let Some(protocol) = upgrade(headers)? {
        return Ok(Kind::Upgrade { protocol });
    }
    let long = match info.subresource.as_str() {
        "exec" | "attach" | "portforward" => true,
        "log" => info::is_set(query, "follow"),
        _ => proxied,
    };
    Ok(if info.verb == "watch" {
        Kind::LongRunning { watch: true }
    } else if long {
        Kind::LongRunning { watch: false }
    } else {
        Kind::Short
    })
}

/// Whether every percent sign has its two digits.
fn is_escaped(text: &str) -> bool {
    text.split('%').skip(1).all(|escape| {
        let digits = escape.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// The protocol of an `Upgrade` that the caller means.
fn upgrade(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let listed = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let (true, Some(protocol)) = (listed, protocols.next()) else {
        return Ok(None);
    };
    match protocol.to_str() {
        // An offer that any server may ignore (RFC 7540 §3.2), and API servers do.
        Ok(protocol) if protocol.eq_ignore_ascii_case("h2c") => Ok(None),
        Ok(protocol) if protocols.next().is_none() && protocol.len() <= 64 => {
            Ok(Some(protocol.to_owned()))
        }
        _ => Err(Refused::Header(
            "the Upgrade header is not one protocol".to_owned(),
        )),
    }
}

fn permission(method: &Method, kind: &Kind, segments: &[&str]) -> Result<Permission, Refused> {
    let about_oneself = matches!(
        segments,
        [
            "apis",
            "authorization.k8s.io",
            _,
            "selfsubjectaccessreviews" | "selfsubjectrulesreviews"
        ] | ["apis", "authentication.k8s.io", _, "selfsubjectreviews"]
    );
    match *method {
        Method::GET
        | Method::HEAD
        | Method::OPTIONS
        | Method::POST
        | Method::PUT
        | Method::PATCH
        | Method::DELETE
            if matches!(kind, Kind::Upgrade { .. }) =>
        {
            Ok(Permission::Stream)
        }
        Method::GET | Method::HEAD | Method::OPTIONS => Ok(Permission::Get),
        Method::POST if about_oneself => Ok(Permission::Get),
        Method::POST => Ok(Permission::Post),
        Method::PUT => Ok(Permission::Put),
        Method::PATCH => Ok(Permission::Patch),
        Method::DELETE => Ok(Permission::Delete),
        ref other => Err(Refused::Method(other.to_string())),
    }
}

#[cfg(test)]
mod tests;
