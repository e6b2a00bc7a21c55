use super::*;
use crate::{
    assertion::Sealed,
    keys::{self, Use},
};

const NOW: u64 = 1_800_000_000;

struct Gateway {
    root: KeyPair,
    signing: KeyPair,
    chain: String,
}

fn gateway() -> Gateway {
    let [root, issuing, signing] = [0; 3].map(|_| KeyPair::generate().unwrap());
    let chain = Chain::new(
        keys::certify(&root, issuing.public(), Use::Issuing, NOW),
        keys::certify(&issuing, signing.public(), Use::Signing, NOW),
    );
    Gateway {
        root,
        signing,
        chain: chain.to_header(),
    }
}

fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

fn open(agent: &KeyPair, gateway: &Gateway, now: u64) -> Opening {
    Opening::new(
        agent,
        membership(),
        gateway.root.public(),
        &Facts::default(),
        now,
    )
    .unwrap()
}

#[test]
fn both_ends_come_to_the_same_key() {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let opening = open(&agent, &gateway, NOW);
    assert_eq!(claimed_membership(opening.hello()), Some(membership()));
    let hello = verify_hello(agent.public(), gateway.root.public(), opening.hello(), NOW).unwrap();
    let accepted = accept(&gateway.signing, opening.hello(), &hello, NOW).unwrap();
    let opened = opening
        .finish(gateway.root.public(), &gateway.chain, &accepted.proof, NOW)
        .unwrap();
    assert_eq!(opened.session, accepted.session);
    assert_eq!(opened.time, NOW);

    let sealed = Sealed {
        grant: "g",
        request_id: "r",
        method: "GET",
        upgrade: "",
        path: "/api",
        nested: "",
    };
    let (sequence, mac) = accepted.key.seal(&sealed);
    opened.key.verify(&sealed, sequence, &mac).unwrap();
    assert!(opened.key.verify(&sealed, sequence + 1, &mac).is_err());
}

#[test]
fn a_hello_of_another_key_root_or_hour_is_refused() {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let opening = open(&agent, &gateway, NOW);
    let stranger = KeyPair::generate().unwrap().public();
    let refused = verify_hello(stranger, gateway.root.public(), opening.hello(), NOW);
    assert!(matches!(refused, Err(HandshakeError::Hello(_))));
    let refused = verify_hello(agent.public(), stranger, opening.hello(), NOW);
    assert!(matches!(refused, Err(HandshakeError::Root { .. })));
    let refused = verify_hello(
        agent.public(),
        gateway.root.public(),
        opening.hello(),
        NOW + 3600,
    );
    assert!(matches!(refused, Err(HandshakeError::Clock { .. })));
}

#[test]
fn an_answer_to_another_hello_or_of_another_gateway_is_refused() {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let answered = open(&agent, &gateway, NOW);
    let hello = verify_hello(agent.public(), gateway.root.public(), answered.hello(), NOW).unwrap();
    let accepted = accept(&gateway.signing, answered.hello(), &hello, NOW).unwrap();
    let refused = open(&agent, &gateway, NOW).finish(
        gateway.root.public(),
        &gateway.chain,
        &accepted.proof,
        NOW,
    );
    assert!(matches!(refused, Err(HandshakeError::Answer)));

    let other = self::gateway();
    let accepted = accept(&other.signing, answered.hello(), &hello, NOW).unwrap();
    let refused = answered.finish(gateway.root.public(), &other.chain, &accepted.proof, NOW);
    assert!(matches!(refused, Err(HandshakeError::Chain(_))));
}

#[test]
fn an_hour_off_is_fine_and_two_days_are_not() {
    for (off, fine) in [(3600, true), (2 * 24 * 3600, false)] {
        let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
        let opening = open(&agent, &gateway, NOW);
        let hello =
            verify_hello(agent.public(), gateway.root.public(), opening.hello(), NOW).unwrap();
        let accepted = accept(&gateway.signing, opening.hello(), &hello, NOW).unwrap();
        let opened = opening.finish(
            gateway.root.public(),
            &gateway.chain,
            &accepted.proof,
            NOW + off,
        );
        assert_eq!(opened.is_ok(), fine, "{off} s: {:?}", opened.err());
    }
}
