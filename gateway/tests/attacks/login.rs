//! Attacks on signing in: RFC 6749 §10, RFC 6819, RFC 8252 §8 and RFC 9700 list them.

use std::time::Duration;

use argon2::{Argon2, password_hash::PasswordHasher as _};
use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::Instant};
use towline_gateway::clock::Clock;
use towline_proto::jws::KeyPair;
use url::{Url, form_urlencoded};

use super::ground::Ground;
use crate::{double::own, world::bounded};

const PASSWORD: &str = "correct horse battery staple";
const VERIFIER: &str = "a-verifier-that-is-long-enough-for-anybody-to-take";
const REDIRECT: &str = "http://127.0.0.1:4711/callback";
const FORM: &str = "application/x-www-form-urlencoded";

/// An answer of the issuer's.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn location(&self) -> Option<&str> {
        self.headers
            .get(header::LOCATION)
            .map(|location| location.to_str().unwrap())
    }

    /// The code in the redirect.
    fn code(&self) -> String {
        let location =
            Url::parse(self.location().unwrap_or_else(|| panic!("{}", self.body))).unwrap();
        let code = location.query_pairs().find(|(name, _)| name == "code");
        code.unwrap().1.into_owned()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }
}

/// The ground, where `alice` has a password.
struct Issuer(Ground);

impl Issuer {
    async fn new() -> Self {
        let ground = Ground::new().await;
        let hash = Argon2::default()
            .hash_password(PASSWORD.as_bytes())
            .unwrap()
            .to_string();
        let now = Clock::System.unix();
        let set = ground
            .gateway()
            .store
            .redeem_code("alice", "alice", &hash, now);
        assert!(set.await.unwrap());
        Self(ground)
    }

    async fn send(&self, request: Request<Full<bytes::Bytes>>) -> Answer {
        let stream = TcpStream::connect(self.0.world.running.public_address())
            .await
            .unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = own(async move { drop(connection.await) });
        let (head, body) = bounded(sender.send_request(request))
            .await
            .unwrap()
            .into_parts();
        let body = bounded(body.collect()).await.unwrap().to_bytes();
        connection.abort();
        // There are no sessions, so there is none to fix or to ride on.
        assert!(!head.headers.contains_key(header::SET_COOKIE));
        assert_eq!(head.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(head.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)], more: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let mut request = Request::post(path)
            .header(header::HOST, "gateway.test")
            .header(header::CONTENT_TYPE, FORM);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        self.send(request.body(Full::from(body)).unwrap()).await
    }

    /// Signs in as `alice` with these fields instead of the usual ones.
    async fn sign_in(&self, instead: &[(&str, &str)]) -> Answer {
        self.post("/oauth2/authorize", &fields(instead), &[]).await
    }

    async fn redeem(&self, code: &str, instead: &[(&str, &str)]) -> Answer {
        let usual = [
            ("grant_type", "authorization_code"),
            ("client_id", "towline"),
            ("code", code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
        ];
        self.post("/oauth2/token", &replaced(&usual, instead), &[])
            .await
    }
}

fn challenge() -> &'static str {
    static CHALLENGE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        BASE64URL.encode(digest::digest(&digest::SHA256, VERIFIER.as_bytes()))
    });
    &CHALLENGE
}

/// What a sign-in sends, with others instead; an empty value leaves a field out.
fn fields<'a>(instead: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let usual = [
        ("client_id", "towline"),
        ("response_type", "code"),
        ("redirect_uri", REDIRECT),
        ("code_challenge_method", "S256"),
        ("code_challenge", challenge()),
        ("state", "the-state"),
        ("username", "alice"),
        ("password", PASSWORD),
    ];
    replaced(&usual, instead)
}

fn replaced<'a>(
    usual: &[(&'a str, &'a str)],
    instead: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut all = usual.to_vec();
    all.retain(|(name, _)| instead.iter().all(|(other, _)| other != name));
    all.extend(instead.iter().filter(|(_, value)| !value.is_empty()));
    all
}

fn query(fields: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    format!("/oauth2/authorize?{query}")
}

