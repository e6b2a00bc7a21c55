//! `towline login` and `whoami`.

use std::io::{self, IsTerminal};

use towline_proto::api::{
    ListProjectsRequest, ListProjectsResponse, WhoAmIRequest, WhoAmIResponse,
};

use super::{
    Error,
    context::{Context, Known, ask, call, list, refused},
};
use crate::{
    api::{self, Api, CallError},
    bounded, browser,
    cli::Login,
    clock,
    gateway_url::GatewayUrl,
    http::{self, Why},
    oauth::{OAuth, SignInError},
    output::remark,
    progress,
    provider::Issuer,
    settings::Gateway,
    sign_in::SignIn,
    tokens::Issued,
    trust::{Fingerprint, Shown},
};

mod local;
mod people;
mod workload;

pub(super) use workload::audience;

pub(super) async fn login(context: &Context, args: &Login) -> Result<(), Error> {
    let given = workload::configured(args)?;
    let mut known = match (&args.address, &given) {
        (Some(address), _) => by_address(context, address.parse()?)?,
        (None, Some(workload)) => by_address(context, workload.gateway.parse()?)?,
        (None, None) => context.known()?,
    };
    // Before anything is asked of a gateway that the configuration is not for.
    let workload = workload::named(args, given, &known)?;
    if let Some(workload) = workload
        .as_ref()
        .filter(|workload| workload.certificate_authority_data.is_some())
    {
        known
            .settings
            .certificate_authority
            .clone_from(&workload.certificate_authority_data);
    }
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
    let (oauth, issuers) = reach(&mut known).await?;
    let tokens = context.dir.tokens(&known.url, None);
    let (sign_in, access) = if let Some(workload) = workload {
        workload::checked(&oauth, workload).await?
    } else if args.is_local() || issuers.is_empty() {
        people::none_named(args, &known)?;
        local(&oauth, &mut known, args).await?
    } else {
        people::sign_in(&oauth, &issuers, &mut known, args).await?
    };
    tokens
        .signed_in(sign_in, Some((&api::audience(None, None), access)))
        .await
        .map_err(CallError::Tokens)?;
    let name = known.url.name();
    context.dir.set_gateway(&name, &known.settings)?;
    context.dir.set_current(Some(name))?;
    greet(context, &known).await
}

fn by_address(context: &Context, url: GatewayUrl) -> Result<Known, Error> {
    let kept = context.dir.gateway(&url.name())?;
    let settings = kept
        .filter(|kept| kept.gateway == url.to_string())
        .unwrap_or_else(|| Gateway::new(&url));
    Ok(Known { url, settings })
}

async fn local(oauth: &OAuth, known: &mut Known, args: &Login) -> Result<(SignIn, Issued), Error> {
    let (issued, refresh_token) = if args.browser {
        in_browser(oauth, args).await?
    } else {
        local::in_terminal(oauth, known, args).await?
    };
    let refresh_token =
        refresh_token.ok_or_else(|| refused(format!("{} gave no refresh token", known.url)))?;
    Ok((SignIn::Gateway { refresh_token }, issued))
}

async fn in_browser(
    oauth: &OAuth,
    args: &Login,
) -> Result<(Issued, Option<secrecy::SecretString>), Error> {
    let loopback = browser::Loopback::listen().await?;
    let attempt = oauth.begin(oauth2::RedirectUrl::from_url(loopback.redirect().clone()));
    browser::show(&attempt.url, !args.no_browser);
    let callback = loopback
        .answer(|callback| attempt.is_answered_by(callback))
        .await?;
    Ok(oauth.finish(attempt, &callback).await?)
}

/// Finds the gateway; asks about an authority that isn't known here.
async fn reach(known: &mut Known) -> Result<(OAuth, Vec<Issuer>), Error> {
    let oauth = |known: &Known| -> Result<OAuth, Error> {
        let http = http::client(known.settings.certificate_authority.as_deref())?;
        Ok(OAuth::new(http, known.url.clone()))
    };
    let what = format!("Waiting for {}", known.url.authority());
    let first = oauth(known)?;
    match progress::during(&what, first.discover()).await {
        Ok(issuers) => return Ok((first, issuers)),
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
    let issuers = progress::during(&what, second.discover()).await?;
    Ok((second, issuers))
}

async fn greet(context: &Context, known: &Known) -> Result<(), Error> {
    let api = context
        .own_api_of(known)?
        .with_tokens(context.dir.tokens(&known.url, None));
    let me: WhoAmIResponse = call(&api, "Identity/WhoAmI", &WhoAmIRequest {}).await?;
    let mut text = format!("Signed in at {} as {}", known.url.authority(), me.principal);
    if !me.roles.is_empty() {
        text.push_str(&format!(" ({})", me.roles.join(", ")));
    }
    text.push_str(".\n");
    if let Some(account) = context.act_as(known)? {
        text.push_str(&format!("Commands act as {account}, as is set.\n"));
    }
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
        if !me.uid.is_empty() {
            lines.push(("UID:", me.uid.clone()));
        }
        for (key, extra) in &me.extra {
            lines.push(("Extra:", format!("{key}: {}", or_none(&extra.values))));
        }
        if !me.delegates.is_empty() {
            lines.push(("Acted as by:", me.delegates.join(", then ")));
        }
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
