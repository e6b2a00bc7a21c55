//! `towline-gateway init`: makes what a gateway runs on.
//!
//! Keys, a certificate where the operator has none, the database with the first user, and last of all the
//! configuration: where that is, everything is. So a run that died half-way is finished by the next one, and one
//! that was finished is left as it is. A further replica is given the first one's root key and authority, and finds
//! its users in the database.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};
use towline_proto::{handshake::NoRandomness, names::Project};
use url::Url;

use crate::{
    authority::{self, AuthorityError},
    clock::Clock,
    config::{self, Config, ConfigError, DatabaseFile, File, Problem, TlsFile},
    iam::{Principal, check_subject},
    keys::{Keys, KeysError},
    login::{CODE_SECONDS, one_time_code},
    private,
    store::{Store, StoreError, User, projects::ProjectError, users::UserError},
};

/// What to make.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Where keys, database and configuration go.
    pub state_dir: PathBuf,
    /// As callers reach the gateway; made of the first host and the port when absent.
    pub public_url: Option<String>,
    /// Names and addresses that the certificate is for, beside the public URL's.
    pub hosts: Vec<String>,
    /// Where the public port listens.
    pub listen: Option<String>,
    /// Where health and metrics are.
    pub admin_listen: Option<String>,
    /// Where other replicas reach this one.
    pub peer_listen: Option<String>,
    /// As they reach it.
    pub peer_address: Option<String>,
    /// What is kept where; SQLite in the state directory when absent.
    pub database: Option<DatabaseFile>,
    /// The database's password, which isn't written down.
    pub database_password: Option<SecretString>,
    /// A certificate that is there already, plain HTTP, or (`None`) an authority of the gateway's own.
    pub tls: Option<TlsFile>,
    /// What new agents check that certificate against.
    pub certificate_authority: Option<PathBuf>,
    /// A first project, owned by the first user.
    pub project: Option<String>,
    /// The first user, a `gatewayOperator`.
    pub admin: String,
    /// A gateway that is there already: a new one-time code for this user.
    pub new_bootstrap_code: bool,
}

/// What is there now.
#[derive(Debug)]
pub struct Made {
    /// Whether anything was made.
    pub changed: bool,
    /// The configuration file.
    pub config: PathBuf,
    /// As callers reach the gateway.
    pub public_url: Url,
    /// The file with the certificate that new agents and users are to trust.
    pub certificate_authority: Option<PathBuf>,
    /// Its SHA-256, as `towline login` shows it.
    pub fingerprint: Option<String>,
    /// The root public key.
    pub root_key: String,
    /// The first user.
    pub admin: String,
    /// With which it sets a password, shown this once; `None` where the user was there.
    pub one_time_code: Option<SecretString>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// What was asked for can't be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`KeysError`].
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// See [`AuthorityError`].
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See [`UserError`].
    #[error(transparent)]
    User(#[from] UserError),
    /// See [`ProjectError`].
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// A file can't be written.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// The database is another gateway's, as far as agents can tell.
    #[error(
        "the database belongs to a gateway with another root key; a further replica has the same: copy keys/root.key, \
         keys/root.pub and tls/ from a replica's state directory to {}, and run this again", .0.display()
    )]
    OtherRoot(PathBuf),
    /// A new code for a gateway that isn't there.
    #[error("there is no gateway in {} yet; run: towline-gateway init --state-dir {}", .0.display(), .0.display())]
    NotThere(PathBuf),
}

/// Makes what isn't there.
///
/// # Errors
/// See [`InitError`].
pub async fn init(wanted: &Wanted, clock: &Clock) -> Result<Made, InitError> {
    let path = wanted.state_dir.join(CONFIG);
    if path.exists() {
        return again(wanted, &path, clock).await;
    }
    if wanted.new_bootstrap_code {
        return Err(InitError::NotThere(wanted.state_dir.clone()));
    }
    let (file, hosts) = plan(wanted, &path)?;
    let config = with_password(file.check(&path)?, wanted);
    let now = clock.unix();

    private::make_dir(&wanted.state_dir)
        .map_err(|source| InitError::Write(wanted.state_dir.clone(), source))?;
    let keys = Keys::create(&config.keys(), clock.clone())?;
    if wanted.tls.is_none() {
        authority::create(&config.state_dir.join(TLS), &hosts, now)?;
    }
    let store = Store::open(&config.database).await?;
    let made = async {
        match store.belongs_to(keys.root()).await {
            Err(StoreError::Foreign { .. }) => {
                return Err(InitError::OtherRoot(wanted.state_dir.clone()));
            }
            belongs => belongs?,
        }
        populate(&store, wanted, now).await
    };
    let made = made.await;
    store.close().await;
    let code = made?;
    let text = render(&file);
    private::write(&path, text.as_bytes())
        .map_err(|source| InitError::Write(path.clone(), source))?;
    told(true, path, &config, &keys, &wanted.admin, code)
}

