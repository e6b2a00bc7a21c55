//! `towline iam …`.

use super::{Error, context::Context};
use crate::cli::IamCommand;

mod cred_config;
mod explain;
mod mapping;
mod pools;
mod roles;

pub(super) async fn run(context: &Context, command: IamCommand) -> Result<(), Error> {
    match command {
        IamCommand::WorkloadIdentityPools(command) => pools::run(context, *command).await,
        IamCommand::Roles(command) => roles::run(context, command).await,
        IamCommand::Explain(question) => explain::run(context, *question).await,
    }
}
