//! What this program reads of an ID token.
//!
//! The signature is the gateway's to check. Here the token came from the provider's own token endpoint over TLS, which
//! OpenID Connect Core 3.1.3.7 takes for the signature; what is left to the client are issuer, audience and nonce.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// Claims of an ID token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct IdToken {
    iss: String,
    /// Who signed in.
    pub sub: String,
    aud: Audience,
    exp: u64,
    #[serde(default)]
    iat: u64,
    /// What was sent along with the question.
    pub nonce: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// What the token has to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The provider's issuer.
    pub issuer: &'a str,
    /// Who asked for the token.
    pub client_id: &'a str,
    /// What was sent along with the question, where something was.
    pub nonce: Option<&'a str>,
    /// Whose sign-in it renews.
    pub subject: Option<&'a str>,
}

/// A token that is not for this sign-in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdToken {
    /// No JWT with the claims that OpenID Connect asks for.
    #[error("it is no ID token ({0})")]
    Form(String),
    /// Somebody else's.
    #[error("its issuer is {0:?}")]
    Issuer(String),
    /// For another program.
    #[error("its audience is not {0:?}")]
    Audience(String),
    /// From another sign-in: an attacker's code was put in.
    #[error("its nonce is another sign-in's")]
    Nonce,
    /// A renewal for somebody else.
    #[error("it is of another user than the sign-in")]
    Subject,
}

impl IdToken {
    /// Reads a token and compares it with what it has to be.
    ///
    /// # Errors
    /// See [`InvalidIdToken`].
    pub fn read(token: &str, expected: Expected<'_>) -> Result<Self, InvalidIdToken> {
        let claims = token
            .split('.')
            .nth(1)
            .and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok())
            .ok_or_else(|| InvalidIdToken::Form("it is not three parts with dots".to_owned()))?;
        let token: Self =
            serde_json::from_slice(&claims).map_err(|e| InvalidIdToken::Form(e.to_string()))?;
        if token.iss != expected.issuer {
            return Err(InvalidIdToken::Issuer(token.iss));
        }
        let is_ours = match &token.aud {
            Audience::One(audience) => audience == expected.client_id,
            Audience::Several(all) => all.iter().any(|audience| audience == expected.client_id),
        };
        if !is_ours {
            return Err(InvalidIdToken::Audience(expected.client_id.to_owned()));
        }
        if expected.nonce.is_some() && token.nonce.as_deref() != expected.nonce {
            return Err(InvalidIdToken::Nonce);
        }
        if expected.subject.is_some_and(|subject| subject != token.sub) {
            return Err(InvalidIdToken::Subject);
        }
        Ok(token)
    }

    /// When it ends by this machine's clock, which need not agree with the provider's.
    pub const fn ends(&self, now: u64) -> u64 {
        let lifetime = match self.iat {
            0 => self.exp.saturating_sub(now),
            issued => self.exp.saturating_sub(issued),
        };
        now.saturating_add(lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    const CLAIMS: &str = r#"{"iss":"https://idp","sub":"ann","aud":["x","towline"],"exp":2000,"iat":1700,"nonce":"n"}"#;

    const EXPECTED: Expected<'_> = Expected {
        issuer: "https://idp",
        client_id: "towline",
        nonce: Some("n"),
        subject: None,
    };

    #[test]
    fn a_token_for_this_sign_in_is_read() {
        let read = IdToken::read(&token(CLAIMS), EXPECTED).unwrap();
        assert_eq!(read.sub, "ann");
        // By a clock that is an hour behind.
        assert_eq!(read.ends(1000), 1300);
    }

    #[test]
    fn any_other_is_not() {
        let read = |claims: &str, expected| IdToken::read(&token(claims), expected).unwrap_err();
        assert_eq!(
            read(&CLAIMS.replace("\"n\"", "\"other\""), EXPECTED),
            InvalidIdToken::Nonce
        );
        assert_eq!(
            read(&CLAIMS.replace(",\"nonce\":\"n\"", ""), EXPECTED),
            InvalidIdToken::Nonce
        );
        assert_eq!(
            read(&CLAIMS.replace("https://idp", "https://evil"), EXPECTED),
            InvalidIdToken::Issuer("https://evil".into())
        );
        assert!(matches!(
            read(&CLAIMS.replace("towline", "other"), EXPECTED),
            InvalidIdToken::Audience(_)
        ));
        let renewed = Expected {
            nonce: None,
            subject: Some("bob"),
            ..EXPECTED
        };
        assert_eq!(read(CLAIMS, renewed), InvalidIdToken::Subject);
        for bad in ["", "a", "a.b.c", "e30.e30.x"] {
            assert!(matches!(
                IdToken::read(bad, EXPECTED),
                Err(InvalidIdToken::Form(_))
            ));
        }
    }
}