fn with_password(mut config: Config, wanted: &Wanted) -> Config {
    if let Some(password) = &wanted.database_password {
        config.database = config.database.with_password(password.clone());
    }
    config
}

/// A gateway that is there: nothing is made but, when asked for, a new code.
async fn again(wanted: &Wanted, path: &Path, clock: &Clock) -> Result<Made, InitError> {
    let config = with_password(File::read(path)?.check(path)?, wanted);
    let keys = Keys::open(&config.keys(), clock.clone())?;
    let code = if wanted.new_bootstrap_code {
        let store = Store::open(&config.database).await?;
        let code = one_time_code()?;
        let reset = store
            .reset_password(&wanted.admin, &code, clock.unix() + CODE_SECONDS)
            .await;
        store.close().await;
        reset?;
        Some(code.into())
    } else {
        None
    };
    told(
        code.is_some(),
        path.to_owned(),
        &config,
        &keys,
        &wanted.admin,
        code,
    )
}

fn told(
    changed: bool,
    path: PathBuf,
    config: &Config,
    keys: &Keys,
    admin: &str,
    one_time_code: Option<SecretString>,
) -> Result<Made, InitError> {
    let authority = config.certificate_authority.clone();
    Ok(Made {
        changed,
        config: path,
        public_url: config.public_url.clone(),
        fingerprint: authority
            .as_deref()
            .map(authority::fingerprint)
            .transpose()?,
        certificate_authority: authority,
        root_key: keys.root().to_string(),
        admin: admin.to_owned(),
        one_time_code,
    })
}

