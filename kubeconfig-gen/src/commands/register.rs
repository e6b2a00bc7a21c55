//! `towline memberships register`: the membership, and what its agent needs.

use std::path::Path;

use towline_proto::{
    api::{RegisterRequest, RegisterResponse},
    names::Location,
};

use super::{
    Error,
    context::{Context, call, refused},
};
use crate::{
    api::CallError,
    atomic, bounded,
    cli::Register,
    clock,
    manifest::{self, Agent},
    output::remark,
};

pub(super) async fn run(context: &Context, args: Register) -> Result<(), Error> {
    // What can be refused is refused before there is a token.
    let target = args.manifest.as_deref().unwrap_or(&args.output_file);
    let to_stdout = target == Path::new("-");
    if !to_stdout && !args.force && target.exists() {
        return Err(refused(format!(
            "{} is there already; give --force to replace it, or another file with {}",
            target.display(),
            if args.manifest.is_some() {
                "--manifest FILE"
            } else {
                "--output-file FILE"
            }
        )));
    }
    manifest::check(&args.impersonate).map_err(|e| refused(e.to_string()))?;
    let issuers = args.end_to_end.as_deref().map(issuers).transpose()?;
    let api = context.api()?;
    let project = context.project_or_only(&api).await?;
    let location = args.location.clone().unwrap_or_else(Location::global);
    let request = RegisterRequest {
        project: project.to_string(),
        location: location.to_string(),
        name: args.name.to_string(),
        renew: args.renew,
        labels: args.labels.iter().cloned().collect(),
    };
    let answer: Result<RegisterResponse, Error> =
        call(&api, "Memberships/Register", &request).await;
    let answer = answer.map_err(|error| match error {
        Error::Call(CallError::Refused(refusal)) if refusal.code == "already_exists" => {
            refused(format!(
                "{refusal}; choose another name, or add --renew if its agent is to be set up anew"
            ))
        }
        other => other,
    })?;
    let name = format!(
        "projects/{project}/locations/{location}/memberships/{}",
        args.name
    );

    let mut text = answer.registration.clone();
    if args.manifest.is_some() {
        let agent = Agent {
            registration: &answer.registration,
            image: &args.image,
            namespace: args.namespace.as_str(),
            impersonate: &args.impersonate,
            issuers: issuers.as_deref(),
        };
        text = manifest::render(&agent).map_err(|e| refused(e.to_string()))?;
    }
    if to_stdout {
        context.output.text(&text)?;
    } else {
        atomic::write(target, text.as_bytes()).inspect_err(|_| {
            remark(&format!(
                "{name} is registered, but its token is lost: mend what is below, then add --renew."
            ));
        })?;
    }
    let left = answer.expires.map_or_else(String::new, |expires| {
        let left = u64::try_from(expires.seconds)
            .unwrap_or(0)
            .saturating_sub(clock::unix_now());
        format!(", good for {} and for one agent", clock::age(left))
    });
    let file = target.display();
    remark(&format!(
        "{} {name}.",
        if args.renew {
            "Made a new registration token for"
        } else {
            "Registered"
        }
    ));
    if !to_stdout {
        remark(&format!(
            "{file} holds its registration token{left}: keep it to yourself."
        ));
    }
    if args.manifest.is_some() {
        if let Some(warning) = manifest::meaning(&args.impersonate) {
            remark(warning);
        }
        if !to_stdout {
            remark(&format!("Next, on the cluster: kubectl apply -f {file}"));
        }
    } else {
        remark(&format!(
            "Next, where the cluster's API server can be reached: towline-agent run --registration {file}"
        ));
    }
    let proving = if issuers.is_some() {
        " --end-to-end"
    } else {
        ""
    };
    remark(&format!(
        "Then here: towline get-credentials {}{proving}",
        args.name
    ));
    Ok(())
}

/// The file with the identity providers for the agent.
fn issuers(file: &Path) -> Result<String, Error> {
    let text =
        bounded::read_to_string(file).map_err(|e| Error::Read(file.display().to_string(), e))?;
    manifest::check_issuers(&text)
        .map_err(|e| refused(format!("--end-to-end {}: {e}", file.display())))?;
    Ok(text)
}
