//! Why a token was refused: one sentence for every check, fit for a terminal.
//!
//! What the token itself says is quoted, escaped and cut, so that a hostile token can neither
//! paint the terminal nor fill a log.

use std::time::SystemTime;

use crate::expression::EvaluationError;

/// Why a token was refused. The sentence says which check failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Longer than 64 KiB.
    #[error(
        "token is malformed: {size} bytes are more than {} allowed",
        super::MAX_TOKEN
    )]
    TooLarge {
        /// Its length in bytes.
        size: usize,
    },
    /// No JSON Web Token in compact form.
    #[error("token is malformed: {0}")]
    Malformed(&'static str),
    /// A part is not unpadded base64url.
    #[error("token is malformed: its {part} is not base64url")]
    Encoding {
        /// Which part.
        part: &'static str,
    },
    /// A part is not a JSON object, too deep, or has a name twice.
    #[error("token is malformed: its {part} is not acceptable JSON: {error}")]
    Json {
        /// Which part.
        part: &'static str,
        /// What the parser says.
        error: String,
    },
    /// The header has `crit` (RFC 7515 §4.1.11).
    #[error("token is malformed: it has critical header parameters (crit), and none is supported")]
    Critical,
    /// An issuer that nobody configured.
    #[error(
        "token has an unknown issuer: {} is not one of {known}",
        quoted(issuer)
    )]
    UnknownIssuer {
        /// What the token says.
        issuer: String,
        /// The configured ones.
        known: String,
    },
    /// Another issuer than the one whose keys would verify it.
    #[error("token has another issuer: {} is not {expected}", quoted(issuer))]
    OtherIssuer {
        /// What the token says.
        issuer: String,
        /// Who verifies.
        expected: String,
    },
    /// `none`, `HS256` or another algorithm that is not taken.
    #[error(
        "token is signed with an unsupported algorithm: {} is not one of {}",
        quoted(algorithm),
        crate::keys::ALGORITHMS
    )]
    Algorithm {
        /// The header's `alg`.
        algorithm: String,
    },
    /// The issuer has no key that fits, also after asking it again.
    #[error(
        "token has an invalid signature: {issuer} has no key {} for {}",
        quoted(key),
        quoted(algorithm)
    )]
    UnknownKey {
        /// The issuer.
        issuer: String,
        /// The header's `kid`, empty when it has none.
        key: String,
        /// The header's `alg`.
        algorithm: String,
    },
    /// The signature does not verify.
    #[error("token has an invalid signature: no key of {issuer} verifies it")]
    Signature {
        /// The issuer.
        issuer: String,
    },
    /// The issuer's keys have never been seen: not the caller's fault.
    #[error("the signing keys of {issuer} are not available: {reason}")]
    KeysUnavailable {
        /// The issuer.
        issuer: String,
        /// Why the last attempt failed.
        reason: String,
    },
    /// `exp` has passed.
    #[error("token is expired since {}", crate::token::refused::moment(*since))]
    Expired {
        /// When.
        since: SystemTime,
    },
    /// `nbf` or `iat` is in the future.
    #[error("token is not valid before {} ({claim})", crate::token::refused::moment(*from))]
    NotYetValid {
        /// Which claim.
        claim: &'static str,
        /// When it begins.
        from: SystemTime,
    },
    /// `aud` has none of the expected audiences.
    #[error(
        "token has the wrong audience: {} has none of {expected}",
        quoted(audience)
    )]
    Audience {
        /// What the token says.
        audience: String,
        /// What would be right.
        expected: String,
    },
    /// A claim that every token needs is missing or of the wrong type.
    #[error("token is malformed: its claim {claim} {problem}")]
    Claim {
        /// Which claim.
        claim: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A mapping found no name: a missing claim, a wrong type, an email that isn't verified.
    #[error("token names no {what}: {problem}")]
    Mapping {
        /// `username`, `groups`, `uid`, `extra` or an attribute.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A required claim is missing or has another value.
    #[error("token does not have the required claim {claim}: {problem}")]
    RequiredClaim {
        /// The claim of the rule.
        claim: String,
        /// What is wrong.
        problem: String,
    },
    /// A validation rule is not true.
    #[error("token is refused by a rule: {}", if message.is_empty() { expression } else { message })]
    Rule {
        /// The rule's own words, which may be empty.
        message: String,
        /// The expression that is not true.
        expression: String,
    },
    /// An expression failed.
    #[error("token is refused: evaluating {expression:?} failed: {error}")]
    Evaluation {
        /// The expression.
        expression: String,
        /// What happened.
        error: EvaluationError,
    },
    /// A mapped name that only the gateway itself or Kubernetes may give.
    #[error("token is refused: the {what} {} is reserved ({reason})", quoted(name))]
    Reserved {
        /// `username` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// Which rule.
        reason: &'static str,
    },
}

impl Refused {
    /// Whether trying again later may help: the issuer, not the token, is at fault.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::KeysUnavailable { .. })
    }
}

/// How much of a token's own words is repeated.
const MAX_QUOTED: usize = 128;

/// Escapes and cuts what the token says.
pub(crate) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_QUOTED).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// A point in time in RFC 3339, in seconds.
pub(crate) fn moment(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

/// The date of a day since 1970-01-01, counted in 400-year cycles that begin on a 1 March.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    (year, month, day)
}
