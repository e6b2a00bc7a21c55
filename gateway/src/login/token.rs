//! The token endpoint: codes and refresh tokens for access tokens, and their end.

use aws_lc_rs::{constant_time, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{Response, StatusCode};
use towline_proto::{endpoint, handshake::random_id, jws::Kind};

use super::{
    Audience, CLIENT_ID, Claims, Refusal, answer, audience, authorize::random_token, form::Form,
    issuer, json,
};
use crate::{
    app::Gateway,
    request::Body,
    store::refresh::{Authorization, Lifetimes, Rotated},
};

/// Answers a token request (RFC 6749 §3.2).
pub(super) async fn issue(gateway: &Gateway, form: &Form) -> Response<Body> {
    match tokens(gateway, form).await {
        Ok(tokens) => json(StatusCode::OK, &tokens),
        Err(refused) => {
            tracing::info!(
                error = refused.error,
                reason = refused.description,
                "no token"
            );
            refused.into_response()
        }
    }
}

/// Ends a refresh token and all that came from its sign-in (RFC 7009). Access tokens end by themselves.
pub(super) async fn revoke(gateway: &Gateway, form: &Form) -> Response<Body> {
    let token = match form.required("token") {
        Ok(token) => token,
        Err(refused) => return refused.into_response(),
    };
    match gateway.store.revoke_refresh(token).await {
        // Also for a token that nobody knows: it is worth nothing, as was asked.
        Ok(()) => answer(StatusCode::OK, "application/json", "{}".to_owned()),
        Err(error) => Refusal::failed(&error).into_response(),
    }
}

async fn tokens(gateway: &Gateway, form: &Form) -> Result<serde_json::Value, Refusal> {
    if form.required("client_id")? != CLIENT_ID {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            format!("client_id is not {CLIENT_ID:?}"),
        ));
    }
    // Everything that can be wrong is looked at before a code or token is used up.
    let audience = wanted(gateway, form)?;
    let refresh = random_token()?;
    let now = gateway.clock.unix();
    let user = match form.required("grant_type")? {
        "authorization_code" => redeem(gateway, form, &refresh, now).await?,
        "refresh_token" => rotate(gateway, form, &refresh, now).await?,
        other => {
            let other: String = other.chars().take(80).collect();
            return Err(Refusal::bad(
                "unsupported_grant_type",
                format!("grant_type {other:?} is not known here"),
            ));
        }
    };
    let known = gateway
        .store
        .user(&user)
        .await
        .map_err(|error| Refusal::failed(&error))?;
    if known.is_none_or(|user| user.disabled) {
        return Err(Refusal::bad(
            "invalid_grant",
            format!("user {user:?} is disabled"),
        ));
    }
    let lifetime = gateway.config.tokens.access.as_secs();
    let claims = Claims {
        iss: issuer(&gateway.config),
        sub: user,
        aud: match audience {
            Audience::Gateway => gateway.config.base().to_owned(),
            Audience::Membership(membership) => {
                format!("{}{}", gateway.config.base(), endpoint::path(&membership))
            }
        },
        iat: now,
        nbf: None,
        exp: now + lifetime,
        jti: random_id().map_err(|error| Refusal::failed(&error))?,
        client_id: CLIENT_ID.to_owned(),
    };
    Ok(serde_json::json!({
        "access_token": gateway.keys.signing().sign(Kind::AccessToken, &claims),
        "token_type": "Bearer",
        "expires_in": lifetime,
        "refresh_token": refresh,
    }))
}

fn wanted(gateway: &Gateway, form: &Form) -> Result<Audience, Refusal> {
    let Some(resource) = form.field("resource") else {
        return Ok(Audience::Gateway);
    };
    audience(&gateway.config, resource).ok_or_else(|| {
        Refusal::bad(
            "invalid_target",
            format!(
                "resource is neither {0} nor {0}/v1/projects/PROJECT/locations/LOCATION/memberships/MEMBERSHIP",
                gateway.config.base()
            ),
        )
    })
}

async fn redeem(
    gateway: &Gateway,
    form: &Form,
    refresh: &str,
    now: u64,
) -> Result<String, Refusal> {
    let (code, redirect_uri) = (form.required("code")?, form.required("redirect_uri")?);
    let verifier = form.required("code_verifier")?;
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
    let user = gateway
        .store
        .redeem_authorization(code, refresh, lifetimes(gateway), now, agrees)
        .await;
    user.map_err(|error| Refusal::failed(&error))?.ok_or_else(|| {
        Refusal::bad(
            "invalid_grant",
            "the code is not valid: unknown, used before, over, or for another redirect_uri or code_verifier",
        )
    })
}

async fn rotate(
    gateway: &Gateway,
    form: &Form,
    refresh: &str,
    now: u64,
) -> Result<String, Refusal> {
    let token = form.required("refresh_token")?;
    let rotated = gateway
        .store
        .rotate_refresh(token, refresh, lifetimes(gateway), now)
        .await;
    match rotated.map_err(|error| Refusal::failed(&error))? {
        Rotated::User(user) => Ok(user),
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
