//! Which database it is, and how it is reached.
//!
//! Threat: whoever stands between a gateway and its PostgreSQL reads who may what, or answers in its place.
//! Decision: the server's certificate is checked against its name unless the URL says otherwise with `sslmode`, or
//! the server is on this machine. A password comes from a file or the environment, never in the URL, and isn't printed.
//! Consequence: a server without TLS has to be asked for in so many words.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

/// A database that a gateway may keep its state in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A file of this gateway's own.
    Sqlite(PathBuf),
    /// A server that several replicas may share.
    Postgres(Arc<Postgres>),
}

/// A database of a PostgreSQL server.
#[derive(Clone)]
pub struct Postgres {
    url: Url,
    password: Option<Password>,
    offline_limit: Duration,
}

/// Where a password comes from.
#[derive(Debug, Clone)]
pub enum Password {
    /// The first line of a file, read for every new try to connect.
    File(PathBuf),
    /// The environment.
    Given(SecretString),
}

/// How long a gateway goes on with what it remembers while it doesn't hear from its PostgreSQL.
pub const OFFLINE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// In place of a path: a database that is gone with the process.
pub(super) const IN_MEMORY: &str = ":memory:";

/// What may stand behind the `?` of a URL.
const PARAMETERS: [&str; 6] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "user",
];

const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

impl Database {
    /// Reads `sqlite:PATH` or `postgres://USER@HOST[:PORT]/DATABASE[?sslmode=…]`; relative paths begin at `base`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str, base: &Path, password: Option<Password>) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('?') {
                return Err("is not sqlite:PATH".to_owned());
            }
            return Ok(Self::Sqlite(base.join(path)));
        }
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err("begins neither with sqlite: nor with postgres://".to_owned());
        }
        Postgres::parse(url, base, password).map(|postgres| Self::Postgres(Arc::new(postgres)))
    }

    /// With this password in place of another, if it is one that takes a password.
    #[must_use]
    pub fn with_password(self, password: SecretString) -> Self {
        match self {
            Self::Postgres(postgres) => Self::Postgres(Arc::new(Postgres {
                password: Some(Password::Given(password)),
                ..Postgres::clone(&postgres)
            })),
            Self::Sqlite(_) => self,
        }
    }

    /// With this in place of [`OFFLINE_LIMIT`], if it is one that others write to.
    #[must_use]
    pub fn with_offline_limit(self, offline_limit: Duration) -> Self {
        match self {
            Self::Postgres(postgres) => Self::Postgres(Arc::new(Postgres {
                offline_limit,
                ..Postgres::clone(&postgres)
            })),
            Self::Sqlite(_) => self,
        }
    }

    /// How long what is remembered of it is believed without hearing from it; `None`: for ever, as nobody else writes.
    pub(super) fn offline_limit(&self) -> Option<Duration> {
        match self {
            Self::Postgres(postgres) => Some(postgres.offline_limit),
            Self::Sqlite(_) => None,
        }
    }

    /// Whether several gateways may share it.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// As sqlx is told.
    pub(super) fn connection_url(&self) -> io::Result<Url> {
        let url = match self {
            Self::Postgres(postgres) => return postgres.connection_url(),
            Self::Sqlite(path) => {
                // As one opaque word, in which nothing is taken for `..` or a query.
                let path = std::path::absolute(path)?;
                let path = path
                    .to_str()
                    .ok_or_else(|| io::Error::other("the path is not UTF-8"))?;
                format!("sqlite:{}", utf8_percent_encode(path, NON_ALPHANUMERIC))
            }
        };
        Url::parse(&url).map_err(io::Error::other)
    }
}

/// As errors name it.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "the database {}", path.display()),
            Self::Postgres(postgres) => {
                write!(
                    f,
                    "the PostgreSQL database {:?} at {}",
                    postgres.name(),
                    postgres.server()
                )
            }
        }
    }
}

impl Postgres {
    fn parse(url: &str, base: &Path, password: Option<Password>) -> Result<Self, String> {
        let mut url = Url::parse(url).map_err(|error| format!("is not a URL: {error}"))?;
        if url.password().is_some() {
            // Not to be told again, either.
            return Err("has a password in it; put that into database.password_file or TOWLINE_DATABASE_PASSWORD".to_owned());
        }
        let mut parameters = Vec::new();
        for (key, value) in url.query_pairs() {
            if !PARAMETERS.contains(&&*key) {
                return Err(format!(
                    "has the parameter {key:?}; there may be {}",
                    PARAMETERS.join(", ")
                ));
            }
            if key == "sslmode" && !SSL_MODES.contains(&&*value) {
                return Err(format!(
                    "has sslmode={value}; it is one of {}",
                    SSL_MODES.join(", ")
                ));
            }
            let value = match &*key {
                "sslrootcert" | "sslcert" | "sslkey" => {
                    base.join(&*value).to_string_lossy().into_owned()
                }
                _ => value.into_owned(),
            };
            parameters.push((key.into_owned(), value));
        }
        let has = |key| parameters.iter().any(|(other, _)| other == key);
        if url.username().is_empty() && !has("user") {
            return Err("names no user: postgres://USER@HOST/DATABASE".to_owned());
        }
        if !url.has_host() && !has("host") {
            return Err("names no host: postgres://USER@HOST/DATABASE".to_owned());
        }
        let path = url.path().trim_start_matches('/');
        if path.is_empty() || path.contains('/') {
            return Err("names no database: postgres://USER@HOST/DATABASE".to_owned());
        }
        if !has("sslmode") {
            let mode = if is_this_machine(&url, &parameters) {
                "prefer"
            } else {
                "verify-full"
            };
            parameters.push(("sslmode".to_owned(), mode.to_owned()));
        }
        url.set_fragment(None);
        url.query_pairs_mut().clear().extend_pairs(parameters);
        Ok(Self {
            url,
            password,
            offline_limit: OFFLINE_LIMIT,
        })
    }

