//! The token endpoint: codes and refresh tokens for access tokens, and their end.

use std::net::IpAddr;

use aws_lc_rs::{constant_time, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{Response, StatusCode};

use super::{
    CLIENT_ID, Refusal, access_token, answer,
    authorize::random_token,
    exchange,
    form::Form,
    issuer, json,
    mint::{self, Holding, Minted, Wanted, mint},
};
use crate::{
    app::Gateway,
    authn::standing::Standing,
    request::Body,
    store::refresh::{Authorization, Lifetimes, Owner, Rotated},
};

/// How long a PKCE verifier is (RFC 7636 §4.1): a shorter one could be guessed from its challenge.
const VERIFIER: std::ops::RangeInclusive<usize> = 43..=128;

/// Answers a token request (RFC 6749 §3.2).
pub(super) async fn issue(gateway: &Gateway, client: IpAddr, form: &Form) -> Response<Body> {
    match tokens(gateway, client, form).await {
        Ok(tokens) => json(StatusCode::OK, &tokens),
        Err(refused) => {
            tracing::info!(
                %client,
                error = refused.error,
                reason = refused.description,
                "no token"
            );
            refused.into_response()
        }
    }
}

/// Ends a token, refresh or access, and with it the sign-in that it came of and all that was made of that (RFC 7009).
pub(super) async fn revoke(gateway: &Gateway, form: &Form) -> Response<Body> {
    let token = match form.required("token") {
        Ok(token) => token,
        Err(refused) => return refused.into_response(),
    };
    let sign_in = access_token(gateway, token)
        .await
        .map(|token| token.sign_in);
    let ended = match sign_in {
        Ok(Some(sign_in)) => gateway.store.revoke_sign_in(&sign_in).await,
        // Made before tokens had sign-ins.
        Ok(None) => Ok(()),
        Err(_) => gateway.store.revoke_refresh(token).await,
    };
    match ended {
        // Also for a token that nobody knows: it is worth nothing, as was asked.
        Ok(()) => answer(StatusCode::OK, "application/json", "{}".to_owned()),
        Err(error) => Refusal::failed(&error).into_response(),
    }
}

async fn tokens(
    gateway: &Gateway,
    client: IpAddr,
    form: &Form,
) -> Result<serde_json::Value, Refusal> {
    let grant = form.required("grant_type")?;
    if grant == exchange::GRANT {
        return exchange::tokens(gateway, client, form).await;
    }
    if form.required("client_id")? != CLIENT_ID {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            format!("client_id is not {CLIENT_ID:?}"),
        ));
    }
    // Everything that can be wrong is looked at before a code or token is used up.
    let wanted = Wanted::of(gateway, form)?;
    let refresh = random_token()?;
    let now = gateway.clock.unix();
    let owner = match grant {
        "authorization_code" => redeem(gateway, form, &refresh, now).await?,
        "refresh_token" => {
            if !wanted.accounts.is_empty() {
                may_act_as(gateway, form, &wanted, now).await?;
            }
            rotate(gateway, form, &refresh, now).await?
        }
        other => {
            let other: String = other.chars().take(80).collect();
            return Err(Refusal::bad(
                "unsupported_grant_type",
                format!("grant_type {other:?} is not known here"),
            ));
        }
    };
    let holding = Holding {
        standing: Standing::local(owner.user, issuer(&gateway.config)),
        family: Some(owner.family),
        until: None,
    };
    let Minted {
        token, lifetime, ..
    } = mint(gateway, holding, wanted).await?;
    Ok(serde_json::json!({
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": lifetime,
        "refresh_token": refresh,
    }))
}

/// Whether the refresh token's user may act as whom they ask for: a refusal must not cost them their sign-in.
async fn may_act_as(
    gateway: &Gateway,
    form: &Form,
    wanted: &Wanted,
    now: u64,
) -> Result<(), Refusal> {
    let token = form.required("refresh_token")?;
    let user = gateway.store.refresh_user(token, now).await;
    let Some(user) = user.map_err(|error| Refusal::failed(&error))? else {
        // What is wrong with it is said where it is used.
        return Ok(());
    };
    Standing::local(user, issuer(&gateway.config))
        .acting_as(&gateway.grounds(), wanted.accounts.clone())
        .await
        .map(drop)
        .map_err(|lost| mint::refused(&lost))
}

async fn redeem(gateway: &Gateway, form: &Form, refresh: &str, now: u64) -> Result<Owner, Refusal> {
    let (code, redirect_uri) = (form.required("code")?, form.required("redirect_uri")?);
    let verifier = form.required("code_verifier")?;
    if !VERIFIER.contains(&verifier.len()) {
        return Err(Refusal::bad(
            "invalid_grant",
            "code_verifier is not 43 to 128 characters long (RFC 7636)",
        ));
    }
    let challenge = BASE64URL.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
    let agrees = |bound: &Authorization| {
        bound.client_id == CLIENT_ID
            && bound.redirect_uri == redirect_uri
            && constant_time::verify_slices_are_equal(
                bound.challenge.as_bytes(),
                challenge.as_bytes(),
            )
            .is_ok()
    };
    let owner = gateway
        .store
        .redeem_authorization(code, refresh, lifetimes(gateway), now, agrees)
        .await;
    owner.map_err(|error| Refusal::failed(&error))?.ok_or_else(|| {
        Refusal::bad(
            "invalid_grant",
            "the code is not valid: unknown, used before, over, or for another redirect_uri or code_verifier",
        )
    })
}

async fn rotate(gateway: &Gateway, form: &Form, refresh: &str, now: u64) -> Result<Owner, Refusal> {
    let token = form.required("refresh_token")?;
    let rotated = gateway
        .store
        .rotate_refresh(token, refresh, lifetimes(gateway), now)
        .await;
    match rotated.map_err(|error| Refusal::failed(&error))? {
        Rotated::Renewed(owner) => Ok(owner),
        Rotated::Invalid => Err(Refusal::bad(
            "invalid_grant",
            "the sign-in is over; run: towline login",
        )),
        Rotated::Reused(user) => {
            tracing::warn!(
                user,
                "a refresh token came a second time: its sign-in is ended"
            );
            Err(Refusal::bad(
                "invalid_grant",
                "the sign-in is over, because an old token of it was used; run: towline login",
            ))
        }
    }
}

const fn lifetimes(gateway: &Gateway) -> Lifetimes {
    let tokens = &gateway.config.tokens;
    Lifetimes {
        token: tokens.idle.as_secs(),
        family: tokens.sign_in.as_secs(),
    }
}
