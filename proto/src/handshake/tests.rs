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
    let accepted = accept(
        &gateway.signing,
        opening.hello(),
        &hello,
        &Here::default(),
        NOW,
    )
    .unwrap();
    let opened = opening
        .finish(gateway.root.public(), &gateway.chain, &accepted.proof, NOW)
        .unwrap();
    assert_eq!(opened.session, accepted.session);
    assert_eq!(opened.time, NOW);
    assert_eq!((opened.replica.as_str(), opened.replicas), ("", 1));
    let said = opened.confirmation.bytes();
    assert_eq!(said.len(), Confirmation::LENGTH);
    accepted.confirmation.check(said).unwrap();

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
    let accepted = accept(
        &gateway.signing,
        answered.hello(),
        &hello,
        &Here::default(),
        NOW,
    )
    .unwrap();
    let refused = open(&agent, &gateway, NOW).finish(
        gateway.root.public(),
        &gateway.chain,
        &accepted.proof,
        NOW,
    );
    assert!(matches!(refused, Err(HandshakeError::Answer)));

    let other = self::gateway();
    let accepted = accept(
        &other.signing,
        answered.hello(),
        &hello,
        &Here::default(),
        NOW,
    )
    .unwrap();
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
        let accepted = accept(
            &gateway.signing,
            opening.hello(),
            &hello,
            &Here::default(),
            NOW,
        )
        .unwrap();
        let opened = opening.finish(
            gateway.root.public(),
            &gateway.chain,
            &accepted.proof,
            NOW + off,
        );
        assert_eq!(opened.is_ok(), fine, "{off} s: {:?}", opened.err());
    }
}

/// A session as both ends know it, and the two ends' keys.
fn session() -> (Gateway, KeyPair, Opened, Accepted) {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let opening = open(&agent, &gateway, NOW);
    let hello = verify_hello(agent.public(), gateway.root.public(), opening.hello(), NOW).unwrap();
    let accepted = accept(
        &gateway.signing,
        opening.hello(),
        &hello,
        &Here::default(),
        NOW,
    )
    .unwrap();
    let opened = opening
        .finish(gateway.root.public(), &gateway.chain, &accepted.proof, NOW)
        .unwrap();
    assert_eq!(opened.grace, GRACE);
    (gateway, agent, opened, accepted)
}

fn asking(agent: &KeyPair, gateway: &Gateway, asked: &Resumption<'_>) -> (Opening, Hello) {
    let root = gateway.root.public();
    let opening =
        Opening::resume(agent, membership(), root, &Facts::default(), NOW, asked).unwrap();
    let hello = verify_hello(agent.public(), root, opening.hello(), NOW).unwrap();
    (opening, hello)
}

#[test]
fn both_ends_prove_that_they_know_the_session_to_go_on_with() {
    let (gateway, agent, opened, accepted) = session();
    let asked = Resumption {
        replica: &opened.replica,
        session: &opened.session,
        key: &opened.resumption,
        generation: 3,
        position: 1_000,
    };
    let (opening, hello) = asking(&agent, &gateway, &asked);
    let resume_ = hello.resume.clone().unwrap();
    assert_eq!((resume_.generation, resume_.position), (3, 1_000));
    verify_resume(&hello, &resume_, &accepted.resumption).unwrap();
    let statement = opening.hello().to_owned();
    let answer = |key: &ResumptionKey, position| {
        resume(
            &gateway.signing,
            &statement,
            &hello,
            &resume_,
            key,
            &Here::default(),
            (position, NOW),
        )
    };
    let resumed = |opening: Opening, proof: &str| {
        let root = gateway.root.public();
        opening.resumed(
            &opened.session,
            &opened.resumption,
            root,
            &gateway.chain,
            proof,
            NOW,
        )
    };
    let again = || Opening {
        share: Share::generate().unwrap(),
        hello: statement.clone(),
        membership: membership(),
    };
    let proof = answer(&accepted.resumption, 77);
    assert_eq!(resumed(opening, &proof).unwrap(), (77, NOW));

    // A gateway of the same root that doesn't know the session, and an answer to another hello.
    let (.., stranger) = session();
    let wrong = resumed(again(), &answer(&stranger.resumption, 77)).unwrap_err();
    assert!(matches!(wrong, HandshakeError::Resumption), "{wrong}");
    let (later, _) = asking(&agent, &gateway, &asked);
    let wrong = resumed(later, &proof).unwrap_err();
    assert!(matches!(wrong, HandshakeError::Answer), "{wrong}");
    // Where a new session was asked for, nothing is gone on with.
    let wrong = again()
        .finish(gateway.root.public(), &gateway.chain, &proof, NOW)
        .unwrap_err();
    assert!(matches!(wrong, HandshakeError::Answer), "{wrong}");
}

