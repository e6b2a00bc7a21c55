//! `towline-agent`: flags, logging, signals and the exit status.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use towline_agent::{
    app::{self, App},
    config::{Config, ConfigError, EnrolFlags, Enrolment, LogFormat, RunFlags},
    upstream::chain,
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The configuration is wrong (EX_USAGE).
const BAD_CONFIG: u8 = 64;

const EXAMPLES: &str = "Examples:
  In a pod of the cluster, with the key in a Secret:
    towline-agent run --registration /etc/towline/registration.yaml --key-secret towline/agent-key

  Outside of it:
    towline-agent run --registration registration.yaml --key-file agent.key --kubeconfig ~/.kube/config

  Behind a proxy:
    HTTPS_PROXY=http://USER:PASSWORD@proxy.example:3128 towline-agent run …";

/// Towline's agent: keeps a tunnel to the gateway and serves its cluster's API server in it
#[derive(Parser)]
#[command(name = "towline-agent", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dial the gateway and serve the cluster
    #[command(after_help = EXAMPLES)]
    Run {
        #[command(flatten)]
        flags: Box<RunFlags>,
        #[command(flatten)]
        logs: Logs,
    },
    /// Make the agent's key, redeem the registration token, and end
    Enrol {
        #[command(flatten)]
        flags: Box<EnrolFlags>,
        #[command(flatten)]
        logs: Logs,
    },
    /// Print a shell's completion script
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Args)]
struct Logs {
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
    log: String,
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
                "towline-agent: {}",
                chain(error.as_ref())
            ));
            ExitCode::from(if error.is::<ConfigError>() {
                BAD_CONFIG
            } else {
                1
            })
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { flags, logs } => {
            logs.start()?;
            block_on(run(Config::load(*flags)?))
        }
        Command::Enrol { flags, logs } => {
            logs.start()?;
            let enrolment = Enrolment::load(*flags)?;
            block_on(async { Ok(app::enrol(enrolment, &terminated()?).await?) })
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "towline-agent",
                &mut io::stdout(),
            );
            Ok(())
        }
        Command::Man => Ok(clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = terminated()?;
    let app = App::new(config).await?;
    if let Some(address) = app.health_address() {
        writeln!(io::stdout(), "health on http://{address}")?;
    }
    Ok(app.run(shutdown).await?)
}

fn block_on(work: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // Sessions run in it, and what runs in a task of the runtime's own is woken without another thread.
    let ended = runtime.block_on(runtime.spawn(work))?;
    // What is left after the drain limit isn't waited for.
    runtime.shutdown_background();
    ended
}

/// Cancelled by SIGTERM or SIGINT.
fn terminated() -> anyhow::Result<CancellationToken> {
    let (mut term, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let token = CancellationToken::new();
    let cancel = token.clone();
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
    drop(tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    }));
    Ok(token)
}

impl Logs {
    fn start(&self) -> anyhow::Result<()> {
        let filter: EnvFilter = self
            .log
            .parse()
            .map_err(|_| ConfigError(vec![format!("--log {}: no filter", self.log)]))?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal());
        match self.log_format {
            LogFormat::Json => builder.json().try_init(),
            LogFormat::Text => builder.try_init(),
        }
        .map_err(|error| anyhow::anyhow!(error))
        .context("logging cannot start")
    }
}
