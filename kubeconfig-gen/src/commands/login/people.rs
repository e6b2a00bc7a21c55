//! Signing in with one of the issuers that the gateway names.

use oauth2::StandardDeviceAuthorizationResponse;

use super::super::{
    Error,
    context::{Known, refused},
};
use crate::{
    browser,
    cli::Login,
    nearest::nearest,
    oauth::{OAuth, RefreshError, Wanted},
    output::remark,
    progress,
    provider::{Granted, Issuer, Provider, ProviderError},
    sign_in::{Session, SignIn},
    tokens::Issued,
};

/// Signs in in a browser, or on another device, and shows the gateway who it was.
pub(super) async fn sign_in(
    oauth: &OAuth,
    issuers: &[Issuer],
    known: &mut Known,
    args: &Login,
) -> Result<(SignIn, Issued), Error> {
    let issuer = chosen(
        issuers,
        args.issuer.as_deref(),
        known.settings.issuer.as_deref(),
    )?;
    let what = format!("Waiting for {}", issuer.issuer);
    let provider = progress::during(&what, Provider::discover(issuer.clone())).await?;
    let granted = if args.device {
        provider.on_device(show).await?
    } else {
        in_browser(&provider, args).await?
    };
    let session = Session::new(&provider, granted);
    if session.refresh_token.is_none() {
        remark(&format!(
            "{} gave no refresh token: you will have to sign in again soon. The gateway's operator can add the scope \
             offline_access to the issuer.",
            issuer.issuer
        ));
    }
    let resource = known.url.to_string();
    let wanted = Wanted {
        resource: Some(&resource),
        service_account: None,
    };
    let issued = oauth
        .exchange(session.subject(), wanted)
        .await
        .map_err(refused_here)?;
    known.settings.issuer = Some(issuer.name.clone());
    Ok((SignIn::Provider(Box::new(session)), issued))
}

/// Refuses flags for issuers where there are none.
pub(super) fn none_named(args: &Login, known: &Known) -> Result<(), Error> {
    let flag = match (&args.issuer, args.device) {
        (Some(_), _) => "--issuer",
        (None, true) => "--device",
        (None, false) => return Ok(()),
    };
    Err(refused(format!(
        "{} has no identity providers, only users of its own, so there is no {flag}; run: towline login {} --username NAME",
        known.url, known.url
    )))
}

fn chosen<'a>(
    issuers: &'a [Issuer],
    named: Option<&str>,
    last: Option<&str>,
) -> Result<&'a Issuer, Error> {
    let all = || {
        let names: Vec<&str> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
        names.join(", ")
    };
    let by_name = |name: &str| issuers.iter().find(|issuer| issuer.name == name);
    match (issuers, named) {
        (_, Some(name)) => by_name(name).ok_or_else(|| {
            let names = issuers.iter().map(|issuer| issuer.name.as_str());
            let hint = nearest(name, names).map_or_else(
                || format!("there is {}", all()),
                |near| format!("did you mean {near}?"),
            );
            refused(format!("the gateway has no issuer {name:?}; {hint}"))
        }),
        ([only], None) => Ok(only),
        (_, None) => last.and_then(by_name).ok_or_else(|| {
            refused(format!(
                "with which issuer? The gateway has {}; give --issuer NAME",
                all()
            ))
        }),
    }
}

async fn in_browser(provider: &Provider, args: &Login) -> Result<Granted, Error> {
    let loopback = browser::Loopback::listen().await?;
    let attempt = provider.begin(loopback.redirect().clone())?;
    browser::show(&attempt.url, !args.no_browser);
    let callback = loopback
        .answer(|callback| attempt.is_answered_by(callback))
        .await?;
    Ok(provider.finish(attempt, &callback).await?)
}

fn show(begun: &StandardDeviceAuthorizationResponse) {
    let minutes = begun.expires_in().as_secs().div_ceil(60);
    remark(&format!(
        "On any device, visit:\n\n  {}\n\nand type this code (good for {minutes} minutes):\n\n  {}\n",
        begun.verification_uri(),
        begun.user_code().secret()
    ));
    if let Some(complete) = begun.verification_uri_complete() {
        remark(&format!(
            "or visit, with the code in it:\n\n  {}\n",
            complete.secret()
        ));
    }
}

/// The provider knows the user, and the gateway doesn't take them.
fn refused_here(error: RefreshError) -> Error {
    match error {
        RefreshError::Unreachable(unreachable) => ProviderError::Unreachable(unreachable).into(),
        RefreshError::Refused {
            gateway,
            description,
            ..
        } => refused(format!("{gateway} refused the sign-in: {description}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(name: &str) -> Issuer {
        serde_json::from_value(serde_json::json!({
            "name": name, "issuer": format!("https://{name}"), "client_id": "towline",
        }))
        .unwrap()
    }

    #[test]
    fn of_several_issuers_one_has_to_be_named() {
        let both = [issuer("corp"), issuer("partners")];
        let chosen = |issuers, named, last| {
            chosen(issuers, named, last)
                .map(|issuer| issuer.name.clone())
                .map_err(|e| e.to_string())
        };
        assert_eq!(chosen(&both[..1], None, None).unwrap(), "corp");
        assert_eq!(chosen(&both, Some("partners"), None).unwrap(), "partners");
        // As the last time.
        assert_eq!(chosen(&both, None, Some("partners")).unwrap(), "partners");
        assert!(
            chosen(&both, None, None)
                .unwrap_err()
                .contains("corp, partners; give --issuer")
        );
        assert!(chosen(&both, None, Some("gone")).is_err());
        assert!(
            chosen(&both, Some("crop"), None)
                .unwrap_err()
                .contains("did you mean corp?")
        );
    }
}
