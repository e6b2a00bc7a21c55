use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn grant() -> Grant {
    Grant {
        membership: "projects/p/locations/global/memberships/m".parse().unwrap(),
        session: "s".into(),
        principal: "user:alice".into(),
        user: "alice".into(),
        uid: Some("u-1".into()),
        groups: vec!["dev".into()],
        extra: BTreeMap::new(),
        iat: NOW,
        exp: NOW + GRANT_SECONDS,
    }
}

#[test]
fn a_grant_is_good_for_its_session_and_minute() {
    let key = KeyPair::generate().unwrap();
    let statement = grant().sign(&key);
    let verify =
        |session, now| Grant::verify(&statement, key.public(), &grant().membership, session, now);
    assert_eq!(verify("s", NOW + 30).unwrap(), grant());
    assert!(matches!(verify("t", NOW), Err(Refused::Session)));
    assert!(matches!(verify("s", NOW + 66), Err(Refused::Time { .. })));
    assert!(matches!(verify("s", NOW - 6), Err(Refused::Time { .. })));
    let other = "projects/p/locations/global/memberships/n".parse().unwrap();
    let refused = Grant::verify(&statement, key.public(), &other, "s", NOW);
    assert!(matches!(refused, Err(Refused::Membership(_))));
}

#[test]
fn a_grant_without_user_or_for_an_hour_is_refused() {
    let key = KeyPair::generate().unwrap();
    let verify =
        |grant: &Grant| Grant::verify(&grant.sign(&key), key.public(), &grant.membership, "s", NOW);
    assert!(matches!(
        verify(&Grant {
            user: String::new(),
            ..grant()
        }),
        Err(Refused::Anonymous)
    ));
    assert!(matches!(
        verify(&Grant {
            exp: NOW + 3600,
            ..grant()
        }),
        Err(Refused::Time { .. })
    ));
}

#[test]
fn a_mac_covers_every_field() {
    let key = SessionKey::new(hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]));
    let sealed = Sealed {
        grant: "g",
        request_id: "r",
        method: "GET",
        upgrade: "",
        path: "/api?x=1",
        nested: "",
    };
    let (sequence, mac) = key.seal(&sealed);
    key.verify(&sealed, sequence, &mac).unwrap();
    for changed in [
        Sealed {
            grant: "h",
            ..sealed
        },
        Sealed {
            request_id: "s",
            ..sealed
        },
        Sealed {
            method: "PUT",
            ..sealed
        },
        Sealed {
            upgrade: "websocket",
            ..sealed
        },
        Sealed {
            nested: "bob",
            ..sealed
        },
        Sealed {
            path: "/api?x=2",
            ..sealed
        },
        // The same characters, split otherwise.
        Sealed {
            method: "GE",
            upgrade: "T",
            ..sealed
        },
    ] {
        assert!(key.verify(&changed, sequence, &mac).is_err(), "{changed:?}");
    }
    assert!(key.verify(&sealed, sequence, "").is_err());
    assert!(key.verify(&sealed, sequence, "%%").is_err());
}

proptest! {
    #[test]
    fn a_number_is_accepted_once(numbers in prop::collection::vec(0_u64..200_000, 1..400)) {
        let mut window = ReplayWindow::default();
        let mut seen = std::collections::HashSet::new();
        let mut highest = 0;
        for number in numbers {
            highest = highest.max(number);
            let fresh = seen.insert(number) && highest - number < WINDOW;
            prop_assert_eq!(window.accept(number).is_ok(), fresh, "{}", number);
        }
    }
}
