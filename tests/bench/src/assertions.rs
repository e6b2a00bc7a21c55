//! What the assertion on each request costs at either end.
//!
//! Each request carries a grant (who: signed, used for up to a minute by one caller at one session) and a MAC
//! (what: made and checked on every request).

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use towline_proto::{
    assertion::{GRANT_SECONDS, Grant, ReplayWindow, Sealed},
    handshake::{Facts, Here, Opening, accept, verify_hello},
    jws::KeyPair,
    keys::{Chain, Use, certify},
    names::Membership,
};

/// Microseconds each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// The gateway signs a grant.
    pub(crate) sign_grant: f64,
    /// The agent verifies a grant's signature, session, membership and time.
    pub(crate) verify_grant: f64,
    /// The agent looks only at the time of a grant that it has verified before.
    pub(crate) check_known_grant: f64,
    /// The gateway makes the MAC of a request.
    pub(crate) seal: f64,
    /// The agent checks the MAC and that the number is new.
    pub(crate) verify_mac: f64,
}

const NOW: u64 = 1_800_000_000;

/// Means over `rounds`.
pub(crate) fn cost(rounds: u32) -> anyhow::Result<Costs> {
    let membership: Membership = "projects/demo/locations/global/memberships/prod".parse()?;
    let [root, issuing, signing, agent] = [
        KeyPair::generate()?,
        KeyPair::generate()?,
        KeyPair::generate()?,
        KeyPair::generate()?,
    ];
    let chain = Chain::new(
        certify(&root, issuing.public(), Use::Issuing, NOW),
        certify(&issuing, signing.public(), Use::Signing, NOW),
    );
    let opening = Opening::new(
        &agent,
        membership.clone(),
        root.public(),
        &Facts::default(),
        NOW,
    )?;
    let hello = opening.hello().to_owned();
    let claims = verify_hello(agent.public(), root.public(), &hello, NOW)?;
    let accepted = accept(&signing, &hello, &claims, &Here::default(), NOW)?;
    let opened = opening.finish(root.public(), &chain.to_header(), &accepted.proof, NOW)?;

    let grant = Grant {
        membership: membership.clone(),
        session: opened.session.clone(),
        principal: "user:alice@example.com".to_owned(),
        user: "alice@example.com".to_owned(),
        uid: None,
        groups: (0..10).map(|n| format!("team-{n}")).collect(),
        extra: BTreeMap::new(),
        iat: NOW,
        exp: NOW + GRANT_SECONDS,
    };
    let statement = grant.sign(&signing);
    let sealed = Sealed {
        grant: &statement,
        request_id: "0123456789abcdef0123456789abcdef",
        method: "GET",
        upgrade: "",
        path: "/api/v1/namespaces/default/pods?limit=500",
        nested: "",
    };

    let sign_grant = mean(rounds, || drop(black_box(grant.sign(&signing))));
    let mut valid = true;
    let verify_grant = mean(rounds, || {
        valid &= Grant::verify(
            black_box(&statement),
            opened.grants,
            &membership,
            &opened.session,
            NOW,
        )
        .is_ok();
    });
    let check_known_grant = mean(rounds, || {
        valid &= black_box(&grant).check_time(NOW).is_ok()
    });
    let mut macs = Vec::with_capacity(rounds as usize);
    let seal = mean(rounds, || macs.push(accepted.key.seal(black_box(&sealed))));
    let mut window = ReplayWindow::default();
    let mut macs = macs.into_iter();
    let verify_mac = mean(rounds, || {
        valid &= macs.next().is_some_and(|(sequence, mac)| {
            opened
                .key
                .verify(black_box(&sealed), sequence, &mac)
                .is_ok()
                && window.accept(sequence).is_ok()
        });
    });
    valid
        .then_some(())
        .context("an assertion that should hold was refused")?;
    Ok(Costs {
        sign_grant,
        verify_grant,
        check_known_grant,
        seal,
        verify_mac,
    })
}

fn mean(rounds: u32, mut once: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..rounds {
        once();
    }
    let whole: Duration = began.elapsed();
    whole.as_secs_f64() * 1e6 / f64::from(rounds)
}
