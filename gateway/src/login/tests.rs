use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::HeaderMap;
use serde_json::Value;
use towline_proto::jws::KeyPair;
use url::form_urlencoded;

use super::*;
use crate::{
    app::Running,
    clock::Clock,
    config::File,
    iam::{Binding, Member, Principal, Role},
    keys::Keys,
    store::{Store, User, refresh::GRACE_SECONDS},
};

const NOW: u64 = 1_800_000_000;
const BASE: &str = "https://gw.example";
const EDGE: &str = "https://gw.example/v1/projects/p/locations/global/memberships/edge";
const REDIRECT: &str = "http://127.0.0.1:4711/callback";
const VERIFIER: &str = "a-verifier-that-is-long-enough-for-anybody-to-take";
const PASSWORD: &str = "correct horse battery";

/// A gateway with a user who has a password.
struct Site {
    running: Running,
    time: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    fn error(&self) -> (u16, String) {
        (
            self.status.as_u16(),
            self.json()["error"].as_str().unwrap().to_owned(),
        )
    }
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let file = format!("public_url = \"{BASE}\"\nlisten = \"127.0.0.1:0\"\ntls.mode = \"off\"");
        let config = File::parse(&path, &file).unwrap().check(&path).unwrap();
        let (clock, time) = Clock::fixed(NOW);
        let keys = Arc::new(Keys::create(&config.keys(), clock.clone()).unwrap());
        let store = Store::in_memory().await.unwrap();
        let user = |name: &str| User {
            name: name.into(),
            groups: (0..1_000).map(|n| format!("group-{n}")).collect(),
            disabled: false,
            operator: true,
            created: NOW,
        };
        store
            .create_user(&user("alice"), "AAAAA-BBBBB", NOW + CODE_SECONDS)
            .await
            .unwrap();
        store
            .create_user(&user("bob"), "CCCCC", NOW + CODE_SECONDS)
            .await
            .unwrap();
        let running = Gateway::start(config, clock, keys, store).await.unwrap();
        let site = Self {
            running,
            time,
            _dir: dir,
        };
        let set = site
            .sign_in(&[
                ("username", "alice"),
                ("one_time_code", "aaaaa bbbbb"),
                ("new_password", PASSWORD),
            ])
            .await;
        assert_eq!(set.status, StatusCode::SEE_OTHER, "{}", set.body);
        site
    }

    fn gateway(&self) -> &Arc<Gateway> {
        self.running.gateway()
    }

    fn pass(&self, seconds: u64) {
        self.time.fetch_add(seconds, Ordering::SeqCst);
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = serve(self.gateway(), IpAddr::from([192, 0, 2, 1]), request).await;
        let (head, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Full::default()).unwrap())
            .await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)], accept: &str) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", accept)
            .body(Full::from(body))
            .unwrap();
        self.send(request).await
    }

    async fn sign_in(&self, fields: &[(&str, &str)]) -> Answer {
        let challenge = challenge();
        let all = [asked(&challenge), fields.to_vec()].concat();
        self.post("/oauth2/authorize", &all, "application/json")
            .await
    }

    async fn code(&self) -> String {
        let answer = self
            .sign_in(&[("username", "alice"), ("password", PASSWORD)])
            .await;
        code_of(&answer)
    }

    async fn token(&self, fields: &[(&str, &str)]) -> Answer {
        let fields = [&[("client_id", "towline")], fields].concat();
        self.post("/oauth2/token", &fields, "application/json")
            .await
    }

    async fn redeem(&self, code: &str, verifier: &str, redirect: &str) -> Answer {
        self.token(&[
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect),
            ("code_verifier", verifier),
        ])
        .await
    }

    /// Access and refresh token of a new sign-in.
    async fn tokens(&self) -> (String, String) {
        pair(&self.redeem(&self.code().await, VERIFIER, REDIRECT).await)
    }

    async fn refresh(&self, token: &str) -> Answer {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)])
            .await
    }

    fn verify(&self, token: &str) -> Result<AccessToken, TokenError> {
        verify_access_token(self.gateway(), token)
    }
}

