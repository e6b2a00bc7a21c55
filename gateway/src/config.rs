//! What an operator asks for: [`File`] as it is written, [`Config`] as it is used.
//!
//! What isn't TOML, has an unknown key or a value of another type is told with its line. Everything else that is
//! wrong is told at once, with key, value and reason.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use crate::{
    audit::{self, SinkConfig, WhenFull},
    quota::{Defaults, MOST_LIMIT},
    store::{Database, Password},
};

/// The database where the configuration names none.
const DATABASE: &str = "sqlite:towline.db";

/// The least size of a file of the audit log, in bytes.
const LEAST_LOG: u64 = 1024;

/// The least that may be held for callers who don't read, in bytes: a few answers.
const LEAST_HELD: u64 = 16 * 1024 * 1024;

/// The most, in bytes: below what a whole tunnel may have in flight, or they would stop it.
const MOST_HELD: u64 = 768 * 1024 * 1024;

mod identity;
mod peer;

pub use identity::{FederationFile, Login, LoginFile};
pub use peer::Peer;

/// The configuration file, and what flags put over it. Every key but `public_url` and `tls` has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// `https://HOST[:PORT]`, as callers and agents reach the gateway. Tokens are good for this address.
    pub public_url: Option<String>,
    /// Where the public port listens; `0.0.0.0:8443`.
    pub listen: Option<String>,
    /// Where health and metrics are; `127.0.0.1:0`, any free port of the machine itself. It has no authentication.
    pub admin_listen: Option<String>,
    /// Where other replicas reach this one; nowhere when absent. Only replicas of this gateway get in.
    pub peer_listen: Option<String>,
    /// As the others reach it, `HOST[:PORT]`; `peer_listen` when absent.
    pub peer_address: Option<String>,
    /// Where keys and SQLite database are; the configuration file's directory. Relative paths begin there, too.
    pub state_dir: Option<PathBuf>,
    /// What is kept where; SQLite in `state_dir`.
    pub database: Option<DatabaseFile>,
    /// The public port's certificate.
    pub tls: Option<TlsFile>,
    /// PEM file that new agents are told to check the gateway's certificate against; the agents' system when absent.
    pub certificate_authority: Option<PathBuf>,
    /// Addresses and networks of proxies whose `X-Forwarded-For` is believed; none.
    pub trusted_proxies: Option<Vec<String>>,
    /// How long everything goes on after SIGTERM but for readiness; `5s`.
    pub drain_delay: Option<String>,
    /// How long running streams may go on after SIGTERM; `1h`.
    pub drain_limit: Option<String>,
    /// How long an agent's session is kept without a connection; `60s`, and not at all with `0s`.
    pub session_grace: Option<String>,
    /// How much callers may use where their project has set nothing.
    pub limits: Option<Defaults>,
    /// How long tokens are good.
    pub tokens: Option<TokensFile>,
    /// A file with Kubernetes' `AuthenticationConfiguration`: issuers of people besides the gateway's own. Read again
    /// when it changes.
    pub authentication_config: Option<PathBuf>,
    /// Where `towline login` sends people; each issuer has to be in `authentication_config`.
    pub login: Option<Vec<LoginFile>>,
    /// Workload identity.
    pub federation: Option<FederationFile>,
    /// Where it is written down what was done.
    pub audit: Option<AuditFile>,
}

/// `[database]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseFile {
    /// `sqlite:PATH` or `postgres://USER@HOST[:PORT]/DATABASE[?sslmode=…]`; `sqlite:towline.db`.
    pub url: Option<String>,
    /// File with the password in its first line. Read again for new connections.
    pub password_file: Option<PathBuf>,
    /// How long requests are served from memory while PostgreSQL can't be reached; `5m`.
    pub offline_limit: Option<String>,
}

/// `[tls]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// `on`, or `off` where a proxy ends TLS in front: then the port takes plain HTTP.
    pub mode: Option<String>,
    /// PEM file: the certificate, then those that lead to its authority. Read again when it changes.
    pub certificate: Option<PathBuf>,
    /// PEM file: its private key.
    pub key: Option<PathBuf>,
}

