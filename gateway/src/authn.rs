//! Who calls: from a bearer token to an identity.
//!
//! Threat: a token is shown where it doesn't belong, or its owner is gone.
//! Decision: a token names its audience: the whole gateway, or one membership, at which alone it is good.
//! Whom it speaks for is looked up on every request (`standing`), so a disabled user is out at once and group
//! changes are in.
//! Consequence: tokens stay small, whatever the number of groups.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use http::{HeaderMap, header};
use towline_proto::{
    end_to_end::{Proof, SEPARATOR},
    names::{Membership, Project},
};

use crate::{
    app::Gateway,
    error::{Refused, who},
    iam::{Member, Principal, Which},
    login::{self, AccessToken, Audience},
    target::{Place, Target},
};

use standing::{Grounds, Lost, Standing};

pub mod people;
pub mod standing;
pub mod workload;

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
    session: Arc<Session>,
    membership: Membership,
}

/// What a verified token stands for.
#[derive(Debug)]
pub(crate) struct Session {
    /// The row of the sign-in, where there is one.
    id: Option<String>,
    standing: Standing,
    grounds: Grounds,
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

    /// Who the caller is as things are now, and whether that rests on a condition on the time; `None` where the store
    /// can't tell. A token that only ended takes nothing from a stream that began with it.
    ///
    /// # Errors
    /// Why the caller isn't who they were.
    pub(crate) async fn now(&self) -> Result<Option<(Arc<Identity>, bool)>, String> {
        let Session {
            id,
            standing,
            grounds,
        } = &*self.session;
        let signed_out = match id {
            Some(id) => {
                let sign_in = grounds.store.sign_in(id).await;
                sign_in.map(|sign_in| sign_in.is_some_and(|sign_in| sign_in.revoked))
            }
            None => Ok(false),
        };
        match standing.now(grounds).await {
            // Whoever was shut out is told that, and not that their sign-ins ended with it.
            Err(lost) if !matches!(lost, Lost::Store(_)) => Err(lost.to_string()),
            _ if matches!(signed_out, Ok(true)) => {
                Err(format!("{} signed out", who(&standing.base.principal())))
            }
            Ok((identity, timed)) if signed_out.is_ok() => Ok(Some((Arc::new(identity), timed))),
            _ => Ok(None),
        }
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
    let (membership, (session, identity)) = match login::access_token(gateway, &token).await {
        Ok(token) => (
            membership(target, &token.audience)?,
            of_token(gateway, &token).await?,
        ),
        Err(error) => match &target.place {
            Place::Named(named) if error.is_anothers() => {
                let direct = direct(gateway, &named.project, &token).await?;
                let standing = direct.ok_or_else(|| Refused::Token(error.to_string()))?;
                (named.clone(), session(gateway, None, standing).await?)
            }
            _ => return Err(Refused::Token(error.to_string())),
        },
    };
    Ok(Caller {
        identity: Arc::new(identity),
        session: Arc::new(session),
        membership,
    })
}

/// The membership that a request is for: the URL's, or that of a token for one alone.
fn membership(target: &Target, audience: &Audience) -> Result<Membership, Refused> {
    match (&target.place, audience) {
        (Place::Named(named), Audience::Gateway) => Ok(named.clone()),
        (Place::Named(named), Audience::Membership(own)) if named == own => Ok(own.clone()),
        (Place::Named(_), Audience::Membership(own)) => Err(Refused::Audience(own.clone())),
        (Place::OfToken, Audience::Membership(own)) => Ok(own.clone()),
        (Place::OfToken, Audience::Gateway) => {
            Err(Refused::NotFound(target.path.chars().take(200).collect()))
        }
    }
}

/// Whom a workload's own token names that came as the bearer token; `None` where no provider takes any. Only providers
/// of the URL's project are asked.
///
/// # Errors
/// 401 with the check that failed.
async fn direct(
    gateway: &Gateway,
    project: &Project,
    token: &str,
) -> Result<Option<Standing>, Refused> {
    let Gateway { config, clock, .. } = gateway;
    let Ok(issuer) = towline_oidc::unverified_issuer(token) else {
        return Ok(None);
    };
    let providers = gateway.store.providers(project).await;
    let mut candidates = providers?.to_vec();
    candidates.retain(|row| row.settings.direct && !row.disabled && !row.pool_disabled);
    if candidates.is_empty() {
        return Ok(None);
    }
    let mut refused = workload::Refused::NoDirect {
        issuer: issuer.chars().take(200).collect(),
    };
    for row in candidates
        .iter()
        .filter(|row| row.settings.issuer == issuer)
    {
        match gateway
            .workloads
            .authenticate(config, clock, row, token)
            .await
        {
            Ok((standing, _)) => return Ok(Some(standing)),
            // Of several the one whose audience fits has the word.
            Err(other) if !refused.is_audience() && !refused.is_no_direct() => drop(other),
            Err(other) => refused = other,
        }
    }
    Err(Refused::Token(refused.to_string()))
}

/// Whom a verified token speaks for, as things are now.
///
/// # Errors
/// 401 where they are gone or disabled, or may no longer act as whom they act as.
pub(crate) async fn of_token(
    gateway: &Gateway,
    token: &AccessToken,
) -> Result<(Session, Identity), Refused> {
    let (standing, _) = standing(gateway, token).await?;
    session(gateway, token.sign_in.clone(), standing).await
}

/// The caller that a standing makes, as things are now.
///
/// # Errors
/// 401 where it doesn't hold.
pub(crate) async fn session(
    gateway: &Gateway,
    id: Option<String>,
    standing: Standing,
) -> Result<(Session, Identity), Refused> {
    let grounds = gateway.grounds();
    match standing.identity(&grounds).await {
        Ok(identity) => Ok((
            Session {
                id,
                standing,
                grounds,
            },
            identity,
        )),
        Err(Lost::Store(error)) => Err(error.into()),
        Err(lost) => Err(Refused::Token(lost.to_string())),
    }
}

/// What a verified token stands for, and the family of its sign-in.
///
/// # Errors
/// 401 where its sign-in is over.
pub(crate) async fn standing(
    gateway: &Gateway,
    token: &AccessToken,
) -> Result<(Standing, Option<String>), Refused> {
    let Some(id) = &token.sign_in else {
        let issuer = login::issuer(&gateway.config);
        return Ok((Standing::local(token.subject.clone(), issuer), None));
    };
    let sign_in = gateway.store.sign_in(id).await;
    match sign_in? {
        Some(sign_in) if !sign_in.revoked => {
            Ok((sign_in.standing.clone(), Some(sign_in.family.clone())))
        }
        // Whoever was shut out is told that, and not that their sign-ins ended with it.
        Some(sign_in)
            if let Err(lost) = sign_in.standing.now(&gateway.grounds()).await
                && !matches!(lost, Lost::Store(_)) =>
        {
            Err(Refused::Token(lost.to_string()))
        }
        _ => Err(Refused::Token(
            "its sign-in was ended; run: towline login".to_owned(),
        )),
    }
}

/// The bearer token, from `Authorization` (RFC 6750) or a WebSocket's subprotocols, without a proof behind it.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let sent = sent(headers)?;
    Ok(sent.map(|sent| match sent.split_once(SEPARATOR) {
        Some((token, _)) => token.to_owned(),
        None => sent,
    }))
}

