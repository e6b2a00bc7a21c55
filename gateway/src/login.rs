//! The embedded issuer: OAuth 2.0's authorization code flow with PKCE for the gateway's own users.
//!
//! Threat: passwords are guessed, user names probed, codes and tokens stolen on their way.
//! Decision: a sign-in costs the same work whether the user exists, tries are counted per user and per address;
//! a code works once, for the client, address and challenge that it was made for; refresh tokens rotate.
//! Access tokens are short and signed, hold a name and no groups, and say whether they are good for the whole
//! gateway or for one membership alone.
//! Consequence: no answer but the one to the right password tells whether somebody exists.
//!
//! | path under `/oauth2` | what |
//! | --- | --- |
//! | `.well-known/openid-configuration`, `jwks` | where things are, and the keys of access tokens |
//! | `authorize` | the form, and the redirect with a code |
//! | `token`, `revoke` | codes, refresh tokens and other issuers' tokens for access tokens, and their end |

mod attempts;
pub(crate) mod authorize;
mod exchange;
mod form;
mod mint;
mod page;
mod password;
mod token;
mod verified;

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, Full};
use serde::{Deserialize, Serialize};
use towline_proto::{endpoint, handshake::NoRandomness, jws::Kind, names::Membership};

use crate::{agents::OWN_ANSWER, app::Gateway, audit, config::Config, request::Body};

use attempts::Attempts;
use form::Form;
use password::Passwords;
use verified::{Known, Verified};

/// How long a code that sets a password is good for, in seconds.
pub const CODE_SECONDS: u64 = 24 * 3600;

/// The one client there is: the command line.
const CLIENT_ID: &str = "towline";

/// The longest access token that is looked at, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// What two replicas' clocks may differ by, in seconds.
const CLOCK_SECONDS: u64 = 60;

/// What the issuer remembers.
#[derive(Debug, Default)]
pub struct State {
    attempts: Attempts,
    redemptions: Attempts,
    passwords: Passwords,
    verified: Verified,
}

impl State {
    /// Nothing remembered.
    pub fn new(_: &Config) -> Self {
        Self::default()
    }

    /// Whether an address may try a registration token: not while too many of its were wrong.
    ///
    /// # Errors
    /// What it is told.
    pub(crate) fn may_redeem(&self, client: IpAddr) -> Result<(), String> {
        self.redemptions
            .may_exchange(client)
            .map_err(|refused| refused.description)
    }

    /// Counts a registration token that was wrong.
    pub(crate) fn failed_redemption(&self, client: IpAddr) {
        self.redemptions.failed_exchange(client);
    }
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// The whole gateway.
    Gateway,
    /// One membership.
    Membership(Membership),
}

/// A verified access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// Whose it is, as far as the token says it itself: a user of the gateway's own by name, anybody else as policies name
    /// them.
    pub subject: String,
    /// The sign-in that says whose it is; every token that is made has one.
    pub sign_in: Option<String>,
    /// What it is good for.
    pub audience: Audience,
    /// When it ends, in Unix seconds.
    pub expires: u64,
}

/// Which check an access token failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No JWT of ours by its form.
    #[error("it is not one of this gateway's access tokens")]
    Malformed,
    /// Somebody else's.
    #[error("its issuer is {0:?}, not this gateway")]
    Issuer(String),
    /// Not signed by a key of ours.
    #[error("its signature is not by a key of this gateway's; run: towline login")]
    Signature,
    /// Over.
    #[error("it expired {} seconds ago; run: towline login", .now.saturating_sub(*.expired))]
    Expired {
        /// When it ended, in Unix seconds.
        expired: u64,
        /// The time it was looked at.
        now: u64,
    },
    /// Not begun.
    #[error("it is not good before {from}, and it is {now} (Unix seconds); check the clocks")]
    NotYet {
        /// When it begins, in Unix seconds.
        from: u64,
        /// The time it was looked at.
        now: u64,
    },
    /// For something else.
    #[error("its audience is {0:?}, neither this gateway nor a membership of it")]
    Audience(String),
}