#[test]
fn what_an_agent_proves_of_a_session_is_good_for_that_alone() {
    let (gateway, agent, opened, accepted) = session();
    let asked = Resumption {
        replica: &opened.replica,
        session: &opened.session,
        key: &opened.resumption,
        generation: 3,
        position: 1_000,
    };
    let (_, hello) = asking(&agent, &gateway, &asked);
    let resume = hello.resume.clone().unwrap();
    let refused = |hello: &Hello, resume: &Resume, key: &ResumptionKey| {
        let refused = verify_resume(hello, resume, key).unwrap_err();
        assert!(matches!(refused, HandshakeError::Resumption), "{refused}");
    };
    for changed in [
        Resume {
            session: "other".into(),
            ..resume.clone()
        },
        Resume {
            generation: 4,
            ..resume.clone()
        },
        Resume {
            position: 1_001,
            ..resume.clone()
        },
        Resume {
            mac: String::new(),
            ..resume.clone()
        },
        Resume {
            mac: "?".into(),
            ..resume.clone()
        },
    ] {
        refused(&hello, &changed, &accepted.resumption);
    }
    let (_, later) = asking(&agent, &gateway, &asked);
    refused(&later, &resume, &accepted.resumption);
    let (.., stranger) = session();
    refused(&hello, &resume, &stranger.resumption);
}

#[test]
fn who_replays_a_hello_cannot_confirm_it() {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let opening = open(&agent, &gateway, NOW);
    let hello = verify_hello(agent.public(), gateway.root.public(), opening.hello(), NOW).unwrap();
    let answer = || {
        accept(
            &gateway.signing,
            opening.hello(),
            &hello,
            &Here::default(),
            NOW,
        )
        .unwrap()
    };
    // What was confirmed to one replica is worth nothing to another, nor is any other guess.
    let (first, second) = (answer(), answer());
    let said = first.confirmation.bytes();
    for said in [said, &[0; Confirmation::LENGTH], &[]] {
        let refused = second.confirmation.check(said).unwrap_err();
        assert!(matches!(refused, HandshakeError::Confirmation), "{refused}");
    }
}

#[test]
fn replicas_to_avoid_are_few_and_short() {
    let (gateway, agent) = (gateway(), KeyPair::generate().unwrap());
    let asked = |avoid: &[String]| {
        let (root, facts) = (gateway.root.public(), Facts::default());
        let opening = Opening::avoiding(&agent, membership(), root, &facts, avoid, NOW).unwrap();
        verify_hello(agent.public(), root, opening.hello(), NOW)
    };
    let named: Vec<String> = (0..20).map(|n| format!("replica-{n}")).collect();
    assert_eq!(asked(&named[..2]).unwrap().avoid, named[..2]);
    assert_eq!(asked(&named).unwrap().avoid, named[..MAX_AVOIDED]);
    let long = "x".repeat(MAX_REPLICA + 1);
    assert!(matches!(asked(&[long]), Err(HandshakeError::Avoid)));
    // Signed by an agent that counts otherwise.
    let mut claims = asked(&[]).unwrap();
    claims.avoid = named;
    let hello = agent.sign(Kind::Hello, &claims);
    let refused = verify_hello(agent.public(), gateway.root.public(), &hello, NOW);
    assert!(matches!(refused, Err(HandshakeError::Avoid)));
}