/// The proof of who the caller is that stands behind the bearer token, for an agent that wants one. It signs nobody in
/// here, and is read only to pass on nothing else.
///
/// # Errors
/// 401 where it is none.
pub(crate) fn proof(headers: &HeaderMap) -> Result<Option<Proof>, Refused> {
    let Some(sent) = sent(headers)? else {
        return Ok(None);
    };
    let Some((_, proof)) = sent.split_once(SEPARATOR) else {
        return Ok(None);
    };
    let wrong = |why| Refused::Token(format!("the proof of who you are behind it is none: {why}"));
    Proof::from_header(proof).map(Some).map_err(wrong)
}

/// All that came as the bearer token.
fn sent(headers: &HeaderMap) -> Result<Option<String>, Refused> {
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
    fn a_proof_behind_a_token_is_no_part_of_it() {
        let key = towline_proto::jws::KeyPair::generate().unwrap();
        let possession = towline_proto::end_to_end::Possession::state(&key, "a", 1);
        let own = Proof::new("a.b.c".to_owned(), possession);
        let both = headers(&[("authorization", &format!("Bearer abc~{}", own.to_header()))]);
        assert_eq!(bearer(&both), Ok(Some("abc".into())));
        assert_eq!(proof(&both), Ok(Some(own)));
        assert_eq!(
            proof(&headers(&[("authorization", "Bearer abc")])),
            Ok(None)
        );
        assert_eq!(proof(&headers(&[])), Ok(None));
        for bad in ["Bearer abc~", "Bearer abc~x", "Bearer abc~x~y~z"] {
            assert!(proof(&headers(&[("authorization", bad)])).is_err(), "{bad}");
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
