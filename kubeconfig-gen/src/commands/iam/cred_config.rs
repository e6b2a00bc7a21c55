//! `towline iam workload-identity-pools create-cred-config`.

use std::path::Path;

use super::super::{
    Error,
    context::{Context, refused},
    login,
};
use crate::{
    atomic,
    cli::CredConfig,
    output::remark,
    service_account::ActAs,
    workload::{Kind, Source, Workload},
};

/// Writes a credential configuration. Nobody need be signed in: it holds what is known already.
pub(super) fn run(context: &Context, args: CredConfig) -> Result<(), Error> {
    let known = context.known()?;
    let audience = login::audience(&known.url.authority(), &args.provider)?;
    let source = match (
        args.credential_source_file,
        args.credential_source_env,
        args.github_actions,
    ) {
        (Some(file), ..) => Source::File(file),
        (_, Some(variable), _) => Source::EnvironmentVariable(variable),
        (_, _, true) => Source::GithubActions {
            audience: args.audience.unwrap_or_else(|| audience.clone()),
        },
        _ => {
            return Err(refused(
                "where is the token? Give --credential-source-file, --credential-source-env or --github-actions",
            ));
        }
    };
    let account = args.service_account.as_deref().map(str::parse::<ActAs>);
    let workload = Workload {
        kind: Kind::ExternalAccount,
        gateway: known.url.to_string(),
        certificate_authority_data: known.settings.certificate_authority,
        audience,
        credential_source: source,
        service_account: account.transpose()?.map(|account| account.to_string()),
    };
    let text = serde_json::to_string_pretty(&workload)
        .map_err(|e| refused(format!("this can't be written as JSON: {e}")))?
        + "\n";
    if args.output_file == Path::new("-") {
        return Ok(context.output.text(&text)?);
    }
    atomic::write(&args.output_file, text.as_bytes())?;
    let file = args.output_file.display();
    remark(&format!(
        "Written to {file}. Next, where the workload runs: towline login --cred-file {file}"
    ));
    Ok(())
}
