//! Statements, handshakes and MACs: nothing is believed but what was signed, to the last bit.

use std::{collections::HashSet, sync::LazyLock};

use serde_json::{Value, json};
use towline_proto::{
    assertion::{Grant, ReplayWindow, Sealed, SessionKey},
    end_to_end::{self, Possession, Proof},
    handshake::{self, Facts, Opening},
    jws::{KeyPair, Kind},
    keys::{self, Chain, Use},
};

const NOW: u64 = 1_800_000_000;
const KINDS: [Kind; 6] = [
    Kind::Certificate,
    Kind::Hello,
    Kind::Proof,
    Kind::Grant,
    Kind::AccessToken,
    Kind::Possession,
];

/// The keys of a gateway and an agent, made once.
struct Keys {
    root: KeyPair,
    signing: KeyPair,
    agent: KeyPair,
    chain: Chain,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let [root, issuing, signing, agent] = [0; 4].map(|_| KeyPair::generate().unwrap());
    let chain = Chain::new(
        keys::certify(&root, issuing.public(), Use::Issuing, NOW),
        keys::certify(&issuing, signing.public(), Use::Signing, NOW),
    );
    Keys {
        root,
        signing,
        agent,
        chain,
    }
});

/// A statement, and one that the data makes of it: two bytes of place and one of content for each change, or another
/// text altogether.
pub(crate) fn changed(statement: &str, data: &[u8]) -> Option<String> {
    let Some((how, rest)) = data.split_first() else {
        return Some(statement.to_owned());
    };
    if how % 2 == 0 {
        return String::from_utf8(rest.to_vec()).ok();
    }
    let mut bytes = statement.as_bytes().to_vec();
    for change in rest.chunks_exact(3).take(20) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % (bytes.len() + 1);
        match how % 8 {
            1 => bytes.insert(at, change[2]),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = change[2],
            _ => {}
        }
    }
    String::from_utf8(bytes).ok()
}

/// No text verifies but the one that was signed, and that one for its own kind alone.
pub(crate) fn statement(data: &[u8]) {
    static SIGNED: LazyLock<Vec<(Kind, String)>> = LazyLock::new(|| {
        let claims = json!({"sub": "alice", "exp": NOW, "groups": ["a", "b"]});
        KINDS
            .map(|kind| (kind, KEYS.signing.sign(kind, &claims)))
            .to_vec()
    });
    for (kind, signed) in SIGNED.iter() {
        let Some(text) = changed(signed, data) else {
            return;
        };
        for wanted in KINDS {
            let verified = KEYS.signing.public().verify::<Value>(wanted, &text);
            assert_eq!(
                verified.is_ok(),
                text == *signed && wanted == *kind,
                "{wanted:?}: {text}"
            );
            assert!(KEYS.agent.public().verify::<Value>(wanted, &text).is_err());
        }
    }
}

const MEMBERSHIP: &str = "projects/p/locations/global/memberships/m";

/// The agent begins a session.
fn opening() -> Opening {
    let keys = &*KEYS;
    let membership = MEMBERSHIP.parse().unwrap();
    let facts = Facts::default();
    Opening::new(&keys.agent, membership, keys.root.public(), &facts, NOW).unwrap()
}

/// Neither end believes a hello, a chain or a proof that isn't the other's.
pub(crate) fn handshake(data: &[u8]) {
    let keys = &*KEYS;
    let opening = opening();
    let genuine = opening.hello().to_owned();
    let Some(hello) = changed(&genuine, data) else {
        return;
    };
    if let Some(claimed) = handshake::claimed_membership(&hello) {
        assert_eq!(claimed.to_string().parse(), Ok(claimed));
    }
    let verified = handshake::verify_hello(keys.agent.public(), keys.root.public(), &hello, NOW);
    assert_eq!(verified.is_ok(), hello == genuine, "{hello}");
    let claims =
        handshake::verify_hello(keys.agent.public(), keys.root.public(), &genuine, NOW).unwrap();
    let accepted = handshake::accept(
        &keys.signing,
        &genuine,
        &claims,
        &handshake::Here::default(),
        NOW,
    )
    .unwrap();
    let chain = keys.chain.to_header();
    let (Some(other_chain), Some(proof)) = (changed(&chain, data), changed(&accepted.proof, data))
    else {
        return;
    };
    let honest = (&other_chain, &proof) == (&chain, &accepted.proof);
    let opened = opening.finish(keys.root.public(), &other_chain, &proof, NOW);
    assert_eq!(opened.is_ok(), honest, "{proof}");
}