/// `[tokens]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensFile {
    /// An access token; `10m`. A disabled user is out at once in any case.
    pub access: Option<String>,
    /// A sign-in that isn't used; `7d`.
    pub idle: Option<String>,
    /// A sign-in that is; `30d`.
    pub sign_in: Option<String>,
}

/// `[audit]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// `file`, `stdout`, `webhook` or `none`; `file`.
    pub sink: Option<String>,
    /// The file that is written; `audit.jsonl`. Those before it have `.1` and so on behind their names.
    pub file: Option<PathBuf>,
    /// From which size in bytes another is begun; 104857600.
    pub max_bytes: Option<u64>,
    /// How many files are kept; 10.
    pub max_files: Option<u32>,
    /// Where `EventList`s are posted.
    pub webhook_url: Option<String>,
    /// PEM file to check its certificate against; the system's authorities when absent.
    pub webhook_certificate_authority: Option<PathBuf>,
    /// File with a bearer token for it. Read again for every post.
    pub webhook_token_file: Option<PathBuf>,
    /// How many events wait for the sink; 10000.
    pub queue: Option<usize>,
    /// What happens to a request when as many wait: `drop` serves it and counts the record that is missing,
    /// `refuse` answers 503; `drop`.
    pub when_full: Option<String>,
}

/// What a gateway runs with.
#[derive(Clone)]
pub struct Config {
    /// As callers and agents reach the gateway: scheme, host and port, nothing else.
    pub public_url: Url,
    /// The public port.
    pub listen: SocketAddr,
    /// Health and metrics.
    pub admin_listen: SocketAddr,
    /// The peer listener.
    pub peer: Option<Peer>,
    /// Keys and SQLite database.
    pub state_dir: PathBuf,
    /// The database.
    pub database: Database,
    /// The certificate; `None`: plain HTTP, behind a proxy that ends TLS.
    pub tls: Option<Tls>,
    /// What new agents check the certificate against.
    pub certificate_authority: Option<PathBuf>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long everything goes on after SIGTERM but for readiness.
    pub drain_delay: Duration,
    /// How long running streams may go on after that.
    pub drain_limit: Duration,
    /// How long a session is kept without a connection.
    pub session_grace: Duration,
    /// How much callers may use where their project has set nothing.
    pub limits: Defaults,
    /// How long tokens are good.
    pub tokens: Tokens,
    /// Issuers of people besides the gateway's own.
    pub authentication_config: Option<PathBuf>,
    /// Where `towline login` sends people.
    pub logins: Vec<Login>,
    /// Issuers of workloads that may have addresses within.
    pub allow_issuers: Vec<String>,
    /// Where it is written down what was done.
    pub audit: audit::Config,
}

