use std::collections::BTreeMap;

use futures_util::FutureExt as _;
use http::Request;
use towline_proto::{
    assertion::{GRANT_SECONDS, SessionKey},
    handshake::{self, Facts, Opening},
    jws::KeyPair,
    keys::{self, Chain, Use},
};

use super::*;

const NOW: u64 = 1_800_000_000;

/// A gateway's end of a session, and the guard at the other.
pub(super) struct Pair {
    root: KeyPair,
    signing: KeyPair,
    key: SessionKey,
    session: String,
    pub(super) guard: Guard,
}

fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

fn pair(allowed: &[&str]) -> Pair {
    Pair::new(allowed, None)
}

impl Pair {
    pub(super) fn new(allowed: &[&str], end_to_end: Option<Arc<EndToEnd>>) -> Self {
        let [root, issuing, signing, agent] = [0; 4].map(|_| KeyPair::generate().unwrap());
        let chain = Chain::new(
            keys::certify(&root, issuing.public(), Use::Issuing, NOW),
            keys::certify(&issuing, signing.public(), Use::Signing, NOW),
        );
        let opening =
            Opening::new(&agent, membership(), root.public(), &Facts::default(), NOW).unwrap();
        let hello =
            handshake::verify_hello(agent.public(), root.public(), opening.hello(), NOW).unwrap();
        let accepted = handshake::accept(
            &signing,
            opening.hello(),
            &hello,
            &handshake::Here::default(),
            NOW,
        )
        .unwrap();
        let opened = opening
            .finish(root.public(), &chain.to_header(), &accepted.proof, NOW)
            .unwrap();
        let allowed = AllowedSystem(allowed.iter().map(|name| (*name).to_owned()).collect());
        Self {
            root,
            signing,
            key: accepted.key,
            session: accepted.session,
            guard: Guard::new(opened, membership(), Arc::new(allowed), end_to_end),
        }
    }

    pub(super) fn grant(&self) -> Grant {
        Grant {
            membership: membership(),
            session: self.session.clone(),
            principal: "user:alice".into(),
            user: "alice".into(),
            uid: None,
            groups: vec!["dev".into(), "ops".into()],
            extra: BTreeMap::new(),
            iat: NOW,
            exp: NOW + GRANT_SECONDS,
        }
    }

    pub(super) fn sealed(&self, grant: &Grant, path: &str) -> http::request::Builder {
        self.sealed_by(&self.signing, grant, path)
    }

    fn sealed_by(&self, signing: &KeyPair, grant: &Grant, path: &str) -> http::request::Builder {
        let grant = grant.sign(signing);
        let sealed = Sealed {
            grant: &grant,
            request_id: "r-1",
            method: "GET",
            upgrade: "",
            path,
            nested: "",
        };
        let (sequence, mac) = self.key.seal(&sealed);
        Request::builder()
            .uri(format!("https://m{path}"))
            .header(wire::GRANT, &grant)
            .header(wire::REQUEST_ID, "r-1")
            .header(wire::SEQUENCE, sequence)
            .header(wire::MAC, mac)
    }

    fn admit(&self, request: http::request::Builder) -> Result<Impersonation, Denied> {
        let parts = request.body(()).unwrap().into_parts().0;
        let admitted = self.guard.admit(parts).now_or_never().unwrap();
        admitted.map(|(caller, _)| caller)
    }

    fn admit_as(&self, change: impl FnOnce(&mut Grant)) -> Result<Impersonation, Denied> {
        let mut grant = self.grant();
        change(&mut grant);
        self.admit(self.sealed(&grant, "/api"))
    }
}

/// Some request in the name of a user whom nothing keeps from being one.
pub(crate) fn impersonation_of(user: &str) -> Impersonation {
    pair(&[user])
        .admit_as(|grant| grant.user = user.into())
        .unwrap()
}

fn lines(impersonation: &Impersonation) -> Vec<String> {
    let headers = impersonation.headers();
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    lines
}