#[tokio::test]
async fn no_redirect_leads_away_from_this_machine() {
    let issuer = Issuer::new().await;
    let mut failed = Vec::new();
    for redirect in [
        "http://evil.test/",
        "https://evil.test/",
        "http://127.0.0.1.evil.test/",
        "http://127.0.0.1@evil.test/",
        "http://127.0.0.1:80@evil.test/",
        "http://127.0.0.1%40evil.test/",
        "http://evil.test\\@127.0.0.1/",
        "http://evil.test#@127.0.0.1/",
        "http://evil.test?@127.0.0.1/",
        "http://evil.test/http://127.0.0.1/",
        "http://evil@127.0.0.1/",
        "http://:secret@127.0.0.1/",
        "http://127.0.0.1:4711/#evil",
        "http://127.0.0.1:4711/#",
        "http://localhost:4711/",
        "http://localhost.evil.test/",
        "http://127.0.0.2/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fe80::1]/",
        "http://[::1]@evil.test/",
        "http://[::1].evil.test/",
        "https://127.0.0.1:4711/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "javascript://127.0.0.1/%0aalert(1)",
        "data:text/html,x",
        "//evil.test/",
        "//127.0.0.1/",
        "/callback",
        "callback",
        "http://",
        "http:///127.0.0.1@evil.test",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:4711:80/",
        "custom.app:/callback",
        "*",
    ] {
        let answer = issuer.sign_in(&[("redirect_uri", redirect)]).await;
        let shown = issuer
            .send(
                Request::get(query(&fields(&[("redirect_uri", redirect)])))
                    .header(header::HOST, "x")
                    .body(Full::default())
                    .unwrap(),
            )
            .await;
        if answer.location().is_some()
            || answer.status != 400
            || shown.status != 400
            || shown.body.contains("<form")
        {
            failed.push(format!(
                "{redirect}: {} {:?}, shown {}",
                answer.status,
                answer.location(),
                shown.status
            ));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // What is taken comes back as one loopback address, whatever way it was written.
    for redirect in [
        "http://127.0.0.1:4711/callback",
        "http://127.0.0.1/",
        "http://127.1:80/",
        "http://127.0.0.1.:4711/callback.evil.test@",
        "http://2130706433:4711/",
        "http://0x7f.0.0.1:4711/",
        "http://[0:0:0:0:0:0:0:1]:4711/",
        "http://127.0.0.1:4711\\@evil.test/",
        "http://127.0.0.1:4711/\r\nSet-Cookie: a=b",
        "http://127.0.0.1:4711/?next=http://evil.test/",
        "http://127.0.0.1:4711/%0d%0aX: y",
    ] {
        let answer = issuer.sign_in(&[("redirect_uri", redirect)]).await;
        let location = answer
            .location()
            .unwrap_or_else(|| panic!("{redirect}: {}", answer.body));
        assert!(
            location.starts_with("http://127.0.0.1:")
                || location.starts_with("http://127.0.0.1/")
                || location.starts_with("http://[::1]:"),
            "{redirect}: {location}"
        );
        assert_eq!(answer.headers[header::REFERRER_POLICY], "no-referrer");
    }
}

#[tokio::test]
async fn pkce_cannot_be_left_out_or_weakened() {
    let issuer = Issuer::new().await;
    for instead in [
        &[
            ("code_challenge_method", "plain"),
            ("code_challenge", VERIFIER),
        ][..],
        &[("code_challenge_method", "plain")],
        &[("code_challenge_method", "s256")],
        &[("code_challenge_method", "none")],
        &[("code_challenge_method", "")],
        &[("code_challenge_method", ""), ("code_challenge", "")],
        &[("code_challenge", "")],
        &[("code_challenge", "x")],
        &[("code_challenge", VERIFIER)],
        &[("response_type", "token")],
        &[("response_type", "code token")],
        &[("response_type", "id_token")],
        &[("client_id", "")],
        &[("client_id", "other")],
        &[("response_mode", "fragment"), ("response_type", "")],
    ] {
        let answer = issuer.sign_in(instead).await;
        assert_eq!(
            (answer.status, answer.location()),
            (StatusCode::BAD_REQUEST, None),
            "{instead:?}"
        );
    }
    for instead in [
        &[("code_verifier", "")][..],
        &[("code_verifier", challenge())],
        &[(
            "code_verifier",
            "another-verifier-that-is-long-enough-as-well",
        )],
        &[("code_verifier", &VERIFIER[1..])],
        &[("redirect_uri", "")],
        &[("redirect_uri", "http://127.0.0.1:4712/callback")],
        &[("redirect_uri", "http://127.0.0.1:4711/callback/")],
        &[("redirect_uri", "http://[::1]:4711/callback")],
        &[("client_id", "other")],
        &[("client_id", "")],
        &[("grant_type", "password")],
        &[("grant_type", "implicit")],
        &[("grant_type", "client_credentials")],
        &[("grant_type", "")],
    ] {
        let code = issuer.sign_in(&[]).await.code();
        let answer = issuer.redeem(&code, instead).await;
        assert!(
            answer.status.is_client_error(),
            "{instead:?}: {}",
            answer.body
        );
        assert!(!answer.body.contains("access_token"), "{instead:?}");
    }
}

#[tokio::test]
async fn a_code_is_good_once_for_whom_it_was_made() {
    let issuer = Issuer::new().await;
    // Injection: the victim's code with the attacker's verifier, and the other way round.
    let victims = issuer.sign_in(&[]).await.code();
    let own = BASE64URL.encode(digest::digest(
        &digest::SHA256,
        b"the attacker's verifier, long enough for all",
    ));
    let attackers = issuer.sign_in(&[("code_challenge", &own)]).await.code();
    for (code, verifier) in [
        (&victims, "the attacker's verifier, long enough for all"),
        (&attackers, VERIFIER),
    ] {
        let answer = issuer.redeem(code, &[("code_verifier", verifier)]).await;
        assert_eq!(answer.json()["error"], "invalid_grant", "{}", answer.body);
        // And a code that was tried is used up.
        let answer = issuer.redeem(code, &[]).await;
        assert_eq!(answer.json()["error"], "invalid_grant", "{}", answer.body);
    }
    // A replay is refused and ends what came of the first use (RFC 6749 §10.5).
    let code = issuer.sign_in(&[]).await.code();
    let tokens = issuer.redeem(&code, &[]).await.json();
    assert!(tokens["access_token"].is_string(), "{tokens}");
    assert_eq!(
        issuer.redeem(&code, &[]).await.json()["error"],
        "invalid_grant"
    );
    let refresh = [
        ("grant_type", "refresh_token"),
        ("client_id", "towline"),
        ("refresh_token", tokens["refresh_token"].as_str().unwrap()),
    ];
    let answer = issuer.post("/oauth2/token", &refresh, &[]).await;
    assert_eq!(answer.json()["error"], "invalid_grant", "{}", answer.body);
    // Codes, refresh tokens and access tokens are not each other.
    let code = issuer.sign_in(&[]).await.code();
    let tokens = issuer.redeem(&code, &[]).await.json();
    let (access, refresh) = (
        tokens["access_token"].as_str().unwrap(),
        tokens["refresh_token"].as_str().unwrap(),
    );
    assert_eq!(
        issuer.redeem(refresh, &[]).await.json()["error"],
        "invalid_grant"
    );
    assert_eq!(
        issuer.redeem(access, &[]).await.json()["error"],
        "invalid_grant"
    );
    for token in [access, &code] {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", "towline"),
            ("refresh_token", token),
        ];
        let answer = issuer.post("/oauth2/token", &fields, &[]).await;
        assert_eq!(answer.json()["error"], "invalid_grant", "{}", answer.body);
    }
    let (status, _) = issuer.0.ask(super::ground::get("/api"), refresh).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn another_site_can_neither_send_the_form_nor_show_it() {
    let issuer = Issuer::new().await;
    for headers in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "anything")],
        &[("origin", "https://evil.test")],
        &[("origin", "https://gateway.test.evil.test")],
        &[("origin", "http://gateway.test")],
        &[
            ("origin", "https://evil.test"),
            ("sec-fetch-site", "same-origin"),
        ],
        &[("origin", "null"), ("sec-fetch-site", "cross-site")],
        &[("origin", "null")],
    ] {
        for accept in ["text/html", "application/json"] {
            let headers = [headers, &[("accept", accept)]].concat();
            let answer = issuer
                .post("/oauth2/authorize", &fields(&[]), &headers)
                .await;
            assert_eq!(
                (answer.status, answer.location()),
                (StatusCode::UNAUTHORIZED, None),
                "{headers:?}"
            );
        }
    }
    for headers in [
        &[][..],
        &[
            ("sec-fetch-site", "same-origin"),
            ("origin", "https://gateway.test"),
        ],
        // A page that sends no referrer has no origin either.
        &[("sec-fetch-site", "same-origin"), ("origin", "null")],
        &[("sec-fetch-site", "none")],
    ] {
        let answer = issuer
            .post("/oauth2/authorize", &fields(&[]), headers)
            .await;
        assert_eq!(
            answer.status,
            StatusCode::SEE_OTHER,
            "{headers:?}: {}",
            answer.body
        );
    }
    // What a form of another type can send without asking.
    for kind in [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json",
        "",
    ] {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields(&[]))
            .finish();
        let request = Request::post("/oauth2/authorize")
            .header(header::HOST, "x")
            .header(header::CONTENT_TYPE, kind);
        let answer = issuer.send(request.body(Full::from(body)).unwrap()).await;
        assert_eq!(
            (answer.status, answer.location()),
            (StatusCode::BAD_REQUEST, None),
            "{kind}"
        );
    }
    // Every page, the refusals' too, can't be framed.
    for path in [
        query(&fields(&[])),
        query(&fields(&[("redirect_uri", "http://evil.test/")])),
    ] {
        let answer = issuer
            .send(
                Request::get(path)
                    .header(header::HOST, "x")
                    .body(Full::default())
                    .unwrap(),
            )
            .await;
        assert_eq!(answer.headers[header::X_FRAME_OPTIONS], "DENY");
        let policy = answer.headers[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap();
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        // A GET never signs in, and no password comes back.
        assert!(answer.location().is_none() && !answer.body.contains(PASSWORD));
    }
}

