//! Token exchange (RFC 8693): an access token of this gateway for another token.
//!
//! | `subject_token_type` | whose |
//! | --- | --- |
//! | `…:id_token` | a person's, by an issuer in `authentication_config` |
//! | `…:jwt` | a workload's; `audience` names the workload identity provider |
//! | `…:access_token` | this gateway's own, for one membership alone or to act as a service account |
//!
//! Threat: whoever may exchange anything for anything turns a small right into a large one, or guesses without end.
//! Decision: every kind has a verifier of its own, and what it found goes to `mint` as what the caller holds. Failed
//! exchanges are counted by address; the answer names the check that failed and nothing that the caller didn't send.

use std::net::IpAddr;

use http::StatusCode;
use towline_proto::end_to_end::Possession;

use super::{
    Audience, CLIENT_ID, Refusal, access_token,
    form::Form,
    mint::{Holding, Minted, Wanted, mint},
    token_endpoint,
};
use crate::{
    app::Gateway,
    authn::{
        self, people,
        standing::Standing,
        workload::{self, Provider},
    },
    error::Refused,
};

/// The grant type.
pub(super) const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Answers an exchange.
pub(super) async fn tokens(
    gateway: &Gateway,
    client: IpAddr,
    form: &Form,
) -> Result<serde_json::Value, Refusal> {
    gateway.login.attempts.may_exchange(client)?;
    let Minted {
        token,
        lifetime,
        principal,
    } = match exchange(gateway, form).await {
        Ok(minted) => minted,
        Err(refused) => {
            // Not what the gateway itself failed at.
            if refused.status.is_client_error() {
                gateway.login.attempts.failed_exchange(client);
            }
            return Err(refused);
        }
    };
    tracing::info!(%client, %principal, "token exchanged");
    Ok(serde_json::json!({
        "access_token": token,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": lifetime,
    }))
}

async fn exchange(gateway: &Gateway, form: &Form) -> Result<Minted, Refusal> {
    // A public client: its name tells nothing, but another's is a mistake.
    if form.field("client_id").is_some_and(|id| id != CLIENT_ID) {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            format!("client_id is not {CLIENT_ID:?}; leave it out"),
        ));
    }
    if form
        .field("requested_token_type")
        .is_some_and(|kind| kind != ACCESS_TOKEN)
    {
        return Err(Refusal::bad(
            "invalid_request",
            format!("requested_token_type is not {ACCESS_TOKEN}"),
        ));
    }
    if form.field("actor_token").is_some() {
        return Err(Refusal::bad(
            "invalid_request",
            "actor_token is not taken; whom to act as is named by impersonate_service_account",
        ));
    }
    let wanted = Wanted::of(gateway, form)?;
    let token = form.required("subject_token")?;
    let holding = match form.required("subject_token_type")? {
        ACCESS_TOKEN => own(gateway, token, &wanted).await?,
        ID_TOKEN if form.field("audience").is_none() => person(gateway, token, form).await?,
        ID_TOKEN | JWT => workload(gateway, token, form).await?,
        other => {
            let other: String = other.chars().take(80).collect();
            return Err(Refusal::bad(
                "invalid_request",
                format!(
                    "subject_token_type {other:?} is none of {ID_TOKEN}, {JWT}, {ACCESS_TOKEN}"
                ),
            ));
        }
    };
    gateway
        .login
        .attempts
        .exchanges(&holding.standing.base.principal())?;
    mint(gateway, holding, wanted).await
}

/// A person's ID token; in `possession` that of the key which its nonce commits to, where it does.
async fn person(gateway: &Gateway, token: &str, form: &Form) -> Result<Holding, Refusal> {
    let Gateway { people, clock, .. } = gateway;
    let possession = form.field("possession").map(str::parse::<Possession>);
    let possession = possession
        .transpose()
        .map_err(|wrong| Refusal::bad("invalid_request", format!("possession: {wrong}")))?;
    let audience = token_endpoint(&gateway.config);
    let found = people.authenticate(token, possession.as_ref(), &audience, clock);
    match found.await {
        Ok(found) => Ok(vouched(found)),
        Err(people::Refused::Token(refused)) if refused.is_unavailable() => {
            Err(Refusal::unavailable(refused.to_string()))
        }
        Err(refused) => Err(invalid(&refused)),
    }
}

/// A workload's token, for the provider that `audience` names.
async fn workload(gateway: &Gateway, token: &str, form: &Form) -> Result<Holding, Refusal> {
    let Gateway { config, clock, .. } = gateway;
    let audience = form.required("audience")?;
    let provider = Provider::of_resource(config, audience).ok_or_else(|| {
        let asked: String = audience.chars().take(200).collect();
        Refusal::bad(
            "invalid_target",
            format!(
                "audience {asked:?} is not //{}/projects/PROJECT/locations/global/workloadIdentityPools/POOL/providers/PROVIDER",
                config.base().trim_start_matches("https://")
            ),
        )
    })?;
    let row = gateway.store.provider(&provider).await;
    let found = match row.map_err(|error| Refusal::failed(&error))? {
        Some(row) => {
            gateway
                .workloads
                .authenticate(config, clock, &row, token)
                .await
        }
        None => Err(workload::Refused::NoProvider(provider)),
    };
    match found {
        Ok(found) => Ok(vouched(found)),
        Err(workload::Refused::Token(refused)) if refused.is_unavailable() => {
            Err(Refusal::unavailable(refused.to_string()))
        }
        Err(refused) => Err(invalid(&refused)),
    }
}

/// Another issuer's word for somebody, until then.
fn vouched((standing, expires): (Standing, u64)) -> Holding {
    Holding {
        standing,
        family: None,
        until: Some(expires),
    }
}

fn invalid(reason: &dyn std::fmt::Display) -> Refusal {
    Refusal::bad(
        "invalid_grant",
        format!("the subject_token is refused: {reason}"),
    )
}

/// An access token of this gateway: the new one is for no more than what the old one is for, and ends no later.
async fn own(gateway: &Gateway, token: &str, wanted: &Wanted) -> Result<Holding, Refusal> {
    let token = access_token(gateway, token).await;
    let token = token.map_err(|error| invalid(&error))?;
    if let Audience::Membership(own) = &token.audience
        && wanted.audience != token.audience
    {
        return Err(Refusal::bad(
            "invalid_target",
            format!("the subject_token is good for {own} only; name it in resource"),
        ));
    }
    let (standing, family) =
        authn::standing(gateway, &token)
            .await
            .map_err(|refused| match refused {
                Refused::Internal(reason) => Refusal::unavailable(reason),
                Refused::Away => Refusal::unavailable(refused.to_string()),
                refused => invalid(&refused),
            })?;
    Ok(Holding {
        standing,
        family,
        until: Some(token.expires),
    })
}
