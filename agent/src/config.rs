//! Flags and the registration file become a [`Config`], or a list of everything that is wrong.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};
use towline_proto::registration::Registration;
use url::Url;

use crate::{
    dial::proxy::{self, Proxies, Proxy},
    guard::{AllowedSystem, end_to_end},
};

/// Which gateway, and with which key.
#[derive(Debug, Clone, Args)]
pub struct EnrolFlags {
    /// The registration file, as `towline memberships register` printed it
    #[arg(long, value_name = "FILE", env = "TOWLINE_REGISTRATION")]
    pub registration: PathBuf,

    /// Keep the agent's key in this file
    #[arg(
        long,
        value_name = "FILE",
        env = "TOWLINE_KEY_FILE",
        conflicts_with = "key_secret"
    )]
    pub key_file: Option<PathBuf>,

    /// Keep the agent's key in this Secret of the cluster
    #[arg(long, value_name = "NAMESPACE/NAME", env = "TOWLINE_KEY_SECRET")]
    pub key_secret: Option<SecretName>,

    /// Reach the cluster by a kubeconfig rather than as a pod of it
    #[arg(long, value_name = "FILE", env = "TOWLINE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context [default: its current one]
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,

    /// Proxy on the way to the gateway, http:// or https://, with credentials if it wants them
    #[arg(long, value_name = "URL", env = "HTTPS_PROXY", hide_env_values = true)]
    pub https_proxy: Option<String>,

    #[arg(long, hide = true, env = "https_proxy", hide_env_values = true)]
    https_proxy_small: Option<String>,

    /// Hosts, domains and networks that are dialled without the proxy
    #[arg(long, value_name = "LIST", env = "NO_PROXY")]
    pub no_proxy: Option<String>,

    #[arg(long, hide = true, env = "no_proxy")]
    no_proxy_small: Option<String>,
}

/// How the agent runs.
#[derive(Debug, Clone, Args)]
pub struct RunFlags {
    /// Which gateway, and with which key.
    #[command(flatten)]
    pub enrol: EnrolFlags,

    /// Serve /livez, /readyz and /metrics here; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT", env = "TOWLINE_HEALTH_LISTEN")]
    pub health_listen: Option<SocketAddr>,

    /// Let the gateway use this user or group although its name begins with `system:`
    #[arg(long, value_name = "NAME", env = "TOWLINE_ALLOW_SYSTEM", num_args = 1.., value_delimiter = ',')]
    pub allow_system: Vec<String>,

    /// Have callers prove who they are to this agent, so that no gateway can invent them; the file is a Kubernetes
    /// AuthenticationConfiguration with the identity providers to believe
    #[arg(long, value_name = "FILE", env = "TOWLINE_END_TO_END")]
    pub end_to_end: Option<PathBuf>,

    /// How long ago the ID token of a caller may have been issued (30m, 12h)
    #[arg(long, value_name = "TIME", env = "TOWLINE_END_TO_END_MAX_AGE", default_value = "12h", value_parser = duration)]
    pub end_to_end_max_age: Duration,

    /// How long running streams may go on once the agent is told to end (30s, 5m)
    #[arg(long, value_name = "TIME", env = "TOWLINE_DRAIN_LIMIT", default_value = "30s", value_parser = duration)]
    pub drain_limit: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// A Secret's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for SecretName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err("not of the form NAMESPACE/NAME"),
        }
    }
}

/// Where the gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its name or address, an IPv6 one without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Gateway {
    /// As in a `Host` header.
    pub fn authority(&self) -> String {
        let host = proxy::bracketed(&self.host);
        if self.port == 443 {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl FromStr for Gateway {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not of the form https://HOST[:PORT]");
        let url = Url::parse(text).map_err(|_| wrong())?;
        let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        let host = url
            .host()
            .filter(|_| bare && url.scheme() == "https")
            .ok_or_else(wrong)?;
        Ok(Self {
            host: proxy::plain(host),
            port: url.port().unwrap_or(443),
        })
    }
}

/// Where the agent's key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file that its owner alone reads.
    File(PathBuf),
    /// A Secret of the cluster.
    Secret(SecretName),
}

/// Everything that both commands need, checked.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The registration.
    pub registration: Registration,
    /// Its gateway.
    pub gateway: Gateway,
    /// Where the key is.
    pub key: KeyPlace,
    /// The kubeconfig, if the agent is no pod.
    pub kubeconfig: Option<PathBuf>,
    /// Its context.
    pub context: Option<String>,
    /// Proxies.
    pub proxies: Proxies,
}

/// Everything that `run` needs, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Gateway and key.
    pub enrolment: Enrolment,
    /// Where health is told.
    pub health: Option<SocketAddr>,
    /// Exceptions from `system:`.
    pub allowed: AllowedSystem,
    /// Whether and by whom callers prove who they are.
    pub end_to_end: Option<end_to_end::Settings>,
    /// How long a drain may take.
    pub drain_limit: Duration,
}

/// All that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads the registration file and checks everything.
    ///
    /// # Errors
    /// All that is wrong, with the flag or key that it is in.
    pub fn load(flags: RunFlags) -> Result<Self, ConfigError> {
        let text = read(&flags.enrol)?;
        Self::from_text(flags, &text)
    }

    fn from_text(flags: RunFlags, registration: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            enrolment: Enrolment::from_text(flags.enrol, registration)?,
            health: flags.health_listen,
            allowed: AllowedSystem(flags.allow_system),
            end_to_end: flags.end_to_end.map(|file| end_to_end::Settings {
                file,
                max_age: flags.end_to_end_max_age,
            }),
            drain_limit: flags.drain_limit,
        })
    }
}

