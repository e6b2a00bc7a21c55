//! `towline get-credentials`: kubeconfig entries for memberships.

use std::{collections::BTreeMap, ffi::OsStr};

use towline_proto::{
    api::{GenerateCredentialsRequest, GenerateCredentialsResponse},
    names::Membership,
};

use super::{
    Error,
    context::{Context, call, list, refused},
};
use crate::{
    api::CallError,
    cli::GetCredentials,
    kubeconfig::{Credential, EXEC_COMMAND, Entry, exec_args, files, sources::Sources},
    output::remark,
};

pub(super) async fn run(context: &Context, args: GetCredentials) -> Result<(), Error> {
    let known = context.known()?;
    let api = context.api_of(&known)?;
    let memberships = chosen(context, &api, &args).await?;
    let act_as = context.act_as(&known)?;
    let template = args.context_name.clone().unwrap_or_default();

    let mut entries: Vec<Entry> = Vec::new();
    let mut names: BTreeMap<String, &Membership> = BTreeMap::new();
    for membership in &memberships {
        let name = template.name(&known.url.name(), membership);
        if let Some(other) = names.insert(name.clone(), membership) {
            return Err(refused(format!(
                "{other} and {membership} would both be called {name:?}; \
                 put {{project}}, {{location}} or {{membership}} into --context-name"
            )));
        }
        let request = GenerateCredentialsRequest {
            project: membership.project.to_string(),
            location: membership.location.to_string(),
            name: membership.id.to_string(),
        };
        let answer: Result<GenerateCredentialsResponse, Error> =
            call(&api, "Memberships/GenerateCredentials", &request).await;
        let server = match answer {
            // Somebody else's token will be used, so that nobody need have signed in here.
            Err(Error::Call(CallError::SignedOut(_))) if args.token_file.is_some() => {
                known.url.of_membership(membership)
            }
            Ok(_) if args.server_without_path => known.url.to_string(),
            Ok(answer) => answer.server,
            // Seeing a membership in a list is less than being let in.
            Err(Error::Call(CallError::Refused(refusal)))
                if args.all && refusal.code == "permission_denied" =>
            {
                remark(&format!("Left out {membership}: {refusal}"));
                continue;
            }
            Err(error) => return Err(error),
        };
        entries.push(Entry {
            name,
            server,
            certificate_authority: known.settings.certificate_authority.clone(),
            credential: match &args.token_file {
                Some(file) => Credential::TokenFile(
                    std::path::absolute(file).unwrap_or_else(|_| file.clone()),
                ),
                None => Credential::Exec(exec_args(
                    &known.url.to_string(),
                    membership,
                    context.dir.when_given(),
                    act_as.as_ref(),
                    context.credentials().as_deref(),
                    args.end_to_end,
                )),
            },
        });
    }
    let home = std::env::home_dir();
    let sources = Sources::find(
        args.kubeconfig.as_deref(),
        args.kubeconfig_list.as_deref(),
        home.as_deref(),
    )?;
    let wanted = args.set_current || (entries.len() == 1 && !args.all && !args.no_set_current);
    let current = entries
        .first()
        .filter(|_| wanted)
        .map(|entry| entry.name.clone());
    let merged = files::merge(&sources, &entries, current.as_deref()).await?;

    if !context.output.is_for_people() {
        let text: String = entries
            .iter()
            .map(|entry| format!("{}\n", entry.name))
            .collect();
        return Ok(context.output.text(&text)?);
    }
    for entry in &entries {
        let note = if merged.current_context.as_ref() == Some(&entry.name) {
            " (current)"
        } else {
            ""
        };
        remark(&format!("Context {}{note}", entry.name));
    }
    match merged.written.as_slice() {
        [] => remark("The kubeconfig had all of it already."),
        files => {
            let files: Vec<String> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            remark(&format!("Written to {}.", files.join(" and ")));
        }
    }
    if let (Some(account), None) = (&act_as, &args.token_file) {
        remark(&format!("kubectl acts as {account} with it."));
    }
    if args.token_file.is_none() && !is_on_path(args.search_path.as_deref()) {
        remark("kubectl will not find `towline`: put it on your PATH.");
    }
    if let (None, Some(entry)) = (&current, entries.first()) {
        remark(&format!(
            "Next: kubectl --context {} get namespaces",
            entry.name
        ));
    } else {
        remark("Next: kubectl get namespaces");
    }
    Ok(())
}

async fn chosen(
    context: &Context,
    api: &crate::api::Api,
    args: &GetCredentials,
) -> Result<Vec<Membership>, Error> {
    if args.all {
        let all = list(api, context.project()?.as_ref()).await?;
        let location = args.location.location.as_ref();
        let all: Vec<Membership> = all
            .into_iter()
            .filter(|membership| location.is_none_or(|location| membership.location == *location))
            .collect();
        return if all.is_empty() {
            Err(refused(
                "there is no membership that you may see; run: towline memberships register NAME",
            ))
        } else {
            Ok(all)
        };
    }
    let mut memberships: Vec<Membership> = Vec::new();
    for name in &args.names {
        let membership = context
            .resolve(api, name, args.location.location.as_ref())
            .await?;
        if !memberships.contains(&membership) {
            memberships.push(membership);
        }
    }
    Ok(memberships)
}

fn is_on_path(path: Option<&OsStr>) -> bool {
    let file = format!("{EXEC_COMMAND}{}", std::env::consts::EXE_SUFFIX);
    path.is_some_and(|path| std::env::split_paths(path).any(|dir| dir.join(&file).is_file()))
}