fn challenge() -> String {
    BASE64URL.encode(digest::digest(&digest::SHA256, VERIFIER.as_bytes()))
}

fn asked(challenge: &str) -> Vec<(&str, &str)> {
    vec![
        ("response_type", "code"),
        ("client_id", "towline"),
        ("redirect_uri", REDIRECT),
        ("code_challenge", challenge),
        ("code_challenge_method", "S256"),
        ("state", "s&t"),
    ]
}

fn code_of(answer: &Answer) -> String {
    let location = answer
        .headers
        .get("location")
        .unwrap_or_else(|| panic!("no redirect: {}", answer.body));
    let location = url::Url::parse(location.to_str().unwrap()).unwrap();
    assert!(location.as_str().starts_with(REDIRECT));
    let value = |name: &str| {
        location
            .query_pairs()
            .find(|(key, _)| key == name)
            .unwrap()
            .1
            .into_owned()
    };
    assert_eq!(value("state"), "s&t");
    value("code")
}

fn pair(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let json = answer.json();
    assert_eq!(
        (json["token_type"].as_str(), json["expires_in"].as_u64()),
        (Some("Bearer"), Some(600))
    );
    let text = |name: &str| json[name].as_str().unwrap().to_owned();
    (text("access_token"), text("refresh_token"))
}

#[tokio::test]
async fn a_sign_in_gives_a_token_for_the_gateway() {
    let site = Site::new().await;
    let (access, _) = site.tokens().await;
    let found = site.verify(&access).unwrap();
    let expected = AccessToken {
        subject: "alice".into(),
        sign_in: found.sign_in.clone().filter(|id| id.len() == 32),
        audience: Audience::Gateway,
        expires: NOW + 600,
    };
    assert_eq!(found, expected);
    // A user in 1,000 groups has no larger token than anybody.
    assert!(access.len() < 700, "{}", access.len());
    site.pass(599);
    assert!(site.verify(&access).is_ok());
    site.pass(1);
    assert_eq!(
        site.verify(&access),
        Err(TokenError::Expired {
            expired: NOW + 600,
            now: NOW + 600
        })
    );
}

#[tokio::test]
async fn a_token_that_was_good_ends_with_the_key_that_signed_it() {
    const YEAR: u64 = 365 * 24 * 3600;
    let site = Site::new().await;
    let claims = serde_json::json!({
        "iss": format!("{BASE}/oauth2"), "sub": "alice", "aud": BASE, "iat": NOW, "exp": NOW + 9 * YEAR, "jti": "j",
        "client_id": "towline",
    });
    let token = site
        .gateway()
        .keys
        .signing()
        .sign(Kind::AccessToken, &claims);
    for _ in 0..2 {
        assert!(site.verify(&token).is_ok());
    }
    site.pass(8 * YEAR);
    assert_eq!(site.verify(&token), Err(TokenError::Signature));
}