impl Enrolment {
    /// Reads the registration file and checks everything.
    ///
    /// # Errors
    /// All that is wrong, with the flag or key that it is in.
    pub fn load(flags: EnrolFlags) -> Result<Self, ConfigError> {
        let text = read(&flags)?;
        Self::from_text(flags, &text)
    }

    fn from_text(flags: EnrolFlags, registration: &str) -> Result<Self, ConfigError> {
        let mut wrong = Vec::new();
        let file = flags.registration.display();
        let registration = serde_saphyr::from_str::<Registration>(registration)
            .map_err(|error| wrong.push(format!("{file}: {}", one_line(&error.to_string()))))
            .ok();
        let gateway = registration.as_ref().and_then(|registration| {
            registration
                .gateway
                .parse()
                .map_err(|error| wrong.push(format!("{file}: gateway: {error}")))
                .ok()
        });
        let key = match (flags.key_file, flags.key_secret) {
            (Some(file), _) => Some(KeyPlace::File(file)),
            (None, Some(secret)) => Some(KeyPlace::Secret(secret)),
            (None, None) => {
                wrong.push(
                    "nowhere to keep the agent's key: give --key-file or --key-secret".to_owned(),
                );
                None
            }
        };
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        let https = given(flags.https_proxy)
            .or_else(|| given(flags.https_proxy_small))
            .and_then(|url| {
                url.parse::<Proxy>()
                    .map_err(|error| wrong.push(format!("--https-proxy (HTTPS_PROXY): {error}")))
                    .ok()
            });
        let direct = given(flags.no_proxy)
            .or_else(|| given(flags.no_proxy_small))
            .unwrap_or_default();
        let direct = direct
            .split(',')
            .map(|rule| rule.trim().to_owned())
            .filter(|rule| !rule.is_empty())
            .collect();
        match (registration, gateway, key) {
            (Some(registration), Some(gateway), Some(key)) if wrong.is_empty() => Ok(Self {
                registration,
                gateway,
                key,
                kubeconfig: flags.kubeconfig,
                context: flags.context,
                proxies: Proxies { https, direct },
            }),
            _ => Err(ConfigError(wrong)),
        }
    }
}

fn read(flags: &EnrolFlags) -> Result<String, ConfigError> {
    let file = &flags.registration;
    std::fs::read_to_string(file)
        .map_err(|error| ConfigError(vec![format!("--registration {}: {error}", file.display())]))
}

/// The YAML reader draws the place; one line is enough for a log.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or(text);
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("not a time such as 30s or 5m".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "not a time such as 30s or 5m".to_owned())?;
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunFlags,
    }

    const GOOD: &str = "gateway: https://gw.example\nrootKey: l2mseHg6OSVTSPtumuTl7EYBy5yNqRZ1u9aJROfumM0\n\
                        membership: projects/p/locations/global/memberships/m\ntoken: t\n";

    fn load(arguments: &[&str], registration: &str) -> Result<Config, ConfigError> {
        let arguments = ["agent", "--registration", "reg.yaml"]
            .iter()
            .chain(arguments);
        Config::from_text(Cli::try_parse_from(arguments).unwrap().run, registration)
    }

    #[test]
    fn flags_and_file_make_a_config() {
        let config = load(
            &[
                "--key-secret",
                "towline/key",
                "--drain-limit",
                "2m",
                "--no-proxy",
                "a, b",
            ],
            GOOD,
        )
        .unwrap();
        assert_eq!(
            config.enrolment.gateway,
            Gateway {
                host: "gw.example".into(),
                port: 443
            }
        );
        assert_eq!(config.drain_limit, Duration::from_secs(120));
        assert_eq!(config.enrolment.proxies.direct, ["a", "b"]);
        let KeyPlace::Secret(secret) = config.enrolment.key else {
            panic!()
        };
        assert_eq!(
            (secret.namespace.as_str(), secret.name.as_str()),
            ("towline", "key")
        );
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let bad = GOOD.replace("https://gw.example", "http://gw.example/x");
        let ConfigError(wrong) = load(&["--https-proxy", "socks5://p"], &bad).unwrap_err();
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(
            wrong[0].contains("reg.yaml: gateway: \"http://gw.example/x\""),
            "{wrong:?}"
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let ConfigError(wrong) =
            load(&["--key-file", "k"], &format!("{GOOD}colour: red\n")).unwrap_err();
        assert!(
            wrong[0].contains("colour") && wrong[0].contains("line 5"),
            "{wrong:?}"
        );
    }

    #[test]
    fn gateways_are_https_with_nothing_behind() {
        assert_eq!(
            "https://[::1]:8443".parse::<Gateway>().unwrap().authority(),
            "[::1]:8443"
        );
        for bad in [
            "gw.example",
            "http://gw",
            "https://gw/x",
            "https://u@gw",
            "https://gw?x",
            "",
        ] {
            assert!(bad.parse::<Gateway>().is_err(), "{bad}");
        }
    }
}
