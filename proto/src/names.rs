//! Names of things: parse and display, nothing else.
//!
//! Every name that stands in a URL is a DNS label (RFC 1123): at most 63 of `a-z`, `0-9` and `-`,
//! neither first nor last a `-`. So a name never needs percent-encoding and no two spellings meet.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name that isn't one; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {value:?} is not a DNS label (1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit)"
)]
pub struct InvalidName {
    what: &'static str,
    value: String,
}

fn label(what: &'static str, value: &str) -> Result<String, InvalidName> {
    let ok = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = value.as_bytes();
    let valid = bytes.len() <= 63
        && bytes.first().is_some_and(ok)
        && bytes.last().is_some_and(ok)
        && bytes.iter().all(|b| ok(b) || *b == b'-');
    if valid {
        Ok(value.to_owned())
    } else {
        Err(InvalidName {
            what,
            value: value.chars().take(80).collect(),
        })
    }
}

macro_rules! dns_label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                label($what, value).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

dns_label!(
    /// The tenant.
    Project,
    "project"
);
dns_label!(
    /// Where a membership lives; `global` unless an operator names others.
    Location,
    "location"
);
dns_label!(
    /// A membership's own name within its project and location.
    MembershipId,
    "membership"
);

dns_label!(
    /// A service account's name within its project.
    ServiceAccountId,
    "service account"
);
dns_label!(
    /// A workload identity pool's name within its project.
    PoolId,
    "workload identity pool"
);
dns_label!(
    /// A provider's name within its workload identity pool.
    ProviderId,
    "workload identity provider"
);

impl Location {
    /// `global`.
    pub fn global() -> Self {
        Self("global".to_owned())
    }
}

/// One registered cluster: `projects/P/locations/L/memberships/M`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Membership {
    /// The tenant it belongs to.
    pub project: Project,
    /// Where it lives.
    pub location: Location,
    /// Its name there.
    pub id: MembershipId,
}

/// A membership's resource name that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// Other segments than the three that there are.
    #[error("{0:?} is not of the form projects/PROJECT/locations/LOCATION/memberships/MEMBERSHIP")]
    Form(String),
    /// A segment is no DNS label.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for Membership {
    type Err = InvalidMembership;

    fn from_str(value: &str) -> Result<Self, InvalidMembership> {
        let mut segments = value.split('/');
        let mut next = || segments.next().unwrap_or_default();
        let ("projects", project, "locations", location, "memberships", id) =
            (next(), next(), next(), next(), next(), next())
        else {
            return Err(InvalidMembership::Form(value.chars().take(200).collect()));
        };
        if segments.next().is_some() {
            return Err(InvalidMembership::Form(value.chars().take(200).collect()));
        }
        Ok(Self {
            project: project.parse()?,
            location: location.parse()?,
            id: id.parse()?,
        })
    }
}

impl TryFrom<String> for Membership {
    type Error = InvalidMembership;
    fn try_from(value: String) -> Result<Self, InvalidMembership> {
        value.parse()
    }
}

impl From<Membership> for String {
    fn from(membership: Membership) -> Self {
        membership.to_string()
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            project,
            location,
            id,
        } = self;
        write!(
            f,
            "projects/{project}/locations/{location}/memberships/{id}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_round_trips() {
        let name = "projects/p1/locations/global/memberships/edge-7";
        assert_eq!(name.parse::<Membership>().unwrap().to_string(), name);
    }

    #[test]
    fn anything_but_labels_is_refused() {
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "%61",
            "ä",
            &"a".repeat(64),
        ] {
            assert!(bad.parse::<Project>().is_err(), "{bad:?}");
        }
        for bad in [
            "projects/p",
            "projects/p/locations/l/memberships/m/",
            "projects//locations/l/memberships/m",
        ] {
            assert!(bad.parse::<Membership>().is_err(), "{bad:?}");
        }
    }
}