#[tokio::test]
async fn what_is_sent_is_shown_as_text() {
    let issuer = Issuer::new().await;
    let html = [("accept", "text/html")];
    for hostile in [
        "\"><script>alert(1)</script>",
        "'><img src=x onerror=alert(1)>",
        "\" autofocus onfocus=\"alert(1)",
        "</title><script>alert(1)</script>",
        "<svg/onload=alert(1)>",
        "&lt;script&gt;alert(1)",
        "\u{2028}<script>",
        "\0<script>",
    ] {
        let redirect = format!("{REDIRECT}?x={hostile}");
        for instead in [
            &[("state", hostile), ("password", "wrong")][..],
            &[("username", hostile), ("password", "wrong")],
            &[("redirect_uri", hostile)],
            &[("redirect_uri", &redirect), ("password", "wrong")],
            &[("client_id", hostile)],
            &[("code_challenge", hostile)],
        ] {
            let posted = issuer
                .post("/oauth2/authorize", &fields(instead), &html)
                .await;
            let shown = Request::get(query(&fields(instead))).header(header::HOST, "x");
            let shown = issuer.send(shown.body(Full::default()).unwrap()).await;
            for answer in [posted, shown] {
                let markup = ["<script", "<img", "<svg"];
                let is_text = !answer.body.contains(hostile)
                    && markup.iter().all(|tag| !answer.body.contains(tag));
                assert!(is_text, "{hostile} in {instead:?}: {}", answer.body);
            }
        }
    }
    // JSON is JSON.
    let answer = issuer
        .sign_in(&[("password", "wrong"), ("username", "<script>")])
        .await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
}

