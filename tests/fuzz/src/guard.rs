//! The agent's guard: whatever a gateway signs and a caller sends, what goes upstream names the caller and nobody else.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use towline_agent::{
    fuzzing,
    guard::{AllowedSystem, Guard},
};
use towline_proto::{
    assertion::{GRANT_SECONDS, Grant, Nested, Sealed, SessionKey},
    handshake::{self, Facts, Opening},
    jws::KeyPair,
    keys::{self, Chain, Use},
    names::Membership,
    wire,
};

use crate::head;

const NOW: u64 = 1_800_000_000;

/// A gateway's end of a session, and the guard at the other.
struct Pair {
    signing: KeyPair,
    key: SessionKey,
    session: String,
    guard: Guard,
    membership: Membership,
}

static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    let membership: Membership = "projects/p/locations/global/memberships/m".parse().unwrap();
    let [root, issuing, signing, agent] = [0; 4].map(|_| KeyPair::generate().unwrap());
    let chain = Chain::new(
        keys::certify(&root, issuing.public(), Use::Issuing, NOW),
        keys::certify(&issuing, signing.public(), Use::Signing, NOW),
    );
    let opening = Opening::new(
        &agent,
        membership.clone(),
        root.public(),
        &Facts::default(),
        NOW,
    )
    .unwrap();
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
    let guard = Guard::new(
        opened,
        membership.clone(),
        Arc::new(AllowedSystem(Vec::new())),
        None,
    );
    Pair {
        signing,
        key: accepted.key,
        session: accepted.session,
        guard,
        membership,
    }
});

/// The grant's names come from headers `user`, `group` and `extra` of the input; the rest is the caller's head.
pub(crate) fn admit(data: &[u8]) {
    let Some(mut head) = head::parse(data) else {
        return;
    };
    let Some(path) = head.uri.path_and_query().cloned() else {
        return;
    };
    let mut take = |name: &str| -> Vec<String> {
        let name: HeaderName = name.parse().unwrap();
        let values = head.headers.get_all(&name).iter();
        let taken = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        head.headers.remove(&name);
        taken
    };
    let (user, groups, extra) = (
        take("user").pop().unwrap_or_default(),
        take("group"),
        take("extra"),
    );
    let (instead, wanted_groups) = (take("as").pop(), take("as-group"));
    let extra: BTreeMap<String, Vec<String>> = extra
        .iter()
        .filter_map(|extra| extra.split_once('='))
        .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
        .collect();
    let pair = &*PAIR;
    let grant = Grant {
        membership: pair.membership.clone(),
        session: pair.session.clone(),
        principal: format!("user:{user}"),
        user: user.clone(),
        uid: None,
        groups: groups.clone(),
        extra,
        iat: NOW,
        exp: NOW + GRANT_SECONDS,
    };
    // Whatever the caller had of the tunnel's own was dropped by the gateway.
    let caller: HeaderMap = head
        .headers
        .iter()
        .filter(|(name, _)| !name.as_str().starts_with(wire::PREFIX))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut request = Request::builder()
        .method(head.method.clone())
        .body(())
        .unwrap();
    *request.uri_mut() = Uri::builder()
        .scheme("https")
        .authority("m")
        .path_and_query(path.clone())
        .build()
        .unwrap();
    *request.headers_mut() = caller.clone();
    let nested = instead.map(|user| {
        Nested {
            user,
            uid: None,
            groups: wanted_groups,
            extra: BTreeMap::new(),
        }
        .to_header()
    });
    let statement = grant.sign(&pair.signing);
    let sealed = Sealed {
        grant: &statement,
        request_id: "r",
        method: head.method.as_str(),
        upgrade: "",
        path: path.as_str(),
        nested: nested.as_deref().unwrap_or_default(),
    };
    let (sequence, mac) = pair.key.seal(&sealed);
    for (name, value) in [
        (wire::GRANT, statement.as_str()),
        (wire::REQUEST_ID, "r"),
        (wire::MAC, &mac),
    ] {
        request
            .headers_mut()
            .insert(name, HeaderValue::from_str(value).unwrap());
    }
    request
        .headers_mut()
        .insert(wire::SEQUENCE, sequence.into());

    let names_somebody = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        name.starts_with("impersonate-")
            || name.starts_with("x-remote-")
            || name == "authorization"
            || name == "cookie"
    };
    // Without end-to-end mode there is nothing to wait for.
    let admitted = pair.guard.admit(request.into_parts().0).now_or_never();
    let Some(Ok((admitted, wanted))) = admitted else {
        return;
    };
    assert_eq!(wanted.is_some(), nested.is_some());
    if let Some(wanted) = wanted {
        let user = &wanted.nested().user;
        let account = user.strip_prefix("system:serviceaccount:");
        assert!(
            !user.starts_with("system:")
                || account.is_some_and(|name| !name.starts_with("kube-system:")),
            "{user:?}"
        );
        assert!(
            !wanted
                .nested()
                .groups
                .iter()
                .any(|group| group == "system:masters")
        );
    }
    assert!(!caller.keys().any(names_somebody), "{caller:?}");
    assert!(!user.is_empty() && !user.starts_with("system:"), "{user:?}");
    assert_eq!((admitted.path(), admitted.method()), (&path, &head.method));
    let sent = fuzzing::headers(&admitted);
    let values = |name: &str| -> Vec<&[u8]> {
        sent.get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect()
    };
    assert_eq!(values("impersonate-user"), [user.as_bytes()]);
    for group in values("impersonate-group") {
        assert!(
            groups.iter().any(|own| own.as_bytes() == group),
            "{group:?}"
        );
        assert!(!group.starts_with(b"system:"), "{group:?}");
    }
    for (name, value) in &sent {
        let name = name.as_str();
        assert!(
            !name.starts_with(wire::PREFIX) && !wire::HOP_BY_HOP.contains(&name) && name != "host",
            "{name}"
        );
        // No server that trims or stops at a control character reads another name.
        if name.starts_with("impersonate-") {
            assert_eq!(value.as_bytes(), value.as_bytes().trim_ascii());
            assert!(
                !value.as_bytes().iter().any(u8::is_ascii_control),
                "{value:?}"
            );
        }
    }
}
