//! `towline iam …`.

use super::{Error, context::Context};
use crate::cli::IamCommand;

mod cred_config;
mod mapping;
mod pools;

pub(super) async fn run(context: &Context, command: IamCommand) -> Result<(), Error> {
    match command {
        IamCommand::WorkloadIdentityPools(command) => pools::run(context, *command).await,
    }
}
