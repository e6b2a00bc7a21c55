//! `towline-gateway`: flags, logging, signals and the exit status.

use std::{
    error::Error,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use towline_gateway::{
    app::{Gateway, Running, StartError},
    authn::people::{People, PeopleError},
    authority,
    clock::Clock,
    config::{Config, ConfigError, DatabaseFile, File, TlsFile},
    handed::Sockets,
    init::{self, InitError, Wanted},
    keys::Keys,
    store::Store,
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration is wrong (EX_USAGE).
const BAD_CONFIG: u8 = 64;

/// How often it is looked whether the certificate of the gateway's own authority is due.
const RENEW_EVERY: Duration = Duration::from_secs(3600);

const EXAMPLES: &str = "Examples:
  A gateway with a certificate authority of its own:
    towline-gateway init --state-dir /var/lib/towline --host gw.example.com --project demo
    towline-gateway run --config /var/lib/towline/gateway.toml

  Behind a proxy that ends TLS:
    towline-gateway init --state-dir /var/lib/towline --public-url https://gw.example.com --tls-off

  One of several replicas on PostgreSQL; each further one is first given keys/root.key, keys/root.pub and tls/ of another:
    towline-gateway init --state-dir /var/lib/towline --host gw.example.com \\
        --database-url postgres://towline@db.example.com/towline --peer-listen 10.0.0.1:8444

  Only look whether the configuration can be used:
    towline-gateway run --config gateway.toml --check";

const KEYS: &str = "Configuration file (TOML):
  public_url             https://HOST[:PORT], as callers and agents reach the gateway
  listen                 public port                                   [0.0.0.0:8443]
  admin_listen           health and metrics, without authentication    [127.0.0.1:0]
  peer_listen            where other replicas reach this one           [nowhere]
  peer_address           HOST[:PORT] that they are told                [peer_listen]
  state_dir              keys and SQLite database; relative paths begin there [the file's directory]
  database.url           sqlite:PATH, or for several replicas
                         postgres://USER@HOST[:PORT]/DATABASE[?sslmode=...] [sqlite:towline.db]
  database.password_file its first line; or TOWLINE_DATABASE_PASSWORD in the environment
  database.offline_limit how long requests are served from memory while PostgreSQL is away [5m]
  tls.certificate        PEM file, read again when it changes
  tls.key                PEM file
  tls.mode               \"off\": plain HTTP, behind a proxy that ends TLS
  certificate_authority  PEM file that new agents check the certificate against
  trusted_proxies        addresses and networks whose X-Forwarded-For is believed [none]
  drain_delay            how long only readiness is off after SIGTERM  [5s]
  drain_limit            how long streams may go on after that         [1h]
  session_grace          how long a session is kept without a connection [60s]
  limits                 what callers may use where their project has set nothing (towline quotas):
    requests_per_minute_per_principal, requests_per_minute_per_project [6000, 60000]
    streams_per_principal, streams_per_project                         [50, 500]
    watches_per_principal                                              [5000]
  limits.slow_readers_bytes      held for callers who don't read       [268435456]
  limits.connections_per_address                                       [10000]
  audit.sink             file, stdout, webhook or none                 [file]
  audit.file, audit.max_bytes, audit.max_files                         [audit.jsonl, 104857600, 10]
  audit.webhook_url, audit.webhook_certificate_authority, audit.webhook_token_file
  audit.queue            events that wait for the sink                 [10000]
  audit.when_full        drop (serve, and count what is missing) or refuse (503) [drop]
  tokens.access          an access token's life                        [10m]
  tokens.idle            a sign-in's that isn't used                   [7d]
  tokens.sign_in         a sign-in's that is                           [30d]
  authentication_config  Kubernetes' AuthenticationConfiguration: issuers of people, read again when it changes
  [[login]]              where 'towline login' sends people, each issuer one of that file's:
    name, issuer, client_id, scopes, audience
  federation.allow_issuers  issuers of workloads that may have private addresses [none]

SIGTERM drains: readiness goes off, agents go elsewhere, streams go on up to drain_limit. A second one ends at once.
Sockets that the system hands over (LISTEN_FDS) take the place of listen; of admin_listen and peer_listen those that
are called admin and peer.
Exit status: 64 for a configuration that can't be used, 1 for a start that failed.";

/// Towline's gateway: authenticates callers and sends their requests down the tunnels of their clusters
#[derive(Parser)]
#[command(name = "towline-gateway", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make keys, certificate, database, configuration and the first user; changes nothing that is there
    #[command(after_help = EXAMPLES)]
    Init(Box<InitFlags>),
    /// Run the gateway
    #[command(after_help = KEYS)]
    Run(Box<RunFlags>),
    /// Print a shell's completion script
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Args)]
struct InitFlags {
    /// Where keys, database and configuration go
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,

    /// A name or address that the certificate is for; may be repeated
    #[arg(long = "host", value_name = "HOSTNAME|IP")]
    hosts: Vec<String>,

    /// As callers reach the gateway; https://HOST:PORT of --host and --listen when absent
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,

    /// Where the public port listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,

    /// Where health and metrics are
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,

    /// PostgreSQL for several replicas, or a file of SQLite; SQLite in the state directory when absent
    #[arg(long, value_name = "URL", env = "TOWLINE_DATABASE_URL")]
    database_url: Option<String>,

    /// File with its password in the first line
    #[arg(long, value_name = "FILE", requires = "database_url")]
    database_password_file: Option<PathBuf>,

    #[command(flatten)]
    database_password: DatabasePassword,

    /// Where other replicas reach this one
    #[arg(long, value_name = "ADDRESS:PORT")]
    peer_listen: Option<String>,

    /// As they reach it; --peer-listen when absent
    #[arg(long, value_name = "HOST[:PORT]", requires = "peer_listen")]
    peer_address: Option<String>,

    /// A certificate that is there already (PEM)
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        conflicts_with = "tls_off"
    )]
    tls_certificate: Option<PathBuf>,

    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,

    /// The authority of that certificate (PEM), where agents' systems don't know it
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,

    /// Plain HTTP, behind a proxy that ends TLS
    #[arg(long)]
    tls_off: bool,

    /// A first project, owned by the first user
    #[arg(long, value_name = "NAME")]
    project: Option<String>,

    /// The first user, a gatewayOperator
    #[arg(long, value_name = "NAME", default_value = "admin")]
    admin: String,

    /// A new one-time code for --admin of a gateway that is there; ends that user's password and sign-ins
    #[arg(long)]
    new_bootstrap_code: bool,

    /// How what was made is told
    #[arg(long, value_enum, default_value = "text")]
    print: Print,
}

