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
    iam::{Member, Principal, Which},
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
    /// The UID in the cluster.
    pub uid: Option<String>,
    /// The groups in the cluster.
    pub groups: Vec<String>,
    /// Extra attributes in the cluster.
    pub extra: BTreeMap<String, Vec<String>>,
    /// A workload's mapped attributes, for the sets of workloads that bindings name.
    pub attributes: BTreeMap<String, String>,
    /// Who acts as the principal, the one who signed in first; empty where the caller is the principal.
    pub delegates: Vec<Principal>,
    /// Who vouched for the caller: the gateway's own issuer or another's URL.
    pub issuer: String,
}

impl Identity {
    /// One of the gateway's own users.
    pub fn user(name: String, groups: Vec<String>) -> Self {
        Self {
            principal: Principal::User(name.clone()),
            user: name,
            uid: None,
            groups,
            extra: BTreeMap::new(),
            attributes: BTreeMap::new(),
            delegates: Vec::new(),
            issuer: String::new(),
        }
    }

    /// Whether a binding that names `member` means this caller.
    pub fn is(&self, member: &Member) -> bool {
        match (member, &self.principal) {
            (Member::Principal(member), own) => member == own,
            // Only people have groups that bindings may name by themselves: another kind's could have the same name.
            (Member::Group(group), Principal::User(_)) => self.groups.contains(group),
            (Member::Set { pool, which }, Principal::Workload(own)) => {
                *pool == own.pool
                    && match which {
                        Which::All => true,
                        Which::Group(_) => self.groups.contains(&member.to_string()),
                        Which::Attribute { name, value } => {
                            self.attributes.get(name) == Some(value)
                        }
                    }
            }
            (Member::Group(_) | Member::Set { .. }, _) => false,
        }
    }
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
    let identity = of_token(gateway, &token.user).await?;
    Ok(Caller {
        identity: Arc::new(identity),
        membership,
    })
}

/// Whom a verified token speaks for, as things are now.
///
/// # Errors
/// 401 where they are gone or disabled.
pub(crate) async fn of_token(gateway: &Gateway, user: &str) -> Result<Identity, Refused> {
    match gateway.store.user(user).await {
        Ok(Some(user)) if !user.disabled => Ok(Identity {
            issuer: login::issuer(&gateway.config),
            ..Identity::user(user.name, user.groups)
        }),
        Ok(Some(_)) => Err(Refused::Token(format!("user {user:?} is disabled"))),
        Ok(None) => Err(Refused::Token(format!("user {user:?} does not exist"))),
        Err(error) => Err(Refused::Internal(error.to_string())),
    }
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
    fn a_member_means_its_own_kind_alone() {
        let pool = "projects/p/locations/global/workloadIdentityPools/ci";
        let member = |text: &str| text.parse::<Member>().unwrap();
        let alice = Identity::user("alice".into(), vec!["ops".into()]);
        assert!(alice.is(&member("user:alice")) && alice.is(&member("group:ops")));
        assert!(!alice.is(&member("user:bob")) && !alice.is(&member("group:dev")));
        assert!(!alice.is(&member(&format!("principalSet://{pool}/*"))));

        let set = format!("principalSet://{pool}/group/ops");
        let job = Identity {
            principal: format!("principal://{pool}/subject/job").parse().unwrap(),
            groups: vec![set.clone(), "ops".into()],
            attributes: BTreeMap::from([("repository".into(), "org/app".into())]),
            ..Identity::user("job".into(), Vec::new())
        };
        let all = format!("principalSet://{pool}/*");
        let ours = format!("principalSet://{pool}/attribute.repository/org/app");
        for text in [&set, &all, &ours] {
            assert!(job.is(&member(text)), "{text}");
        }
        let theirs = format!("principalSet://{pool}/attribute.repository/org/other");
        let elsewhere = all.replace("/p/", "/q/");
        for text in [theirs.as_str(), &elsewhere, "group:ops", "user:job"] {
            assert!(!job.is(&member(text)), "{text}");
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