#[tokio::test]
async fn a_parameter_stands_once_and_in_one_place() {
    let issuer = Issuer::new().await;
    for (name, value) in [
        ("redirect_uri", "http://evil.test/"),
        ("redirect_uri", REDIRECT),
        ("code_challenge_method", "plain"),
        ("username", "owner"),
        ("state", "other"),
    ] {
        let mut twice = fields(&[]);
        for at in [0, twice.len()] {
            twice.insert(at, (name, value));
            let answer = issuer.post("/oauth2/authorize", &twice, &[]).await;
            assert_eq!(
                (answer.status, answer.location()),
                (StatusCode::BAD_REQUEST, None),
                "{name}={value} at {at}"
            );
            twice.remove(at);
        }
    }
    // What a POST's query says is nobody's.
    let path = "/oauth2/authorize?redirect_uri=http://evil.test/&state=other&username=owner";
    let answer = issuer.post(path, &fields(&[]), &[]).await;
    let location = answer.location().unwrap();
    assert!(
        location.starts_with(REDIRECT) && location.ends_with("&state=the-state"),
        "{location}"
    );
    // Other methods do nothing.
    for method in [Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS] {
        let request = Request::builder()
            .method(method.clone())
            .uri(query(&fields(&[])))
            .header(header::HOST, "x");
        let answer = issuer.send(request.body(Full::default()).unwrap()).await;
        assert!(
            answer.location().is_none() && answer.status.is_client_error(),
            "{method}: {}",
            answer.status
        );
    }
}