/// From the environment: as a flag, everybody on the machine would see it.
#[derive(Args)]
struct DatabasePassword {
    #[arg(
        long = "database-password",
        hide = true,
        env = "TOWLINE_DATABASE_PASSWORD",
        hide_env_values = true
    )]
    password: Option<SecretString>,
}

#[derive(Args)]
struct RunFlags {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "TOWLINE_CONFIG")]
    config: PathBuf,

    /// In place of the file's public_url
    #[arg(long, value_name = "URL", env = "TOWLINE_PUBLIC_URL")]
    public_url: Option<String>,

    /// In place of the file's listen; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS:PORT", env = "TOWLINE_LISTEN")]
    listen: Option<String>,

    /// In place of the file's admin_listen
    #[arg(long, value_name = "ADDRESS:PORT", env = "TOWLINE_ADMIN_LISTEN")]
    admin_listen: Option<String>,

    /// In place of the file's database.url
    #[arg(long, value_name = "URL", env = "TOWLINE_DATABASE_URL")]
    database_url: Option<String>,

    #[command(flatten)]
    database_password: DatabasePassword,

    /// In place of the file's peer_listen; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS:PORT", env = "TOWLINE_PEER_LISTEN")]
    peer_listen: Option<String>,

    /// In place of the file's peer_address
    #[arg(long, value_name = "HOST[:PORT]", env = "TOWLINE_PEER_ADDRESS")]
    peer_address: Option<String>,

    /// What the sockets are called that the system hands over
    #[arg(long, hide = true, env = "LISTEN_FDNAMES", default_value = "")]
    listen_fd_names: String,

    /// Only look whether the configuration can be used
    #[arg(long)]
    check: bool,

    /// Print the addresses that are listened on, as one line of JSON
    #[arg(long)]
    print_addresses: bool,

    /// How log lines look
    #[arg(long, value_enum, env = "TOWLINE_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug, or per module
    #[arg(
        long,
        value_name = "FILTER",
        env = "TOWLINE_LOG",
        default_value = "info"
    )]
    log: EnvFilter,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Print {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            drop(error.print());
            return if error.use_stderr() {
                ExitCode::from(BAD_CONFIG)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(
                io::stderr(),
                "towline-gateway: {}",
                chain(error.as_ref())
            ));
            let bad = error.is::<ConfigError>()
                || error.is::<PeopleError>()
                || matches!(
                    error.downcast_ref::<StartError>(),
                    Some(StartError::People(_))
                )
                || matches!(
                    error.downcast_ref::<InitError>(),
                    Some(InitError::Config(_))
                );
            ExitCode::from(if bad { BAD_CONFIG } else { 1 })
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(flags) => {
            let (print, wanted) = (flags.print, flags.wanted()?);
            let made = block_on(async { Ok(init::init(&wanted, &Clock::System).await?) })?;
            match print {
                Print::Text => write!(io::stdout(), "{made}")?,
                Print::Json => writeln!(io::stdout(), "{:#}", made.to_json())?,
            }
            Ok(())
        }
        Command::Run(flags) => {
            let mut file = File::read(&flags.config)?;
            for (flag, key) in [
                (&flags.public_url, &mut file.public_url),
                (&flags.listen, &mut file.listen),
                (&flags.admin_listen, &mut file.admin_listen),
                (&flags.peer_listen, &mut file.peer_listen),
                (&flags.peer_address, &mut file.peer_address),
            ] {
                if flag.is_some() {
                    key.clone_from(flag);
                }
            }
            if flags.database_url.is_some() {
                let database = file.database.get_or_insert_default();
                database.url.clone_from(&flags.database_url);
            }
            let mut config = file.check(&flags.config)?;
            if let Some(password) = flags.database_password.password {
                config.database = config.database.with_password(password);
            }
            if flags.check {
                People::load(&config)?;
                writeln!(io::stdout(), "{} can be used", flags.config.display())?;
                return Ok(());
            }
            log(flags.log, flags.log_format)?;
            let sockets = Sockets::take(&flags.listen_fd_names)?;
            block_on(run(config, sockets, flags.print_addresses))
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "towline-gateway",
                &mut io::stdout(),
            );
            Ok(())
        }
        Command::Man => Ok(clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?),
    }
}

