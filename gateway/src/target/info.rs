//! What kube-apiserver takes a request for: its `RequestInfo`, which RBAC and audit speak of as well.
//!
//! The same URL has to be read in the same way at both ends, so this follows
//! `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`, its treatment of what is odd included.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// A request as the API server reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// The path, decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, and of what is no resource
    /// the method in lower case.
    pub verb: String,
    /// Whether it is for a resource and not for a path such as `/healthz`.
    pub is_resource: bool,
    /// Empty for the core group.
    pub api_group: String,
    /// `v1`.
    pub api_version: String,
    /// Empty for what is in no namespace, and for all of them.
    pub namespace: String,
    /// `pods`.
    pub resource: String,
    /// `exec`.
    pub subresource: String,
    /// The object's name.
    pub name: String,
}

impl RequestInfo {
    /// Reads a method, a path and a query, both as they stand in the request line.
    pub fn parse(method: &Method, path: &str, query: &str) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let mut info = Self {
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        info.read(method, &path, query);
        info.path = path;
        info
    }

    fn read(&mut self, method: &Method, path: &str, query: &str) {
        let trimmed = path.trim_matches('/');
        let all: Vec<&str> = trimmed.split('/').collect();
        let (group, mut parts) = match all.as_slice() {
            ["api", rest @ ..] if rest.len() >= 2 => ("", rest),
            ["apis", group, rest @ ..] if rest.len() >= 2 => (*group, rest),
            _ => return,
        };
        let [version, rest @ ..] = parts else { return };
        parts = rest;
        self.is_resource = true;
        self.api_group = group.to_owned();
        self.api_version = (*version).to_owned();
        self.verb = match parts {
            // The deprecated /watch/ and /proxy/ before the resource.
            [verb @ ("watch" | "proxy"), rest @ ..] => {
                if rest.is_empty() {
                    // The API server answers 400.
                    self.verb.clear();
                    return;
                }
                parts = rest;
                (*verb).to_owned()
            }
            _ => verb(method).to_owned(),
        };
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = (*namespace).to_owned();
            // What follows is a resource in the namespace, or one of the namespace's own subresources.
            if let [next, ..] = rest
                && !matches!(*next, "status" | "finalize")
            {
                parts = rest;
            }
        }
        if let [resource, rest @ ..] = parts {
            self.resource = (*resource).to_owned();
            if let [name, rest @ ..] = rest {
                self.name = (*name).to_owned();
                if let [subresource, ..] = rest
                    && self.verb != "proxy"
                {
                    self.subresource = (*subresource).to_owned();
                }
            }
        }
        if self.name.is_empty() && self.verb == "get" {
            let watch = is_set(query, "watch");
            self.verb = if watch { "watch" } else { "list" }.to_owned();
            if let Some(name) = parameter(query, "fieldSelector").and_then(|text| exact_name(&text))
            {
                self.name = name;
            }
        } else if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
    }
}

/// A bool of a query: everything is true but `0` and `false`.
pub(super) fn is_set(query: &str, name: &str) -> bool {
    parameter(query, name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// The value that a query gives a parameter first, as Go's `url.ParseQuery` reads it.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query.split('&').find_map(|pair| {
        // Go leaves out what has a semicolon, and what is not well encoded.
        if pair.is_empty() || pair.contains(';') {
            return None;
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then(|| decode(value)).flatten()
    })
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !super::is_escaped(text) {
        return None;
    }
    Some(if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8_lossy();
        Cow::Owned(decoded.into_owned())
    } else {
        percent_decode_str(text).decode_utf8_lossy()
    })
}

/// The name that a field selector fixes with `metadata.name=NAME`.
fn exact_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        if term.contains("!=") {
            return None;
        }
        let (field, value) = term.split_once("==").or_else(|| term.split_once('='))?;
        let name = field == "metadata.name" && !value.is_empty() && !matches!(value, "." | "..");
        (name && !value.contains(['/', '%', '\\'])).then(|| value.to_owned())
    })
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
