use std::collections::BTreeMap;

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
struct Pair {
    signing: KeyPair,
    key: SessionKey,
    session: String,
    guard: Guard,
}

fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

fn pair(allowed: &[&str]) -> Pair {
    let [root, issuing, signing, agent] = [0; 4].map(|_| KeyPair::generate().unwrap());
    let chain = Chain::new(
        keys::certify(&root, issuing.public(), Use::Issuing, NOW),
        keys::certify(&issuing, signing.public(), Use::Signing, NOW),
    );
    let opening =
        Opening::new(&agent, membership(), root.public(), &Facts::default(), NOW).unwrap();
    let hello =
        handshake::verify_hello(agent.public(), root.public(), opening.hello(), NOW).unwrap();
    let accepted = handshake::accept(&signing, opening.hello(), &hello, NOW).unwrap();
    let opened = opening
        .finish(root.public(), &chain.to_header(), &accepted.proof, NOW)
        .unwrap();
    let allowed = AllowedSystem(allowed.iter().map(|name| (*name).to_owned()).collect());
    Pair {
        signing,
        key: accepted.key,
        session: accepted.session,
        guard: Guard::new(opened, membership(), Arc::new(allowed)),
    }
}

impl Pair {
    fn grant(&self) -> Grant {
        Grant {
            membership: membership(),
            session: self.session.clone(),
            principal: "user:alice".into(),
            user: "alice".into(),
            groups: vec!["dev".into(), "ops".into()],
            extra: BTreeMap::new(),
            iat: NOW,
            exp: NOW + GRANT_SECONDS,
        }
    }

    fn sealed(&self, grant: &Grant, path: &str) -> http::request::Builder {
        let grant = grant.sign(&self.signing);
        let sealed = Sealed {
            grant: &grant,
            request_id: "r-1",
            method: "GET",
            upgrade: "",
            path,
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
        self.guard.admit(request.body(()).unwrap().into_parts().0)
    }

    fn admit_as(&self, change: impl FnOnce(&mut Grant)) -> Result<Impersonation, Denied> {
        let mut grant = self.grant();
        change(&mut grant);
        self.admit(self.sealed(&grant, "/api"))
    }
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
            "impersonate-user: alice",
            "user-agent: kubectl/v1",
        ]
    );
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
