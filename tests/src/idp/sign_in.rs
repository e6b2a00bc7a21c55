//! People sign in at a provider that a gateway names.

use std::time::Duration;

use serde_json::{Value, json};

use super::Browser;
use crate::{program::Program, user::User};

/// Long enough for a command; what has to end is made to.
const PATIENCE: Duration = Duration::from_secs(30);

/// An issuer in an `AuthenticationConfiguration`, whose users and groups get a prefix.
pub fn entry(url: &str, authority: &str, username: &str, prefix: &str) -> Value {
    json!({
        "issuer": {"url": url, "audiences": [super::CLIENT], "certificateAuthority": authority},
        "claimMappings": {
            "username": {"claim": username, "prefix": prefix},
            "groups": {"claim": "groups", "prefix": prefix},
        },
    })
}

/// An `AuthenticationConfiguration`.
pub fn authentication(issuers: &[Value]) -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": issuers,
    })
    .to_string()
}

/// A `[[login]]` of a gateway's configuration.
pub fn login(name: &str, issuer: &str) -> String {
    format!(
        "[[login]]\nname = \"{name}\"\nissuer = \"{issuer}\"\nclient_id = \"{}\"\n\
         scopes = [\"openid\", \"profile\", \"email\", \"groups\", \"offline_access\"]\n",
        super::CLIENT
    )
}

/// Signs in in a browser, from the address that the command prints to its end.
#[track_caller]
pub fn in_browser(user: &User, issuer: &str, browser: &Browser, name: &str, password: &str) {
    let mut login = user
        .login_at_provider()
        .args(["--issuer", issuer, "--no-browser"])
        .start(&format!("login-{name}"));
    let url = login.err_line("the address to open", PATIENCE, |line| {
        line.trim().starts_with("https://")
    });
    let page = browser.sign_in(url.trim(), name, password);
    assert!(page.body.contains("You can close this page"), "{page:?}");
    ends_well(&mut login);
}

/// Signs in on another device.
#[track_caller]
pub fn on_device(user: &User, issuer: &str, browser: &Browser, name: &str, password: &str) {
    let mut login = user
        .login_at_provider()
        .args(["--issuer", issuer, "--device"])
        .start(&format!("login-{name}"));
    let with_code = login.err_line("the address with the code", PATIENCE, |line| {
        line.contains("user_code=")
    });
    assert!(login.runs(), "it waits for the other device");
    browser.sign_in(with_code.trim(), name, password);
    ends_well(&mut login);
}

#[track_caller]
fn ends_well(login: &mut Program) {
    let status = login.wait(PATIENCE);
    assert!(status.success(), "{}", login.err());
    assert!(login.err().contains("Signed in at"), "{}", login.err());
}
