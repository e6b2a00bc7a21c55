//! The address of a gateway, and the name that its configuration goes by.

use std::{fmt, str::FromStr};

use towline_proto::names::Membership;
use url::{Host, Url};

/// `https://HOST[:PORT]`, without anything behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl {
    url: Url,
    host: String,
}

/// What is no gateway's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGatewayUrl {
    /// No URL at all.
    #[error("{0:?} is not a gateway's address; give https://HOST or https://HOST:PORT")]
    Form(String),
    /// Plain HTTP would send passwords in the clear.
    #[error("{0:?}: a gateway is reached over https:// only")]
    Scheme(String),
    /// A path, a query or credentials.
    #[error("{0:?}: a gateway's address has no path, query or user; give {1}")]
    Excess(String, String),
}

impl GatewayUrl {
    /// The name of the gateway's configuration, fit for file and context names: `HOST` or `HOST_PORT`.
    pub fn name(&self) -> String {
        let host: String = self
            .host
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-.".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        match self.url.port() {
            Some(port) => format!("{host}_{port}"),
            None => host,
        }
    }

    /// `HOST` or `HOST:PORT`, for sentences.
    pub fn authority(&self) -> String {
        match self.url.port() {
            Some(port) => format!("{}:{port}", self.url.host_str().unwrap_or_default()),
            None => self.url.host_str().unwrap_or_default().to_owned(),
        }
    }

    /// The URL of a path on the gateway, which begins with a slash.
    pub fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    /// The URL under which a membership's Kubernetes API stands.
    pub fn of_membership(&self, membership: &Membership) -> String {
        self.at(&towline_proto::endpoint::path(membership))
            .to_string()
    }
}

impl FromStr for GatewayUrl {
    type Err = InvalidGatewayUrl;

    fn from_str(text: &str) -> Result<Self, InvalidGatewayUrl> {
        let form = || InvalidGatewayUrl::Form(text.to_owned());
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let url = Url::parse(&with_scheme).map_err(|_| form())?;
        if url.scheme() != "https" {
            return Err(InvalidGatewayUrl::Scheme(text.to_owned()));
        }
        let host = match url.host().ok_or_else(form)? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        };
        let bare = Self {
            url: url.clone(),
            host,
        };
        let excess = !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
            || url.password().is_some();
        if excess {
            return Err(InvalidGatewayUrl::Excess(
                text.to_owned(),
                format!("https://{}", bare.authority()),
            ));
        }
        Ok(bare)
    }
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_name() {
        for (text, shown, name) in [
            ("gw.example.com", "https://gw.example.com", "gw.example.com"),
            (
                "https://GW.example.com/",
                "https://gw.example.com",
                "gw.example.com",
            ),
            (
                "https://gw.example.com:443",
                "https://gw.example.com",
                "gw.example.com",
            ),
            ("10.0.0.1:8443", "https://10.0.0.1:8443", "10.0.0.1_8443"),
            ("https://[::1]:8443", "https://[::1]:8443", "--1_8443"),
        ] {
            let url: GatewayUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.name().as_str()),
                (shown, name),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_would_do() {
        assert!(
            "http://gw"
                .parse::<GatewayUrl>()
                .unwrap_err()
                .to_string()
                .contains("https:// only")
        );
        assert!("https://".parse::<GatewayUrl>().is_err());
        for text in ["https://gw/v1", "https://gw/?a", "https://u:p@gw"] {
            let error = text.parse::<GatewayUrl>().unwrap_err().to_string();
            assert!(error.ends_with("give https://gw"), "{error}");
        }
    }
}