#[tokio::test]
async fn a_password_cannot_be_tried_out() {
    let issuer = Issuer::new().await;
    let mut refused = 0;
    for number in 0..30 {
        let guess = format!("guess {number}");
        let answer = issuer.sign_in(&[("password", &guess)]).await;
        assert!(answer.location().is_none());
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            refused += 1;
        }
    }
    assert!(refused >= 5, "{refused} of 30 were refused");
    // Not even the right one, so that the limit can't be told from a wrong guess.
    let answer = issuer.sign_in(&[]).await;
    assert_eq!(
        (answer.status, answer.location()),
        (StatusCode::TOO_MANY_REQUESTS, None)
    );
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    // Whoever says to come from elsewhere is still refused.
    let answer = issuer
        .post(
            "/oauth2/authorize",
            &fields(&[]),
            &[("x-forwarded-for", "192.0.2.7"), ("x-real-ip", "192.0.2.8")],
        )
        .await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn it_takes_as_long_to_refuse_somebody_who_does_not_exist() {
    let issuer = Issuer::new().await;
    let mut shortest = [Duration::MAX; 3];
    let mut words = Vec::new();
    for _ in 0..6 {
        // With a password, without one, and nobody at all.
        for (shortest, user) in shortest
            .iter_mut()
            .zip(["alice", "reader", "nobody-at-all"])
        {
            let began = Instant::now();
            let answer = issuer
                .sign_in(&[("username", user), ("password", "a wrong password")])
                .await;
            *shortest = (*shortest).min(began.elapsed());
            words.push((answer.status, answer.body));
        }
    }
    assert!(words.iter().all(|told| *told == words[0]), "{words:?}");
    // Without a hash it takes a tenth; more than that tells a loaded machine from a quiet one.
    let [known, without, unknown] = shortest;
    assert!(without * 4 > known && unknown * 4 > known, "{shortest:?}");
}

#[tokio::test]
async fn a_registration_token_cannot_be_tried_out() {
    let issuer = Issuer::new().await;
    let key = KeyPair::generate().unwrap().public();
    let message = |token: &str| {
        let key = base64::engine::general_purpose::STANDARD.encode(key.as_bytes());
        serde_json::json!({
            "project": "p", "location": "global", "membership": "m", "token": token, "publicKey": key,
        })
        .to_string()
    };
    let gateway = issuer.0.world.running.public_address();
    let redeem = |token: String, lines: &'static str| {
        let body = message(&token);
        async move {
            let head = format!(
                "POST /towline.v1.Enrolment/Redeem HTTP/1.1\r\nHost: x\r\n{lines}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            super::raw::exchange(gateway, head.as_bytes())
                .await
                .remove(0)
        }
    };
    let began = Instant::now();
    let mut tried = 0;
    for number in 0..150 {
        let status = redeem(format!("guess-{number}"), "").await.status;
        assert!(matches!(status, 403 | 429), "{status}");
        tried += u64::from(status == 403);
    }
    // 100 at once, then one a second.
    assert!(
        tried <= 102 + began.elapsed().as_secs(),
        "{tried} of 150 were looked at"
    );
    assert!(tried >= 100, "{tried}");
    // A forged address is no other address.
    let forged =
        "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.8\r\nX-Real-Ip: 192.0.2.9\r\n";
    let mut refused = false;
    for _ in 0..5 {
        refused |= redeem("guess".to_owned(), forged).await.status == 429;
    }
    assert!(refused);
    // The agent that is enrolled still is.
    assert_eq!(issuer.0.world.sessions(), 1);
}
