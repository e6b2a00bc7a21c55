//! `kubectl --as`: the caller's `Impersonate-*` headers, read into a value or refused.
//!
//! Threat: two programs that read one request differently. What this one takes for a harmless header, the next takes
//! for an identity (another spelling, a trailer, a name in `Connection` that a hop removes).
//! Decision: exactly the standard's headers are read, each well-formed and as often as the standard has it; anything
//! that looks like them and isn't is refused, with its name. None of them is passed on as a header.
//! Consequence: the agent gets what the caller asked for under the request's MAC, or nothing.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;
use towline_proto::assertion::{MAX_NAMES, Nested};

use super::canonical;
use crate::error::Refused;

/// Takes them out of the headers.
///
/// # Errors
/// 400 with the header's name.
pub(crate) fn take(headers: &mut HeaderMap) -> Result<Option<Nested>, Refused> {
    refuse_lists(headers)?;
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| impersonates(name.as_str()))
        .cloned()
        .collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut nested = Nested {
        user: String::new(),
        uid: None,
        groups: Vec::new(),
        extra: BTreeMap::new(),
    };
    for name in &names {
        let values = headers
            .get_all(name)
            .iter()
            .map(|value| said(name, value))
            .collect::<Result<Vec<String>, Refused>>()?;
        match name.as_str() {
            USER => nested.user = one(name, values)?,
            UID => nested.uid = Some(one(name, values)?),
            GROUP => nested.groups = some(name, values)?,
            other => {
                let Some(key) = other.strip_prefix(EXTRA) else {
                    return Err(refused(
                        other,
                        "would impersonate, but is none of Impersonate-User, -Group, -Uid and -Extra-KEY",
                    ));
                };
                let key = key_of(name, key)?;
                nested.extra.entry(key).or_default().extend(values);
            }
        }
    }
    if nested.user.is_empty() {
        let name = names.first().map_or(USER, HeaderName::as_str);
        return Err(refused(
            name,
            "would impersonate without a user; add --as USER",
        ));
    }
    if nested.names() > MAX_NAMES {
        let says = format!(
            "would impersonate, with {} names in all; the limit is {MAX_NAMES}",
            nested.names()
        );
        return Err(refused(USER, &says));
    }
    for name in names {
        headers.remove(name);
    }
    Ok(Some(nested))
}

/// Whether a name would impersonate, in any spelling.
pub(super) fn impersonates(name: &str) -> bool {
    canonical(name).starts_with("impersonate")
}

/// A hop removes what `Connection` names, and adds what `Trailer` announces.
fn refuse_lists(headers: &HeaderMap) -> Result<(), Refused> {
    for list in [header::CONNECTION, header::TRAILER] {
        let named = headers
            .get_all(&list)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned())
            .find(|name| impersonates(name));
        if let Some(name) = named {
            return Err(refused(
                &name,
                &format!("would impersonate and is listed in {list}"),
            ));
        }
    }
    Ok(())
}

/// A value that the API server reads as the very same text.
fn said(name: &HeaderName, value: &HeaderValue) -> Result<String, Refused> {
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| refused(name.as_str(), "would impersonate and is not UTF-8"))?;
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err(refused(
            name.as_str(),
            "would impersonate and has white space at an end or control characters",
        ));
    }
    Ok(text.to_owned())
}

fn one(name: &HeaderName, values: Vec<String>) -> Result<String, Refused> {
    match <[String; 1]>::try_from(some(name, values)?) {
        Ok([value]) => Ok(value),
        Err(_) => Err(refused(
            name.as_str(),
            "would impersonate and stands there twice",
        )),
    }
}

fn some(name: &HeaderName, values: Vec<String>) -> Result<Vec<String>, Refused> {
    if values.iter().any(String::is_empty) {
        return Err(refused(name.as_str(), "would impersonate and is empty"));
    }
    Ok(values)
}

