//! Who calls: from a bearer token to an identity.
//!
//! Threat: a token is shown where it doesn't belong, or its owner is gone.
//! Decision: a token names its audience: the whole gateway, or one membership, at which alone it is good.
//! The user is looked up on every request, so a disabled user is out at once and group changes are in.
//! Consequence: tokens stay small, whatever the number of groups.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{HeaderMap, header};
use towline_proto::names::Membership;

use crate::{
    app::Gateway,
    error::Refused,
    iam::Principal,
    login::{self, Audience},
    target::{Place, Target},
};

/// How browsers send a bearer token with a WebSocket: as a subprotocol that kube-apiserver knows too.
pub const BEARER_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Whom the gateway takes the caller to be; what a cluster's RBAC will see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// As policies name them.
    pub principal: Principal,
    /// The user name in the cluster.
    pub user: String,
    /// The groups in the cluster.
    pub groups: Vec<String>,
    /// Extra attributes in the cluster.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// An authenticated caller at the membership that the request is for.
#[derive(Debug, Clone)]
pub struct Caller {
    identity: Arc<Identity>,
    membership: Membership,
}

impl Caller {
    /// Who it is.
    pub const fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The membership that the request is for.
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }
}

/// Authenticates a request.
///
/// # Errors
/// 401 with the check that failed; 404 where neither URL nor token names a membership.
pub async fn identify(
    gateway: &Gateway,
    headers: &HeaderMap,
    target: &Target,
) -> Result<Caller, Refused> {
    let Some(token) = bearer(headers)? else {
        return Err(Refused::NoToken(gateway.config.public_url.to_string()));
    };
    let token = login::verify_access_token(gateway, &token)
        .map_err(|error| Refused::Token(error.to_string()))?;
    let membership = match (&target.place, token.audience) {
        (Place::Named(named), Audience::Gateway) => named.clone(),
        (Place::Named(named), Audience::Membership(own)) if *named == own => own,
        (Place::Named(_), Audience::Membership(own)) => return Err(Refused::Audience(own)),
        (Place::OfToken, Audience::Membership(own)) => own,
        (Place::OfToken, Audience::Gateway) => {
            return Err(Refused::NotFound(target.path.chars().take(200).collect()));
        }
    };
    let user = match gateway.store.user(&token.user).await {
        Ok(Some(user)) if !user.disabled => user,
        Ok(Some(_)) => return Err(Refused::Token(format!("user {:?} is disabled", token.user))),
        Ok(None) => {
            return Err(Refused::Token(format!(
                "user {:?} does not exist",
                token.user
            )));
        }
        Err(error) => return Err(Refused::Internal(error.to_string())),
    };
    let identity = Identity {
        principal: Principal::User(user.name.clone()),
        user: user.name,
        groups: user.groups,
        extra: BTreeMap::new(),
    };
    Ok(Caller {
        identity: Arc::new(identity),
        membership,
    })
}

/// The bearer token, from `Authorization` (RFC 6750) or a WebSocket's subprotocols.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    if let Some(value) = values.next() {
        let wrong =
            || Refused::Token("the Authorization header is not one Bearer token".to_owned());
        let value = value.to_str().map_err(|_| wrong())?;
        let (scheme, token) = value.split_once(' ').ok_or_else(wrong)?;
        if !scheme.eq_ignore_ascii_case("bearer") || values.next().is_some() {
            return Err(wrong());
        }
        return Ok(Some(token.trim().to_owned()));
    }
    let token = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(BEARER_SUBPROTOCOL));
    let Some(token) = token else { return Ok(None) };
    let wrong = || Refused::Token("the bearer subprotocol is not base64url".to_owned());
    let token = BASE64URL
        .decode(token.trim_end_matches('='))
        .map_err(|_| wrong())?;
    String::from_utf8(token).map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    #[test]
    fn a_bearer_token_comes_in_one_of_two_ways() {
        assert_eq!(bearer(&headers(&[])), Ok(None));
        assert_eq!(
            bearer(&headers(&[("authorization", "bearer abc")])),
            Ok(Some("abc".into()))
        );
        let protocols = format!(
            "v5.channel.k8s.io, {BEARER_SUBPROTOCOL}{}",
            BASE64URL.encode("abc")
        );
        assert_eq!(
            bearer(&headers(&[("sec-websocket-protocol", &protocols)])),
            Ok(Some("abc".into()))
        );
        for bad in ["Basic YTpi", "Bearer", "abc"] {
            assert!(
                bearer(&headers(&[("authorization", bad)])).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn two_authorization_headers_are_refused() {
        let mut two = HeaderMap::new();
        two.append("authorization", "Bearer a".parse().unwrap());
        two.append("authorization", "Bearer b".parse().unwrap());
        assert!(bearer(&two).is_err());
    }
}
