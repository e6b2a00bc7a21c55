//! `towline`, which is also `kubectl towline` when it goes by the name `kubectl-towline`.

use std::{error::Error as _, ffi::OsString, io, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};
use towline::{
    cli::Cli,
    commands::{self, Error},
    output::{OutputError, remark},
};

fn main() -> ExitCode {
    // Fails only when there is one already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut command = Cli::command();
    if is_plugin(arguments.first()) {
        command = command.bin_name("kubectl towline");
    }
    let matches = command.get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // `towline memberships list | head -1` is not a failure.
        Err(Error::Output(OutputError::Write(error)))
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = format!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            remark(&text);
            ExitCode::FAILURE
        }
    }
}

fn is_plugin(name: Option<&OsString>) -> bool {
    name.map(Path::new)
        .and_then(Path::file_stem)
        .is_some_and(|stem| stem == "kubectl-towline")
}