/// The public port's certificate, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How long tokens are good, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// An access token.
    pub access: Duration,
    /// A sign-in that isn't used.
    pub idle: Duration,
    /// A sign-in that is.
    pub sign_in: Duration,
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration {} can't be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// Not TOML, an unknown key, or a value of another type.
    #[error("the configuration {} can't be used\n{error}", .file.display())]
    Form {
        /// Which file.
        file: PathBuf,
        /// What is wrong, with line and column.
        error: Box<toml::de::Error>,
    },
    /// Everything that is wrong with the values.
    #[error("the configuration {} can't be used\n{}", .file.display(), lines(.problems))]
    Values {
        /// Which file.
        file: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub key: &'static str,
    /// Its value, empty when there is none.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, reason } = self;
        if value.is_empty() {
            write!(f, "{key}: {reason}")
        } else {
            write!(f, "{key} = {value:?}: {reason}")
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("  {problem}"))
        .collect::<Vec<_>>()
        .join("\n")
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read(path.to_owned(), source))?;
        Self::parse(path, &text)
    }

    /// From the text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Form`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Form {
            file: path.to_owned(),
            error: Box::new(error),
        })
    }

    /// Checks the values; `path` is the file they came from.
    ///
    /// # Errors
    /// [`ConfigError::Values`], with everything that is wrong.
    pub fn check(&self, path: &Path) -> Result<Config, ConfigError> {
        let mut check = Check::default();
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        let state_dir = self
            .state_dir
            .as_ref()
            .map_or_else(|| base.to_owned(), |dir| base.join(dir));
        let public_url = check.required("public_url", self.public_url.as_deref(), public_url);
        let listen = check.or("listen", self.listen.as_deref(), "0.0.0.0:8443", address);
        let admin_listen = check.or(
            "admin_listen",
            self.admin_listen.as_deref(),
            "127.0.0.1:0",
            address,
        );
        let peer = peer::peer(self, &mut check);
        let database = self.database(&mut check, &state_dir);
        let tls = self.tls(&mut check, &state_dir);
        let audit = self.audit(&mut check, &state_dir);
        let trusted_proxies = self
            .trusted_proxies
            .iter()
            .flatten()
            .filter_map(|net| check.required("trusted_proxies", Some(net.as_str()), network))
            .collect();
        let limits = self.limits.unwrap_or_default();
        for (key, limit) in [
            (
                "limits.requests_per_minute_per_principal",
                limits.requests_per_minute_per_principal,
            ),
            (
                "limits.requests_per_minute_per_project",
                limits.requests_per_minute_per_project,
            ),
            ("limits.streams_per_principal", limits.streams_per_principal),
            ("limits.streams_per_project", limits.streams_per_project),
            ("limits.watches_per_principal", limits.watches_per_principal),
            (
                "limits.connections_per_address",
                limits.connections_per_address,
            ),
        ] {
            if limit == 0 {
                let _none: Option<()> = check.problem(key, "0", "must be 1 or more");
            } else if limit > MOST_LIMIT {
                let _none: Option<()> = check.problem(
                    key,
                    &limit.to_string(),
                    format!("must be {MOST_LIMIT} or less"),
                );
            }
        }
        if !(LEAST_HELD..=MOST_HELD).contains(&limits.slow_readers_bytes) {
            let _none: Option<()> = check.problem(
                "limits.slow_readers_bytes",
                &limits.slow_readers_bytes.to_string(),
                format!("must be between {LEAST_HELD} and {MOST_HELD}"),
            );
        }
        let (least, most) = (Duration::ZERO, Duration::from_secs(600));
        let drain_delay = check.or("drain_delay", self.drain_delay.as_deref(), "5s", |text| {
            within(text, least, most)
        });
        let drain_limit = check.or("drain_limit", self.drain_limit.as_deref(), "1h", duration);
        let session_grace = check.or(
            "session_grace",
            self.session_grace.as_deref(),
            "60s",
            |text| within(text, least, most),
        );
        let tokens = self.tokens.clone().unwrap_or_default();
        let access = check.or("tokens.access", tokens.access.as_deref(), "10m", |text| {
            within(text, Duration::from_secs(60), ACCESS_MOST)
        });
        let day = 24 * 3600;
        let (least, most) = (Duration::from_secs(300), Duration::from_secs(366 * day));
        let idle = check.or("tokens.idle", tokens.idle.as_deref(), "7d", |text| {
            within(text, least, most)
        });
        let sign_in = check.or("tokens.sign_in", tokens.sign_in.as_deref(), "30d", |text| {
            within(text, least, most)
        });
        let logins = identity::logins(&mut check, self.login.as_deref().unwrap_or_default());
        let federation = self.federation.as_ref();
        let allow_issuers = federation
            .and_then(|federation| federation.allow_issuers.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|url| {
                check.required("federation.allow_issuers", Some(url), identity::issuer)
            })
            .collect();
        match (
            public_url,
            listen,
            admin_listen,
            peer,
            database,
            tls,
            drain_delay,
            drain_limit,
            session_grace,
            access,
            idle,
            sign_in,
            audit,
        ) {
            (
                Some(public_url),
                Some(listen),
                Some(admin_listen),
                Some(peer),
                Some(database),
                Some(tls),
                Some(drain_delay),
                Some(drain_limit),
                Some(session_grace),
                Some(access),
                Some(idle),
                Some(sign_in),
                Some(audit),
            ) if check.problems.is_empty() => Ok(Config {
                public_url,
                listen,
                admin_listen,
                peer,
                database,
                tls,
                certificate_authority: self
                    .certificate_authority
                    .as_ref()
                    .map(|path| state_dir.join(path)),
                state_dir,
                trusted_proxies,
                drain_delay,
                drain_limit,
                session_grace,
                limits,
                tokens: Tokens {
                    access,
                    idle,
                    sign_in,
                },
                authentication_config: self
                    .authentication_config
                    .as_ref()
                    .map(|file| base.join(file)),
                logins,
                allow_issuers,
                audit,
            }),
            _ => Err(ConfigError::Values {
                file: path.to_owned(),
                problems: check.problems,
            }),
        }
    }

    fn audit(&self, check: &mut Check, state_dir: &Path) -> Option<audit::Config> {
        let audit = self.audit.clone().unwrap_or_default();
        let when_full = check.or(
            "audit.when_full",
            audit.when_full.as_deref(),
            "drop",
            |text| match text {
                "drop" => Ok(WhenFull::Drop),
                "refuse" => Ok(WhenFull::Refuse),
                _ => Err("is neither \"drop\" nor \"refuse\"".to_owned()),
            },
        );
        let sink = match audit.sink.as_deref().unwrap_or("file") {
            "none" => Some(SinkConfig::None),
            "stdout" => Some(SinkConfig::Stdout),
            "file" => {
                let max_bytes = audit.max_bytes.unwrap_or(100 * 1024 * 1024);
                let max_files = audit.max_files.unwrap_or(10);
                if max_bytes < LEAST_LOG {
                    let reason = format!("must be {LEAST_LOG} or more");
                    check.problem("audit.max_bytes", &max_bytes.to_string(), reason)
                } else if !(1..=1_000).contains(&max_files) {
                    let reason = "must be between 1 and 1000";
                    check.problem("audit.max_files", &max_files.to_string(), reason)
                } else {
                    Some(SinkConfig::File {
                        path: state_dir
                            .join(audit.file.unwrap_or_else(|| PathBuf::from("audit.jsonl"))),
                        max_bytes,
                        max_files,
                    })
                }
            }
            "webhook" => check
                .required(
                    "audit.webhook_url",
                    audit.webhook_url.as_deref(),
                    webhook_url,
                )
                .map(|url| SinkConfig::Webhook {
                    url,
                    certificate_authority: audit
                        .webhook_certificate_authority
                        .map(|path| state_dir.join(path)),
                    token_file: audit.webhook_token_file.map(|path| state_dir.join(path)),
                }),
            other => check.problem(
                "audit.sink",
                other,
                "is not one of \"file\", \"stdout\", \"webhook\", \"none\"",
            ),
        };
        let queue = audit.queue.unwrap_or(10_000);
        if !(10..=1_000_000).contains(&queue) {
            let reason = "must be between 10 and 1000000";
            return check.problem("audit.queue", &queue.to_string(), reason);
        }
        Some(audit::Config {
            sink: sink?,
            queue,
            when_full: when_full?,
        })
    }

    fn database(&self, check: &mut Check, state_dir: &Path) -> Option<Database> {
        let database = self.database.clone().unwrap_or_default();
        let password = database
            .password_file
            .map(|path| Password::File(state_dir.join(path)));
        let (least, most) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
        let limit = database.offline_limit.as_deref();
        let limit = check.or("database.offline_limit", limit, "5m", |text| {
            within(text, least, most)
        })?;
        let url = database.url.as_deref().unwrap_or(DATABASE);
        Database::parse(url, state_dir, password).map_or_else(
            |reason| {
                // A password that shouldn't be there isn't told again.
                let secret = Url::parse(url).is_ok_and(|url| url.password().is_some());
                check.problem("database.url", if secret { "" } else { url }, reason)
            },
            |database| Some(database.with_offline_limit(limit)),
        )
    }

    /// `Some(None)`: none is wanted.
    fn tls(&self, check: &mut Check, state_dir: &Path) -> Option<Option<Tls>> {
        let missing = "set tls.certificate and tls.key to PEM files, or tls.mode = \"off\" behind a proxy that ends TLS";
        let Some(tls) = &self.tls else {
            return check.problem("tls", "", missing);
        };
        match (
            tls.mode.as_deref().unwrap_or("on"),
            &tls.certificate,
            &tls.key,
        ) {
            ("off", None, None) => Some(None),
            ("off", ..) => check.problem(
                "tls.mode",
                "off",
                "takes neither tls.certificate nor tls.key",
            ),
            ("on", Some(certificate), Some(key)) => Some(Some(Tls {
                certificate: state_dir.join(certificate),
                key: state_dir.join(key),
            })),
            ("on", None, _) => check.problem("tls.certificate", "", missing),
            ("on", Some(_), None) => check.problem("tls.key", "", missing),
            (other, ..) => check.problem("tls.mode", other, "is neither \"on\" nor \"off\""),
        }
    }
}

