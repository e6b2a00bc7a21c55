use http::Request;

use super::*;

const BASE: &str = "/v1/projects/p/locations/global/memberships/m";

fn parse(method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Target, Refused> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{BASE}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Target::parse(&request.body(()).unwrap().into_parts().0)
}

fn kind_of(method: &str, path: &str) -> Kind {
    parse(method, path, &[]).unwrap().kind
}

#[test]
fn the_kubernetes_path_passes_as_it_is() {
    let target = parse(
        "GET",
        "/api/v1/namespaces/a%20b/pods?labelSelector=x%3Dy&a=/../",
        &[],
    )
    .unwrap();
    assert_eq!(
        target.path,
        "/api/v1/namespaces/a%20b/pods?labelSelector=x%3Dy&a=/../"
    );
    assert_eq!(target.permission, Permission::Get);
    assert_eq!(parse("GET", "?x=1", &[]).unwrap().path, "/?x=1");
}

#[test]
fn what_could_be_read_twofold_is_refused_before_a_proxy_segment_only() {
    for bad in [
        "/api//v1",
        "/api/../apis",
        "/api/%2e%2E/x",
        "/api/v1/namespaces/a%2Fb",
        "/api/./v1",
        "/a%00b",
        "/api/v1%5cpods",
        "/api/v1%252fpods",
        "/api/v1/..;/pods",
        "/api/v1/%zz",
        "/api/v1/%c0%af",
        "/proxy/../api",
        "/api/v1/namespaces/proxy/../x",
        "/api/v1/namespaces/n/proxy/../x",
        "/api/v1/proxy/../x",
    ] {
        assert!(
            matches!(parse("GET", bad, &[]), Err(Refused::Path(_))),
            "{bad}"
        );
    }
    for good in [
        "/api/",
        "/",
        "/api/v1/namespaces/n/services/s/proxy/a//b/../%2f",
        "/api/v1/nodes/system%3Anode",
        "/api/v1/nodes/n/proxy/logs/../x",
        "/api/v1/nodes/n/%70roxy//x",
        "/apis/subresources.kubevirt.io/v1/namespaces/n/virtualmachines/x/proxy//y",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/a;b",
    ] {
        assert!(parse("GET", good, &[]).is_ok(), "{good}");
    }
}

#[test]
fn a_misspelt_membership_is_nobodys_and_a_bare_path_is_the_tokens() {
    let head = |uri: &str| Request::get(uri).body(()).unwrap().into_parts().0;
    assert!(matches!(
        Target::parse(&head("/v1/projects/P/api")),
        Err(Refused::NotFound(_))
    ));
    assert_eq!(
        Target::parse(&head("/api/v1/pods")).unwrap().place,
        Place::OfToken
    );
}

#[test]
fn what_a_request_does_decides_its_permission() {
    use Permission::{Delete, Get, Patch, Post, Put, Stream};
    let upgrade = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
    ];
    for (method, path, headers, permission) in [
        ("GET", "/api/v1/pods", &[][..], Get),
        ("HEAD", "/api", &[], Get),
        ("POST", "/api/v1/namespaces/n/pods", &[], Post),
        ("PUT", "/api/v1/namespaces/n/pods/x", &[], Put),
        ("PATCH", "/api/v1/namespaces/n/pods/x", &[], Patch),
        ("DELETE", "/api/v1/namespaces/n/pods/x", &[], Delete),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &[],
            Get,
        ),
        (
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &[],
            Get,
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            &[],
            Post,
        ),
        ("GET", "/api/v1/namespaces/n/pods/x/exec", &upgrade, Stream),
        ("POST", "/api/v1/namespaces/n/pods/x/exec", &upgrade, Stream),
        (
            "POST",
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &upgrade,
            Stream,
        ),
    ] {
        assert_eq!(
            parse(method, path, headers).unwrap().permission,
            permission,
            "{method} {path}"
        );
    }
    for method in ["CONNECT", "TRACE", "PURGE"] {
        let refused = Request::builder()
            .method(method)
            .uri(if method == "CONNECT" {
                "a:1".to_owned()
            } else {
                format!("{BASE}/api")
            })
            .body(())
            .unwrap();
        assert!(
            matches!(
                Target::parse(&refused.into_parts().0),
                Err(Refused::Method(_))
            ),
            "{method}"
        );
    }
}

#[test]
fn long_running_requests_are_known_as_the_api_server_knows_them() {
    for (method, path, kind) in [
        (
            "GET",
            "/api/v1/pods?watch=1",
            Kind::LongRunning { watch: true },
        ),
        (
            "GET",
            "/api/v1/pods?limit=5&watch",
            Kind::LongRunning { watch: true },
        ),
        ("GET", "/api/v1/pods?watch=false", Kind::Short),
        ("GET", "/api/v1/pods?watch=0&watch=1", Kind::Short),
        (
            "GET",
            "/api/v1/pods?watch=1&watch=0",
            Kind::LongRunning { watch: true },
        ),
        // Everything is true but two words, and keys and paths are decoded.
        (
            "GET",
            "/api/v1/pods?watch=f",
            Kind::LongRunning { watch: true },
        ),
        (
            "GET",
            "/api/v1/pods?%77atch=true",
            Kind::LongRunning { watch: true },
        ),
        (
            "GET",
            "/api/v1/%77atch/pods",
            Kind::LongRunning { watch: true },
        ),
        // Not decodable, or cut at a semicolon: no part of the query.
        ("GET", "/api/v1/pods?watch=%zz", Kind::Short),
        ("GET", "/api/v1/pods?a=b;watch=1", Kind::Short),
        ("GET", "/api/v1/namespaces/proxy/pods/x", Kind::Short),
        ("GET", "/api/v1/namespaces/n/pods/proxy", Kind::Short),
        (
            "GET",
            "/api/v1/watch/namespaces/n/pods",
            Kind::LongRunning { watch: true },
        ),
        (
            "GET",
            "/api/v1/namespaces/n/pods/x/log?follow=true",
            Kind::LongRunning { watch: false },
        ),
        ("GET", "/api/v1/namespaces/n/pods/x/log", Kind::Short),
        (
            "GET",
            "/api/v1/namespaces/n/services/s:80/proxy/x",
            Kind::LongRunning { watch: false },
        ),
        (
            "POST",
            "/api/v1/namespaces/n/pods/x/exec",
            Kind::LongRunning { watch: false },
        ),
    ] {
        assert_eq!(kind_of(method, path), kind, "{method} {path}");
    }
}

#[test]
fn an_upgrade_is_one_protocol_that_connection_lists() {
    let kind = |headers: &[(&str, &str)]| parse("GET", "/x", headers).map(|target| target.kind);
    assert_eq!(
        kind(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]),
        Ok(Kind::Upgrade {
            protocol: "SPDY/3.1".into()
        })
    );
    assert_eq!(kind(&[("upgrade", "websocket")]), Ok(Kind::Short));
    assert_eq!(
        kind(&[("connection", "upgrade"), ("upgrade", "h2c")]),
        Ok(Kind::Short)
    );
    assert!(
        kind(&[
            ("connection", "upgrade"),
            ("upgrade", "a"),
            ("upgrade", "b")
        ])
        .is_err()
    );
}

#[test]
fn a_head_that_would_harm_the_tunnel_is_refused_here() {
    let long = "x".repeat(MAX_HEAD);
    assert!(matches!(
        parse("GET", "/api", &[("x-long", &long)]),
        Err(Refused::HeadTooLarge { .. })
    ));
}
