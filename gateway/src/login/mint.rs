//! Access tokens: made here, whatever they were asked for with.
//!
//! Threat: a token of little worth is exchanged for one of more: for another audience, for longer, for somebody else.
//! Decision: whoever asks says what they hold ([`Holding`]); the new token is never good for more of anything but
//! what policies give: an audience within the old one, an end no later than the old one's, and service accounts that
//! each link may act as.

use towline_proto::{endpoint, handshake::random_id, jws::Kind};

use super::{Audience, CLIENT_ID, Claims, Refusal, audience, form::Form, issuer};
use crate::{
    app::Gateway,
    audit,
    authn::standing::{Lost, Standing},
    iam::{Principal, ServiceAccount},
    store::sign_ins::{SignIn, SignInError},
};
use http::StatusCode;

/// What an access token is asked for with, verified.
#[derive(Debug)]
pub(super) struct Holding {
    /// Who it is.
    pub(super) standing: Standing,
    /// All that was made of the same sign-in; a new one when `None`.
    pub(super) family: Option<String>,
    /// When what they hold ends, in Unix seconds: no token of this exchange is good for longer.
    pub(super) until: Option<u64>,
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    /// `resource`.
    pub(super) audience: Audience,
    /// `impersonate_service_account`.
    pub(super) accounts: Vec<ServiceAccount>,
}

/// An access token, and for how many seconds it is good.
#[derive(Debug)]
pub(super) struct Minted {
    pub(super) token: String,
    pub(super) lifetime: u64,
    /// Whom the token speaks for.
    pub(super) principal: Principal,
}

impl Wanted {
    /// What a form asks for.
    pub(super) fn of(gateway: &Gateway, form: &Form) -> Result<Self, Refusal> {
        Ok(Self {
            audience: match form.field("resource") {
                None => Audience::Gateway,
                Some(resource) => {
                    audience(&gateway.config, resource).ok_or_else(|| target(gateway))?
                }
            },
            accounts: match form.field("impersonate_service_account") {
                None => Vec::new(),
                Some(accounts) => accounts
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<_, _>>()
                    .map_err(|_| {
                        let accounts: String = accounts.chars().take(200).collect();
                        Refusal::bad(
                            "invalid_request",
                            format!(
                                "impersonate_service_account {accounts:?} is neither NAME@PROJECT nor a list of them \
                                 with commas, the one to act as last"
                            ),
                        )
                    })?,
            },
        })
    }
}

fn target(gateway: &Gateway) -> Refusal {
    Refusal::bad(
        "invalid_target",
        format!(
            "resource is neither {0} nor {0}/v1/projects/PROJECT/locations/LOCATION/memberships/MEMBERSHIP",
            gateway.config.base()
        ),
    )
}

/// Makes an access token; decides anew whether the standing holds, link by link.
pub(super) async fn mint(
    gateway: &Gateway,
    holding: Holding,
    wanted: Wanted,
) -> Result<Minted, Refusal> {
    let Holding {
        standing,
        family,
        until,
    } = holding;
    let standing = standing
        .acting_as(&gateway.grounds(), wanted.accounts)
        .await
        .map_err(|lost| refused(&lost))?;
    let principal = standing.principal();
    audit::current(|record| record.signed_in(&principal));
    let now = gateway.clock.unix();
    let lifetime = gateway.config.tokens.access.as_secs();
    let expires = until.map_or(now + lifetime, |until| until.min(now + lifetime));
    let id = || random_id().map_err(|error| Refusal::failed(&error));
    let sub = match standing.own_user() {
        Some(name) => name.to_owned(),
        None => principal.to_string(),
    };
    // Every token has its row, so that every token can be ended before its time.
    let sid = id()?;
    let sign_in = SignIn {
        family: family.unwrap_or_else(|| sid.clone()),
        id: sid.clone(),
        standing,
        revoked: false,
        expires,
    };
    let kept = gateway.store.add_sign_in(&sign_in, now).await;
    kept.map_err(|error| match error {
        SignInError::Store(error) => Refusal::failed(&error),
        long @ SignInError::TooLong { .. } => Refusal::bad("invalid_grant", long.to_string()),
    })?;
    let claims = Claims {
        iss: issuer(&gateway.config),
        sub,
        aud: match wanted.audience {
            Audience::Gateway => gateway.config.base().to_owned(),
            Audience::Membership(membership) => {
                format!("{}{}", gateway.config.base(), endpoint::path(&membership))
            }
        },
        iat: now,
        nbf: None,
        exp: expires,
        jti: id()?,
        client_id: CLIENT_ID.to_owned(),
        sid: Some(sid),
    };
    Ok(Minted {
        token: gateway.keys.signing().sign(Kind::AccessToken, &claims),
        lifetime: expires.saturating_sub(now),
        principal,
    })
}

/// Why a standing doesn't hold, as OAuth says it.
pub(super) fn refused(lost: &Lost) -> Refusal {
    let text = lost.to_string();
    match lost {
        Lost::Store(error) => Refusal::failed(error),
        Lost::Disabled(_)
        | Lost::Unknown(_)
        | Lost::Taken(..)
        | Lost::Issuer(_)
        | Lost::Provider(..)
        | Lost::Revoked(_) => Refusal::bad("invalid_grant", text),
        Lost::TooLong(_) => Refusal::bad("invalid_request", text),
        Lost::Link { .. } | Lost::NoAccount(_) | Lost::AccountDisabled(_) => {
            Refusal::new(StatusCode::FORBIDDEN, "access_denied", text)
        }
    }
}