/// For the log: a URL in one word.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("public_url", &self.base())
            .field("listen", &self.listen)
            .field("admin_listen", &self.admin_listen)
            .field("peer", &self.peer)
            .field("state_dir", &self.state_dir)
            .field("database", &self.database.to_string())
            .field("tls", &self.tls)
            .field("certificate_authority", &self.certificate_authority)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("drain_delay", &self.drain_delay)
            .field("drain_limit", &self.drain_limit)
            .field("session_grace", &self.session_grace)
            .field("limits", &self.limits)
            .field("tokens", &self.tokens)
            .field("authentication_config", &self.authentication_config)
            .field("logins", &self.logins)
            .field("allow_issuers", &self.allow_issuers)
            .field("audit", &self.audit)
            .finish()
    }
}

impl Config {
    /// The gateway's own keys.
    pub fn keys(&self) -> PathBuf {
        self.state_dir.join("keys")
    }

    /// The public URL without a slash at the end, to put paths behind.
    pub fn base(&self) -> &str {
        self.public_url.as_str().trim_end_matches('/')
    }
}

#[derive(Debug, Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn problem<T>(
        &mut self,
        key: &'static str,
        value: &str,
        reason: impl fmt::Display,
    ) -> Option<T> {
        self.problems.push(Problem {
            key,
            value: value.to_owned(),
            reason: reason.to_string(),
        });
        None
    }

    fn or<T>(
        &mut self,
        key: &'static str,
        value: Option<&str>,
        default: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.required(key, Some(value.unwrap_or(default)), parse)
    }

    fn required<T>(
        &mut self,
        key: &'static str,
        value: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(value) = value else {
            return self.problem(key, "", "is missing");
        };
        parse(value).map_or_else(|reason| self.problem(key, value, reason), Some)
    }
}

