//! Request smuggling over HTTP/1.1 (RFC 9112 §6.3, §11.2): two parsers that see two different numbers of requests.
//!
//! An attacker's bytes hold a second request, `/api/smuggled`, where a parser in front of the gateway would see a body.
//! The gateway has to see a body too, or refuse and close: it must never answer a request more than the front sent.

use super::{
    ground::{BASE, Ground},
    raw::{Answer, exchange},
};

/// How an attack may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// 400, and the connection is closed.
    Refused,
    /// One request whose body is all of it, or one that is cut: the rest is never read.
    OneRequest,
}

/// `{head}` stands for what every request has: host and a valid token.
fn attacks() -> Vec<(&'static str, String, End)> {
    let smuggled = format!("GET {BASE}/api/smuggled HTTP/1.1\r\n{{head}}Connection: close\r\n\r\n");
    let whole = smuggled.len() + 5;
    let post = format!("POST {BASE}/api/outer HTTP/1.1\r\n{{head}}");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let with = |headers: &str, body: &str| format!("{post}{headers}\r\n{body}{smuggled}");
    vec![
        (
            "CL.TE",
            with(
                &format!("Content-Length: {whole}\r\n{chunked}"),
                "0\r\n\r\n",
            ),
            End::OneRequest,
        ),
        (
            "TE.CL",
            with(&format!("{chunked}Content-Length: 4\r\n"), "0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "two Content-Lengths",
            with("Content-Length: 0\r\nContent-Length: 5\r\n", "x"),
            End::Refused,
        ),
        (
            "a list of Content-Lengths",
            with("Content-Length: 0, 5\r\n", ""),
            End::Refused,
        ),
        (
            "a signed Content-Length",
            with("Content-Length: +0\r\n", ""),
            End::Refused,
        ),
        (
            "a negative Content-Length",
            with("Content-Length: -1\r\n", ""),
            End::Refused,
        ),
        (
            "a hexadecimal Content-Length",
            with("Content-Length: 0x0\r\n", ""),
            End::Refused,
        ),
        (
            "an empty Content-Length",
            with("Content-Length:\r\n", ""),
            End::Refused,
        ),
        (
            "a Content-Length over 2^64",
            with("Content-Length: 18446744073709551616\r\n", ""),
            End::Refused,
        ),
        (
            "another coding",
            with("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "a coding after chunked",
            with("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "a coding before chunked",
            with("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "identity and chunked",
            with(
                &format!("Transfer-Encoding: identity\r\n{chunked}"),
                "0\r\n\r\n",
            ),
            End::Refused,
        ),
        (
            "chunked and identity",
            with(
                &format!("{chunked}Transfer-Encoding: identity\r\n"),
                "0\r\n\r\n",
            ),
            End::Refused,
        ),
        (
            "chunked twice",
            with(&format!("{chunked}{chunked}"), "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "chunked in quotes",
            with("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "chunked after a vertical tab",
            with("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "a space before the colon",
            with("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "a folded line",
            with("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        (
            "a folded first line",
            with("X-A: b\r\n\tTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            End::Refused,
        ),
        ("a NUL in a value", with("X-A: a\0b\r\n", ""), End::Refused),
        (
            "a bare CR in a value",
            with("X-A: a\rTransfer-Encoding: chunked\r\n", ""),
            End::Refused,
        ),
        (
            "a line without a colon",
            with("Transfer-Encoding\r\n", ""),
            End::Refused,
        ),
        (
            "a header without a name",
            with(": chunked\r\n", ""),
            End::Refused,
        ),
        (
            "Transfer-Encoding in HTTP/1.0",
            with(chunked, "0\r\n\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1),
            End::Refused,
        ),
        (
            "HTTP/0.9",
            format!("GET {BASE}/api/outer\r\n{smuggled}"),
            End::Refused,
        ),
        (
            "HTTP/1.2",
            with("", "").replacen("HTTP/1.1", "HTTP/1.2", 1),
            End::Refused,
        ),
        (
            "HTTP/2.0 without a preface",
            with("", "").replacen("HTTP/1.1", "HTTP/2.0", 1),
            End::Refused,
        ),
        (
            "a space before the first header",
            with("", "").replacen("{head}", " X-A: b\r\n{head}", 1),
            End::Refused,
        ),
        (
            "a negative chunk",
            with(chunked, "-1\r\nx\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "a chunk in 0x",
            with(chunked, "0x1\r\nx\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "a chunk over 2^64",
            with(chunked, "10000000000000001\r\nx\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "a chunk without its end",
            with(chunked, "1\r\nxy\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "a chunk's size that a bare LF ends",
            with(chunked, "1\nx\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "a chunk that a bare LF ends",
            with(chunked, "1\r\nx\n0\r\n\r\n"),
            End::OneRequest,
        ),
        // TERM.EXT: a front that ends an extension at a bare LF sees the rest as chunks.
        (
            "a bare LF in a chunk's extension",
            with(chunked, "1;a\nb\r\nx\r\n0\r\n\r\n"),
            End::OneRequest,
        ),
        (
            "an endless chunk extension",
            with(
                chunked,
                &format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(64 * 1024)),
            ),
            End::OneRequest,
        ),
    ]
}

#[tokio::test]
async fn no_second_request_is_seen_in_a_body() {
    let mut ground = Ground::new().await;
    let head = format!(
        "Host: gateway.test\r\nAuthorization: {}\r\n",
        ground.alice()
    );
    let gateway = ground.world.running.public_address();
    let mut failed = Vec::new();
    for (attack, bytes, end) in attacks() {
        let answers = exchange(gateway, bytes.replace("{head}", &head).as_bytes()).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        let stopped = match end {
            End::Refused => statuses == [400],
            End::OneRequest => statuses.len() <= 1,
        };
        let came = came(&mut ground).await;
        let most = usize::from(end == End::OneRequest);
        if !stopped || came.len() > most || came.iter().any(|path| path != "/api/outer") {
            failed.push(format!(
                "{attack}: {statuses:?}, and {came:?} came to the agent"
            ));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// What came to the agent since this was asked last.
async fn came(ground: &mut Ground) -> Vec<String> {
    let marker = super::ground::get("/api/marker");
    let answer = ground.world.as_user("alice").http1(marker).await;
    assert_eq!(answer.status(), 200);
    let mut came = Vec::new();
    loop {
        let path = ground.next().await.0.uri.path().to_owned();
        if path == "/api/marker" {
            return came;
        }
        came.push(path);
    }
}

#[tokio::test]
async fn an_early_refusal_does_not_leave_a_body_to_be_read_as_requests() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let smuggled = format!(
        "GET {BASE}/api/smuggled HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        ground.alice()
    );
    // No token: the answer comes before the body was read.
    for length in [smuggled.len(), smuggled.len() + 1_000_000] {
        let bytes = format!(
            "POST {BASE}/api/outer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        );
        let answers: Vec<Answer> = if length == smuggled.len() {
            let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            exchange(gateway, format!("{bytes}{last}").as_bytes()).await
        } else {
            exchange(gateway, bytes.as_bytes()).await
        };
        assert!(
            answers.iter().all(|answer| answer.status == 401),
            "{answers:?}"
        );
    }
    ground.assert_nothing_came().await;
}
