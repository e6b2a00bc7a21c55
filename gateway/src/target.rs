//! What a request asks for: which membership, which Kubernetes path, and what that does.
//!
//! Threat: IAM reads a URL one way and the API server another.
//! Decision: what could be read two ways (empty or dot segments, an encoded slash) is refused before a `proxy`
//! segment; after one the path is somebody else's and passes byte by byte. Nothing is decoded or rewritten.
//! Consequence: what is authorized is what the API server does.

use http::{HeaderMap, Method, header, request::Parts};
use towline_proto::{endpoint, names::Membership};

use crate::{error::Refused, iam::Permission};

/// The longest head that passes, in bytes, well below what a tunnel takes.
pub const MAX_HEAD: usize = 256 * 1024;

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
                .map(|(name, value)| name.as_str().len() + value.len() + 4)
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
        let segments = segments(resource)?;
        let kind = kind(&head.method, &head.headers, &segments, query)?;
        let permission = permission(&head.method, &kind, &segments)?;
        Ok(Self {
            place,
            kind,
            permission,
            path: path.clone(),
        })
    }
}

/// The segments up to the first `proxy`, none of which can be read in two ways.
fn segments(path: &str) -> Result<Vec<&str>, Refused> {
    let mut all = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    let mut read = Vec::new();
    while let Some(segment) = all.next() {
        let last = all.peek().is_none();
        let lower = segment.to_ascii_lowercase();
        let wrong = if segment.is_empty() && !last {
            "an empty segment"
        } else if matches!(lower.replace("%2e", ".").as_str(), "." | "..") {
            "a dot segment"
        } else if lower.contains("%2f") {
            "an encoded slash"
        } else if lower.contains("%00") {
            "a NUL"
        } else {
            read.push(segment);
            if segment == "proxy" {
                break;
            }
            continue;
        };
        return Err(Refused::Path(format!(
            "it has {wrong}, which the API server may read otherwise"
        )));
    }
    Ok(read)
}

fn kind(
    method: &Method,
    headers: &HeaderMap,
    segments: &[&str],
    query: &str,
) -> Result<Kind, Refused> {
    if let Some(protocol) = upgrade(headers)? {
        return Ok(Kind::Upgrade { protocol });
    }
    let set = |name: &str| {
        query.split('&').any(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            key == name && !matches!(value, "false" | "0" | "f" | "F" | "FALSE" | "False")
        })
    };
    let read = matches!(*method, Method::GET | Method::HEAD);
    // The deprecated /watch/ paths: /api/v1/watch/…, /apis/GROUP/VERSION/watch/….
    let watch_path = matches!(
        segments,
        ["api", _, "watch", ..] | ["apis", _, _, "watch", ..]
    );
    let subresource = matches!(
        segments.last(),
        Some(&("log" | "exec" | "attach" | "portforward"))
    );
    let proxied = segments.contains(&"proxy");
    if read && (set("watch") || watch_path) {
        Ok(Kind::LongRunning { watch: true })
    } else if proxied || (subresource && (!segments.ends_with(&["log"]) || set("follow"))) {
        Ok(Kind::LongRunning { watch: false })
    } else {
        Ok(Kind::Short)
    }
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