    fn connection_url(&self) -> io::Result<Url> {
        let mut url = self.url.clone();
        let password = match &self.password {
            None => None,
            Some(Password::Given(password)) => Some(password.clone()),
            Some(Password::File(path)) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!("database.password_file {}: {error}", path.display()),
                    )
                })?;
                Some(text.lines().next().unwrap_or_default().into())
            }
        };
        if let Some(password) = password {
            let password: SecretString = password;
            // By the parameter, which a URL without a host may have, too.
            url.query_pairs_mut()
                .append_pair("password", password.expose_secret());
        }
        url.query_pairs_mut()
            .append_pair("application_name", "towline-gateway");
        Ok(url)
    }

    fn name(&self) -> String {
        let path = self.url.path().trim_start_matches('/');
        percent_decode_str(path).decode_utf8_lossy().into_owned()
    }

    fn server(&self) -> String {
        let socket = self.url.query_pairs().find(|(key, _)| key == "host");
        match (socket, self.url.host_str().filter(|host| !host.is_empty())) {
            (Some((_, socket)), _) => socket.into_owned(),
            (None, Some(host)) if host.starts_with("%2F") => {
                percent_decode_str(host).decode_utf8_lossy().into_owned()
            }
            (None, host) => format!(
                "{}:{}",
                host.unwrap_or("localhost"),
                self.url.port().unwrap_or(5432)
            ),
        }
    }
}

/// A socket in the file system, or a loopback address.
fn is_this_machine(url: &Url, parameters: &[(String, String)]) -> bool {
    let named = parameters.iter().find(|(key, _)| key == "host");
    let host = match (named, url.host_str()) {
        (Some((_, host)), _) => host.clone(),
        (None, Some(host)) => percent_decode_str(host).decode_utf8_lossy().into_owned(),
        (None, None) => return false,
    };
    host.starts_with('/')
        || match Host::parse(&host) {
            Ok(Host::Domain(name)) => name == "localhost",
            Ok(Host::Ipv4(address)) => address.is_loopback(),
            Ok(Host::Ipv6(address)) => address.is_loopback(),
            Err(_) => false,
        }
}

/// For the log: no secret is in the URL.
impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Postgres").field(&self.url.as_str()).finish()
    }
}

impl PartialEq for Postgres {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Postgres {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Database, String> {
        Database::parse(url, Path::new("/var/lib/towline"), None)
    }

    #[test]
    fn a_url_chooses_the_database() {
        for (url, name) in [
            (
                "sqlite:towline.db",
                "the database /var/lib/towline/towline.db",
            ),
            ("sqlite:///srv/a b.db", "the database /srv/a b.db"),
            (
                "postgres://u@db.example/towline",
                "the PostgreSQL database \"towline\" at db.example:5432",
            ),
            (
                "postgresql://u@[::1]:6432/t",
                "the PostgreSQL database \"t\" at [::1]:6432",
            ),
            (
                "postgres://u@%2Frun%2Fpostgresql/t",
                "the PostgreSQL database \"t\" at /run/postgresql",
            ),
            (
                "postgres:///t?host=/run/postgresql&user=u",
                "the PostgreSQL database \"t\" at /run/postgresql",
            ),
        ] {
            assert_eq!(parse(url).unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (url, told) in [
            ("mysql://u@h/d", "neither with sqlite: nor"),
            ("sqlite:", "is not sqlite:PATH"),
            ("sqlite:a?mode=ro", "is not sqlite:PATH"),
            ("postgres://u:secret@h/d", "has a password in it"),
            ("postgres://h/d", "names no user"),
            ("postgres:///d?user=u", "names no host"),
            ("postgres://u@h", "names no database"),
            (
                "postgres://u@h/d?sslmode=on",
                "has sslmode=on; it is one of disable, allow",
            ),
            ("postgres://u@h/d?ssl=true", "has the parameter \"ssl\""),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(told), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_server_elsewhere_has_to_prove_its_name() {
        for (url, mode) in [
            ("postgres://u@db.example/t", "verify-full"),
            ("postgres://u@localhost.example/t", "verify-full"),
            ("postgres://u@h/t?host=10.0.0.1", "verify-full"),
            ("postgres://u@db.example/t?sslmode=require", "require"),
            ("postgres://u@localhost/t", "prefer"),
            ("postgres://u@127.0.0.1/t", "prefer"),
            ("postgres://u@%2Frun%2Fpostgresql/t", "prefer"),
        ] {
            let url = parse(url).unwrap().connection_url().unwrap();
            let modes: Vec<_> = url
                .query_pairs()
                .filter(|(key, _)| key == "sslmode")
                .collect();
            assert_eq!(modes.len(), 1, "{url}");
            assert_eq!(modes[0].1, mode, "{url}");
        }
    }

    #[test]
    fn a_password_is_read_anew_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let password = Some(Password::File(file.clone()));
        let database = Database::parse("postgres://u@h/t", dir.path(), password).unwrap();
        let told = database.connection_url().unwrap_err().to_string();
        assert!(told.contains("database.password_file"), "{told}");
        for secret in ["s3cret&x=y", "another"] {
            std::fs::write(&file, format!("{secret}\n")).unwrap();
            let url = database.connection_url().unwrap();
            let found: Vec<_> = url
                .query_pairs()
                .filter(|(key, _)| key == "password")
                .collect();
            assert_eq!(found[0].1, secret);
        }
        let given = Some(Password::Given("s3cret".into()));
        let database = Database::parse("postgres://u@h/t", dir.path(), given).unwrap();
        assert!(!format!("{database:?} {database}").contains("s3cret"));
    }
}
