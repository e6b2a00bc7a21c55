//! `towline login`, `logout` and `whoami`.

use std::io::{self, IsTerminal};

use secrecy::ExposeSecret;
use towline_proto::api::{
    ListProjectsRequest, ListProjectsResponse, WhoAmIRequest, WhoAmIResponse,
};

use super::{
    Error,
    context::{Context, Known, ask, ask_secret, call, list, refused, secret_file, secret_stdin},
};
use crate::{
    api::{self, Api, CallError},
    bounded, browser,
    cli::Login,
    clock,
    gateway_url::GatewayUrl,
    http::{self, Why},
    oauth::{OAuth, Proof, RefreshError, SignInError},
    output::remark,
    progress,
    settings::Gateway,
    tokens::{Issued, TokensError},
    trust::{Fingerprint, Shown},
};

pub(super) async fn login(context: &Context, args: &Login) -> Result<(), Error> {
    let mut known = match &args.address {
        Some(address) => {
            let url: GatewayUrl = address.parse()?;
            let kept = context.dir.gateway(&url.name())?;
            let settings = kept
                .filter(|kept| kept.gateway == url.to_string())
                .unwrap_or_else(|| Gateway {
                    gateway: url.to_string(),
                    certificate_authority: None,
                    username: None,
                    project: None,
                });
            Known { url, settings }
        }
        None => context.known()?,
    };
    if let Some(file) = &args.certificate_authority {
        let pem = bounded::read_to_string(file)
            .map_err(|e| Error::Read(file.display().to_string(), e))?;
        known.settings.certificate_authority = Some(pem);
    }
    if let Some(fingerprint) = &args.ca_fingerprint {
        let fingerprint: Fingerprint = fingerprint.parse()?;
        let pem = Shown::by(&known.url).await?.with_fingerprint(fingerprint)?;
        known.settings.certificate_authority = Some(pem);
    }
    let oauth = reach(&mut known).await?;
    let issued = if args.browser {
        browser::sign_in(&oauth).await?
    } else {
        in_terminal(&oauth, &mut known, args).await?
    };
    context
        .tokens(&known.url)
        .signed_in(&api::audience(None), issued)
        .await
        .map_err(|e: TokensError<RefreshError>| CallError::Tokens(e))?;
    let name = known.url.name();
    context.dir.set_gateway(&name, &known.settings)?;
    context.dir.set_current(Some(name))?;
    greet(context, &known).await
}

/// Finds the gateway; asks about an authority that isn't known here.
async fn reach(known: &mut Known) -> Result<OAuth, Error> {
    let oauth = |known: &Known| -> Result<OAuth, Error> {
        let http = http::client(known.settings.certificate_authority.as_deref())?;
        Ok(OAuth::new(http, known.url.clone()))
    };
    let what = format!("Waiting for {}", known.url.authority());
    let first = oauth(known)?;
    match progress::during(&what, first.discover()).await {
        Ok(()) => return Ok(first),
        Err(SignInError::Unreachable(error)) if error.why() == Why::UnknownAuthority => {}
        Err(error) => return Err(error.into()),
    }
    let gateway = &known.url;
    let changed = match known.settings.certificate_authority {
        Some(_) => " (it is not the one that was trusted before)",
        None => "",
    };
    let Some((fingerprint, pem)) = Shown::by(gateway).await?.authority() else {
        return Err(refused(format!(
            "the certificate of {gateway} is signed by an authority that is not known here{changed}, and it does not \
             show that authority; get its certificate from the gateway's operator and run: \
             towline login {gateway} --certificate-authority FILE"
        )));
    };
    if !io::stdin().is_terminal() {
        return Err(refused(format!(
            "the certificate of {gateway} is signed by an authority that is not known here{changed}, \
             with the SHA-256 fingerprint\n  {fingerprint}\n\
             compare it with the gateway's operator, then run: towline login {gateway} --ca-fingerprint {fingerprint}\n\
             or, with the authority's certificate: towline login {gateway} --certificate-authority FILE"
        )));
    }
    remark(&format!(
        "The certificate of {gateway} is signed by an authority that is not known here{changed}.\n\
         SHA-256 fingerprint of the authority:\n  {fingerprint}\n\
         Compare it with what the gateway's operator tells you (`towline-gateway init` prints it)."
    ));
    let answer = ask("Trust it for this gateway? [y/N] ")?;
    if !matches!(answer.to_lowercase().as_str(), "y" | "yes") {
        return Err(refused("not signed in"));
    }
    known.settings.certificate_authority = Some(pem);
    let second = oauth(known)?;
    progress::during(&what, second.discover()).await?;
    Ok(second)
}