/// The configuration to write, and what the certificate is for.
fn plan(wanted: &Wanted, path: &Path) -> Result<(File, Vec<String>), ConfigError> {
    let refuse = |key, value: &str, reason: String| ConfigError::Values {
        file: path.to_owned(),
        problems: vec![Problem {
            key,
            value: value.to_owned(),
            reason,
        }],
    };
    let listen = wanted.listen.clone().unwrap_or_else(|| LISTEN.to_owned());
    let public_url = match (&wanted.public_url, wanted.hosts.first()) {
        (Some(url), _) => url.clone(),
        (None, Some(host)) => {
            let port = listen
                .parse::<SocketAddr>()
                .map_or(0, |address| address.port());
            if port == 0 {
                let reason =
                    "with a listener whose port isn't known yet, give --public-url".to_owned();
                return Err(refuse("listen", &listen, reason));
            }
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            format!("https://{host}:{port}")
        }
        (None, None) => {
            let reason = "as which callers reach the gateway; give --public-url https://HOST[:PORT] or --host HOST";
            return Err(refuse("public_url", "", reason.to_owned()));
        }
    };
    check_subject(&wanted.admin)
        .map_err(|error| refuse("--admin", &wanted.admin, error.to_string()))?;
    if let Some(project) = &wanted.project {
        project
            .parse::<Project>()
            .map_err(|error| refuse("--project", project, error.to_string()))?;
    }
    for host in &wanted.hosts {
        let address = host.parse::<IpAddr>().is_ok();
        let name = host.is_ascii() && matches!(url::Host::parse(host), Ok(url::Host::Domain(_)));
        if !address && !name {
            return Err(refuse(
                "--host",
                host,
                "is neither a DNS name nor an address".to_owned(),
            ));
        }
    }
    let mut hosts = wanted.hosts.clone();
    if let Some(host) = config::public_url(&public_url)
        .ok()
        .as_ref()
        .and_then(Url::host)
    {
        let host = match host {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    let own = Path::new(TLS);
    let file = File {
        // Without the slash that nobody types.
        public_url: Some(public_url.trim_end_matches('/').to_owned()),
        listen: Some(listen),
        admin_listen: Some(
            wanted
                .admin_listen
                .clone()
                .unwrap_or_else(|| ADMIN_LISTEN.to_owned()),
        ),
        peer_listen: wanted.peer_listen.clone(),
        peer_address: wanted.peer_address.clone(),
        database: wanted.database.clone(),
        tls: Some(wanted.tls.clone().unwrap_or_else(|| TlsFile {
            mode: None,
            certificate: Some(own.join(authority::SERVER)),
            key: Some(own.join(authority::SERVER_KEY)),
        })),
        certificate_authority: match &wanted.tls {
            None => Some(own.join(authority::AUTHORITY)),
            Some(_) => wanted.certificate_authority.clone(),
        },
        ..File::default()
    };
    Ok((file, hosts))
}

/// The first user, and a project of theirs; without a code where other replicas have the user already.
async fn populate(
    store: &Store,
    wanted: &Wanted,
    now: u64,
) -> Result<Option<SecretString>, InitError> {
    let code = one_time_code()?;
    let expires = now + CODE_SECONDS;
    let admin = User {
        name: wanted.admin.clone(),
        groups: Vec::new(),
        disabled: false,
        operator: true,
        created: now,
    };
    let code = match store.create_user(&admin, &code, expires).await {
        // Somebody may have signed in with it.
        Err(UserError::Exists(_)) if store.is_shared() => None,
        // A run that died half-way made the user, and its code was never shown.
        Err(UserError::Exists(name)) => {
            store.reset_password(&name, &code, expires).await?;
            Some(code)
        }
        other => {
            other?;
            Some(code)
        }
    };
    if let Some(project) = &wanted.project {
        let project: Project = project
            .parse()
            .map_err(|_| InitError::NotThere(wanted.state_dir.clone()))?;
        match store
            .create_project(&project, &Principal::User(wanted.admin.clone()), now)
            .await
        {
            Err(ProjectError::Exists(_)) => {}
            other => other?,
        }
    }
    Ok(code.map(Into::into))
}

/// The configuration as people write it. Keys without tables, so that what is added below is not in one.
fn render(file: &File) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let path = |path: &Path| text(&path.to_string_lossy());
    let mut toml = String::from(
        "# Configuration of a Towline gateway. Relative paths begin in this directory.\n\
         # What else there is: towline-gateway run --help\n\n",
    );
    let mut line = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            toml.push_str(&format!("{key} = {value}\n"));
        }
    };
    line("public_url", file.public_url.as_deref().map(text));
    line("listen", file.listen.as_deref().map(text));
    line("admin_listen", file.admin_listen.as_deref().map(text));
    line("peer_listen", file.peer_listen.as_deref().map(text));
    line("peer_address", file.peer_address.as_deref().map(text));
    if let Some(database) = &file.database {
        line("database.url", database.url.as_deref().map(text));
        let password = database.password_file.as_deref();
        line("database.password_file", password.map(path));
    }
    if let Some(tls) = &file.tls {
        line("tls.mode", tls.mode.as_deref().map(text));
        line("tls.certificate", tls.certificate.as_deref().map(path));
        line("tls.key", tls.key.as_deref().map(path));
    }
    line(
        "certificate_authority",
        file.certificate_authority.as_deref().map(path),
    );
    toml
}

impl Made {
    /// For scripts.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "changed": self.changed,
            "config": self.config,
            "publicUrl": self.public_url.as_str().trim_end_matches('/'),
            "certificateAuthority": self.certificate_authority,
            "certificateAuthorityFingerprint": self.fingerprint,
            "rootKey": self.root_key,
            "admin": self.admin,
            "oneTimeCode": self.one_time_code.as_ref().map(|code| code.expose_secret()),
        })
    }
}

