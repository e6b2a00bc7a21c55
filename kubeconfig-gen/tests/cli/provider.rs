//! A stand-in for an identity provider, under `/idp` of the gateway's stand-in, which misbehaves as it is told.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::{Value, json};

type Answer = Response<Full<Bytes>>;

/// What it does, and what it saw.
#[derive(Default)]
pub(crate) struct Idp {
    /// `https://ADDRESS/idp`.
    pub(crate) issuer: String,
    /// What its document says instead.
    pub(crate) document: Value,
    /// What ID tokens say instead.
    pub(crate) claims: Value,
    /// The next answers of the token endpoint, before it does what was asked.
    pub(crate) refusals: Vec<(u16, Value)>,
    /// Gives no refresh token.
    pub(crate) no_refresh: bool,
    /// How long ID tokens live, in seconds.
    pub(crate) lifetime: u64,
    /// Refresh tokens that were presented.
    pub(crate) refreshes: Vec<String>,
    /// Forms that came to the token endpoint.
    pub(crate) forms: Vec<HashMap<String, String>>,
    /// Forms that came to the ends of a sign-in, with the path.
    pub(crate) ended: Vec<(String, HashMap<String, String>)>,
    challenge: String,
    nonce: Option<String>,
    issued: usize,
}

impl Idp {
    pub(crate) fn at(address: std::net::SocketAddr) -> Self {
        Self {
            issuer: format!("https://{address}/idp"),
            lifetime: 600,
            ..Self::default()
        }
    }

    pub(crate) fn serve(&mut self, path: &str, form: HashMap<String, String>, now: u64) -> Answer {
        match path {
            "/idp/.well-known/openid-configuration" => {
                let issuer = &self.issuer;
                let mut document = json!({
                    "issuer": issuer,
                    "authorization_endpoint": format!("{issuer}/authorize"),
                    "token_endpoint": format!("{issuer}/token"),
                    "device_authorization_endpoint": format!("{issuer}/device"),
                    "revocation_endpoint": format!("{issuer}/revoke"),
                    "end_session_endpoint": format!("{issuer}/logout"),
                    "scopes_supported": ["openid", "offline_access", "email"],
                    "code_challenge_methods_supported": ["plain", "S256"],
                    "authorization_response_iss_parameter_supported": true,
                });
                merge(&mut document, &self.document);
                answer(200, &document)
            }
            "/idp/device" => {
                self.challenge.clone_from(&form["code_challenge"]);
                answer(
                    200,
                    &json!({
                        "device_code": "device-code", "user_code": "WDJB-MJHT", "expires_in": 60, "interval": 1,
                        "verification_uri": format!("{}/activate", self.issuer),
                        "verification_uri_complete": format!("{}/activate?user_code=WDJB-MJHT", self.issuer),
                    }),
                )
            }
            "/idp/token" => self.token(form, now),
            "/idp/revoke" | "/idp/logout" => {
                self.ended.push((path.to_owned(), form));
                answer(200, &json!({}))
            }
            other => panic!("unexpected {other}"),
        }
    }

    /// What the browser that was sent to `url` is sent back with.
    pub(crate) fn authorize(&mut self, url: &url::Url) -> (String, HashMap<String, String>) {
        let asked: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(asked["response_type"], "code");
        assert_eq!(asked["code_challenge_method"], "S256");
        self.challenge.clone_from(&asked["code_challenge"]);
        self.nonce = Some(asked["nonce"].clone());
        let back = [
            ("code", "the-code"),
            ("state", &asked["state"]),
            ("iss", &self.issuer),
        ];
        let back = back.map(|(name, value)| (name.to_owned(), value.to_owned()));
        (asked["redirect_uri"].clone(), back.into_iter().collect())
    }

    fn check_verifier(&self, form: &HashMap<String, String>) {
        let verifier = form["code_verifier"].as_bytes();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier);
        assert_eq!(URL_SAFE_NO_PAD.encode(digest), self.challenge);
    }

    fn token(&mut self, form: HashMap<String, String>, now: u64) -> Answer {
        assert_eq!(form["client_id"], "towline-cli");
        self.forms.push(form.clone());
        if form["grant_type"] == "refresh_token" {
            self.refreshes.push(form["refresh_token"].clone());
        }
        if !self.refusals.is_empty() {
            let (status, body) = self.refusals.remove(0);
            return answer(status, &body);
        }
        match form["grant_type"].as_str() {
            "authorization_code" => {
                assert_eq!(form["code"], "the-code");
                self.check_verifier(&form);
            }
            "urn:ietf:params:oauth:grant-type:device_code" => {
                assert_eq!(form["device_code"], "device-code");
                self.check_verifier(&form);
            }
            "refresh_token" => {
                self.nonce = None;
                let current = format!("idp-refresh-{}", self.issued);
                if form["refresh_token"] != current {
                    return answer(
                        400,
                        &json!({"error": "invalid_grant", "error_description": "used before"}),
                    );
                }
            }
            other => panic!("unexpected grant {other}"),
        }
        self.issued += 1;
        let mut claims = json!({
            "iss": self.issuer, "sub": "ann", "aud": "towline-cli", "iat": now, "exp": now + self.lifetime,
            "jti": self.issued.to_string(),
        });
        if let Some(nonce) = &self.nonce {
            claims["nonce"] = json!(nonce);
        }
        merge(&mut claims, &self.claims);
        let mut given = json!({
            "access_token": "of-no-use-here",
            "token_type": "Bearer",
            "id_token": format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string())),
        });
        if !self.no_refresh {
            given["refresh_token"] = json!(format!("idp-refresh-{}", self.issued));
        }
        answer(200, &given)
    }
}

fn merge(into: &mut Value, over: &Value) {
    for (key, value) in over.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn answer(status: u16, value: &Value) -> Answer {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(value.to_string()))
        .unwrap()
}
