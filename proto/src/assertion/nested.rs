//! Whom a caller asks to be instead: `kubectl --as`, `--as-group`, `--as-uid`, `--as-user-extra`.
//!
//! Threat: a header of the caller's that speaks for somebody is who the caller likes to be.
//! Decision: the gateway reads the standard's headers into this value and lets none of them through; the value
//! travels under the request's MAC, and the agent asks the cluster whether the caller may.
//! Consequence: between the two ends nobody can add such a request, change it or take it away.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{Deserialize, Serialize};

/// How many names one may have in all: each costs the cluster a question.
pub const MAX_NAMES: usize = 64;

/// The longest header that is read, in bytes.
const MAX_HEADER: usize = 256 * 1024;

/// Whom a caller asks to be instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nested {
    /// `Impersonate-User`.
    pub user: String,
    /// `Impersonate-Uid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `Impersonate-Group`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `Impersonate-Extra-*`, keys in lower case and not encoded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A header that says nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNested {
    /// It can't be read.
    #[error("whom the caller asks to be cannot be read")]
    Malformed,
    /// It has more names than are asked for.
    #[error("the caller asks to be somebody with {0} names in all; the limit is {MAX_NAMES}")]
    TooMany(usize),
}

impl Nested {
    /// The user, the UID, and every group and value of an extra.
    pub fn names(&self) -> usize {
        1 + usize::from(self.uid.is_some())
            + self.groups.len()
            + self.extra.values().map(Vec::len).sum::<usize>()
    }

    /// As it travels.
    pub fn to_header(&self) -> String {
        // Strings and lists of strings are always JSON.
        BASE64URL.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// As it travelled.
    ///
    /// # Errors
    /// See [`InvalidNested`].
    pub fn from_header(text: &str) -> Result<Self, InvalidNested> {
        if text.len() > MAX_HEADER {
            return Err(InvalidNested::Malformed);
        }
        let json = BASE64URL
            .decode(text)
            .map_err(|_| InvalidNested::Malformed)?;
        let nested: Self = serde_json::from_slice(&json).map_err(|_| InvalidNested::Malformed)?;
        if nested.user.is_empty() {
            return Err(InvalidNested::Malformed);
        }
        if nested.names() > MAX_NAMES {
            return Err(InvalidNested::TooMany(nested.names()));
        }
        Ok(nested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob() -> Nested {
        Nested {
            user: "bób".into(),
            uid: Some("7".into()),
            groups: vec!["dev".into()],
            extra: BTreeMap::from([("k".into(), vec!["a".into(), String::new()])]),
        }
    }

    #[test]
    fn it_arrives_as_it_was_sent() {
        assert_eq!(Nested::from_header(&bob().to_header()), Ok(bob()));
        assert_eq!(bob().names(), 5);
    }

    #[test]
    fn what_says_nobody_or_too_many_is_refused() {
        let encode = |json: &str| BASE64URL.encode(json);
        for text in [
            String::new(),
            "?".into(),
            encode("{}"),
            encode(r#"{"user":""}"#),
            encode(r#"{"user":"a","else":1}"#),
            encode(r#"{"groups":["a"]}"#),
        ] {
            assert_eq!(
                Nested::from_header(&text),
                Err(InvalidNested::Malformed),
                "{text}"
            );
        }
        let mut many = bob();
        many.groups = vec!["g".into(); MAX_NAMES];
        assert_eq!(
            Nested::from_header(&many.to_header()),
            Err(InvalidNested::TooMany(MAX_NAMES + 4))
        );
    }
}