/// For people.
impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.public_url.as_str().trim_end_matches('/');
        let config = self.config.display();
        match (self.changed, &self.one_time_code) {
            (false, _) => writeln!(f, "The gateway is set up already; nothing was changed.")?,
            (true, _) => writeln!(f, "The gateway is set up.")?,
        }
        writeln!(f, "\n  address         {url}\n  configuration   {config}")?;
        let mut trust = String::new();
        if let (Some(authority), Some(fingerprint)) =
            (&self.certificate_authority, &self.fingerprint)
        {
            writeln!(
                f,
                "  authority       {}\n    SHA-256       {fingerprint}",
                authority.display()
            )?;
            trust = format!(" --certificate-authority {}", authority.display());
        }
        writeln!(f, "  root key        {}", self.root_key)?;
        let admin = &self.admin;
        match &self.one_time_code {
            Some(code) => writeln!(
                f,
                "\nOne-time code of {admin:?}, good for {} hours and shown this once:\n\n  {}\n\n\
                 Next:\n  towline-gateway run --config {config}\n  \
                 towline login {url}{trust} --username {admin} --one-time-code CODE",
                CODE_SECONDS / 3600,
                code.expose_secret(),
            ),
            None if self.changed => writeln!(
                f,
                "\nUser {admin:?} was in the database already.\n\nNext:\n  towline-gateway run --config {config}"
            ),
            None => writeln!(
                f,
                "\nA new one-time code for {admin:?}: towline-gateway init --state-dir {} --new-bootstrap-code --admin {admin}",
                self.config
                    .parent()
                    .unwrap_or_else(|| Path::new("."))
                    .display(),
            ),
        }
    }
}