#[test]
fn the_complete_set_of_headers_that_goes_upstream() {
    let pair = pair(&[]);
    let mut grant = pair.grant();
    grant.groups.push("system:authenticated".into());
    grant.uid = Some("u-1".into());
    grant.extra = BTreeMap::from([
        ("example.com/Scopes%".into(), vec!["a".into(), "b".into()]),
        ("empty".into(), vec![String::new()]),
    ]);
    let request = pair
        .sealed(&grant, "/api/v1/pods%2Fx?limit=5&x=%20")
        .header("accept", "application/json")
        .header("user-agent", "kubectl/v1")
        .header("host", "gw.example")
        .header("te", "trailers")
        .header("towline-else", "x");
    let admitted = pair.admit(request).unwrap();
    assert_eq!(admitted.path().as_str(), "/api/v1/pods%2Fx?limit=5&x=%20");
    assert_eq!(
        lines(&admitted),
        [
            "accept: application/json",
            "impersonate-extra-empty: ",
            "impersonate-extra-example.com%2fscopes%25: a",
            "impersonate-extra-example.com%2fscopes%25: b",
            "impersonate-group: dev",
            "impersonate-group: ops",
            "impersonate-uid: u-1",
            "impersonate-user: alice",
            "user-agent: kubectl/v1",
        ]
    );
}

#[test]
fn another_replicas_grant_holds_with_its_chain_alone() {
    let pair = pair(&[]);
    let [issuing, signing, stranger] = [0; 3].map(|_| KeyPair::generate().unwrap());
    let below = |root: &KeyPair| {
        let chain = Chain::new(
            keys::certify(root, issuing.public(), Use::Issuing, NOW),
            keys::certify(&issuing, signing.public(), Use::Signing, NOW),
        );
        chain.to_header()
    };
    let asked = |by: &KeyPair, chain: Option<String>| {
        let mut request = pair.sealed_by(by, &pair.grant(), "/api");
        if let Some(chain) = chain {
            request = request.header(wire::GRANT_CHAIN, chain);
        }
        pair.admit(request)
    };
    let refused = |by, chain| match asked(by, chain) {
        Err(Denied::Assertion(refused)) => refused,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&signing, None), Refused::Signature(_)));
    let ours = below(&pair.root);
    assert!(matches!(
        refused(&stranger, Some(ours.clone())),
        Refused::Signature(_)
    ));
    assert!(matches!(
        refused(&signing, Some(below(&stranger))),
        Refused::Chain(_)
    ));
    asked(&signing, Some(ours)).unwrap();
    asked(&pair.signing, None).unwrap();
}

#[test]
fn what_says_who_is_calling_is_refused_in_any_spelling() {
    for name in [
        "Impersonate-User",
        "impersonate-group",
        "IMPERSONATE-EXTRA-Scopes",
        "Impersonate_User",
        "impersonate-uid",
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "X-Remote-User",
        "x-remote-extra-a",
        "X_Remote_Group",
    ] {
        let pair = pair(&[]);
        let denied = pair
            .admit(pair.sealed(&pair.grant(), "/api").header(name, "x"))
            .unwrap_err();
        assert!(matches!(denied, Denied::Header(_)), "{name}: {denied}");
        assert_eq!(denied.refusal(), Refusal::Malformed);
    }
}

#[test]
fn the_clusters_own_identities_are_refused_unless_allowed() {
    let own = pair(&["system:serviceaccount:ci:deployer"]);
    for user in [
        "system:admin",
        "system:serviceaccount:kube-system:x",
        "system:",
    ] {
        let denied = own.admit_as(|grant| grant.user = user.into()).unwrap_err();
        assert!(
            matches!(denied, Denied::System { what: "user", .. }),
            "{user}: {denied}"
        );
        assert_eq!(denied.refusal(), Refusal::Identity);
    }
    let denied = own
        .admit_as(|grant| grant.groups.push("system:masters".into()))
        .unwrap_err();
    assert!(
        matches!(denied, Denied::System { what: "group", .. }),
        "{denied}"
    );
    own.admit_as(|grant| grant.user = "system:serviceaccount:ci:deployer".into())
        .unwrap();
    // Allowed for everybody, whatever the configuration: it isn't sent.
    let everybody = own
        .admit_as(|grant| grant.groups = vec!["system:authenticated".into()])
        .unwrap();
    assert_eq!(lines(&everybody), ["impersonate-user: alice"]);
}

#[test]
fn names_that_would_become_others_are_refused() {
    let pair = pair(&[]);
    for user in [
        " alice",
        "alice ",
        "\talice",
        "ali\nce",
        "ali\u{85}ce",
        "\u{a0}system:admin",
    ] {
        let denied = pair.admit_as(|grant| grant.user = user.into()).unwrap_err();
        assert!(
            matches!(denied, Denied::Unsayable { .. }),
            "{user:?}: {denied}"
        );
    }
    assert!(
        pair.admit_as(|grant| grant.groups = vec![String::new()])
            .is_err()
    );
    assert!(
        pair.admit_as(|grant| grant.extra = BTreeMap::from([(String::new(), vec!["a".into()])]))
            .is_err()
    );
    pair.admit_as(|grant| grant.user = "älice bob@example.com".into())
        .unwrap();
}

