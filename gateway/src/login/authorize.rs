//! Signing in: the form, and the redirect that takes a code to the client.

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use secrecy::SecretString;
use url::Url;

use super::{CLIENT_ID, Refusal, answer, form::Form, page, password, typed_code};
use crate::{app::Gateway, audit, iam::Principal, request::Body, store::refresh::Authorization};

/// What a client asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Where the code goes, as the client wrote it.
    redirect_uri: String,
    /// The same, parsed.
    pub(super) redirect: Url,
    challenge: String,
    state: Option<String>,
}

impl Asked {
    /// Nothing here is answered by a redirect: a wrong address is nobody's to send errors to.
    fn parse(form: &Form) -> Result<Self, Refusal> {
        if form.required("client_id")? != CLIENT_ID {
            return Err(Refusal::bad(
                "invalid_client",
                format!("client_id is not {CLIENT_ID:?}"),
            ));
        }
        if form.required("response_type")? != "code" {
            return Err(Refusal::bad(
                "unsupported_response_type",
                "response_type is not \"code\"",
            ));
        }
        let redirect_uri = form.required("redirect_uri")?;
        let redirect = loopback(redirect_uri).ok_or_else(|| {
            Refusal::bad("invalid_request", "redirect_uri is not a loopback address (http://127.0.0.1:PORT/ or http://[::1]:PORT/)")
        })?;
        if form.required("code_challenge_method")? != "S256" {
            return Err(Refusal::bad(
                "invalid_request",
                "code_challenge_method is not \"S256\"",
            ));
        }
        let challenge = form.required("code_challenge")?;
        if BASE64URL
            .decode(challenge)
            .ok()
            .is_none_or(|hash| hash.len() != 32)
        {
            return Err(Refusal::bad(
                "invalid_request",
                "code_challenge is not a SHA-256 in base64url",
            ));
        }
        Ok(Self {
            redirect_uri: redirect_uri.to_owned(),
            redirect,
            challenge: challenge.to_owned(),
            state: form.field("state").map(str::to_owned),
        })
    }

    /// As hidden fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("response_type", "code"),
            ("client_id", CLIENT_ID),
            ("redirect_uri", &self.redirect_uri),
            ("code_challenge_method", "S256"),
            ("code_challenge", &self.challenge),
        ]
        .into_iter()
        .chain(self.state.as_deref().map(|state| ("state", state)))
    }

    /// The redirect with the code; 303, so that the form isn't posted again there.
    fn redirect(&self, code: &str) -> Response<Body> {
        let mut to = self.redirect.clone();
        to.query_pairs_mut().append_pair("code", code);
        if let Some(state) = &self.state {
            to.query_pairs_mut().append_pair("state", state);
        }
        let mut response = answer(
            StatusCode::SEE_OTHER,
            "text/plain; charset=utf-8",
            String::new(),
        );
        if let Ok(location) = HeaderValue::from_str(to.as_str()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response.headers_mut().insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        );
        response
    }
}

/// What a sign-in with this query would lead to: the redirect as it was asked for, the one that a code would be sent
/// with, and the page that is shown.
pub(crate) fn rehearse(query: &str) -> Option<(String, String, Response<Body>)> {
    let uri = Uri::builder()
        .path_and_query(format!("/oauth2/authorize?{query}"))
        .build()
        .ok()?;
    let asked = Asked::parse(&Form::query(&uri).ok()?).ok()?;
    let location = asked
        .redirect("CODE")
        .headers()
        .get(header::LOCATION)?
        .clone();
    let location = location.to_str().ok()?.to_owned();
    Some((asked.redirect_uri, location, show(&uri)))
}

/// RFC 8252: any port of a loopback address, by number; `localhost` may resolve to another machine.
fn loopback(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let here = match url.host()? {
        url::Host::Ipv4(address) => address == std::net::Ipv4Addr::LOCALHOST,
        url::Host::Ipv6(address) => address == std::net::Ipv6Addr::LOCALHOST,
        url::Host::Domain(_) => false,
    };
    let plain = url.scheme() == "http"
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none();
    (here && plain).then_some(url)
}

/// The form.
pub(super) fn show(uri: &Uri) -> Response<Body> {
    match Form::query(uri).and_then(|form| Asked::parse(&form)) {
        Ok(asked) => page::form(&asked, "", None),
        Err(refused) => page::refusal(&refused),
    }
}

/// A filled-in form.
pub(super) async fn sign_in(gateway: &Arc<Gateway>, client: IpAddr, form: &Form) -> Response<Body> {
    let html = wants_html(form.headers());
    let asked = match Asked::parse(form) {
        Ok(asked) => asked,
        Err(refused) if html => return page::refusal(&refused),
        Err(refused) => return refused.into_response(),
    };
    let username = form.field("username").unwrap_or_default();
    match authenticate(gateway, client, form, username, &asked).await {
        Ok(code) => {
            tracing::info!(user = username, %client, "signed in");
            let principal = Principal::User(username.to_owned());
            audit::current(|record| record.signed_in(&principal));
            asked.redirect(&code)
        }
        Err(refused) => {
            tracing::info!(user = username, %client, reason = refused.description, "not signed in");
            if html {
                page::form(&asked, username, Some(&refused))
            } else {
                refused.into_response()
            }
        }
    }
}