/// `https://HOST[:PORT]`.
///
/// # Errors
/// What it has too much or too little of.
pub fn public_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    let problem = if url.scheme() != "https" {
        "does not begin with https:// (also where a proxy ends TLS: it is what callers see)"
    } else if !url.username().is_empty() || url.password().is_some() {
        "has a user name in it"
    } else if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        "has something behind host and port"
    } else {
        return Ok(url);
    };
    Err(problem.to_owned())
}

/// Events name people: they travel encrypted, but to the machine itself.
fn webhook_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    let own = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if own => Ok(url),
        _ => Err(
            "does not begin with https:// (http:// goes to 127.0.0.1 and [::1] alone)".to_owned(),
        ),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "is not ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443".to_owned())
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "is neither an address nor a network such as 10.0.0.0/8".to_owned())
}

/// A number with a unit: `90s`, `10m`, `12h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "is not a number with a unit: 90s, 10m, 12h, 7d".to_owned();
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    let unit: u32 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * u64::from(unit)))
}

fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let found = duration(text)?;
    if (least..=most).contains(&found) {
        Ok(found)
    } else {
        Err(format!(
            "is not between {} and {} seconds",
            least.as_secs(),
            most.as_secs()
        ))
    }
}

/// Access tokens are checked with keys that are kept for a day (`keys::TOKEN_KEY_SECONDS`).
const ACCESS_MOST: Duration = Duration::from_secs(12 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("/etc/towline/gateway.toml");
        File::parse(path, text)?.check(path)
    }

    const LEAST: &str = "public_url = \"https://gw.example\"\ntls.mode = \"off\"\n";

    #[test]
    fn the_least_that_runs() {
        let config = check(LEAST).unwrap();
        assert_eq!(config.base(), "https://gw.example");
        assert_eq!(config.listen.to_string(), "0.0.0.0:8443");
        assert_eq!(config.admin_listen.to_string(), "127.0.0.1:0");
        assert_eq!(config.state_dir, Path::new("/etc/towline"));
        assert_eq!(
            config.database,
            Database::Sqlite("/etc/towline/towline.db".into())
        );
        assert_eq!(config.tls, None);
        assert_eq!(config.drain_delay.as_secs(), 5);
        assert_eq!(config.drain_limit.as_secs(), 3600);
        assert_eq!(config.session_grace.as_secs(), 60);
        assert_eq!(config.limits, Defaults::default());
        assert_eq!(config.tokens.access.as_secs(), 600);
    }

    #[test]
    fn everything_has_an_effect() {
        let config = check(
            r#"
            public_url = "https://gw.example:8443"
            listen = "[::]:443"
            admin_listen = "0.0.0.0:9090"
            state_dir = "/var/lib/towline"
            database = { url = "postgres://towline@db.example/towline", password_file = "db-password" }
            tls = { certificate = "tls/server.crt", key = "/run/secrets/tls.key" }
            certificate_authority = "tls/ca.crt"
            trusted_proxies = ["10.0.0.0/8", "::1"]
            drain_delay = "0s"
            drain_limit = "2m"
            limits = { streams_per_principal = 10 }
            tokens = { access = "1h", idle = "12h", sign_in = "1d" }
            authentication_config = "authentication.yaml"
            login = [{ name = "sso", issuer = "https://sso.example/realms/a", client_id = "towline" }]
            federation.allow_issuers = ["https://gitlab.internal"]
            "#,
        )
        .unwrap();
        let tls = config.tls.as_ref().unwrap();
        assert_eq!(
            tls.certificate,
            Path::new("/var/lib/towline/tls/server.crt")
        );
        assert_eq!(tls.key, Path::new("/run/secrets/tls.key"));
        assert_eq!(
            config.certificate_authority.as_deref(),
            Some(Path::new("/var/lib/towline/tls/ca.crt"))
        );
        assert_eq!(
            config.database.to_string(),
            "the PostgreSQL database \"towline\" at db.example:5432"
        );
        assert!(config.trusted_proxies[0].contains(&"10.1.2.3".parse::<IpAddr>().unwrap()));
        assert_eq!(
            (
                config.limits.streams_per_principal,
                config.limits.streams_per_project
            ),
            (10, 500)
        );
        assert_eq!(config.drain_delay, Duration::ZERO);
        assert_eq!(config.drain_limit.as_secs(), 120);
        assert_eq!(
            config.tokens,
            Tokens {
                access: Duration::from_secs(3600),
                idle: Duration::from_secs(12 * 3600),
                sign_in: Duration::from_secs(24 * 3600),
            }
        );
        assert_eq!(
            config.authentication_config.as_deref(),
            Some(Path::new("/etc/towline/authentication.yaml"))
        );
        let scopes = ["openid", "email", "profile", "offline_access"];
        assert_eq!(
            config.logins,
            [Login {
                name: "sso".into(),
                issuer: "https://sso.example/realms/a".into(),
                client_id: "towline".into(),
                scopes: scopes.map(str::to_owned).to_vec(),
                audience: None,
            }]
        );
        assert_eq!(config.allow_issuers, ["https://gitlab.internal"]);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = check(&format!("{LEAST}listn = \"x\"\n"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the configuration /etc/towline/gateway.toml can't be used\n\
             TOML parse error at line 3, column 1\n  |\n3 | listn = \"x\"\n  | ^^^^^\n\
             unknown field `listn`, expected one of `public_url`, `listen`, `admin_listen`, `peer_listen`, `peer_address`, \
             `state_dir`, `database`, `tls`, \
             `certificate_authority`, `trusted_proxies`, `drain_delay`, `drain_limit`, `session_grace`, `limits`, `tokens`, `authentication_config`, `login`, \
             `federation`, `audit`\n"
        );
        let error = check("listen = 1").unwrap_err().to_string();
        assert!(error.contains("line 1, column 10"), "{error}");
    }

    #[test]
    fn all_wrong_values_are_told_at_once() {
        let error = check(
            r#"
            public_url = "http://gw.example/x"
            listen = "8443"
            admin_listen = "localhost:1"
            database.url = "postgres://towline:secret@db.example/towline"
            tls.mode = "maybe"
            trusted_proxies = ["10.0.0.0/8", "nginx"]
            drain_limit = "60"
            limits.streams_per_project = 0
            tokens.access = "2d"
            tokens.idle = "7w"
            audit.sink = "webhook"
            audit.webhook_url = "http://collector.example"
            audit.when_full = "wait"
            federation.allow_issuers = ["gitlab.internal"]
            [[login]]
            name = "s s o"
            issuer = "http://sso.example"
            scopes = ["email"]
            "#,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"the configuration /etc/towline/gateway.toml can't be used
  public_url = "http://gw.example/x": does not begin with https:// (also where a proxy ends TLS: it is what callers see)
  listen = "8443": is not ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443
  admin_listen = "localhost:1": is not ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443
  database.url: has a password in it; put that into database.password_file or TOWLINE_DATABASE_PASSWORD
  tls.mode = "maybe": is neither "on" nor "off"
  audit.when_full = "wait": is neither "drop" nor "refuse"
  audit.webhook_url = "http://collector.example": does not begin with https:// (http:// goes to 127.0.0.1 and [::1] alone)
  trusted_proxies = "nginx": is neither an address nor a network such as 10.0.0.0/8
  limits.streams_per_project = "0": must be 1 or more
  drain_limit = "60": is not a number with a unit: 90s, 10m, 12h, 7d
  tokens.access = "2d": is not between 60 and 43200 seconds
  tokens.idle = "7w": is not a number with a unit: 90s, 10m, 12h, 7d
  login.name = "s s o": is not 1 to 63 of letters, digits, -, _ and .
  login.issuer = "http://sso.example": does not begin with https://
  login.client_id: is missing
  login.scopes = "email": lacks openid, without which there is no ID token
  federation.allow_issuers = "gitlab.internal": is not a URL: relative URL without a base"#
        );
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = check("").unwrap_err().to_string();
        assert!(
            error.contains("\n  public_url: is missing\n  tls: set tls.certificate and tls.key"),
            "{error}"
        );
        for (tls, key) in [
            ("tls.certificate = \"x\"", "tls.key: "),
            ("tls.key = \"x\"", "tls.certificate: "),
            (
                "tls.mode = \"off\"\ntls.key = \"x\"",
                "tls.mode = \"off\": takes neither",
            ),
        ] {
            let error = check(&format!("public_url = \"https://gw.example\"\n{tls}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_public_url_is_scheme_host_and_port() {
        for bad in [
            "gw.example",
            "https://u@gw.example",
            "https://gw.example/x",
            "https://gw.example?x",
            "https://",
        ] {
            assert!(public_url(bad).is_err(), "{bad}");
        }
        for good in [
            "https://gw.example",
            "https://gw.example/",
            "https://10.0.0.1:8443",
            "https://[::1]:8443",
        ] {
            assert!(public_url(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn no_length_of_text_breaks_a_duration() {
        for bad in ["", "s", "1", "1ü", "ü", "-1s", "1.5h", "99999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(
            duration("4294967295d").unwrap().as_secs(),
            4_294_967_295 * 24 * 3600
        );
    }
}
