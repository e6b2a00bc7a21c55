//! The form in a browser: plain HTML without scripts, styled by what stands in it.

use std::{fmt::Write as _, sync::LazyLock};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use url::Url;

use super::{Refusal, answer, authorize::Asked, password};
use crate::request::Body;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f3f4f6;color:#111}\
main{max-width:22rem;margin:12vh auto;padding:2rem;background:#fff;border:1px solid #ddd;border-radius:.5rem}\
h1{font-size:1.25rem;margin:0 0 1rem}label{display:block;margin:.75rem 0 .25rem}\
input{width:100%;box-sizing:border-box;font:inherit;padding:.5rem;border:1px solid #888;border-radius:.25rem}\
button{width:100%;margin-top:1.25rem;font:inherit;padding:.6rem;border:0;border-radius:.25rem;background:#1d4ed8;color:#fff}\
summary{margin-top:1rem;cursor:pointer}.error{color:#b91c1c}\
@media(prefers-color-scheme:dark){body{background:#111;color:#eee}main{background:#1c1c1e;border-color:#333}\
input{background:#111;color:#eee}.error{color:#f87171}}";

/// Only this style passes the policy.
static STYLE_HASH: LazyLock<String> =
    LazyLock::new(|| BASE64.encode(digest::digest(&digest::SHA256, STYLE.as_bytes())));

/// The form for a sign-in; with a sentence above it after one that failed.
pub(super) fn form(asked: &Asked, username: &str, failed: Option<&Refusal>) -> Response<Body> {
    let mut html = head("Sign in");
    if let Some(failed) = failed {
        let _written = write!(
            html,
            "<p class=\"error\" role=\"alert\">{}</p>",
            escape(&failed.description)
        );
    }
    html.push_str("<form method=\"post\" action=\"/oauth2/authorize\">");
    for (name, value) in asked.fields() {
        let _written = write!(
            html,
            "<input type=\"hidden\" name=\"{name}\" value=\"{}\">",
            escape(value)
        );
    }
    let _written = write!(
        html,
        "<label for=\"username\">User name</label>\
         <input id=\"username\" name=\"username\" value=\"{}\" autocomplete=\"username\" required autofocus>\
         <label for=\"password\">Password</label>\
         <input id=\"password\" name=\"password\" type=\"password\" autocomplete=\"current-password\">\
         <details><summary>I have a one-time code</summary>\
         <label for=\"one_time_code\">One-time code</label>\
         <input id=\"one_time_code\" name=\"one_time_code\" autocomplete=\"one-time-code\">\
         <label for=\"new_password\">New password (at least {} characters)</label>\
         <input id=\"new_password\" name=\"new_password\" type=\"password\" autocomplete=\"new-password\">\
         </details><button>Sign in</button></form></main></html>",
        escape(username),
        password::SHORTEST,
    );
    let status = failed.map_or(StatusCode::OK, |failed| failed.status);
    let mut response = page(
        status,
        html,
        &format!("'self' {}", form_target(&asked.redirect)),
    );
    if let Some(failed) = failed {
        failed.retry(&mut response);
    }
    response
}

/// A request that no form can mend.
pub(super) fn refusal(refusal: &Refusal) -> Response<Body> {
    let mut html = head("This sign-in can't go on");
    let _written = write!(
        html,
        "<p class=\"error\">{}</p><p>Start again with <code>towline login</code>.</p></main></html>",
        escape(&refusal.description)
    );
    page(refusal.status, html, "'none'")
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title} - Towline</title>\
         <style>{STYLE}</style><main><h1>{title}</h1>"
    )
}

fn page(status: StatusCode, html: String, form_action: &str) -> Response<Body> {
    let mut response = answer(status, "text/html; charset=utf-8", html);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; form-action {form_action}; frame-ancestors 'none'; base-uri 'none'",
        *STYLE_HASH
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    response
}

/// Browsers hold a form's redirect to the policy too, and it has no words for one IPv6 address.
fn form_target(redirect: &Url) -> String {
    match redirect.host() {
        Some(url::Host::Ipv4(_)) => redirect.origin().ascii_serialization(),
        _ => "http:".to_owned(),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
