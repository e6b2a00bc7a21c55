//! Figures, for looking at: the same work straight to the API server and through the gateway.
//!
//! `run.sh` beside this package sets the scene and calls `measure` once inside the cluster's network and once
//! outside, with the same client; `report` puts the two beside each other. Nothing here asserts anything.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

mod agents;
mod assertions;
mod caller;
mod certificates;
mod clock;
mod cut;
mod decisions;
mod figures;
mod konnectivity;
mod kubectl;
mod load;
mod machine;
mod measure;
mod origin;
mod peers;
mod process;
mod relay;
mod report;
mod route;
mod scene;
mod sessions;
mod table;

/// That of gateway and agent.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(about = "Figures: straight to the API server, and through the gateway")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the objects that the measurements read, as a Kubernetes List
    Objects {
        /// How much they are together.
        #[arg(long, default_value_t = 50)]
        mebibytes: usize,
    },
    /// Measure with one kubeconfig, and print the figures as JSON
    Measure(measure::Settings),
    /// What the assertion on each request costs, as JSON
    Assertions {
        /// How often.
        #[arg(long, default_value_t = 20_000)]
        rounds: u32,
    },
    /// What a decision of IAM costs, as JSON
    Decisions {
        /// How many bindings the policy has.
        #[arg(long, default_value_t = 10_000)]
        bindings: usize,
        /// How often.
        #[arg(long, default_value_t = 20_000)]
        rounds: u32,
    },
    /// What it costs that a session outlives its connection, as JSON
    Sessions {
        /// How often each is measured.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// How much is downloaded each time.
        #[arg(long, default_value_t = 1024)]
        mebibytes: usize,
    },
    /// Serve what stands in for an API server
    Origin {
        /// Where its certificate is.
        #[arg(long)]
        directory: PathBuf,
    },
    /// Measure the ways to such an origin beside each other: a table on standard output, JSON in a file
    Peers {
        #[command(flatten)]
        settings: Box<peers::Settings>,
        /// `NAME=VERSION` of what is measured.
        #[arg(long = "version", value_name = "NAME=VERSION")]
        versions: Vec<String>,
        /// The day.
        #[arg(long, default_value = "today")]
        date: String,
        /// Where the JSON goes.
        #[arg(long)]
        json: Option<PathBuf>,
        /// A page whose table is written anew.
        #[arg(long)]
        readme: Option<PathBuf>,
    },
    /// Put two measurements beside each other: a table on standard output, JSON in a file
    Report {
        /// Straight to the API server.
        #[arg(long)]
        direct: PathBuf,
        /// Through the gateway.
        #[arg(long)]
        gateway: PathBuf,
        /// The output of `assertions`.
        #[arg(long)]
        assertions: PathBuf,
        /// The output of `decisions`.
        #[arg(long)]
        decisions: PathBuf,
        /// The output of `sessions`.
        #[arg(long)]
        sessions: PathBuf,
        /// `NAME=VERSION` of what was measured.
        #[arg(long = "version", value_name = "NAME=VERSION")]
        versions: Vec<String>,
        /// Where the JSON goes.
        #[arg(long)]
        json: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match Cli::parse().command {
        Command::Objects { mebibytes } => println!("{}", measure::objects(mebibytes)),
        Command::Measure(settings) => {
            println!(
                "{}",
                serde_json::to_string_pretty(&measure::all(&settings).await?)?
            );
        }
        Command::Assertions { rounds } => {
            println!(
                "{}",
                serde_json::to_string_pretty(&assertions::cost(rounds)?)?
            );
        }
        Command::Decisions { bindings, rounds } => {
            println!(
                "{}",
                serde_json::to_string_pretty(&decisions::cost(bindings, rounds)?)?
            );
        }
        Command::Sessions { rounds, mebibytes } => {
            let costs = sessions::cost(rounds, mebibytes).await?;
            println!("{}", serde_json::to_string_pretty(&costs)?);
        }
        Command::Origin { directory } => origin::serve(&directory).await?,
        Command::Peers {
            settings,
            versions,
            date,
            json,
            readme,
        } => {
            let (rounds, agents) = peers::all(&settings).await?;
            let comparison = table::Comparison {
                date,
                machine: machine::Machine::this(),
                versions: report::versions(&versions),
                rounds,
                agents,
            };
            if let Some(json) = json {
                fs::write(&json, serde_json::to_string_pretty(&comparison)?)
                    .with_context(|| format!("cannot write {}", json.display()))?;
            }
            if let Some(readme) = readme {
                comparison.write_into(&readme)?;
            }
            print!("{comparison}");
        }
        Command::Report {
            direct,
            gateway,
            assertions,
            decisions,
            sessions,
            versions,
            json,
        } => {
            let report = report::Report::read(
                &direct,
                &gateway,
                &assertions,
                &decisions,
                &sessions,
                &versions,
            )?;
            fs::write(&json, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("cannot write {}", json.display()))?;
            print!("{report}");
        }
    }
    Ok(())
}