/// The configuration's name in the state directory.
const CONFIG: &str = "gateway.toml";
/// The directory of the gateway's own authority.
pub const TLS: &str = "tls";
const LISTEN: &str = "0.0.0.0:8443";
const ADMIN_LISTEN: &str = "127.0.0.1:0";

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn wanted(dir: &Path) -> Wanted {
        Wanted {
            state_dir: dir.to_owned(),
            hosts: vec!["10.0.0.1".to_owned(), "localhost".to_owned()],
            listen: Some("0.0.0.0:7443".to_owned()),
            project: Some("demo".to_owned()),
            admin: "admin".to_owned(),
            ..Wanted::default()
        }
    }

    #[tokio::test]
    async fn what_it_makes_is_what_a_gateway_runs_on() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let clock = Clock::fixed(NOW).0;
        let made = init(&wanted(&state), &clock).await.unwrap();
        assert!(made.changed);
        assert_eq!(made.public_url.as_str(), "https://10.0.0.1:7443/");
        let config = File::read(&made.config)
            .unwrap()
            .check(&made.config)
            .unwrap();
        let tls = config.tls.as_ref().unwrap();
        crate::tls::Certificate::load(&tls.certificate, &tls.key).unwrap();
        let store = Store::open(&config.database).await.unwrap();
        assert!(store.user("admin").await.unwrap().unwrap().operator);
        assert!(
            store
                .policy(&"demo".parse().unwrap())
                .await
                .unwrap()
                .is_some()
        );
        let code = made.one_time_code.as_ref().unwrap().expose_secret();
        assert!(store.redeem_code("admin", code, "hash", NOW).await.unwrap());
        assert_eq!(
            Keys::open(&config.keys(), clock)
                .unwrap()
                .root()
                .to_string(),
            made.root_key
        );
        assert!(!format!("{made:?}").contains(code), "secrets don't print");
        assert_eq!(made.to_json()["publicUrl"], "https://10.0.0.1:7443");
    }

    #[tokio::test]
    async fn a_second_run_changes_nothing_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW).0;
        let first = init(&wanted(dir.path()), &clock).await.unwrap();
        let other = Wanted {
            admin: "other".to_owned(),
            project: Some("x".into()),
            ..wanted(dir.path())
        };
        let second = init(&other, &clock).await.unwrap();
        assert!(!second.changed);
        assert!(second.one_time_code.is_none());
        assert_eq!(second.root_key, first.root_key);
        assert!(
            second.to_string().contains("nothing was changed"),
            "{second}"
        );
        let store = Store::open_file(&dir.path().join("towline.db"))
            .await
            .unwrap();
        assert_eq!(store.users().await.unwrap().len(), 1);
        assert_eq!(store.projects().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_run_that_died_half_way_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW).0;
        let first = init(&wanted(dir.path()), &clock).await.unwrap();
        std::fs::remove_file(&first.config).unwrap();
        let second = init(&wanted(dir.path()), &clock).await.unwrap();
        assert_eq!(second.root_key, first.root_key);
        assert_eq!(second.fingerprint, first.fingerprint);
        let store = Store::open_file(&dir.path().join("towline.db"))
            .await
            .unwrap();
        let redeem = |made: &Made| {
            made.one_time_code
                .as_ref()
                .unwrap()
                .expose_secret()
                .to_owned()
        };
        assert!(
            !store
                .redeem_code("admin", &redeem(&first), "hash", NOW)
                .await
                .unwrap()
        );
        assert!(
            store
                .redeem_code("admin", &redeem(&second), "hash", NOW)
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn a_further_replica_finds_its_users_and_leaves_them_as_they_are() {
        let dirs: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let clock = Clock::fixed(NOW).0;
        let database = DatabaseFile {
            url: Some(towline_test_postgresql::Server::shared().database()),
            ..DatabaseFile::default()
        };
        let [first, second] = dirs.each_ref().map(|dir| Wanted {
            database: Some(database.clone()),
            peer_listen: Some("10.0.0.1:7444".to_owned()),
            ..wanted(dir.path())
        });
        let made = init(&first, &clock).await.unwrap();
        let config = File::read(&made.config).unwrap().check(&made.config);
        let (config, keys) = (config.unwrap(), dirs[0].path().join("keys"));
        assert!(config.peer.is_some());
        let store = Store::open(&config.database).await.unwrap();

        let error = init(&second, &clock).await.unwrap_err();
        assert!(matches!(error, InitError::OtherRoot(_)), "{error}");
        for name in ["root.key", "root.pub"] {
            std::fs::copy(keys.join(name), dirs[1].path().join("keys").join(name)).unwrap();
        }
        let again = init(&second, &clock).await.unwrap();
        assert_eq!(again.root_key, made.root_key);
        assert!(again.changed && again.one_time_code.is_none());
        let code = made.one_time_code.unwrap();
        let redeemed = store.redeem_code("admin", code.expose_secret(), "hash", NOW);
        assert!(redeemed.await.unwrap());
    }

    #[tokio::test]
    async fn a_new_code_is_for_a_user_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW).0;
        let again = Wanted {
            new_bootstrap_code: true,
            ..wanted(dir.path())
        };
        assert!(matches!(
            init(&again, &clock).await,
            Err(InitError::NotThere(_))
        ));
        init(&wanted(dir.path()), &clock).await.unwrap();
        assert!(init(&again, &clock).await.unwrap().one_time_code.is_some());
        let nobody = Wanted {
            admin: "nobody".into(),
            ..again
        };
        assert!(matches!(
            init(&nobody, &clock).await,
            Err(InitError::User(UserError::Unknown(_)))
        ));
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let clock = Clock::fixed(NOW).0;
        for bad in [
            Wanted {
                hosts: vec![],
                ..wanted(&state)
            },
            Wanted {
                public_url: Some("http://x".into()),
                ..wanted(&state)
            },
            Wanted {
                hosts: vec!["no name".into()],
                ..wanted(&state)
            },
            Wanted {
                hosts: vec!["gw.example:443".into()],
                ..wanted(&state)
            },
            Wanted {
                listen: Some("0.0.0.0:0".into()),
                ..wanted(&state)
            },
            Wanted {
                project: Some("No_Label".into()),
                ..wanted(&state)
            },
            Wanted {
                admin: "system:admin".into(),
                ..wanted(&state)
            },
        ] {
            let error = init(&bad, &clock).await.unwrap_err();
            assert!(matches!(error, InitError::Config(_)), "{error}");
            assert!(!state.exists());
        }
    }

    #[tokio::test]
    async fn a_certificate_that_is_there_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(NOW).0;
        let tls = TlsFile {
            mode: Some("off".into()),
            ..TlsFile::default()
        };
        let made = init(
            &Wanted {
                tls: Some(tls),
                ..wanted(dir.path())
            },
            &clock,
        )
        .await
        .unwrap();
        assert_eq!((made.certificate_authority, made.fingerprint), (None, None));
        assert!(!dir.path().join("tls").exists());
        assert!(
            File::read(&made.config)
                .unwrap()
                .check(&made.config)
                .unwrap()
                .tls
                .is_none()
        );
    }
}
