//! Access tokens that look like the gateway's own (RFC 8725 and RFC 9068 say what to look for).

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use towline_gateway::clock::Clock;
use towline_proto::jws::{KeyPair, Kind};

use super::ground::{BASE, Ground, get};
use crate::world::bounded;

const ISSUER: &str = "https://gateway.test/oauth2";
const AUDIENCE: &str = "https://gateway.test";

/// What an honest token of `alice`'s says.
fn claims() -> Value {
    let now = Clock::System.unix();
    json!({
        "iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "client_id": "towline",
        "iat": now, "exp": now + 600, "jti": "test",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A token with this very header, signed by `key`.
fn signed(key: &KeyPair, header: &Value, claims: &Value) -> String {
    let input = format!(
        "{}.{}",
        BASE64URL.encode(header.to_string()),
        BASE64URL.encode(claims.to_string())
    );
    let pair = Ed25519KeyPair::from_pkcs8(key.to_pkcs8()).unwrap();
    let signature = pair.sign(input.as_bytes());
    format!("{input}.{}", BASE64URL.encode(signature.as_ref()))
}

/// A token whose header and claims are these and whose last part is this.
fn assembled(header: &Value, claims: &Value, last: &str) -> String {
    format!(
        "{}.{}.{last}",
        BASE64URL.encode(header.to_string()),
        BASE64URL.encode(claims.to_string())
    )
}

/// All of them are refused with 401, over the road to a cluster and by the management API, and nothing goes down.
async fn refused(ground: &mut Ground, attacks: Vec<(String, String)>) {
    let mut failed = Vec::new();
    for (attack, token) in attacks {
        let who_am_i = Request::post("/towline.v1.Identity/WhoAmI")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Empty::new())
            .unwrap();
        for request in [get("/api"), who_am_i] {
            let (status, message) = ground.ask(request, &token).await;
            if status != StatusCode::UNAUTHORIZED {
                failed.push(format!("{attack}: {status}: {message}"));
            }
            let told = token.len() > 16 && message.contains(&token);
            assert!(!told, "{attack}: the answer repeats the token");
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn an_honest_token_passes() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": key.public().id()});
    let (status, message) = ground
        .ask(get("/api"), &signed(&key, &header, &claims()))
        .await;
    assert_eq!(status, StatusCode::OK, "{message}");
    assert_eq!(ground.next().await.1.user, "alice");
}

#[tokio::test]
async fn algorithms_cannot_be_confused() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let (public, kid) = (key.public(), key.public().id());
    let mut attacks = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": alg, "typ": "at+jwt", "kid": kid});
        attacks.push((
            format!("alg {alg:?}, no signature"),
            assembled(&header, &claims(), ""),
        ));
        attacks.push((
            format!("alg {alg:?}, a signature"),
            signed(&key, &header, &claims()),
        ));
    }
    // The public key, in every form that it is published or kept in, as a symmetric one.
    let text = public.to_string();
    let der = [
        &[
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ][..],
        public.as_bytes(),
    ]
    .concat();
    let encoded = base64::engine::general_purpose::STANDARD.encode(&der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----\n");
    for (form, secret) in [
        ("bytes", &public.as_bytes()[..]),
        ("base64url", text.as_bytes()),
        ("DER", &der),
        ("PEM", pem.as_bytes()),
        ("kid", kid.as_bytes()),
        ("nothing", b""),
    ] {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let mut header = Header::new(algorithm);
            header.typ = Some("at+jwt".to_owned());
            header.kid = Some(kid.clone());
            let secret = EncodingKey::from_secret(secret);
            let token = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
            attacks.push((
                format!("{algorithm:?} with the public key as {form}"),
                token,
            ));
        }
    }
    for alg in [
        "RS256", "PS256", "ES256", "ES384", "HS256", "Ed448", "ed25519", "EdDSA ",
    ] {
        let header = json!({"alg": alg, "typ": "at+jwt", "kid": kid});
        attacks.push((
            format!("alg {alg:?} over an Ed25519 signature"),
            signed(&key, &header, &claims()),
        ));
    }
    refused(&mut ground, attacks).await;
}

#[tokio::test]
async fn a_token_brings_no_key_of_its_own() {
    let mut ground = Ground::new().await;
    let mine = KeyPair::generate().unwrap();
    let theirs = ground.gateway().keys.signing().public().id();
    let root = ground.gateway().keys.root();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": theirs, "x": mine.public().to_string()});
    let extra = [
        json!({"kid": theirs}),
        json!({"kid": mine.public().id()}),
        json!({"kid": root.id()}),
        json!({}),
        json!({"kid": null}),
        json!({"kid": ""}),
        json!({"kid": "https://evil.test/jwks.json"}),
        json!({"kid": "../../../../dev/null"}),
        json!({"kid": "/dev/null"}),
        json!({"kid": "' OR 1=1 --"}),
        json!({"kid": [theirs]}),
        json!({"kid": theirs, "jwk": jwk}),
        json!({"jwk": jwk}),
        json!({"kid": theirs, "jku": "https://evil.test/jwks.json"}),
        json!({"kid": theirs, "x5u": "https://evil.test/c.pem"}),
        json!({"kid": theirs, "x5c": ["MIIB"]}),
        json!({"kid": theirs, "b64": false, "crit": ["b64"]}),
    ];
    let attacks = extra
        .into_iter()
        .map(|extra| {
            let mut header = json!({"alg": "EdDSA", "typ": "at+jwt"});
            header
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            (
                format!("the attacker's key and {extra}"),
                signed(&mine, &header, &claims()),
            )
        })
        .collect();
    refused(&mut ground, attacks).await;
}

#[tokio::test]
async fn a_statement_of_another_kind_is_no_access_token() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let kid = key.public().id();
    let mut attacks: Vec<(String, String)> =
        [Kind::Certificate, Kind::Hello, Kind::Proof, Kind::Grant]
            .into_iter()
            .map(|kind| (format!("{kind:?}"), key.sign(kind, &claims())))
            .collect();
    for typ in [
        json!("JWT"),
        json!("jwt"),
        json!("AT+JWT "),
        json!(null),
        json!(""),
        json!("application/at+jwt"),
    ] {
        let header = json!({"alg": "EdDSA", "typ": typ, "kid": kid});
        attacks.push((format!("typ {typ}"), signed(&key, &header, &claims())));
    }
    attacks.push((
        "no typ".to_owned(),
        signed(&key, &json!({"alg": "EdDSA", "kid": kid}), &claims()),
    ));
    refused(&mut ground, attacks).await;
}

#[tokio::test]
async fn claims_that_do_not_hold_are_refused() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let now = Clock::System.unix();
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": key.public().id()});
    let mut cases = vec![
        ("expired", with("exp", json!(now - 1))),
        ("expires now", with("exp", json!(now))),
        ("no exp", without("exp")),
        ("exp as text", with("exp", json!((now + 600).to_string()))),
        ("a negative exp", with("exp", json!(-1))),
        ("exp as a fraction", with("exp", json!(1e300))),
        ("not yet valid", with("nbf", json!(now + 300))),
        ("issued in the future", with("iat", json!(now + 300))),
        ("no issuer", without("iss")),
        ("issuers", with("iss", json!([ISSUER, "https://evil.test"]))),
        ("no audience", without("aud")),
        ("no audience at all", with("aud", json!(""))),
        ("audiences", with("aud", json!([AUDIENCE]))),
        ("no subject", without("sub")),
        ("an empty subject", with("sub", json!(""))),
        ("subjects", with("sub", json!(["alice"]))),
        ("somebody unknown", with("sub", json!("ghost"))),
        ("another case", with("sub", json!("ALICE"))),
        ("a subject with a NUL", with("sub", json!("alice\0"))),
        ("a subject with a space", with("sub", json!("alice "))),
        (
            "another kind of principal",
            with("sub", json!("user:alice")),
        ),
    ];
    for issuer in [
        "https://gateway.test/oauth2/",
        "https://gateway.test",
        "https://GATEWAY.test/oauth2",
        "http://gateway.test/oauth2",
        "https://gateway.test.evil.test/oauth2",
        "https://gateway.test/oauth2#",
        "https://gateway.test:443/oauth2",
    ] {
        cases.push(("another issuer", with("iss", json!(issuer))));
    }
    for audience in [
        "https://gateway.test.evil.test",
        "https://gateway.testing",
        "https://gateway.test@evil.test",
        "https://gateway.test:443",
        "http://gateway.test",
        "https://gateway.test/oauth2",
        "https://gateway.test//",
        "https://gateway.test/v1",
        "https://gateway.test/v1/projects/p",
        "https://gateway.test/v1/projects/p/locations/global/memberships/m/",
        "https://gateway.test/v1/projects/p/locations/global/memberships/m?",
        "https://gateway.test/v1/projects/p/locations/global/memberships/m/api",
        "https://gateway.test/v1/projects/p/locations/global/memberships/%6d",
        "https://gateway.test/v1/projects/q/../p/locations/global/memberships/m",
        // Good, but elsewhere.
        "https://gateway.test/v1/projects/p/locations/global/memberships/x",
        "https://gateway.test/v1/projects/q/locations/global/memberships/m",
        "https://gateway.test/v1/projects/p/locations/elsewhere/memberships/m",
        "towline",
        "*",
    ] {
        cases.push(("another audience", with("aud", json!(audience))));
    }
    let attacks = cases
        .into_iter()
        .map(|(attack, claims)| {
            (
                format!("{attack}: {claims}"),
                signed(&key, &header, &claims),
            )
        })
        .collect();
    refused(&mut ground, attacks).await;
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let good = key.sign(Kind::AccessToken, &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let signature = BASE64URL.decode(parts[2]).unwrap();
    // S + L verifies too where the range of S isn't checked (RFC 8032 §5.1.7).
    let mut malleable = signature.clone();
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0u16;
    for (byte, add) in malleable[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = u8::try_from(carry & 0xff).unwrap();
        carry >>= 8;
    }
    let head = format!("{}.{}", parts[0], parts[1]);
    // The last letter of a signature has four bits that mean nothing.
    let last = parts[2].chars().next_back().unwrap();
    let other = if last == 'A' {
        'B'
    } else {
        char::from(last as u8 + 1)
    };
    let loose = format!("{head}.{}{other}", &parts[2][..parts[2].len() - 1]);
    let root = with("sub", json!("owner"));
    let attacks = [
        ("no signature", format!("{head}.")),
        ("two parts", head.clone()),
        ("four parts", format!("{good}.x")),
        (
            "a shorter signature",
            format!("{head}.{}", BASE64URL.encode(&signature[..63])),
        ),
        (
            "a longer signature",
            format!(
                "{head}.{}",
                BASE64URL.encode([&signature[..], &[0]].concat())
            ),
        ),
        ("zeroes", format!("{head}.{}", BASE64URL.encode([0; 64]))),
        ("S + L", format!("{head}.{}", BASE64URL.encode(malleable))),
        ("padding", format!("{good}==")),
        ("bits that mean nothing", loose),
        ("a space within", good.replacen('.', " .", 1)),
        (
            "other claims",
            format!(
                "{}.{}.{}",
                parts[0],
                BASE64URL.encode(root.to_string()),
                parts[2]
            ),
        ),
        (
            "claims twice",
            format!("{}.{}{}.{}", parts[0], parts[1], parts[1], parts[2]),
        ),
        ("an encrypted token's form", format!("{head}.x.y.z")),
        (
            "JSON",
            json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]}).to_string(),
        ),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
    ];
    let attacks = attacks
        .map(|(attack, token)| (attack.to_owned(), token))
        .to_vec();
    refused(&mut ground, attacks).await;
}