#[test]
fn a_request_without_a_whole_assertion_is_refused() {
    for missing in [wire::GRANT, wire::REQUEST_ID, wire::SEQUENCE, wire::MAC] {
        let pair = pair(&[]);
        let mut request = pair.sealed(&pair.grant(), "/api");
        request.headers_mut().unwrap().remove(missing);
        let denied = pair.admit(request).unwrap_err();
        assert!(
            matches!(denied, Denied::Assertion(Refused::Missing(name)) if name == missing),
            "{denied}"
        );
        // Twice is as bad as not at all.
        let mut request = pair.sealed(&pair.grant(), "/api");
        let headers = request.headers_mut().unwrap();
        headers.append(missing, headers[missing].clone());
        assert!(matches!(
            pair.admit(request).unwrap_err(),
            Denied::Assertion(Refused::Missing(_))
        ));
    }
}

#[test]
fn a_request_is_good_once_and_for_its_path_and_method() {
    let pair = pair(&[]);
    let mut request = pair.sealed(&pair.grant(), "/api");
    let headers = request.headers_mut().unwrap().clone();
    pair.admit(request).unwrap();
    let again = |method: &str, path: &str| {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://m{path}"));
        *request.headers_mut().unwrap() = headers.clone();
        pair.admit(request).unwrap_err()
    };
    assert!(matches!(
        again("GET", "/api"),
        Denied::Assertion(Refused::Repeated(_))
    ));
    assert!(matches!(
        again("GET", "/api?x"),
        Denied::Assertion(Refused::Mac)
    ));
    assert!(matches!(
        again("DELETE", "/api"),
        Denied::Assertion(Refused::Mac)
    ));
}

