//! Keys that concern who may come in: other issuers of people, and issuers of workloads.

use serde::Deserialize;
use url::Url;

use super::Check;

/// `[[login]]`: where `towline login` sends people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginFile {
    /// What people choose by: `towline login --issuer NAME`.
    pub name: Option<String>,
    /// The issuer's URL, as in `authentication_config`.
    pub issuer: Option<String>,
    /// The public client that the issuer knows `towline` as.
    pub client_id: Option<String>,
    /// `openid`, `email`, `profile` and `offline_access`.
    pub scopes: Option<Vec<String>>,
    /// What the ID token is to be for, where the issuer wants to be told.
    pub audience: Option<String>,
}

/// `[federation]`: workload identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationFile {
    /// Issuers whose keys are fetched although they have private, loopback or link-local addresses.
    pub allow_issuers: Option<Vec<String>>,
}

/// Where `towline login` sends people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// What people choose by.
    pub name: String,
    /// The issuer's URL.
    pub issuer: String,
    /// The public client.
    pub client_id: String,
    /// With `openid`.
    pub scopes: Vec<String>,
    /// What the ID token is to be for, where the issuer wants to be told.
    pub audience: Option<String>,
}

const SCOPES: [&str; 4] = ["openid", "email", "profile", "offline_access"];

/// How many issuers people may choose from.
const MOST_LOGINS: usize = 20;

pub(super) fn logins(check: &mut Check, entries: &[LoginFile]) -> Vec<Login> {
    let mut logins: Vec<Login> = Vec::new();
    if entries.len() > MOST_LOGINS {
        let _none: Option<()> =
            check.problem("login", "", format!("has over {MOST_LOGINS} entries"));
    }
    for entry in entries {
        let name = check.required("login.name", entry.name.as_deref(), |name| {
            let formed = (1..=63).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !formed {
                return Err("is not 1 to 63 of letters, digits, -, _ and .".to_owned());
            }
            if logins.iter().any(|other| other.name == name) {
                return Err("is there twice".to_owned());
            }
            Ok(name.to_owned())
        });
        let issuer = check.required("login.issuer", entry.issuer.as_deref(), issuer);
        let client_id = check.required("login.client_id", entry.client_id.as_deref(), |id| {
            Some(id.to_owned())
                .filter(|id| !id.is_empty())
                .ok_or_else(|| "is empty".to_owned())
        });
        let scopes = entry.scopes.clone();
        let scopes = scopes.unwrap_or_else(|| SCOPES.map(str::to_owned).to_vec());
        if !scopes.iter().any(|scope| scope == "openid") {
            let _none: Option<()> = check.problem(
                "login.scopes",
                &scopes.join(" "),
                "lacks openid, without which there is no ID token",
            );
        }
        if let (Some(name), Some(issuer), Some(client_id)) = (name, issuer, client_id) {
            logins.push(Login {
                name,
                issuer,
                client_id,
                scopes,
                audience: entry.audience.clone(),
            });
        }
    }
    logins
}

/// An issuer's URL as it stands in tokens: kept letter by letter.
pub(super) fn issuer(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if url.scheme() != "https" || url.host_str().is_none() {
        return Err("does not begin with https://".to_owned());
    }
    Ok(text.to_owned())
}
