use http::Method;

use super::{RequestInfo, parameter};

/// `METHOD PATH -> verb group/version namespace resource name subresource`, `-` where there is none.
fn read(line: &str) -> String {
    let (method, url) = line.split_once(' ').unwrap();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let info = RequestInfo::parse(&method.parse::<Method>().unwrap(), path, query);
    let or = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    if !info.is_resource {
        return format!("{} {}", or(&info.verb), info.path);
    }
    [
        or(&info.verb),
        format!("{}/{}", info.api_group, info.api_version),
        or(&info.namespace),
        or(&info.resource),
        or(&info.name),
        or(&info.subresource),
    ]
    .join(" ")
}

/// Rows of `TestGetAPIRequestInfo` and `TestGetNonAPIRequestInfo` in k8s.io/apiserver, and what is odd.
#[test]
fn requests_are_read_as_the_api_server_reads_them() {
    for (line, expected) in [
        ("GET /api/v1/namespaces", "list /v1 - namespaces - -"),
        (
            "GET /api/v1/namespaces/other",
            "get /v1 other namespaces other -",
        ),
        (
            "GET /api/v1/namespaces/other/pods",
            "list /v1 other pods - -",
        ),
        (
            "GET /api/v1/namespaces/other/pods/foo",
            "get /v1 other pods foo -",
        ),
        (
            "HEAD /api/v1/namespaces/other/pods/foo",
            "get /v1 other pods foo -",
        ),
        ("GET /api/v1/pods", "list /v1 - pods - -"),
        ("HEAD /api/v1/pods", "list /v1 - pods - -"),
        ("GET /api/v1/pods/", "list /v1 - pods - -"),
        (
            "GET /api/v1/proxy/namespaces/other/pods/foo",
            "proxy /v1 other pods foo -",
        ),
        (
            "GET /api/v1/proxy/namespaces/other/pods/foo/sub/path",
            "proxy /v1 other pods foo -",
        ),
        ("GET /api/v1/watch/pods", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=true", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=false", "list /v1 - pods - -"),
        (
            "GET /api/v1/watch/namespaces/other/pods",
            "watch /v1 other pods - -",
        ),
        (
            "GET /api/v1/namespaces/other/pods?watch=1",
            "watch /v1 other pods - -",
        ),
        (
            "GET /api/v1/namespaces/other/pods?watch=0",
            "list /v1 other pods - -",
        ),
        (
            "GET /api/v1/namespaces/other/pods/foo/status",
            "get /v1 other pods foo status",
        ),
        (
            "GET /api/v1/namespaces/other/status",
            "get /v1 other namespaces other status",
        ),
        (
            "PUT /api/v1/namespaces/other/finalize",
            "update /v1 other namespaces other finalize",
        ),
        (
            "PATCH /api/v1/namespaces/other/pods/foo",
            "patch /v1 other pods foo -",
        ),
        (
            "DELETE /api/v1/namespaces/other/pods/foo",
            "delete /v1 other pods foo -",
        ),
        (
            "POST /api/v1/namespaces/other/pods",
            "create /v1 other pods - -",
        ),
        ("DELETE /api/v1/nodes", "deletecollection /v1 - nodes - -"),
        (
            "DELETE /api/v1/namespaces/other/pods",
            "deletecollection /v1 other pods - -",
        ),
        (
            "DELETE /api/v1/namespaces",
            "deletecollection /v1 - namespaces - -",
        ),
        (
            "GET /apis/apps/v1/namespaces/x/deployments/d/scale",
            "get apps/v1 x deployments d scale",
        ),
        (
            "GET /apis/metrics.k8s.io/v1beta1/nodes",
            "list metrics.k8s.io/v1beta1 - nodes - -",
        ),
        (
            "POST /api/v1/namespaces/x/pods/p/exec?command=sh",
            "create /v1 x pods p exec",
        ),
        (
            "GET /api/v1/namespaces/x/pods/p/exec?command=sh",
            "get /v1 x pods p exec",
        ),
        (
            "GET /api/v1/namespaces/x/pods/p/log?follow=true",
            "get /v1 x pods p log",
        ),
        (
            "POST /api/v1/namespaces/x/serviceaccounts/s/token",
            "create /v1 x serviceaccounts s token",
        ),
        (
            "GET /api/v1/namespaces/x/services/s:80/proxy/a/b",
            "get /v1 x services s:80 proxy",
        ),
        (
            "GET /api/v1/nodes/n/proxy/metrics",
            "get /v1 - nodes n proxy",
        ),
        // A watch of one object is a get of a name for RBAC.
        (
            "GET /api/v1/namespaces/x/pods/p?watch=true",
            "get /v1 x pods p -",
        ),
        (
            "GET /api/v1/namespaces/x/pods?fieldSelector=metadata.name=p",
            "list /v1 x pods p -",
        ),
        (
            "GET /api/v1/namespaces/x/pods?watch&fieldSelector=metadata.name%3Dp",
            "watch /v1 x pods p -",
        ),
        (
            "GET /api/v1/namespaces/x/pods?fieldSelector=metadata.name!%3Dp",
            "list /v1 x pods - -",
        ),
        (
            "GET /api/v1/namespaces/x/pods?fieldSelector=metadata.name%3Da/b",
            "list /v1 x pods - -",
        ),
        // Anything but false and 0 watches, in whatever way it is written; the first counts.
        ("GET /api/v1/pods?watch", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=f", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=False", "list /v1 - pods - -"),
        ("GET /api/v1/pods?%77atch=t", "watch /v1 - pods - -"),
        ("GET /api/v1/pods?watch=0&watch=1", "list /v1 - pods - -"),
        ("GET /api/v1/pods?watch=1;x=2", "list /v1 - pods - -"),
        ("GET /api/v1/pods?watch=%zz", "list /v1 - pods - -"),
        ("GET /api/v1/pods?Watch=1", "list /v1 - pods - -"),
        // Decoded before it is split.
        (
            "GET /api/v1/%6eamespaces/x/secrets",
            "list /v1 x secrets - -",
        ),
        (
            "GET /apis/apps/v1/n%61mespaces/x/deployments/a%20b",
            "get apps/v1 x deployments a b -",
        ),
        ("OPTIONS /api/v1/pods", "- /v1 - pods - -"),
        ("GET /api/v1/watch", "- /v1 - - - -"),
        // No resources.
        ("GET /", "get /"),
        ("GET /healthz", "get /healthz"),
        ("GET /api", "get /api"),
        ("GET /api/v1", "get /api/v1"),
        ("GET /api/v1/", "get /api/v1/"),
        ("GET /apis/apps/v1", "get /apis/apps/v1"),
        ("GET /apis/apps", "get /apis/apps"),
        ("POST /version", "post /version"),
        ("GET /openapi/v3/api/v1", "get /openapi/v3/api/v1"),
        ("GET /API/v1/pods", "get /API/v1/pods"),
    ] {
        assert_eq!(read(line), expected, "{line}");
    }
}

#[test]
fn parameters_are_read_as_go_reads_them() {
    for (query, value) in [
        ("a=1", Some("1")),
        ("b=1&a=x+y%2Bz", Some("x y+z")),
        ("a", Some("")),
        ("a=1&a=2", Some("1")),
        ("&&a=1", Some("1")),
        ("aa=1", None),
        ("a=%4", None),
        ("%61=1", Some("1")),
        ("", None),
    ] {
        assert_eq!(parameter(query, "a").as_deref(), value, "{query:?}");
    }
}