/// An extra's key, percent-encoded in the header's name.
fn key_of(name: &HeaderName, encoded: &str) -> Result<String, Refused> {
    let wrong = |why| Err(refused(name.as_str(), why));
    let bytes = encoded.as_bytes();
    let whole = bytes.iter().enumerate().all(|(at, byte)| {
        *byte != b'%'
            || bytes
                .get(at + 1..at + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    let Ok(key) = percent_decode_str(encoded).decode_utf8() else {
        return wrong("would impersonate and its key is not UTF-8");
    };
    if !whole || key.is_empty() || key.trim() != key || key.chars().any(char::is_control) {
        return wrong("would impersonate and its key is empty or wrongly encoded");
    }
    if key.to_lowercase() != key {
        return wrong("would impersonate and its key is not in lower case");
    }
    Ok(key.into_owned())
}

fn refused(name: &str, why: &str) -> Refused {
    let name: String = name.chars().take(200).collect();
    Refused::Header(format!("header {name:?} {why}"))
}

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value);
        }
        headers
    }

    #[test]
    fn the_standards_headers_are_read_and_taken_out() {
        let mut headers = headers(&[
            ("Impersonate-User", "bób smith"),
            ("IMPERSONATE-GROUP", "dev"),
            ("impersonate-group", "ops"),
            ("Impersonate-Uid", "7"),
            ("Impersonate-Extra-example.com%2Fscope_s", "a"),
            ("Impersonate-Extra-example.com%2fscope_s", ""),
            ("accept", "*/*"),
        ]);
        let nested = take(&mut headers).unwrap().unwrap();
        assert_eq!(nested.user, "bób smith");
        assert_eq!(nested.groups, ["dev", "ops"]);
        assert_eq!(nested.uid.as_deref(), Some("7"));
        let scopes = vec!["a".to_owned(), String::new()];
        assert_eq!(
            nested.extra,
            BTreeMap::from([("example.com/scope_s".to_owned(), scopes)])
        );
        assert_eq!(headers.len(), 1);
        assert_eq!(take(&mut headers).unwrap(), None);
    }

    #[test]
    fn any_other_spelling_and_position_is_refused() {
        let user = ("impersonate-user", "bob");
        for (pairs, named) in [
            (
                &[("impersonate-group", "system:masters")][..],
                "impersonate-group",
            ),
            (&[("impersonate-uid", "0")], "impersonate-uid"),
            (&[("impersonate-extra-a", "x")], "impersonate-extra-a"),
            (&[("Impersonate_User", "root")], "impersonate_user"),
            (&[user, ("impersonate_group", "x")], "impersonate_group"),
            (&[user, ("impersonate-extra_a", "x")], "impersonate-extra_a"),
            (&[user, ("impersonate-users", "x")], "impersonate-users"),
            (&[user, ("impersonated", "x")], "impersonated"),
            (&[user, ("impersonate-extra-", "x")], "impersonate-extra-"),
            (
                &[user, ("impersonate-extra-%4", "")],
                "impersonate-extra-%4",
            ),
            (
                &[user, ("impersonate-extra-%ff", "")],
                "impersonate-extra-%ff",
            ),
            (
                &[user, ("impersonate-extra-%41", "")],
                "impersonate-extra-%41",
            ),
            (&[user, ("impersonate-user", "b")], "impersonate-user"),
            (&[user, user], "impersonate-user"),
            (
                &[user, ("impersonate-uid", "1"), ("impersonate-uid", "1")],
                "impersonate-uid",
            ),
            (&[("impersonate-user", "")], "impersonate-user"),
            (&[("impersonate-user", "a\tb")], "impersonate-user"),
            (&[("impersonate-user", "\u{a0}root")], "impersonate-user"),
            (&[user, ("impersonate-group", "")], "impersonate-group"),
            (
                &[user, ("connection", "close, Impersonate-User")],
                "Impersonate-User",
            ),
            (
                &[("connection", "close"), ("connection", "impersonate-group")],
                "impersonate-group",
            ),
            (&[("trailer", "X-Sum,Impersonate_User")], "Impersonate_User"),
        ] {
            let error = take(&mut headers(pairs)).unwrap_err();
            let begins = format!("the request is refused: header {named:?} would impersonate");
            assert!(error.to_string().starts_with(&begins), "{pairs:?}: {error}");
            assert_eq!(error.status().0, 400);
        }
        let mut many = headers(&[user]);
        for n in 0..MAX_NAMES {
            many.append("impersonate-group", format!("g{n}").parse().unwrap());
        }
        assert!(take(&mut many).is_err());
    }

    #[test]
    fn what_does_not_impersonate_passes() {
        let mut harmless = headers(&[("accept", "impersonate-user"), ("connection", "close")]);
        assert_eq!(take(&mut harmless).unwrap(), None);
        assert_eq!(harmless.len(), 2);
    }
}
