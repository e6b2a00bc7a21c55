//! Service accounts' names as people type them, and chains of them.

use std::{fmt, str::FromStr};

use towline_proto::names::Project;

/// The service account to act as, and through which others: the caller may act as the first, that one as the next,
/// and the last is the one whose rights count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActAs(Vec<String>);

/// What names no service account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no service account: {why}; give it as NAME@PROJECT, for example deployer@team-a"
)]
pub struct InvalidServiceAccount {
    given: String,
    why: &'static str,
}

impl ActAs {
    /// The last one.
    pub fn account(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

impl fmt::Display for ActAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl FromStr for ActAs {
    type Err = InvalidServiceAccount;

    fn from_str(text: &str) -> Result<Self, InvalidServiceAccount> {
        let accounts: Result<Vec<String>, _> =
            text.split(',').map(|name| account(name.trim())).collect();
        let accounts = accounts?;
        if accounts.len() > LONGEST {
            return Err(InvalidServiceAccount {
                given: text.to_owned(),
                why: "the chain is longer than 5",
            });
        }
        Ok(Self(accounts))
    }
}

/// `NAME@PROJECT`, also when it is typed as policies have it, with `serviceAccount:` before it.
pub fn account(text: &str) -> Result<String, InvalidServiceAccount> {
    let error = |why| InvalidServiceAccount {
        given: text.to_owned(),
        why,
    };
    let bare = text.strip_prefix("serviceAccount:").unwrap_or(text);
    let (name, project) = bare
        .split_once('@')
        .ok_or_else(|| error("it has no @PROJECT"))?;
    // Both are DNS labels, as projects are.
    for (label, why) in [
        (
            name,
            "its name is not lower-case letters, digits and dashes",
        ),
        (
            project,
            "its project is not lower-case letters, digits and dashes",
        ),
    ] {
        label.parse::<Project>().map_err(|_| error(why))?;
    }
    Ok(bare.to_owned())
}

/// More than anybody delegates through.
const LONGEST: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_and_a_typo_is_told() {
        for (text, written) in [
            ("deployer@team-a", "deployer@team-a"),
            ("serviceAccount:deployer@team-a", "deployer@team-a"),
            ("a@p, b@q", "a@p,b@q"),
        ] {
            let read: ActAs = text.parse().unwrap();
            assert_eq!(read.to_string(), written);
        }
        assert_eq!("a@p,b@q".parse::<ActAs>().unwrap().account(), "b@q");
        for (text, word) in [
            ("deployer", "no @PROJECT"),
            ("Deployer@p", "its name"),
            ("a@p.iam", "its project"),
            ("a@p,,b@p", "no @PROJECT"),
            ("", "no @PROJECT"),
            ("a@p,a@p,a@p,a@p,a@p,a@p", "longer"),
        ] {
            let error = text.parse::<ActAs>().unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("deployer@team-a"),
                "{error}"
            );
        }
    }
}