async fn in_terminal(oauth: &OAuth, known: &mut Known, args: &Login) -> Result<Issued, Error> {
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

async fn greet(context: &Context, known: &Known) -> Result<(), Error> {
    let api = context.api_of(known)?;
    let me: WhoAmIResponse = call(&api, "Identity/WhoAmI", &WhoAmIRequest {}).await?;
    let mut text = format!("Signed in at {} as {}", known.url.authority(), me.principal);
    if !me.roles.is_empty() {
        text.push_str(&format!(" ({})", me.roles.join(", ")));
    }
    text.push_str(".\n");
    text.push_str(&next(&api, &me).await);
    remark(&text);
    Ok(())
}

/// What to type next; a hint is not worth failing for.
async fn next(api: &Api, me: &WhoAmIResponse) -> String {
    let clusters = list(api, None).await.unwrap_or_default();
    match clusters.as_slice() {
        [only] => return format!("Next: towline get-credentials {}", only.id),
        [_, _, ..] => {
            let count = clusters.len();
            return format!(
                "Next: towline memberships list ({count} clusters), then: towline get-credentials NAME"
            );
        }
        [] => {}
    }
    let projects: Result<ListProjectsResponse, Error> =
        call(api, "Projects/List", &ListProjectsRequest {}).await;
    let has_project = projects.is_ok_and(|list| !list.projects.is_empty());
    let is_operator = me.roles.iter().any(|role| role == "gatewayOperator");
    match (has_project, is_operator) {
        (true, _) => "Next: towline memberships register NAME".to_owned(),
        (false, true) => {
            "Next: towline projects create NAME, then: towline memberships register NAME".to_owned()
        }
        (false, false) => {
            "There is nothing that you may see yet: ask the owner of a project for a role."
                .to_owned()
        }
    }
}

pub(super) async fn logout(context: &Context) -> Result<(), Error> {
    let known = context.known()?;
    let tokens = context.tokens(&known.url);
    let gone = tokens
        .forget()
        .await
        .map_err(|e: TokensError<RefreshError>| CallError::Tokens(e))?;
    let Some(refresh_token) = gone else {
        remark(&format!("Not signed in at {}.", known.url.authority()));
        return Ok(());
    };
    let http = http::client(known.settings.certificate_authority.as_deref())?;
    let oauth = OAuth::new(http, known.url.clone());
    let what = format!("Waiting for {}", known.url.authority());
    if let Err(error) = progress::during(&what, oauth.revoke(refresh_token)).await {
        // Here nothing is left of it; there it ends when it runs out.
        return Err(refused(format!(
            "signed out here, but the gateway was not told ({error}); what was stored here is deleted"
        )));
    }
    remark(&format!("Signed out at {}.", known.url.authority()));
    Ok(())
}

pub(super) async fn whoami(context: &Context) -> Result<(), Error> {
    let api = context.api()?;
    let me: WhoAmIResponse = call(&api, "Identity/WhoAmI", &WhoAmIRequest {}).await?;
    let text = || {
        let mut lines = vec![
            ("Principal:", me.principal.clone()),
            ("Gateway:", api.gateway().to_string()),
            ("Username:", me.username.clone()),
            ("Groups:", or_none(&me.groups)),
            ("Roles:", or_none(&me.roles)),
            ("Issuer:", me.issuer.clone()),
        ];
        if let Some(expires) = &me.expires {
            let left = u64::try_from(expires.seconds)
                .unwrap_or(0)
                .saturating_sub(clock::unix_now());
            lines.push((
                "Token ends in:",
                format!("{} (renewed by itself)", clock::age(left)),
            ));
        }
        lines
            .into_iter()
            .map(|(title, value)| format!("{title:<15}{value}\n"))
            .collect()
    };
    Ok(context.output.one(&me, &me.principal, text)?)
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() {
        "<none>".to_owned()
    } else {
        names.join(", ")
    }
}
