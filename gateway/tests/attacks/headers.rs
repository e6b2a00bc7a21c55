//! Headers that would speak for somebody else, to the gateway, the agent or the API server, in HTTP/1.1 and HTTP/2.

use super::{
    ground::{BASE, Ground, get},
    raw::exchange,
    raw2::{Connection, Outcome},
};

/// Whatever this spells, some server reads it as `Impersonate-…`; none is exactly what kubectl sends.
const SPELLINGS: &[(&str, &str)] = &[
    ("Impersonate_User", "root"),
    ("Impersonate_Group", "system:masters"),
    ("Impersonate", "root"),
    ("Impersonate-", "root"),
    ("Impersonate-Users", "root"),
    ("Impersonate-User-", "root"),
    ("Impersonate-User", ""),
    // Without a user some servers impersonate the group alone.
    ("Impersonate-Group", "system:masters"),
    ("Impersonate-Uid", "0"),
    ("Impersonate-Extra-Scopes", "x"),
    ("Impersonate-Extra-%53copes", "x"),
    ("Impersonate-Extra-", "x"),
    // Listed as hop-by-hop, so that one hop drops what another had checked.
    ("Connection", "Impersonate-User"),
    ("Connection", "close, impersonate_group"),
    ("Connection", "close,\tImpersonate-User\t"),
    ("Trailer", "Impersonate-User"),
];

/// What a parser that is not strict reads as `Impersonate-User: root`.
const MALFORMED: &[&str] = &[
    "Impersonate-User : root\r\n",
    "Impersonate-User\t: root\r\n",
    " Impersonate-User: root\r\n",
    "\tImpersonate-User: root\r\n",
    "X-A: b\r\n Impersonate-User: root\r\n",
    "X-A: b\r\n\tImpersonate-User: root\r\n",
    "X-A:\r\n\r Impersonate-User: root\r\n",
    "X-A: b\rImpersonate-User: root\r\n",
    "X-A: b\0\nImpersonate-User: root\r\n",
    "Impersonate-User\0: root\r\n",
    "\u{feff}Impersonate-User: root\r\n",
    "Impersonate-User\u{b}: root\r\n",
    "\"Impersonate-User\": root\r\n",
    "Impersonate-User; root\r\n",
];

#[tokio::test]
async fn impersonation_is_refused_in_any_spelling_over_http_1() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    let request = |line: &str| {
        format!(
            "GET {BASE}/api HTTP/1.1\r\nHost: x\r\nAuthorization: {alice}\r\n{line}Connection: close\r\n\r\n"
        )
    };
    for (name, value) in SPELLINGS {
        // Alone, and twice, so that one server reads the first and another the last.
        for line in [
            format!("{name}: {value}\r\n"),
            format!("Accept: a\r\n{name}: {value}\r\n{name}: alice\r\n"),
            "Impersonate-User: alice\r\nImpersonate-User: root\r\n".to_owned(),
            "Impersonate-User: alice\r\nImpersonate_User: root\r\n".to_owned(),
            "Impersonate-User: alice\r\nimpersonate-uid: 1\r\nImpersonate-Uid: 0\r\n".to_owned(),
        ] {
            let answers = exchange(gateway, request(&line).as_bytes()).await;
            assert_eq!(answers.len(), 1, "{line:?}: {answers:?}");
            let body = String::from_utf8_lossy(&answers[0].body);
            assert_eq!(answers[0].status, 400, "{line:?}: {body}");
            assert!(body.contains("would impersonate"), "{line:?}: {body}");
        }
    }
    // A bare LF ends a line (RFC 9112 §2.2), so this is the header itself.
    let answers = exchange(
        gateway,
        request("X-A: b\nImpersonate_User: root\r\n").as_bytes(),
    )
    .await;
    assert_eq!(answers[0].status, 400, "{answers:?}");
    for line in MALFORMED {
        let answers = exchange(gateway, request(line).as_bytes()).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [400], "{line:?}: {answers:?}");
    }
    ground.assert_nothing_came().await;
}