#[tokio::test]
async fn a_huge_token_is_not_looked_at() {
    let mut ground = Ground::new().await;
    let key = ground.gateway().keys.signing();
    let token = key.sign(
        Kind::AccessToken,
        &with("jti", json!("x".repeat(16 * 1024))),
    );
    refused(&mut ground, vec![("16 KiB, well signed".to_owned(), token)]).await;
    let deep = format!(
        "{}.{}.x",
        BASE64URL.encode("[".repeat(4000)),
        BASE64URL.encode("[".repeat(2000))
    );
    refused(&mut ground, vec![("deep JSON".to_owned(), deep)]).await;
    let (status, _) = ground.ask(get("/api"), &"x".repeat(300 * 1024)).await;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn a_token_of_one_membership_is_good_nowhere_else() {
    let mut ground = Ground::new().await;
    // There, and alice may do everything in it.
    let other = "projects/p/locations/global/memberships/x".parse().unwrap();
    let store = &ground.gateway().store;
    store.register(&other, false, "of x", 0, 10).await.unwrap();
    let of_m = ground.world.token("alice", Some("m"), 600);
    let of_x = ground.world.token("alice", Some("x"), 600);
    let at = |name: &str| {
        Request::get(format!("/v1/{name}/api"))
            .body(Empty::new())
            .unwrap()
    };
    for (token, name) in [
        (&of_m, "projects/p/locations/global/memberships/x"),
        (&of_m, "projects/q/locations/global/memberships/m"),
        (&of_m, "projects/p/locations/elsewhere/memberships/m"),
        (&of_x, "projects/p/locations/global/memberships/m"),
    ] {
        let (status, message) = ground.ask(at(name), token).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{name}: {message}");
        assert!(message.contains("audience"), "{name}: {message}");
    }
    // Not at the management API either, whose calls reach further.
    for service in towline_proto::api::DESCRIPTORS.services() {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let request = Request::post(&path)
                .header(header::CONTENT_TYPE, "application/json")
                .body(Empty::new())
                .unwrap();
            let (status, message) = ground.ask(request, &of_m).await;
            let refused = match status {
                // Names are parsed first.
                StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST => true,
                StatusCode::NOT_FOUND => message.contains("there is no service"),
                _ => false,
            };
            assert!(refused, "{path}: {status} {message}");
        }
    }
    // The management API's paths are no way around the prefix.
    let (status, _) = ground
        .ask(at("projects/p/locations/global/memberships/m"), &of_m)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ground.next().await.0.uri.path(), "/api");
    ground.assert_nothing_came().await;
}