impl TokenError {
    /// Whether it could be another issuer's token.
    pub(crate) const fn is_anothers(&self) -> bool {
        matches!(self, Self::Malformed | Self::Issuer(_))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
    jti: String,
    client_id: String,
    /// The sign-in; a token without one is by itself, and its `sub` one of the gateway's own users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
}

/// The issuer's name: what tokens say they are from.
pub fn issuer(config: &Config) -> String {
    format!("{}/oauth2", config.base())
}

/// Where tokens are asked for.
fn token_endpoint(config: &Config) -> String {
    format!("{}/token", issuer(config))
}

/// A code that people can type, for setting a password once: 125 random bits.
///
/// # Errors
/// The system has no randomness to give.
pub fn one_time_code() -> Result<String, NoRandomness> {
    // Crockford's alphabet: no letters that look like digits.
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let mut bytes = [0; 25];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    let letters = bytes
        .iter()
        .filter_map(|byte| ALPHABET.get(usize::from(byte % 32)).copied());
    Ok(grouped(letters.map(char::from)))
}

/// As it was printed, whatever way it was typed.
fn typed_code(text: &str) -> String {
    grouped(text.chars().filter(char::is_ascii_alphanumeric).map(
        |c| match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        },
    ))
}

fn grouped(letters: impl Iterator<Item = char>) -> String {
    let mut code = String::new();
    for (at, letter) in letters.enumerate() {
        if at > 0 && at % 5 == 0 {
            code.push('-');
        }
        code.push(letter);
    }
    code
}

/// Verifies an access token of this gateway.
///
/// # Errors
/// Which check failed.
pub fn verify_access_token(gateway: &Gateway, token: &str) -> Result<AccessToken, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed);
    }
    let now = gateway.clock.unix();
    let verified = &gateway.login.verified;
    let known = verified
        .recall(token)
        .filter(|known| gateway.keys.token_key(&known.key).is_some());
    if let Some(known) = known {
        check_time(known.from, known.token.expires, now)?;
        return Ok(known.token.clone());
    }
    let known = Arc::new(verify_anew(gateway, token, now)?);
    verified.remember(token, Arc::clone(&known), now);
    Ok(known.token.clone())
}

fn verify_anew(gateway: &Gateway, token: &str, now: u64) -> Result<Known, TokenError> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
    // Looked at before the signature only to say more than that the key is unknown.
    let claimed = jsonwebtoken::dangerous::insecure_decode::<serde_json::Value>(token)
        .map_err(|_| TokenError::Malformed)?
        .claims;
    let claimed = claimed
        .get("iss")
        .and_then(serde_json::Value::as_str)
        .ok_or(TokenError::Malformed)?;
    if claimed != issuer(&gateway.config) {
        return Err(TokenError::Issuer(claimed.chars().take(200).collect()));
    }
    let kid = header.kid.ok_or(TokenError::Signature)?;
    let key = gateway.keys.token_key(&kid).ok_or(TokenError::Signature)?;
    let claims: Claims = key
        .verify(Kind::AccessToken, token)
        .map_err(|_| TokenError::Signature)?;
    let from = claims.nbf.unwrap_or_default().max(claims.iat);
    check_time(from, claims.exp, now)?;
    let audience = audience(&gateway.config, &claims.aud)
        .ok_or_else(|| TokenError::Audience(claims.aud.chars().take(300).collect()))?;
    Ok(Known {
        key: kid,
        from,
        token: AccessToken {
            subject: claims.sub,
            sign_in: claims.sid,
            audience,
            expires: claims.exp,
        },
    })
}

const fn check_time(from: u64, expires: u64, now: u64) -> Result<(), TokenError> {
    if now >= expires {
        return Err(TokenError::Expired {
            expired: expires,
            now,
        });
    }
    if from > now.saturating_add(CLOCK_SECONDS) {
        return Err(TokenError::NotYet { from, now });
    }
    Ok(())
}

/// Verifies an access token of this gateway, of whichever replica.
///
/// # Errors
/// Which check failed.
pub async fn access_token(gateway: &Gateway, token: &str) -> Result<AccessToken, TokenError> {
    match verify_access_token(gateway, token) {
        // Perhaps by a key of another's that isn't known here yet.
        Err(TokenError::Signature) if gateway.replicas.hear_of_keys(&gateway.keys).await => {
            verify_access_token(gateway, token)
        }
        verified => verified,
    }
}