/// The pseudo-headers of a GET, with a token.
fn head<'a>(path: &'a str, token: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gateway.test"),
        (":path", path),
        ("authorization", token),
    ]
}

#[tokio::test]
async fn impersonation_is_refused_in_any_spelling_over_http_2() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    let path = format!("{BASE}/api");
    for (name, value) in SPELLINGS {
        let lower = name.to_ascii_lowercase();
        let mut headers = head(&path, &alice);
        headers.push((&lower, value));
        let mut connection = Connection::open(gateway).await;
        connection.request(1, &headers).await;
        let outcome = connection.outcome(1).await;
        if lower == "connection" {
            // RFC 9113 §8.2.2.
            assert!(outcome.is_protocol_error(), "{name}: {value}: {outcome:?}");
            continue;
        }
        let Outcome::Answered(400, message) = &outcome else {
            panic!("{name}: {value}: {outcome:?}")
        };
        assert!(message.contains("would impersonate"), "{name}: {message}");
    }
    // §8.2.1: upper case, or bytes that no field may have, make a request malformed.
    for (name, value) in [
        ("Impersonate-User", "root"),
        ("impersonate-User", "root"),
        (" impersonate-user", "root"),
        ("impersonate-user ", "root"),
        ("impersonate-user:", "root"),
        ("impersonate-user\0", "root"),
        ("x-a\r\nimpersonate-user", "root"),
        ("x-a", "b\r\nimpersonate-user: root"),
        ("x-a", "b\nimpersonate-user: root"),
        ("x-a", "b\0"),
        ("", "root"),
    ] {
        let mut headers = head(&path, &alice);
        headers.push((name, value));
        let mut connection = Connection::open(gateway).await;
        connection.request(1, &headers).await;
        let outcome = connection.outcome(1).await;
        assert!(
            outcome.is_protocol_error(),
            "{name:?}: {value:?}: {outcome:?}"
        );
    }
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn malformed_requests_of_http_2_are_nobodys() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let alice = ground.alice();
    let path = format!("{BASE}/api");
    let good = head(&path, &alice);
    let replaced = |name: &'static str, value: &'static str| {
        let mut headers = good.clone();
        headers
            .iter_mut()
            .filter(|(own, _)| *own == name)
            .for_each(|own| own.1 = value);
        headers
    };
    let added = |name: &'static str, value: &'static str| {
        let mut headers = good.clone();
        headers.push((name, value));
        headers
    };
    let without = |name: &'static str| {
        let mut headers = good.clone();
        headers.retain(|(own, _)| *own != name);
        headers
    };
    let smuggled = format!("{BASE}/api HTTP/1.1\r\nImpersonate-User: root\r\nX: ");
    let spaced = format!("{BASE}/api HTTP/1.1");
    let mut line_in_path = good.clone();
    line_in_path[3].1 = &smuggled;
    let mut space_in_path = good.clone();
    space_in_path[3].1 = &spaced;
    let mut pseudo_last = without(":path");
    pseudo_last.push((":path", &path));
    for (attack, headers) in [
        ("lines in :path", line_in_path),
        ("a space in :path", space_in_path),
        ("an empty :path", replaced(":path", "")),
        ("no :path", without(":path")),
        ("two :path", added(":path", "/v1/projects/p")),
        ("a :path after a field", pseudo_last),
        ("no :method", without(":method")),
        ("two :method", added(":method", "DELETE")),
        (
            "lines in :method",
            replaced(":method", "GET / HTTP/1.1\r\nX: "),
        ),
        ("an empty :method", replaced(":method", "")),
        ("no :scheme", without(":scheme")),
        (":status", added(":status", "200")),
        ("another pseudo-header", added(":impersonate-user", "root")),
        ("connection", added("connection", "authorization")),
        ("keep-alive", added("keep-alive", "1")),
        ("proxy-connection", added("proxy-connection", "x")),
        ("transfer-encoding", added("transfer-encoding", "chunked")),
        ("upgrade", added("upgrade", "websocket")),
        ("te", added("te", "gzip")),
        (
            "a content-length without a body",
            added("content-length", "5"),
        ),
        (
            "two content-lengths",
            [added("content-length", "0"), vec![("content-length", "5")]].concat(),
        ),
        (
            "a content-length that is none",
            added("content-length", "+0"),
        ),
    ] {
        let mut connection = Connection::open(gateway).await;
        connection.request(1, &headers).await;
        let outcome = connection.outcome(1).await;
        assert!(outcome.is_protocol_error(), "{attack}: {outcome:?}");
    }
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn what_is_between_gateway_agent_and_api_server_no_caller_can_say() {
    let mut ground = Ground::new().await;
    let mut request = get("/api/v1/pods");
    let smuggled = [
        // The tunnel's own.
        ("towline-grant", "forged"),
        ("towline-mac", "forged"),
        ("towline-sequence", "77"),
        ("towline-request-id", "mine"),
        ("towline-method", "DELETE"),
        ("towline-upgrade", "SPDY/3.1"),
        ("towline-abort", "x"),
        ("towline-nested", "eyJ1c2VyIjoicm9vdCJ9"),
        // What a front proxy vouches for (kube-apiserver's own --requestheader-* included), in either spelling.
        ("x-remote-user", "root"),
        ("x_remote_group", "system:masters"),
        ("x-remote-extra-scopes", "x"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-client-cert", "x"),
        ("x_forwarded_proto", "x"),
        ("forwarded", "for=127.0.0.1"),
        // kube-apiserver's audit log takes a caller's address from here, too.
        ("x-real-ip", "127.0.0.1"),
        // Servers behind the API server that serve another path than was asked for.
        ("x-original-url", "/api/v1/secrets"),
        ("x-rewrite-url", "/api/v1/secrets"),
        // Credentials, and what a hop takes out.
        ("cookie", "session=1"),
        ("proxy-authorization", "Basic eDp5"),
        (
            "connection",
            "authorization, towline-grant, x-private, accept",
        ),
        ("x-private", "1"),
        ("keep-alive", "1"),
        ("te", "trailers"),
    ];
    for (name, value) in smuggled {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let (status, message) = ground
        .ask(request, &ground.world.token("alice", None, 600))
        .await;
    assert_eq!(status, 200, "{message}");
    let (head, grant) = ground.next().await;
    let mut names: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    // The exact and complete set.
    assert_eq!(
        names,
        [
            "audit-id",
            "towline-grant",
            "towline-mac",
            "towline-request-id",
            "towline-sequence",
            "x-forwarded-for"
        ]
    );
    for (name, value) in smuggled {
        assert!(
            head.headers
                .get_all(name)
                .iter()
                .all(|real| real.as_bytes() != value.as_bytes() || name == "x-forwarded-for"),
            "{name}"
        );
    }
    assert_eq!(head.headers.get_all("x-forwarded-for").iter().count(), 1);
    assert_eq!(
        (head.method.as_str(), grant.user.as_str()),
        ("GET", "alice")
    );
}

#[tokio::test]
async fn a_header_cannot_say_another_method() {
    let mut ground = Ground::new().await;
    let reader = ground.world.token("reader", None, 600);
    for name in [
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "x_http_method_override",
    ] {
        for path in ["/api/v1/pods", "/api/v1/namespaces/n/services/s/proxy/x"] {
            let mut request = get(path);
            let name: http::HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .insert(name.clone(), "DELETE".parse().unwrap());
            let (status, message) = ground.ask(request, &reader).await;
            assert_eq!(status, 400, "{name}: {message}");
            assert!(message.contains(name.as_str()), "{message}");
        }
    }
    ground.assert_nothing_came().await;
}