#[tokio::test]
async fn two_credentials_are_none() {
    let mut ground = Ground::new().await;
    let gateway = ground.world.running.public_address();
    let (alice, reader) = (ground.alice(), ground.world.token("reader", None, 600));
    let none: [(&str, String); 8] = [
        (
            "two headers",
            format!("Authorization: {alice}\r\nAuthorization: Bearer {reader}\r\n"),
        ),
        (
            "a list",
            format!("Authorization: {alice}, Bearer {reader}\r\n"),
        ),
        ("no scheme", format!("Authorization: {reader}\r\n")),
        (
            "another scheme",
            format!("Authorization: Token {reader}\r\n"),
        ),
        (
            "Basic",
            format!(
                "Authorization: Basic {}\r\n",
                BASE64URL.encode(format!("alice:{reader}"))
            ),
        ),
        (
            "a cookie",
            format!("Cookie: Authorization={reader}; token={reader}\r\n"),
        ),
        (
            "a proxy's header",
            format!("Proxy-Authorization: {alice}\r\n"),
        ),
        (
            "another header",
            format!("X-Authorization: {alice}\r\nX-Access-Token: {reader}\r\n"),
        ),
    ];
    for (attack, line) in none {
        let bytes = format!(
            "GET {BASE}/api?access_token={reader} HTTP/1.1\r\nHost: x\r\n{line}Connection: close\r\n\r\n"
        );
        let answers = super::raw::exchange(gateway, bytes.as_bytes()).await;
        assert_eq!(answers[0].status, 401, "{attack}: {answers:?}");
    }
    // A browser's subprotocol beside a header: the header alone counts, and the token goes no further.
    let mut request = get("/api");
    let protocol = format!(
        "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{}",
        BASE64URL.encode(&reader)
    );
    request
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
    let response = bounded(ground.world.as_user("alice").http1(request)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let (head, grant) = ground.next().await;
    assert_eq!(grant.user, "alice");
    assert_eq!(
        head.headers[header::SEC_WEBSOCKET_PROTOCOL],
        "v5.channel.k8s.io"
    );
    ground.assert_nothing_came().await;
}