async fn run(config: Config, sockets: Sockets, print_addresses: bool) -> anyhow::Result<()> {
    let (mut term, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?config,
        "gateway starts"
    );
    raise_open_files();
    let clock = Clock::System;
    let own = config.state_dir.join(init::TLS);
    authority::renew_due(&own, clock.unix()).context("the certificate can't be renewed")?;
    let keys = Arc::new(Keys::open(&config.keys(), clock.clone())?);
    let store = Store::open(&config.database).await?;
    let running = Gateway::start_on(sockets, config, clock.clone(), keys, store.clone()).await?;
    if print_addresses {
        let addresses = serde_json::json!({
            "public": running.public_address(),
            "admin": running.admin_address(),
            "peer": running.peer_address(),
            "publicUrl": running.gateway().config.base(),
        });
        writeln!(io::stdout(), "{addresses}")?;
    }
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(RENEW_EVERY) => {
                // The public port sees the new file by itself.
                if let Err(error) = authority::renew_due(&own, clock.unix()) {
                    tracing::error!(error = &error as &dyn Error, "the certificate can't be renewed");
                }
            }
        }
    }
    tokio::select! {
        () = drain(running, &store) => {}
        _ = term.recv() => tracing::warn!("a second signal: not waiting any longer"),
        _ = interrupt.recv() => tracing::warn!("a second signal: not waiting any longer"),
    }
    Ok(())
}

async fn drain(running: Running, store: &Store) {
    running.drain().await;
    store.close().await;
    tracing::info!("gateway ended");
}

/// Each caller and agent is a file: as many as the system allows, not the few that it gives unasked.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // Fails only when there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(Box::pin(work));
    // What is left after the drain limit isn't waited for.
    runtime.shutdown_background();
    ended
}

fn log(filter: EnvFilter, format: LogFormat) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.try_init(),
    }
    .map_err(|error| anyhow::anyhow!(error))
    .context("logging cannot start")
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

impl InitFlags {
    fn wanted(self) -> anyhow::Result<Wanted> {
        let absolute = |path: Option<PathBuf>| path.map(std::path::absolute).transpose();
        let tls = match (
            self.tls_off,
            absolute(self.tls_certificate)?,
            absolute(self.tls_key)?,
        ) {
            (true, ..) => Some(TlsFile {
                mode: Some("off".to_owned()),
                ..TlsFile::default()
            }),
            (false, None, _) => None,
            (false, certificate, key) => Some(TlsFile {
                mode: None,
                certificate,
                key,
            }),
        };
        let password_file = absolute(self.database_password_file)?;
        Ok(Wanted {
            state_dir: std::path::absolute(self.state_dir)?,
            public_url: self.public_url,
            hosts: self.hosts,
            listen: self.listen,
            admin_listen: self.admin_listen,
            peer_listen: self.peer_listen,
            peer_address: self.peer_address,
            database: self.database_url.map(|url| DatabaseFile {
                url: Some(url),
                password_file,
                ..DatabaseFile::default()
            }),
            database_password: self.database_password.password,
            tls,
            certificate_authority: absolute(self.certificate_authority)?,
            project: self.project,
            admin: self.admin,
            new_bootstrap_code: self.new_bootstrap_code,
        })
    }
}
