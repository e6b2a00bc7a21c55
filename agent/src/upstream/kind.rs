//! Which requests end soon and which don't.

use http::uri::PathAndQuery;

/// How a request behaves towards connections and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ends by itself; the API server answers within its own 60 s.
    Short,
    /// A watch, a log, a proxied service: neither the answer's beginning nor its end is bounded.
    Long,
}

/// Subresources whose other side is not the API server.
const OPEN_ENDED: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

impl Kind {
    /// By path and query, as kube-apiserver tells them apart.
    pub fn of(path: &PathAndQuery) -> Self {
        let watches = path.path().split('/').any(|segment| segment == "watch");
        let open_ended = path
            .path()
            .split('/')
            .any(|segment| OPEN_ENDED.contains(&segment));
        let asked = path
            .query()
            .unwrap_or_default()
            .split('&')
            .any(|parameter| {
                let (key, value) = parameter.split_once('=').unwrap_or((parameter, "true"));
                matches!(key, "watch" | "follow")
                    && !matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")
            });
        if watches || open_ended || asked {
            Self::Long
        } else {
            Self::Short
        }
    }

    /// Whether an answer may begin at any time.
    pub fn may_stay_silent(self) -> bool {
        self == Self::Long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_apart_as_the_api_server_does() {
        for (path, kind) in [
            ("/api/v1/pods", Kind::Short),
            ("/api/v1/pods?limit=500&watch=false", Kind::Short),
            ("/api/v1/pods?watch=true", Kind::Long),
            ("/api/v1/pods?a=b&watch=1", Kind::Long),
            ("/api/v1/pods?watch", Kind::Long),
            ("/api/v1/watch/pods", Kind::Long),
            ("/api/v1/namespaces/d/pods/p/log?follow=true", Kind::Long),
            ("/api/v1/namespaces/d/pods/p/log", Kind::Long),
            ("/api/v1/namespaces/d/services/s:80/proxy/x", Kind::Long),
            (
                "/apis/apps/v1/namespaces/d/deployments/log-shipper",
                Kind::Short,
            ),
        ] {
            assert_eq!(Kind::of(&path.parse().unwrap()), kind, "{path}");
        }
    }
}
