//! Signing in as one of the gateway's own users.

use std::io::{self, IsTerminal};

use secrecy::{ExposeSecret, SecretString};

use super::super::{
    Error,
    context::{Known, ask, ask_secret, refused, secret_file, secret_stdin},
};
use crate::{
    cli::Login,
    oauth::{OAuth, Proof},
    progress,
    tokens::Issued,
};

/// Signs in with a password or a one-time code, asked for in the terminal where they weren't given.
pub(super) async fn in_terminal(
    oauth: &OAuth,
    known: &mut Known,
    args: &Login,
) -> Result<(Issued, Option<SecretString>), Error> {
    let terminal = io::stdin().is_terminal();
    let username = match (&args.username, &known.settings.username) {
        (Some(name), _) => name.clone(),
        (None, kept) if terminal => {
            let question = kept.as_ref().map_or_else(
                || "Username: ".to_owned(),
                |name| format!("Username [{name}]: "),
            );
            let typed = ask(&question)?;
            if typed.is_empty() {
                kept.clone().unwrap_or_default()
            } else {
                typed
            }
        }
        (None, Some(kept)) => kept.clone(),
        (None, None) => String::new(),
    };
    if username.is_empty() {
        return Err(refused(
            "who signs in? Give --username NAME, or sign in with --browser",
        ));
    }
    let proof = proof(args, &username, terminal)?;
    let what = format!("Signing in at {}", known.url.authority());
    let issued = progress::during(&what, oauth.sign_in(&username, &proof)).await?;
    known.settings.username = Some(username);
    Ok(issued)
}

fn proof(args: &Login, username: &str, terminal: bool) -> Result<Proof, Error> {
    if let Some(code) = &args.one_time_code {
        let new_password = match &args.new_password_file {
            Some(file) => secret_file(file)?,
            None if terminal => {
                let first = ask_secret(&format!("New password for {username}: "))?;
                let second = ask_secret("The same once more: ")?;
                if first.expose_secret() != second.expose_secret() {
                    return Err(refused(
                        "the two passwords differ; nothing was changed: try again",
                    ));
                }
                first
            }
            None => {
                return Err(refused(
                    "no terminal to ask for the new password; give --new-password-file FILE",
                ));
            }
        };
        return Ok(Proof::OneTimeCode {
            code: code.trim().into(),
            new_password,
        });
    }
    Ok(Proof::Password(match &args.password_file {
        Some(file) => secret_file(file)?,
        None if args.password_stdin => secret_stdin()?,
        None if terminal => ask_secret(&format!("Password for {username}: "))?,
        None => {
            return Err(refused(
                "no terminal to ask for the password; give --password-file FILE or --password-stdin",
            ));
        }
    }))
}