#[tokio::test]
async fn each_check_of_a_token_says_that_it_was_the_one() {
    let site = Site::new().await;
    let gateway = site.gateway();
    let claims = |iss: &str, aud: &str, exp: u64| serde_json::json!({"iss": iss, "sub": "alice", "aud": aud, "iat": NOW, "exp": exp, "jti": "j", "client_id": "towline"});
    let ours = format!("{BASE}/oauth2");
    let sign = |claims: &Value| gateway.keys.signing().sign(Kind::AccessToken, claims);
    assert!(site.verify(&sign(&claims(&ours, BASE, NOW + 9))).is_ok());

    for malformed in ["", "x", "a.b.c", &"x".repeat(MAX_TOKEN + 1)] {
        assert_eq!(site.verify(malformed), Err(TokenError::Malformed));
    }
    let other = sign(&claims("https://other.example", BASE, NOW + 9));
    assert_eq!(
        site.verify(&other),
        Err(TokenError::Issuer("https://other.example".into()))
    );
    let stranger = KeyPair::generate()
        .unwrap()
        .sign(Kind::AccessToken, &claims(&ours, BASE, NOW + 9));
    assert_eq!(site.verify(&stranger), Err(TokenError::Signature));
    let grant = gateway
        .keys
        .signing()
        .sign(Kind::Grant, &claims(&ours, BASE, NOW + 9));
    assert_eq!(
        site.verify(&grant),
        Err(TokenError::Signature),
        "a statement of another kind is no token"
    );
    let good = sign(&claims(&ours, BASE, NOW + 9));
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (head, _) = head.split_once('.').unwrap();
    let forged = BASE64URL.encode(claims(&ours, BASE, NOW + 99_999).to_string());
    assert_eq!(
        site.verify(&format!("{head}.{forged}.{signature}")),
        Err(TokenError::Signature)
    );
    let late = sign(&claims(&ours, BASE, NOW));
    assert_eq!(
        site.verify(&late),
        Err(TokenError::Expired {
            expired: NOW,
            now: NOW
        })
    );
    for aud in [
        "https://other.example",
        "https://gw.example.evil/",
        "https://gw.example/v1/projects/p",
        "",
    ] {
        assert_eq!(
            site.verify(&sign(&claims(&ours, aud, NOW + 9))),
            Err(TokenError::Audience(aud.into()))
        );
    }
}

#[tokio::test]
async fn a_code_is_bound_to_verifier_and_redirect_and_works_once() {
    let site = Site::new().await;
    let invalid = (400, "invalid_grant".to_owned());
    assert_eq!(
        site.redeem("unknown", VERIFIER, REDIRECT).await.error(),
        invalid
    );
    let code = site.code().await;
    assert_eq!(
        site.redeem(
            &code,
            "another-verifier-of-some-length-or-other-one",
            REDIRECT
        )
        .await
        .error(),
        invalid
    );
    // A wrong try uses it up.
    assert_eq!(
        site.redeem(&code, VERIFIER, REDIRECT).await.error(),
        invalid
    );
    let code = site.code().await;
    assert_eq!(
        site.redeem(&code, VERIFIER, "http://127.0.0.1:4712/callback")
            .await
            .error(),
        invalid
    );
    let code = site.code().await;
    site.pass(60);
    assert_eq!(
        site.redeem(&code, VERIFIER, REDIRECT).await.error(),
        invalid
    );

    let code = site.code().await;
    let (_, refresh) = pair(&site.redeem(&code, VERIFIER, REDIRECT).await);
    assert_eq!(
        site.redeem(&code, VERIFIER, REDIRECT).await.error(),
        invalid
    );
    // Somebody has copied the code: what it gave ends.
    assert_eq!(site.refresh(&refresh).await.error(), invalid);
}

#[tokio::test]
async fn refresh_tokens_rotate_with_a_grace() {
    let site = Site::new().await;
    let invalid = (400, "invalid_grant".to_owned());
    let (_, first) = site.tokens().await;
    let (access, second) = pair(&site.refresh(&first).await);
    assert!(site.verify(&access).is_ok());
    assert_ne!(first, second);
    site.pass(GRACE_SECONDS);
    let (_, also_second) = pair(&site.refresh(&first).await);
    let (_, third) = pair(&site.refresh(&second).await);
    site.pass(1);
    assert_eq!(site.refresh(&first).await.error(), invalid);
    for token in [&first, &second, &also_second, &third] {
        assert_eq!(site.refresh(token).await.error(), invalid);
    }
}

