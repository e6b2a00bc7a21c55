//! `towline logout`.

use super::{
    Error,
    context::{Context, refused},
};
use crate::{
    api::CallError,
    gateway_url::GatewayUrl,
    http,
    oauth::{OAuth, Revoked},
    output::remark,
    progress,
    provider::Provider,
    sign_in::{RenewError, Session, SignIn},
    tokens::{Forgotten, TokensError},
};

/// Forgets a sign-in here, and ends it where it came from, and what the gateway gave for it.
pub(super) async fn logout(context: &Context) -> Result<(), Error> {
    let known = context.known()?;
    let gone = context
        .dir
        .tokens(&known.url, None)
        .forget()
        .await
        .map_err(|e: TokensError<RenewError>| CallError::Tokens(e))?;
    let Some(gone) = gone else {
        remark(&format!("Not signed in at {}.", known.url.authority()));
        return Ok(());
    };
    let http = http::client(known.settings.certificate_authority.as_deref())?;
    let oauth = OAuth::new(http, known.url.clone());
    let failures = ended(&oauth, &known.url, &gone).await;
    if !failures.is_empty() {
        // Here nothing is left of it; there it ends when it runs out.
        return Err(refused(format!(
            "signed out here, but {}; what was stored here is deleted",
            failures.join(", and ")
        )));
    }
    remark(&format!("Signed out at {}.", known.url.authority()));
    Ok(())
}

/// Tells everybody; what each that was not told said.
async fn ended(oauth: &OAuth, gateway: &GatewayUrl, gone: &Forgotten) -> Vec<String> {
    let mut failures = Vec::new();
    if let SignIn::Provider(session) = &gone.sign_in {
        let what = format!("Waiting for {}", session.issuer.issuer);
        if let Err(error) = progress::during(&what, at_provider(session)).await {
            failures.push(format!("the identity provider was not told ({error})"));
        }
    }
    let what = format!("Waiting for {}", gateway.authority());
    let tokens: Vec<Revoked<'_>> = match &gone.sign_in {
        // With it ends all that came of it.
        SignIn::Gateway { refresh_token } => vec![Revoked::RefreshToken(refresh_token)],
        SignIn::Provider(_) | SignIn::Workload(_) => gone
            .access_tokens
            .iter()
            .map(Revoked::AccessToken)
            .collect(),
    };
    for token in tokens {
        if let Err(error) = progress::during(&what, oauth.revoke(token)).await {
            failures.push(format!("the gateway was not told ({error})"));
            break;
        }
    }
    failures
}

async fn at_provider(session: &Session) -> Result<(), crate::provider::ProviderError> {
    let provider = Provider::known(session.issuer.clone(), session.endpoints.clone())?;
    provider
        .sign_out(session.refresh_token.as_ref(), &session.id_token)
        .await
}