/// What an audience, or the `resource` of a token request (RFC 8707), names.
fn audience(config: &Config, resource: &str) -> Option<Audience> {
    let rest = resource.strip_prefix(config.base())?;
    if matches!(rest, "" | "/") {
        return Some(Audience::Gateway);
    }
    match endpoint::split(rest) {
        // Exactly the membership's URL: one name for one thing.
        Some((membership, _)) if endpoint::path(&membership) == rest => {
            Some(Audience::Membership(membership))
        }
        _ => None,
    }
}

/// Answers a request to `/oauth2/…`.
pub async fn serve<B>(gateway: &Arc<Gateway>, client: IpAddr, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request
        .uri()
        .path()
        .strip_prefix("/oauth2/")
        .unwrap_or_default();
    let mut response = match (path, request.method()) {
        (".well-known/openid-configuration", &Method::GET) => {
            json(StatusCode::OK, &discovery(gateway))
        }
        ("jwks", &Method::GET) => json(StatusCode::OK, &jwks(gateway)),
        ("authorize", &Method::GET) => authorize::show(request.uri()),
        ("authorize", &Method::POST) => match Form::read(request).await {
            Ok(form) => authorize::sign_in(gateway, client, &form).await,
            Err(refused) => refused.into_response(),
        },
        ("token", &Method::POST) => match Form::read(request).await {
            Ok(form) => token::issue(gateway, client, &form).await,
            Err(refused) => refused.into_response(),
        },
        ("revoke", &Method::POST) => match Form::read(request).await {
            Ok(form) => token::revoke(gateway, &form).await,
            Err(refused) => refused.into_response(),
        },
        (".well-known/openid-configuration" | "jwks", _) => method_not_allowed("GET"),
        ("authorize", _) => method_not_allowed("GET, POST"),
        ("token" | "revoke", _) => method_not_allowed("POST"),
        _ => Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is no such page")
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(OWN_ANSWER, HeaderValue::from_static("1"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn discovery(gateway: &Gateway) -> serde_json::Value {
    let issuer = issuer(&gateway.config);
    serde_json::json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": token_endpoint(&gateway.config),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "jwks_uri": format!("{issuer}/jwks"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token", exchange::GRANT],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "subject_types_supported": ["public"],
        "towline_embedded": true,
        "towline_issuers": gateway.people.offered(),
    })
}

fn jwks(gateway: &Gateway) -> serde_json::Value {
    let keys: Vec<serde_json::Value> = gateway
        .keys
        .token_keys()
        .into_iter()
        .map(|key| {
            serde_json::json!({
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key.id(), "x": key.to_string(),
            })
        })
        .collect();
    serde_json::json!({ "keys": keys })
}

/// A refusal as OAuth says it (RFC 6749 §5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: &'static str,
    description: String,
    retry_after: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, description: impl Into<String>) -> Self {
        Self {
            status,
            error,
            description: description.into(),
            retry_after: None,
        }
    }

    fn bad(error: &'static str, description: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, description)
    }

    fn denied(description: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "access_denied", description)
    }

    /// What went wrong is for the log; the caller can only try again.
    fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a sign-in failed");
        Self::unavailable(error.to_string())
    }

    fn unavailable(description: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "temporarily_unavailable",
            description,
        )
    }

    fn into_response(self) -> Response<Body> {
        audit::current(|record| record.answered(self.status, Some(self.error)));
        let body = serde_json::json!({"error": self.error, "error_description": self.description});
        let mut response = json(self.status, &body);
        self.retry(&mut response);
        response
    }

    fn retry(&self, response: &mut Response<Body>) {
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    answer(status, "application/json", body.to_string())
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(
        Full::from(body)
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn method_not_allowed(allow: &'static str) -> Response<Body> {
    let refusal = Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request",
        format!("this page takes {allow}"),
    );
    let mut response = refusal.into_response();
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod tests;