#[tokio::test]
async fn a_token_for_one_membership_says_so() {
    let site = Site::new().await;
    let (_, refresh) = site.tokens().await;
    let fields = |refresh: &str| {
        [
            ("grant_type", "refresh_token".to_owned()),
            ("refresh_token", refresh.to_owned()),
        ]
    };
    let ask = async |refresh: &str, resource: &str| {
        let fields = fields(refresh);
        let fields: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        site.token(&[fields, vec![("resource", resource)]].concat())
            .await
    };
    for bad in [
        "https://other.example",
        "https://gw.example/v1/projects/p/locations/global/memberships/edge/",
        "https://gw.example/v1/projects/p/locations/global/memberships/edge/api",
        "https://gw.example/v1/projects/p/locations/global/memberships/EDGE",
        "projects/p/locations/global/memberships/edge",
    ] {
        assert_eq!(
            ask(&refresh, bad).await.error(),
            (400, "invalid_target".to_owned()),
            "{bad}"
        );
    }
    // None of these used the token up.
    let (access, refresh) = pair(&ask(&refresh, EDGE).await);
    let edge = "projects/p/locations/global/memberships/edge"
        .parse()
        .unwrap();
    assert_eq!(
        site.verify(&access).unwrap().audience,
        Audience::Membership(edge)
    );
    let (access, _) = pair(&ask(&refresh, BASE).await);
    assert_eq!(site.verify(&access).unwrap().audience, Audience::Gateway);
}

#[tokio::test]
async fn a_one_time_code_works_once_and_sets_a_password() {
    let site = Site::new().await;
    let code = |new: &'static str| {
        [
            ("username", "bob"),
            ("one_time_code", "ccccc"),
            ("new_password", new),
        ]
    };
    let short = site.sign_in(&code("short")).await;
    assert_eq!(short.error(), (400, "invalid_request".to_owned()));
    assert!(
        short.json()["error_description"]
            .as_str()
            .unwrap()
            .contains("12 characters"),
        "{}",
        short.body
    );
    let alone = site
        .sign_in(&[("username", "bob"), ("one_time_code", "ccccc")])
        .await;
    assert_eq!(alone.error(), (400, "invalid_request".to_owned()));
    // Neither used it up.
    code_of(&site.sign_in(&code("a password of bob's")).await);
    assert_eq!(
        site.sign_in(&code("another password")).await.error(),
        (401, "access_denied".to_owned())
    );
    code_of(
        &site
            .sign_in(&[("username", "bob"), ("password", "a password of bob's")])
            .await,
    );
    let other = site
        .sign_in(&[("username", "bob"), ("password", PASSWORD)])
        .await;
    assert_eq!(other.error(), (401, "access_denied".to_owned()));
}

#[tokio::test]
async fn nobody_learns_who_exists() {
    let site = Site::new().await;
    let wrong = site
        .sign_in(&[("username", "alice"), ("password", "wrong")])
        .await;
    let nobody = site
        .sign_in(&[("username", "nobody"), ("password", "wrong")])
        .await;
    let unset = site
        .sign_in(&[("username", "bob"), ("password", "wrong")])
        .await;
    site.gateway()
        .store
        .set_disabled("alice", true)
        .await
        .unwrap();
    let disabled = site
        .sign_in(&[("username", "alice"), ("password", "wrong")])
        .await;
    assert_eq!(wrong.error(), (401, "access_denied".to_owned()));
    for other in [&nobody, &unset, &disabled] {
        assert_eq!((other.status, &other.body), (wrong.status, &wrong.body));
    }
    let told = site
        .sign_in(&[("username", "alice"), ("password", PASSWORD)])
        .await;
    assert!(
        told.json()["error_description"]
            .as_str()
            .unwrap()
            .contains("disabled"),
        "{}",
        told.body
    );
    let code = |user: &'static str| {
        [
            ("username", user),
            ("one_time_code", "x"),
            ("new_password", PASSWORD),
        ]
    };
    let (known, unknown) = (
        site.sign_in(&code("bob")).await,
        site.sign_in(&code("nobody")).await,
    );
    assert_eq!((known.status, &known.body), (unknown.status, &unknown.body));
}

#[tokio::test]
async fn a_disabled_user_gets_no_more_tokens() {
    let site = Site::new().await;
    let (_, refresh) = site.tokens().await;
    let code = site.code().await;
    site.gateway()
        .store
        .set_disabled("alice", true)
        .await
        .unwrap();
    assert_eq!(
        site.refresh(&refresh).await.error(),
        (400, "invalid_grant".to_owned())
    );
    assert_eq!(
        site.redeem(&code, VERIFIER, REDIRECT).await.error(),
        (400, "invalid_grant".to_owned())
    );
}