#[test]
fn grants_of_others_and_other_times_are_refused() {
    let pair = pair(&[]);
    let refused = |change: fn(&mut Grant)| pair.admit_as(change).unwrap_err();
    assert!(matches!(
        refused(|g| g.session = "x".into()),
        Denied::Assertion(Refused::Session)
    ));
    let elsewhere: fn(&mut Grant) =
        |g| g.membership = "projects/p/locations/global/memberships/n".parse().unwrap();
    assert!(matches!(
        refused(elsewhere),
        Denied::Assertion(Refused::Membership(_))
    ));
    assert!(matches!(
        refused(|g| g.user = String::new()),
        Denied::Assertion(Refused::Anonymous)
    ));
    let old: fn(&mut Grant) = |g| (g.iat, g.exp) = (NOW - 100, NOW - 40);
    assert!(matches!(
        refused(old),
        Denied::Assertion(Refused::Time { .. })
    ));
    let stranger = self::pair(&[]);
    let grant = pair.grant().sign(&stranger.signing);
    let sealed = Sealed {
        grant: &grant,
        request_id: "r",
        method: "GET",
        upgrade: "",
        path: "/",
        nested: "",
    };
    let (sequence, mac) = pair.key.seal(&sealed);
    let request = Request::builder()
        .uri("https://m/")
        .header(wire::GRANT, &grant)
        .header(wire::REQUEST_ID, "r")
        .header(wire::SEQUENCE, sequence)
        .header(wire::MAC, mac);
    assert!(matches!(
        pair.admit(request).unwrap_err(),
        Denied::Assertion(Refused::Signature(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_cached_grant_still_ends() {
    let pair = pair(&[]);
    let grant = pair.grant();
    pair.admit(pair.sealed(&grant, "/a")).unwrap();
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    pair.admit(pair.sealed(&grant, "/b")).unwrap();
    tokio::time::advance(std::time::Duration::from_secs(10)).await;
    let denied = pair.admit(pair.sealed(&grant, "/c")).unwrap_err();
    assert!(
        matches!(denied, Denied::Assertion(Refused::Time { .. })),
        "{denied}"
    );
}

#[test]
fn an_upgrade_is_a_post_that_says_what_it_was() {
    let pair = pair(&[]);
    let upgrade = |outer: &str, method: &str, protocol: &str| {
        let grant = pair.grant().sign(&pair.signing);
        let sealed = Sealed {
            grant: &grant,
            request_id: "r",
            method,
            upgrade: protocol,
            path: "/exec?x",
            nested: "",
        };
        let (sequence, mac) = pair.key.seal(&sealed);
        let request = Request::builder()
            .method(outer)
            .uri("https://m/exec?x")
            .header(wire::GRANT, &grant)
            .header(wire::REQUEST_ID, "r")
            .header(wire::SEQUENCE, sequence)
            .header(wire::MAC, mac)
            .header(wire::METHOD, method)
            .header(wire::UPGRADE, protocol);
        pair.admit(request)
    };
    let admitted = upgrade("POST", "GET", "websocket").unwrap();
    assert_eq!(
        (admitted.method(), admitted.upgrade().unwrap().as_bytes()),
        (&Method::GET, &b"websocket"[..])
    );
    assert!(matches!(
        upgrade("GET", "GET", "websocket"),
        Err(Denied::Upgrade)
    ));
    assert!(matches!(
        upgrade("POST", "CONNECT", "websocket"),
        Err(Denied::Upgrade)
    ));
    let half = pair
        .sealed(&pair.grant(), "/exec")
        .header(wire::METHOD, "GET");
    assert!(matches!(pair.admit(half), Err(Denied::Upgrade)));
}

#[test]
fn a_token_in_a_subprotocol_is_refused() {
    let pair = pair(&[]);
    let with = |protocols: &str| {
        let request = pair
            .sealed(&pair.grant(), "/api")
            .header("sec-websocket-protocol", protocols);
        pair.admit(request)
    };
    with("v5.channel.k8s.io, v4.channel.k8s.io").unwrap();
    let denied =
        with("v4.channel.k8s.io, Base64url.bearer.authorization.k8s.io.dG9rZW4").unwrap_err();
    assert!(matches!(denied, Denied::Header(_)), "{denied}");
}

/// A request whose caller asks to be somebody else.
fn asks(pair: &Pair, nested: &Nested) -> http::request::Builder {
    let grant = pair.grant().sign(&pair.signing);
    let nested = nested.to_header();
    let sealed = Sealed {
        grant: &grant,
        request_id: "r-1",
        method: "GET",
        upgrade: "",
        path: "/api",
        nested: &nested,
    };
    let (sequence, mac) = pair.key.seal(&sealed);
    Request::builder()
        .uri("https://m/api")
        .header(wire::GRANT, &grant)
        .header(wire::REQUEST_ID, "r-1")
        .header(wire::SEQUENCE, sequence)
        .header(wire::MAC, mac)
        .header(wire::NESTED, &nested)
}

fn to_be(user: &str) -> Nested {
    Nested {
        user: user.into(),
        uid: None,
        groups: Vec::new(),
        extra: BTreeMap::new(),
    }
}

fn admit_both(
    pair: &Pair,
    request: http::request::Builder,
) -> Result<(Impersonation, Option<Wanted>), Denied> {
    let parts = request.body(()).unwrap().into_parts().0;
    pair.guard.admit(parts).now_or_never().unwrap()
}

#[test]
fn whom_the_caller_asks_to_be_goes_upstream_with_the_caller_known() {
    let pair = pair(&[]);
    let nested = Nested {
        uid: Some("7".into()),
        groups: vec!["ops".into()],
        extra: BTreeMap::from([("scopes".into(), vec!["read".into()])]),
        ..to_be("bob")
    };
    let (caller, wanted) = admit_both(&pair, asks(&pair, &nested)).unwrap();
    let instead = caller.instead(wanted.unwrap().permit());
    assert_eq!(instead.user(), "bob");
    assert_eq!(
        lines(&instead),
        [
            "impersonate-extra-scopes: read",
            "impersonate-extra-towline.dev%2foriginal-user: {\"username\":\"alice\",\"groups\":[\"dev\",\"ops\"]}",
            "impersonate-group: ops",
            "impersonate-uid: 7",
            "impersonate-user: bob",
        ]
    );
}

#[test]
fn what_is_asked_for_is_under_the_mac() {
    let pair = pair(&[]);
    let request = || asks(&pair, &to_be("bob"));
    let mut taken_away = request();
    taken_away.headers_mut().unwrap().remove(wire::NESTED);
    let mut changed = request();
    let carol = to_be("carol").to_header().parse().unwrap();
    changed.headers_mut().unwrap().insert(wire::NESTED, carol);
    let added = pair
        .sealed(&pair.grant(), "/api")
        .header(wire::NESTED, to_be("bob").to_header());
    for request in [taken_away, changed, added] {
        let denied = admit_both(&pair, request).unwrap_err();
        assert!(
            matches!(denied, Denied::Assertion(Refused::Mac)),
            "{denied}"
        );
    }
    // Twice is as bad as wrong, and an empty one as none.
    let mut twice = request();
    let bob = to_be("bob").to_header().parse().unwrap();
    twice.headers_mut().unwrap().append(wire::NESTED, bob);
    assert!(admit_both(&pair, twice).is_err());
    let empty = pair.sealed(&pair.grant(), "/api").header(wire::NESTED, "");
    assert!(matches!(admit_both(&pair, empty), Err(Denied::Nested(_))));
}

#[test]
fn nobody_may_ask_to_be_the_clusters_own() {
    let pair = pair(&["system:serviceaccount:kube-system:allowed"]);
    for user in [
        "system:admin",
        "system:node:n",
        "system:anonymous",
        "system:kube-controller-manager",
        "system:serviceaccount:kube-system:default",
        "system:serviceaccount:kube-system",
        "system:serviceaccount:a",
        "system:serviceaccount:a:b:c",
        "system:serviceaccount:A:b",
        "system:serviceaccount::b",
        "system:serviceaccount:a:",
        "system:serviceaccounts:a:b",
    ] {
        let denied = admit_both(&pair, asks(&pair, &to_be(user))).unwrap_err();
        assert!(
            matches!(denied, Denied::System { what: "user", .. }),
            "{user}: {denied}"
        );
    }
    for group in [
        "system:masters",
        "system:authenticated",
        "system:serviceaccounts",
    ] {
        let nested = Nested {
            groups: vec!["dev".into(), group.into()],
            ..to_be("bob")
        };
        let denied = admit_both(&pair, asks(&pair, &nested)).unwrap_err();
        assert!(
            matches!(denied, Denied::System { what: "group", .. }),
            "{group}: {denied}"
        );
    }
    for user in [
        "system:serviceaccount:ci:deployer",
        "system:serviceaccount:ci:a.b-c",
        "system:serviceaccount:kube-system:allowed",
    ] {
        admit_both(&pair, asks(&pair, &to_be(user))).unwrap();
    }
}

#[test]
fn nobody_else_says_who_the_original_user_is() {
    let pair = pair(&[]);
    let forged = BTreeMap::from([(ORIGINAL_USER.to_owned(), vec!["{}".to_owned()])]);
    for key in [
        ORIGINAL_USER,
        "Towline.dev/original-user",
        "towline.dev/delegates",
        "TOWLINE.DEV/anything",
    ] {
        let nested = Nested {
            extra: BTreeMap::from([(key.to_owned(), vec!["user:root".to_owned()])]),
            ..to_be("bob")
        };
        let denied = admit_both(&pair, asks(&pair, &nested)).unwrap_err();
        assert!(matches!(denied, Denied::Reserved(_)), "{key}: {denied}");
    }
    let denied = pair.admit_as(|grant| grant.extra = forged).unwrap_err();
    assert!(matches!(denied, Denied::Reserved(_)), "{denied}");
    // A caller who was instead of themself would have none.
    assert!(
        admit_both(&pair, pair.sealed(&pair.grant(), "/api"))
            .unwrap()
            .1
            .is_none()
    );
}

#[test]
fn groups_and_uid_beyond_the_agents_role_are_left_out_and_extras_are_not() {
    use k8s_openapi::api::authorization::v1::ResourceRule;
    let pair = pair(&[]);
    let rule = |resource: &str, name: &str| ResourceRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(vec![resource.into()]),
        resource_names: Some(vec![name.into()]),
        verbs: vec!["impersonate".into()],
    };
    let role = crate::role::Role::of(&[rule("users", "alice"), rule("groups", "dev")]);
    let caller = pair.admit_as(|grant| {
        grant.uid = Some("u".into());
        grant.extra = BTreeMap::from([("scopes".into(), vec!["few".into()])]);
    });
    let caller = caller.unwrap().within(&role.beside("alice"));
    assert_eq!(caller.left_out(), 1);
    assert_eq!(
        lines(&caller),
        [
            "impersonate-extra-scopes: few",
            "impersonate-group: dev",
            "impersonate-user: alice"
        ]
    );
    assert_eq!(
        caller.extra_beyond(&role.beside("alice")),
        Some(("scopes", "few"))
    );
}