async fn authenticate(
    gateway: &Gateway,
    client: IpAddr,
    form: &Form,
    username: &str,
    asked: &Asked,
) -> Result<String, Refusal> {
    if from_another_site(form.headers(), &gateway.config.public_url) {
        return Err(Refusal::denied("this form was sent from another site"));
    }
    if username.is_empty() {
        return Err(Refusal::bad("invalid_request", "username is missing"));
    }
    let attempts = &gateway.login.attempts;
    match (form.field("one_time_code"), form.field("password")) {
        (Some(code), _) => {
            attempts.count_code(client)?;
            set_password(gateway, form, username, code).await?;
        }
        (None, Some(password)) => {
            attempts.count(username, client)?;
            check_password(gateway, username, password).await?;
        }
        (None, None) => {
            attempts.count_code(client)?;
            return Err(Refusal::bad(
                "invalid_request",
                "password or one_time_code is missing",
            ));
        }
    }
    attempts.succeeded(username, client);
    let code = random_token()?;
    let bound = Authorization {
        user: username.to_owned(),
        client_id: CLIENT_ID.to_owned(),
        redirect_uri: asked.redirect_uri.clone(),
        challenge: asked.challenge.clone(),
    };
    let now = gateway.clock.unix();
    gateway
        .store
        .add_authorization(&code, &bound, now)
        .await
        .map_err(|error| Refusal::failed(&error))?;
    Ok(code)
}

async fn check_password(gateway: &Gateway, username: &str, password: &str) -> Result<(), Refusal> {
    let credentials = gateway
        .store
        .credentials(username)
        .await
        .map_err(|error| Refusal::failed(&error))?;
    let (stored, disabled) =
        credentials.map_or((None, false), |found| (found.password, found.disabled));
    if !gateway
        .login
        .passwords
        .verify(SecretString::from(password), stored)
        .await?
    {
        return Err(Refusal::denied("the user name or the password is wrong"));
    }
    if disabled {
        // Only whoever knows the password learns this.
        return Err(Refusal::denied(format!(
            "user {username:?} is disabled; ask a gatewayOperator"
        )));
    }
    Ok(())
}

async fn set_password(
    gateway: &Gateway,
    form: &Form,
    username: &str,
    code: &str,
) -> Result<(), Refusal> {
    let Some(new) = form.field("new_password") else {
        return Err(Refusal::bad(
            "invalid_request",
            "new_password is missing: a one-time code sets a password",
        ));
    };
    password::check(username, new).map_err(|problem| Refusal::bad("invalid_request", problem))?;
    // Hashed before anything is looked up: the same work for whoever doesn't exist.
    let hash = gateway
        .login
        .passwords
        .hash(SecretString::from(new))
        .await?;
    let now = gateway.clock.unix();
    let redeemed = gateway
        .store
        .redeem_code(username, &typed_code(code), &hash, now)
        .await;
    if redeemed.map_err(|error| Refusal::failed(&error))? {
        Ok(())
    } else {
        Err(Refusal::denied(
            "the one-time code is not valid: unknown, used before, or over; ask for a new one",
        ))
    }
}

/// Whether a browser says that the form stood on another page than the gateway's own: a sister site's counts as
/// another. The own page sends no referrer, and so has the origin `null`; browsers that say no site say an origin.
fn from_another_site(headers: &HeaderMap, gateway: &Url) -> bool {
    let gateway = gateway.origin().ascii_serialization();
    let site = headers.get("sec-fetch-site");
    let same = site.is_some_and(|site| site == "same-origin" || site == "none");
    let own = |origin: &HeaderValue| {
        origin.as_bytes() == gateway.as_bytes() || (same && origin.as_bytes() == b"null")
    };
    (site.is_some() && !same) || !headers.get_all(header::ORIGIN).iter().all(own)
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

/// A code or refresh token: 256 random bits.
pub(super) fn random_token() -> Result<String, Refusal> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|error| Refusal::failed(&error))?;
    Ok(BASE64URL.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_get_codes() {
        for good in [
            "http://127.0.0.1:8080/callback",
            "http://127.0.0.1/",
            "http://[::1]:1/x?y=z",
        ] {
            assert!(loopback(good).is_some(), "{good}");
        }
        for bad in [
            "http://localhost:1/",
            "https://127.0.0.1:1/",
            "http://127.0.0.1.evil.example/",
            "http://127.0.0.2/",
            "http://u@127.0.0.1/",
            "http://127.0.0.1/#x",
            "http://evil.example/",
            "javascript:alert(1)",
            "/callback",
        ] {
            assert!(loopback(bad).is_none(), "{bad}");
        }
    }
}