#[tokio::test]
async fn tries_are_limited_and_say_for_how_long() {
    let site = Site::new().await;
    // As many as there may be, and those that come back meanwhile on a slow machine.
    let mut last = site
        .sign_in(&[("username", "bob"), ("password", "wrong")])
        .await;
    for _ in 0..200 {
        if last.status == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        last = site
            .sign_in(&[("username", "bob"), ("password", "wrong")])
            .await;
    }
    assert_eq!(last.error(), (429, "slow_down".to_owned()));
    assert!(
        last.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    // Others are not kept out.
    site.code().await;
}

#[tokio::test]
async fn revoking_ends_the_sign_in() {
    let site = Site::new().await;
    let (_, first) = site.tokens().await;
    let (_, second) = pair(&site.refresh(&first).await);
    let revoke = async |token: &str| {
        site.post("/oauth2/revoke", &[("token", token)], "*/*")
            .await
            .status
    };
    assert_eq!(revoke(&first).await, StatusCode::OK);
    assert_eq!(revoke("nobody's").await, StatusCode::OK);
    assert_eq!(
        site.refresh(&second).await.error(),
        (400, "invalid_grant".to_owned())
    );
    assert_eq!(
        site.post("/oauth2/revoke", &[], "*/*").await.error(),
        (400, "invalid_request".to_owned())
    );
}

/// Whether requests with an access token are let in.
async fn lets_in(site: &Site, access: &str) -> bool {
    let token = site.verify(access).unwrap();
    crate::authn::of_token(site.gateway(), &token).await.is_ok()
}

#[tokio::test]
async fn no_access_token_outlives_its_sign_in() {
    let revoke = async |site: &Site, token: &str| {
        let answer = site
            .post("/oauth2/revoke", &[("token", token)], "*/*")
            .await;
        assert_eq!(answer.status, StatusCode::OK);
    };
    for way in [
        "refresh token revoked",
        "access token revoked",
        "password reset",
        "old refresh token",
        "disabled and enabled",
    ] {
        let site = Site::new().await;
        let (access, first) = site.tokens().await;
        let (later, second) = pair(&site.refresh(&first).await);
        let (others, _) = site.tokens().await;
        let resource = format!("{BASE}/v1/projects/p/locations/global/memberships/m");
        let exchanged = site
            .token(&[
                ("grant_type", exchange::GRANT),
                (
                    "subject_token_type",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
                ("subject_token", &later),
                ("resource", &resource),
            ])
            .await
            .json();
        let exchanged = exchanged["access_token"].as_str().unwrap().to_owned();
        let own = [&access, &later, &exchanged];
        for token in own {
            assert!(lets_in(&site, token).await, "{way}");
        }
        let store = &site.gateway().store;
        match way {
            "refresh token revoked" => revoke(&site, &second).await,
            "access token revoked" => revoke(&site, &access).await,
            "old refresh token" => {
                site.pass(GRACE_SECONDS + 1);
                site.refresh(&first).await.error();
            }
            "password reset" => store
                .reset_password("alice", "DDDDD", NOW + CODE_SECONDS)
                .await
                .unwrap(),
            _ => {
                for disabled in [true, false] {
                    store.set_disabled("alice", disabled).await.unwrap();
                }
            }
        }
        for token in own {
            assert!(!lets_in(&site, token).await, "{way}");
        }
        // Another sign-in of the same user ends with what concerns the user alone.
        let all = ["password reset", "disabled and enabled"].contains(&way);
        assert_eq!(lets_in(&site, &others).await, !all, "{way}");
        assert_eq!(
            site.refresh(&second).await.error(),
            (400, "invalid_grant".to_owned()),
            "{way}"
        );
    }
}

#[tokio::test]
async fn a_code_that_comes_twice_ends_the_access_token_too() {
    let site = Site::new().await;
    let code = site.code().await;
    let (access, _) = pair(&site.redeem(&code, VERIFIER, REDIRECT).await);
    assert!(lets_in(&site, &access).await);
    site.redeem(&code, VERIFIER, REDIRECT).await.error();
    assert!(!lets_in(&site, &access).await);
}

#[tokio::test]
async fn a_verifier_that_could_be_guessed_is_refused() {
    let site = Site::new().await;
    for verifier in ["a".repeat(42), "a".repeat(129)] {
        let code = site.code().await;
        let answer = site.redeem(&code, &verifier, REDIRECT).await;
        assert!(answer.body.contains("43 to 128"), "{}", answer.body);
    }
}

#[tokio::test]
async fn what_is_asked_wrongly_gets_no_redirect() {
    let site = Site::new().await;
    let challenge = challenge();
    for (field, value, error) in [
        ("client_id", "other", "invalid_client"),
        ("client_id", "", "invalid_request"),
        ("response_type", "token", "unsupported_response_type"),
        ("redirect_uri", "https://evil.example/", "invalid_request"),
        (
            "redirect_uri",
            "http://localhost:4711/callback",
            "invalid_request",
        ),
        ("code_challenge_method", "plain", "invalid_request"),
        ("code_challenge", "short", "invalid_request"),
        ("username", "", "invalid_request"),
        ("password", "", "invalid_request"),
    ] {
        let mut fields = [
            asked(&challenge),
            vec![("username", "alice"), ("password", PASSWORD)],
        ]
        .concat();
        for (name, old) in &mut fields {
            if *name == field {
                *old = value;
            }
        }
        let answer = site.post("/oauth2/authorize", &fields, "*/*").await;
        assert_eq!(answer.error(), (400, error.to_owned()), "{field}={value}");
        assert!(!answer.headers.contains_key("location"));
    }
    let twice = site
        .sign_in(&[
            ("username", "alice"),
            ("username", "bob"),
            ("password", PASSWORD),
        ])
        .await;
    assert_eq!(twice.error(), (400, "invalid_request".to_owned()));
    let grant = site
        .token(&[
            ("grant_type", "password"),
            ("username", "alice"),
            ("password", PASSWORD),
        ])
        .await;
    assert_eq!(grant.error(), (400, "unsupported_grant_type".to_owned()));
}

#[tokio::test]
async fn forms_are_bounded_and_forms() {
    let site = Site::new().await;
    let long = "x".repeat(65 * 1024);
    let answer = site
        .sign_in(&[("username", "alice"), ("password", &long)])
        .await;
    assert_eq!(answer.error(), (413, "invalid_request".to_owned()));
    let json = Request::post("/oauth2/token").header("content-type", "application/json");
    let answer = site.send(json.body(Full::from("{}")).unwrap()).await;
    assert_eq!(answer.error(), (400, "invalid_request".to_owned()));
}

#[tokio::test]
async fn browsers_get_a_form_that_nobody_else_can_frame_or_fill() {
    let site = Site::new().await;
    let challenge = challenge();
    let mut fields = asked(&challenge);
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(&fields)
        .finish();
    let form = site.get(&format!("/oauth2/authorize?{query}")).await;
    assert_eq!(form.status, StatusCode::OK);
    let policy = form.headers["content-security-policy"].to_str().unwrap();
    assert!(
        policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"),
        "{policy}"
    );
    assert!(
        policy.contains("form-action 'self' http://127.0.0.1:4711;"),
        "{policy}"
    );
    assert!(
        form.body.contains("name=\"state\" value=\"s&amp;t\""),
        "{}",
        form.body
    );
    assert!(!form.body.contains("<script"));

    fields.extend([
        ("username", "\"><script>alert(1)</script>"),
        ("password", "wrong"),
    ]);
    let again = site
        .post("/oauth2/authorize", &fields, "text/html,*/*;q=0.8")
        .await;
    assert_eq!(again.status, StatusCode::UNAUTHORIZED);
    assert!(
        again
            .body
            .contains("the user name or the password is wrong"),
        "{}",
        again.body
    );
    assert!(!again.body.contains("<script"), "{}", again.body);
    let stranger = site.get("/oauth2/authorize?client_id=x").await;
    assert_eq!(stranger.status, StatusCode::BAD_REQUEST);
    assert!(
        stranger.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
}

#[tokio::test]
async fn another_site_cannot_sign_a_browser_in() {
    let site = Site::new().await;
    let challenge = challenge();
    let fields = [
        asked(&challenge),
        vec![("username", "alice"), ("password", PASSWORD)],
    ]
    .concat();
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let request = Request::post("/oauth2/authorize")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "cross-site")
        .body(Full::from(body))
        .unwrap();
    assert_eq!(
        site.send(request).await.error(),
        (401, "access_denied".to_owned())
    );
}

#[tokio::test]
async fn what_others_need_to_verify_tokens_is_public() {
    let site = Site::new().await;
    let found = site
        .get("/oauth2/.well-known/openid-configuration")
        .await
        .json();
    assert_eq!(found["issuer"], "https://gw.example/oauth2");
    assert_eq!(found["token_endpoint"], "https://gw.example/oauth2/token");
    assert_eq!(
        found["code_challenge_methods_supported"],
        serde_json::json!(["S256"])
    );
    assert_eq!(found["towline_embedded"], true);
    let keys = site.get("/oauth2/jwks").await.json();
    let ours = site.gateway().keys.signing().public();
    assert_eq!(keys["keys"][0]["kid"], ours.id());
    assert_eq!(keys["keys"][0]["x"], ours.to_string());
    assert_eq!(
        site.get("/oauth2/nothing").await.error(),
        (404, "not_found".to_owned())
    );
    let method = site.get("/oauth2/token").await;
    assert_eq!(
        (method.status, &method.headers["allow"]),
        (
            StatusCode::METHOD_NOT_ALLOWED,
            &HeaderValue::from_static("POST")
        )
    );
}

#[test]
fn codes_are_typed_as_people_type() {
    let code = one_time_code().unwrap();
    assert_eq!(code.len(), 29);
    assert_ne!(code, one_time_code().unwrap());
    assert_eq!(typed_code(&code), code);
    assert_eq!(typed_code(&code.to_lowercase().replace('-', " ")), code);
    assert_eq!(typed_code("oIl10"), "01110");
}

#[tokio::test]
async fn a_refused_impersonation_costs_no_sign_in() {
    let site = Site::new().await;
    let (_, refresh) = site.tokens().await;
    let acting = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh.as_str()),
        ("impersonate_service_account", "ci@p"),
    ];
    for _ in 0..2 {
        let refused = site.token(&acting).await;
        assert_eq!(refused.error(), (403, "access_denied".to_owned()));
        site.pass(GRACE_SECONDS + 1);
    }
    let (_, refresh) = pair(&site.refresh(&refresh).await);

    let store = &site.gateway().store;
    let project = "p".parse().unwrap();
    let alice = Principal::User("alice".into());
    store.create_project(&project, &alice, NOW).await.unwrap();
    let mut policy = store.policy(&project).await.unwrap().unwrap();
    policy.bindings.push(Binding::new(
        Role::ServiceAccountTokenCreator,
        vec![Member::Principal(alice)],
    ));
    store
        .set_policy_of(&(&project).into(), &policy)
        .await
        .unwrap();
    let account = "ci@p".parse().unwrap();
    store
        .create_service_account(&account, "", NOW)
        .await
        .unwrap();
    let acting = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh.as_str()),
        ("impersonate_service_account", "ci@p"),
    ];
    let (access, _) = pair(&site.token(&acting).await);
    let token = site.verify(&access).unwrap();
    assert_eq!(token.subject, "serviceAccount:ci@p");
    assert!(token.sign_in.is_some());
    // As small as any, whatever is behind it.
    assert!(access.len() < 1_000, "{}", access.len());
}