/// What isn't the possession that was stated doesn't prove that somebody has the key.
pub(crate) fn proof(data: &[u8]) {
    let key = &KEYS.agent;
    let nonce = end_to_end::nonce(&key.public());
    let stated = Possession::state(key, MEMBERSHIP, NOW);
    let genuine = Proof::new("a.b.c".to_owned(), stated.clone()).to_header();
    let Some(text) = changed(&genuine, data) else {
        return;
    };
    let Ok(proof) = Proof::from_header(&text) else {
        assert_ne!(text, genuine);
        return;
    };
    let verified = proof.possession().verify_at(&nonce, MEMBERSHIP, NOW);
    assert_eq!(verified.is_ok(), *proof.possession() == stated, "{text}");
}

/// A MAC is good for the request that it was made for, and for no other.
pub(crate) fn mac(data: &[u8]) {
    static PAIR: LazyLock<(SessionKey, SessionKey)> = LazyLock::new(|| {
        let keys = &*KEYS;
        let opening = opening();
        let hello = opening.hello().to_owned();
        let claims =
            handshake::verify_hello(keys.agent.public(), keys.root.public(), &hello, NOW).unwrap();
        let accepted = handshake::accept(
            &keys.signing,
            &hello,
            &claims,
            &handshake::Here::default(),
            NOW,
        )
        .unwrap();
        let opened = opening.finish(
            keys.root.public(),
            &keys.chain.to_header(),
            &accepted.proof,
            NOW,
        );
        (accepted.key, opened.unwrap().key)
    });
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut fields = text.split('\n');
    let mut sealed = || {
        let mut next = || fields.next().unwrap_or_default();
        Sealed {
            grant: next(),
            request_id: next(),
            method: next(),
            upgrade: next(),
            path: next(),
            nested: next(),
        }
    };
    let (made, shown) = (sealed(), sealed());
    let other = fields.next();
    let (sequence, mac) = PAIR.0.seal(&made);
    assert!(PAIR.1.verify(&made, sequence, &mac).is_ok());
    assert!(PAIR.1.verify(&made, sequence + 1, &mac).is_err());
    assert_eq!(PAIR.1.verify(&shown, sequence, &mac).is_ok(), made == shown);
    if let Some(other) = other {
        assert_eq!(PAIR.1.verify(&made, sequence, other).is_ok(), other == mac);
    }
    let membership = MEMBERSHIP.parse().unwrap();
    assert!(Grant::verify(made.grant, KEYS.signing.public(), &membership, "s", NOW).is_err());
}

/// Every number passes once, however they come; one that is too old never does.
pub(crate) fn replay(data: &[u8]) {
    const WINDOW: u64 = 1 << 16;
    let mut window = ReplayWindow::default();
    let mut seen = HashSet::new();
    let mut highest = 0;
    let mut base: u64 = 0;
    for step in data.chunks_exact(3) {
        let offset = u64::from(u16::from_be_bytes([step[1], step[2]]));
        // Small steps, steps about the window's end, and leaps to the end of the numbers.
        let sequence = match step[0] % 4 {
            0 => base.saturating_add(offset),
            1 => base.saturating_sub(offset),
            2 => base.saturating_add(WINDOW - 8 + offset % 16),
            _ => u64::MAX - offset,
        };
        let fresh = !seen.contains(&sequence)
            && (seen.is_empty() || sequence > highest || highest - sequence < WINDOW);
        assert_eq!(
            window.accept(sequence).is_ok(),
            fresh,
            "{sequence} after {highest}"
        );
        if fresh {
            seen.insert(sequence);
            highest = highest.max(sequence);
            base = sequence;
        }
    }
}
