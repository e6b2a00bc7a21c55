use std::time::{Duration, SystemTime};

use super::*;

fn token(header: &str, payload: &str) -> String {
    format!(
        "{}.{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload),
        URL_SAFE_NO_PAD.encode("signature")
    )
}

fn refused(token: &str) -> String {
    Token::parse(token).err().unwrap().to_string()
}

#[test]
fn a_token_is_taken_apart() {
    let token = token(
        r#"{"alg":"RS256","kid":"https://evil.example/keys"}"#,
        r#"{"iss":"accounts.google.com","aud":["a"]}"#,
    );
    let parsed = Token::parse(&token).unwrap();
    assert_eq!(parsed.algorithm, "RS256");
    assert_eq!(parsed.key_id.as_deref(), Some("https://evil.example/keys"));
    assert_eq!(parsed.signature, b"signature");
    assert_eq!(parsed.issuer().unwrap(), "https://accounts.google.com");
    assert_eq!(token.strip_prefix(parsed.signed).unwrap().len(), 13);
}

#[test]
fn what_is_no_token_is_refused_by_what_is_wrong() {
    let good = r#"{"alg":"RS256"}"#;
    for (token, says) in [
        (String::new(), "three parts"),
        ("a.b".into(), "three parts"),
        ("a.b.c.d".into(), "three parts"),
        ("e30.e30.a=".into(), "its header has no alg"),
        ("e30=.e30.e30".into(), "its header is not base64url"),
        (
            format!("{}=", token(good, "{}")),
            "its signature is not base64url",
        ),
        (token("{}", "{}"), "no alg"),
        (token(r#"{"alg":1}"#, "{}"), "no alg"),
        (
            token(r#"{"alg":"RS256","kid":["a"]}"#, "{}"),
            "not a string",
        ),
        (token(r#"{"alg":"RS256","crit":["exp"]}"#, "{}"), "crit"),
        (token(good, "[]"), "not an object"),
        (token(good, "{} {}"), "trailing"),
        (
            token(good, r#"{"iss":"a","iss":"b"}"#),
            r#"the name "iss" is there twice"#,
        ),
        (
            token(good, r#"{"a":[{"b":1,"b":2}]}"#),
            r#"the name "b" is there twice"#,
        ),
        (
            token(r#"{"alg":"none","alg":"RS256"}"#, "{}"),
            r#"the name "alg" is there twice"#,
        ),
        (
            token(
                good,
                &format!(r#"{{"a":{}1{}}}"#, "[".repeat(24), "]".repeat(24)),
            ),
            "nested",
        ),
        (
            token(good, &format!(r#"{{"a":{}"#, "[".repeat(40_000))),
            "nested",
        ),
        ("a".repeat(MAX_TOKEN + 1), "65537 bytes"),
    ] {
        let refused = refused(&token);
        assert!(refused.contains(says), "{refused} lacks {says}");
    }
}

#[test]
fn what_a_token_says_cannot_paint_a_terminal() {
    let said = quoted(&format!("\u{1b}[31m{}", "x".repeat(1000)));
    assert!(said.starts_with(r#""\u{1b}[31mxxx"#), "{said}");
    assert!(said.chars().count() < 160, "{said}");
}

#[test]
fn moments_are_written_as_dates() {
    for (seconds, date) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(refused::moment(time), date);
    }
}
