use std::sync::Arc;

use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};
use tokio::task::JoinSet;
use towline_proto::{
    handshake::Hello,
    jws::{KeyPair, PublicKey},
    names::{Membership, Project},
};

use super::{
    memberships::{MembershipError, RedeemError},
    policies::PolicyError,
    projects::ProjectError,
    refresh::{Authorization, GRACE_SECONDS, Lifetimes, Rotated},
    testing::{On, on_both},
    users::UserError,
    *,
};
use crate::iam::{Binding, Member, Policy, Principal, Role};
use crate::keys::Published;

on_both! {
    a_user_lives,
    a_one_time_code_works_once_and_in_time,
    nothing_is_stored_that_could_be_used,
    policies_change_one_at_a_time,
    a_project_goes_when_it_is_empty,
    a_registration_token_enrols_one_key,
    a_token_claims_no_other_name,
    of_many_keys_at_once_one_is_enrolled,
    a_membership_tells_since_when,
    replicas_and_their_sessions_are_known,
    signing_keys_are_published_for_as_long_as_they_count,
    refresh_tokens_rotate,
    the_grace_ends_when_what_came_of_it_is_used,
    refresh_tokens_end,
    an_authorization_code_that_comes_again_ends_what_it_began,
    an_authorization_code_is_used_up_by_a_wrong_try,
    whoever_listens_hears_of_what_concerns_rights_and_reads_the_new,
    what_is_asked_for_often_costs_no_sql,
    what_was_written_is_there_again,
}

mod away;
mod heard;
mod shared;
mod tls;

const NOW: u64 = 1_800_000_000;
const LIFETIMES: Lifetimes = Lifetimes {
    token: 1_000,
    family: 3_000,
};

fn alice() -> Principal {
    Principal::User("alice".into())
}

fn project() -> Project {
    "p".parse().unwrap()
}

fn edge() -> Membership {
    "projects/p/locations/global/memberships/edge"
        .parse()
        .unwrap()
}

fn key() -> PublicKey {
    KeyPair::generate().unwrap().public()
}

fn hello(version: &str) -> Hello {
    Hello {
        membership: edge(),
        root: String::new(),
        iat: NOW,
        jti: String::new(),
        share: String::new(),
        agent_version: "0.1.0".into(),
        kubernetes_version: version.into(),
        external_id: version.into(),
        host: String::new(),
        process: String::new(),
        resume: None,
        avoid: Vec::new(),
    }
}

async fn store(on: On) -> Store {
    let store = on.open().await;
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    store
}

async fn with_user(on: On, name: &str) -> Store {
    let store = store(on).await;
    let user = User {
        name: name.into(),
        groups: vec![],
        disabled: false,
        operator: true,
        created: NOW,
    };
    store.create_user(&user, "code", NOW + 60).await.unwrap();
    store
}

async fn a_user_lives(on: On) {
    let store = with_user(on, "alice").await;
    let again = User {
        name: "alice".into(),
        groups: vec![],
        disabled: false,
        operator: false,
        created: NOW,
    };
    assert!(matches!(
        store.create_user(&again, "other", NOW + 60).await,
        Err(UserError::Exists(_))
    ));

    store
        .change_groups("alice", &["dev".into(), "ops".into(), "dev".into()], &[])
        .await
        .unwrap();
    store
        .change_groups("alice", &[], &["ops".into(), "never".into()])
        .await
        .unwrap();
    assert_eq!(store.user("alice").await.unwrap().unwrap().groups, ["dev"]);
    assert_eq!(
        store.users().await.unwrap(),
        [store.user("alice").await.unwrap().unwrap()]
    );

    assert!(matches!(
        store.set_disabled("alice", true).await,
        Err(UserError::LastOperator(_))
    ));
    let other = User {
        name: "bob".into(),
        groups: vec!["x".into()],
        disabled: false,
        operator: true,
        created: NOW,
    };
    store.create_user(&other, "other", NOW + 60).await.unwrap();
    store.set_disabled("alice", true).await.unwrap();
    assert!(store.user("alice").await.unwrap().unwrap().disabled);
    store.set_disabled("alice", false).await.unwrap();
    assert!(!store.user("alice").await.unwrap().unwrap().disabled);

    assert!(matches!(
        store.set_disabled("nobody", true).await,
        Err(UserError::Unknown(_))
    ));
    assert!(matches!(
        store.change_groups("nobody", &[], &[]).await,
        Err(UserError::Unknown(_))
    ));
    assert!(matches!(
        store.reset_password("nobody", "c", NOW).await,
        Err(UserError::Unknown(_))
    ));
    assert_eq!(store.user("nobody").await.unwrap(), None);
}

async fn a_one_time_code_works_once_and_in_time(on: On) {
    let store = with_user(on, "alice").await;
    assert!(!store.redeem_code("alice", "wrong", "h", NOW).await.unwrap());
    assert!(!store.redeem_code("bob", "code", "h", NOW).await.unwrap());
    assert!(
        !store
            .redeem_code("alice", "code", "h", NOW + 60)
            .await
            .unwrap()
    );
    assert!(
        store
            .redeem_code("alice", "code", "h", NOW + 59)
            .await
            .unwrap()
    );
    assert!(
        !store
            .redeem_code("alice", "code", "h", NOW + 59)
            .await
            .unwrap()
    );
    assert_eq!(
        store
            .credentials("alice")
            .await
            .unwrap()
            .unwrap()
            .password
            .as_deref(),
        Some("h")
    );

    store
        .reset_password("alice", "second", NOW + 60)
        .await
        .unwrap();
    let credentials = store.credentials("alice").await.unwrap().unwrap();
    assert_eq!(
        (credentials.password, credentials.code_until),
        (None, Some(NOW + 60))
    );
}

async fn nothing_is_stored_that_could_be_used(on: On) {
    let store = with_user(on, "alice").await;
    store
        .register(&edge(), false, "registration-token", NOW, NOW + 60)
        .await
        .unwrap();
    let bound = Authorization {
        user: "alice".into(),
        client_id: "towline".into(),
        redirect_uri: "http://127.0.0.1:1/".into(),
        challenge: "c".into(),
    };
    store
        .add_authorization("authorization-code", &bound, NOW)
        .await
        .unwrap();
    store
        .redeem_authorization(
            "authorization-code",
            "refresh-token",
            LIFETIMES,
            NOW,
            |_| true,
        )
        .await
        .unwrap();
    for (table, column) in [
        ("one_time_codes", "hash"),
        ("registration_tokens", "hash"),
        ("authorization_codes", "hash"),
        ("refresh_tokens", "hash"),
    ] {
        let query = sqlx::AssertSqlSafe(format!("SELECT {column} FROM {table}"));
        let stored: Vec<String> = sqlx::query_scalar(query)
            .fetch_all(store.reader().unwrap())
            .await
            .unwrap();
        assert_eq!(stored.len(), 1, "{table}");
        for secret in [
            "code",
            "registration-token",
            "authorization-code",
            "refresh-token",
        ] {
            assert!(!stored[0].contains(secret), "{table}");
        }
    }
}

async fn policies_change_one_at_a_time(on: On) {
    let store = store(on).await;
    let first = store.policy(&project()).await.unwrap().unwrap();
    assert_eq!(
        first.bindings,
        [Binding::new(Role::Owner, vec![Member::Principal(alice())])]
    );

    let mut mine = first.clone();
    mine.bindings.push(Binding::new(
        Role::GatewayReader,
        vec![Member::Principal(Principal::User("bob".into()))],
    ));
    let stored = store
        .set_policy_of(&(&project()).into(), &mine)
        .await
        .unwrap();
    assert_eq!(stored.bindings, mine.bindings);
    assert_ne!(stored.etag, first.etag);
    assert_eq!(store.policy(&project()).await.unwrap().unwrap(), stored);

    assert!(matches!(
        store.set_policy_of(&(&project()).into(), &first).await,
        Err(PolicyError::Etag(_))
    ));
    let orphan = Policy {
        etag: stored.etag.clone(),
        bindings: vec![],
    };
    assert!(matches!(
        store.set_policy_of(&(&project()).into(), &orphan).await,
        Err(PolicyError::NoOwner(_))
    ));
    let empty = Policy {
        etag: stored.etag.clone(),
        bindings: vec![Binding::new(Role::Owner, vec![])],
    };
    assert!(matches!(
        store.set_policy_of(&(&project()).into(), &empty).await,
        Err(PolicyError::NoOwner(_))
    ));
    let other: Project = "other".parse().unwrap();
    assert!(matches!(
        store.set_policy_of(&(&other).into(), &stored).await,
        Err(PolicyError::Unknown(_))
    ));
    assert_eq!(store.policy(&other).await.unwrap(), None);
    assert_eq!(store.policy(&project()).await.unwrap().unwrap(), stored);
}

async fn a_project_goes_when_it_is_empty(on: On) {
    let store = store(on).await;
    assert!(matches!(
        store.create_project(&project(), &alice(), NOW).await,
        Err(ProjectError::Exists(_))
    ));
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    assert!(matches!(
        store.delete_project(&project()).await,
        Err(ProjectError::NotEmpty { count: 1, .. })
    ));
    store.delete_membership(&edge()).await.unwrap();
    store.delete_project(&project()).await.unwrap();
    assert!(matches!(
        store.delete_project(&project()).await,
        Err(ProjectError::Unknown(_))
    ));
    assert_eq!(store.projects().await.unwrap(), []);
    assert!(matches!(
        store.register(&edge(), false, "t", NOW, NOW + 60).await,
        Err(MembershipError::NoProject(_))
    ));
}

async fn a_registration_token_enrols_one_key(on: On) {
    let store = store(on).await;
    let (first, second) = (key(), key());
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    assert!(matches!(
        store.register(&edge(), false, "u", NOW, NOW + 60).await,
        Err(MembershipError::Exists(_))
    ));

    assert!(matches!(
        store.redeem(&edge(), "wrong", first, NOW).await,
        Err(RedeemError::NoToken)
    ));
    assert!(matches!(
        store.redeem(&edge(), "t", first, NOW + 60).await,
        Err(RedeemError::NoToken)
    ));
    assert!(store.redeem(&edge(), "t", first, NOW).await.unwrap());
    // The answer was lost: the same key may ask again, no other may.
    assert!(!store.redeem(&edge(), "t", first, NOW).await.unwrap());
    assert!(matches!(
        store.redeem(&edge(), "t", second, NOW).await,
        Err(RedeemError::NoToken)
    ));
    assert_eq!(
        store.membership(&edge()).await.unwrap().unwrap().public_key,
        Some(first)
    );

    up(&store, "sW", &hello("v1"), NOW).await;
    assert!(matches!(
        store.redeem(&edge(), "t", first, NOW).await,
        Err(RedeemError::NoToken)
    ));

    // The old key lives until the new token is redeemed.
    store
        .register(&edge(), true, "again", NOW, NOW + 60)
        .await
        .unwrap();
    assert_eq!(
        store.membership(&edge()).await.unwrap().unwrap().public_key,
        Some(first)
    );
    assert!(store.redeem(&edge(), "again", second, NOW).await.unwrap());
    assert_eq!(
        store.membership(&edge()).await.unwrap().unwrap().public_key,
        Some(second)
    );
}

async fn a_token_claims_no_other_name(on: On) {
    let store = store(on).await;
    let other: Membership = "projects/p/locations/global/memberships/other"
        .parse()
        .unwrap();
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    assert!(matches!(
        store.redeem(&other, "t", key(), NOW).await,
        Err(RedeemError::NoToken)
    ));
    store
        .register(&other, false, "u", NOW, NOW + 60)
        .await
        .unwrap();
    assert!(matches!(
        store.redeem(&other, "t", key(), NOW).await,
        Err(RedeemError::Exists)
    ));
    // Neither is harmed.
    assert!(store.redeem(&edge(), "t", key(), NOW).await.unwrap());
    assert!(store.redeem(&other, "u", key(), NOW).await.unwrap());
    store.register(&edge(), true, "v", NOW, NOW).await.unwrap();
    let none: Membership = "projects/p/locations/global/memberships/none"
        .parse()
        .unwrap();
    assert!(matches!(
        store.register(&none, true, "v", NOW, NOW).await,
        Err(MembershipError::Unknown(_))
    ));
}

/// On a file, with readers and writers of their own, as in a running gateway.
async fn of_many_keys_at_once_one_is_enrolled(on: On) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&on.lasting(dir.path())).await.unwrap();
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    let mut tries = JoinSet::new();
    for _ in 0..32 {
        let store = store.clone();
        tries.spawn(async move {
            let key = key();
            store.redeem(&edge(), "t", key, NOW).await.ok().map(|_| key)
        });
    }
    let won: Vec<PublicKey> = tries.join_all().await.into_iter().flatten().collect();
    assert_eq!(won.len(), 1);
    assert_eq!(
        store.membership(&edge()).await.unwrap().unwrap().public_key,
        Some(won[0])
    );
}

/// A session of the membership's agent, which is enrolled if it wasn't.
async fn note(store: &Store, replica: &str, session: &str, state: State, hello: &Hello, now: u64) {
    let row = store.membership(&edge()).await.unwrap();
    let agent = match row.and_then(|row| row.public_key) {
        Some(agent) => agent,
        None => {
            let agent = KeyPair::generate().unwrap().public();
            // There may be no membership any more.
            drop(store.redeem(&edge(), "t", agent, NOW).await);
            agent
        }
    };
    let noted = Noted {
        session,
        hello,
        agent,
        state,
    };
    store.note_sessions(replica, &[noted], now).await.unwrap();
}

/// A session at the replica `r` is up.
async fn up(store: &Store, session: &str, hello: &Hello, now: u64) {
    store.replica_beats("r", "", 1, false).await.unwrap();
    note(store, "r", session, State::Up, hello, now).await;
}

async fn replicas_and_their_sessions_are_known(on: On) {
    let store = store(on).await;
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    store.replica_joins("q", "q:1", NOW).await.unwrap();
    up(&store, "s1", &hello("v1"), NOW).await;
    note(&store, "q", "s2", State::Up, &hello("v1"), NOW).await;
    let mut changed = store.sessions_changed();
    // A beat is no news.
    assert!(!store.replica_beats("q", "q:1", 7, true).await.unwrap());
    assert!(!changed.has_changed().unwrap());
    let mut replicas = store.replicas().await.unwrap();
    replicas.sort_by(|a, b| a.id.cmp(&b.id));
    let told: Vec<(&str, &str, u64, bool)> = replicas
        .iter()
        .map(|row| {
            (
                row.id.as_str(),
                row.address.as_str(),
                row.beat,
                row.draining,
            )
        })
        .collect();
    assert_eq!(told, [("q", "q:1", 7, true), ("r", "", 1, false)]);

    note(&store, "q", "s2", State::Down, &hello("v1"), NOW + 1).await;
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    let sessions = async || {
        let mut rows = store.sessions_of(&edge()).await.unwrap();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows.into_iter()
            .map(|row| (row.id, row.replica, row.up))
            .collect::<Vec<_>>()
    };
    let row = |id: &str, replica: &str, up| (id.to_owned(), replica.to_owned(), up);
    assert_eq!(
        sessions().await,
        [row("s1", "r", true), row("s2", "q", false)]
    );
    assert_eq!(store.sessions_held("q").await.unwrap(), ["s2"]);
    let elsewhere = store.sessions_elsewhere("q").await.unwrap();
    assert_eq!(
        elsewhere.get(&edge()).copied(),
        matches!(on, On::Postgresql).then_some(1)
    );
    assert!(store.sessions_elsewhere("r").await.unwrap().is_empty());

    // With a replica go its sessions, and it hears of that when it comes again.
    store
        .forget_replicas(&["r".to_owned()], NOW + 2)
        .await
        .unwrap();
    assert!(changed.has_changed().unwrap());
    assert_eq!(sessions().await, [row("s2", "q", false)]);
    assert_eq!(
        store
            .membership(&edge())
            .await
            .unwrap()
            .unwrap()
            .disconnected_since,
        Some(NOW + 2)
    );
    assert!(store.replica_beats("r", "", 2, false).await.unwrap());
    // Somebody else's key by now.
    let noted = Noted {
        session: "s4",
        hello: &hello("v1"),
        agent: KeyPair::generate().unwrap().public(),
        state: State::Up,
    };
    store.note_sessions("q", &[noted], NOW).await.unwrap();
    assert_eq!(sessions().await, [row("s2", "q", false)]);
    store.delete_membership(&edge()).await.unwrap();
    assert_eq!(sessions().await, []);
    note(&store, "r", "s3", State::Up, &hello("v1"), NOW).await;
    assert_eq!(sessions().await, []);
}

async fn signing_keys_are_published_for_as_long_as_they_count(on: On) {
    let store = store(on).await;
    let key = |id: &str, until| Published {
        id: id.to_owned(),
        chain: towline_proto::keys::Chain::new(id.to_owned(), "c".to_owned()),
        until,
    };
    store.publish_key(&key("a", NOW + 1), NOW).await.unwrap();
    store.publish_key(&key("a", NOW + 1), NOW).await.unwrap();
    store
        .publish_key(&key("b", NOW + 9), NOW + 1)
        .await
        .unwrap();
    assert_eq!(
        store.signing_keys().await.unwrap(),
        [("b,c".to_owned(), NOW + 9)]
    );
}

async fn a_membership_tells_since_when(on: On) {
    let store = store(on).await;
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    let row = || async { store.membership(&edge()).await.unwrap().unwrap() };
    assert_eq!(
        (row().await.connected_since, row().await.disconnected_since),
        (None, None)
    );
    up(&store, "s1", &hello("v1"), NOW + 1).await;
    // A second agent doesn't change since when, and one that couldn't ask takes nothing away.
    up(&store, "s2", &hello(""), NOW + 2).await;
    let connected = row().await;
    assert_eq!(
        (connected.connected_since, connected.disconnected_since),
        (Some(NOW + 1), None)
    );
    assert_eq!(
        (
            connected.kubernetes_version.as_str(),
            connected.external_id.as_str()
        ),
        ("v1", "v1")
    );
    // As long as one of them is up.
    for (session, at, over) in [("s1", NOW + 3, true), ("s2", NOW + 3, false)] {
        assert_eq!(row().await.connected_since, Some(NOW + 1));
        let state = if over { State::Over } else { State::Down };
        note(&store, "r", session, state, &hello("v1"), at).await;
    }
    assert_eq!(
        (row().await.connected_since, row().await.disconnected_since),
        (None, Some(NOW + 3))
    );
    up(&store, "s4", &hello("v1"), NOW + 4).await;
    let gone = ["r".to_owned()];
    store.forget_replicas(&gone, NOW + 5).await.unwrap();
    assert_eq!(
        (row().await.connected_since, row().await.disconnected_since),
        (None, Some(NOW + 5))
    );
    assert_eq!(
        store.memberships(None).await.unwrap(),
        store.memberships(Some(&project())).await.unwrap()
    );
    assert_eq!(
        store
            .memberships(Some(&"q".parse().unwrap()))
            .await
            .unwrap(),
        []
    );
}

async fn signed_in(on: On) -> Store {
    let store = with_user(on, "alice").await;
    let bound = Authorization {
        user: "alice".into(),
        client_id: "towline".into(),
        redirect_uri: "http://127.0.0.1:1/".into(),
        challenge: "c".into(),
    };
    store.add_authorization("code", &bound, NOW).await.unwrap();
    let user = store
        .redeem_authorization("code", "r1", LIFETIMES, NOW, |found| *found == bound)
        .await
        .unwrap();
    assert_eq!(user.map(|owner| owner.user).as_deref(), Some("alice"));
    store
}

async fn refresh_tokens_rotate(on: On) {
    let store = signed_in(on).await;
    let rotate = |token: &'static str, next: &'static str, now: u64| {
        let store = store.clone();
        async move {
            store
                .rotate_refresh(token, next, LIFETIMES, now)
                .await
                .unwrap()
        }
    };
    let renewed = |rotated| matches!(rotated, Rotated::Renewed(owner) if owner.user == "alice");
    assert_eq!(rotate("unknown", "x", NOW).await, Rotated::Invalid);
    assert!(renewed(rotate("r1", "r2", NOW + 10).await));
    // Within the grace, counted from the first use: an answer was lost.
    assert!(renewed(rotate("r1", "r2b", NOW + 10 + GRACE_SECONDS).await));
    assert!(renewed(rotate("r2b", "r3", NOW + 41).await));
    assert!(renewed(rotate("r3", "r4", NOW + 50).await));
    // Whoever has the one whose answer was lost has a copy: everything of this sign-in ends.
    assert_eq!(
        rotate("r2", "x", NOW + 51).await,
        Rotated::Reused("alice".into())
    );
    for token in ["r1", "r2", "r2b", "r3", "r4"] {
        assert_eq!(
            rotate(token, "x", NOW + 60).await,
            Rotated::Invalid,
            "{token}"
        );
    }
}

async fn the_grace_ends_when_what_came_of_it_is_used(on: On) {
    let store = signed_in(on).await;
    for (token, next) in [("r1", "r2"), ("r2", "r3")] {
        let rotated = store.rotate_refresh(token, next, LIFETIMES, NOW + 1).await;
        assert!(matches!(rotated.unwrap(), Rotated::Renewed(_)), "{token}");
    }
    let copied = store.rotate_refresh("r1", "x", LIFETIMES, NOW + 2).await;
    assert_eq!(copied.unwrap(), Rotated::Reused("alice".into()));
}

async fn refresh_tokens_end(on: On) {
    let store = signed_in(on).await;
    let rotate = |token: &'static str, next: &'static str, now: u64| {
        let store = store.clone();
        async move {
            store
                .rotate_refresh(token, next, LIFETIMES, now)
                .await
                .unwrap()
        }
    };
    assert!(matches!(
        rotate("r1", "r2", NOW + 999).await,
        Rotated::Renewed(_)
    ));
    assert_eq!(rotate("r2", "r3", NOW + 1_999).await, Rotated::Invalid);

    let store = signed_in(on).await;
    store.revoke_refresh("unknown").await.unwrap();
    store.revoke_refresh("r1").await.unwrap();
    assert_eq!(
        store
            .rotate_refresh("r1", "r2", LIFETIMES, NOW)
            .await
            .unwrap(),
        Rotated::Invalid
    );

    // Disabling and a new password end every sign-in.
    for reset in [true, false] {
        let store = signed_in(on).await;
        if reset {
            store.reset_password("alice", "c", NOW + 60).await.unwrap();
        } else {
            let bob = User {
                name: "bob".into(),
                groups: vec![],
                disabled: false,
                operator: true,
                created: NOW,
            };
            store.create_user(&bob, "other", NOW + 60).await.unwrap();
            store.set_disabled("alice", true).await.unwrap();
        }
        assert_eq!(
            store
                .rotate_refresh("r1", "r2", LIFETIMES, NOW)
                .await
                .unwrap(),
            Rotated::Invalid
        );
    }
}

async fn an_authorization_code_that_comes_again_ends_what_it_began(on: On) {
    let store = signed_in(on).await;
    assert_eq!(
        store
            .redeem_authorization("code", "x", LIFETIMES, NOW, |_| true)
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        store
            .rotate_refresh("r1", "r2", LIFETIMES, NOW)
            .await
            .unwrap(),
        Rotated::Invalid
    );
}

async fn an_authorization_code_is_used_up_by_a_wrong_try(on: On) {
    let store = with_user(on, "alice").await;
    let bound = Authorization {
        user: "alice".into(),
        client_id: "towline".into(),
        redirect_uri: "u".into(),
        challenge: "c".into(),
    };
    store.add_authorization("code", &bound, NOW).await.unwrap();
    assert_eq!(
        store
            .redeem_authorization("code", "r", LIFETIMES, NOW, |_| false)
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        store
            .redeem_authorization("code", "r", LIFETIMES, NOW, |_| true)
            .await
            .unwrap(),
        None
    );
    store.add_authorization("late", &bound, NOW).await.unwrap();
    assert_eq!(
        store
            .redeem_authorization("late", "r", LIFETIMES, NOW + 60, |_| true)
            .await
            .unwrap(),
        None
    );
}

async fn whoever_listens_hears_of_what_concerns_rights_and_reads_the_new(on: On) {
    let store = with_user(on, "alice").await;
    let mut changes = store.changes();
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    assert!(changes.has_changed().unwrap());
    note(&store, "r", "none", State::Down, &hello("v1"), NOW).await;
    changes.mark_unchanged();
    up(&store, "sW", &hello("v1"), NOW).await;
    assert!(
        !changes.has_changed().unwrap(),
        "nothing is decided on a membership's state"
    );
    assert_eq!(
        store
            .membership(&edge())
            .await
            .unwrap()
            .unwrap()
            .connected_since,
        Some(NOW)
    );

    assert!(
        !store
            .user("alice")
            .await
            .unwrap()
            .unwrap()
            .groups
            .contains(&"dev".to_owned())
    );
    store
        .change_groups("alice", &["dev".into()], &[])
        .await
        .unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(store.user("alice").await.unwrap().unwrap().groups, ["dev"]);
}

async fn what_is_asked_for_often_costs_no_sql(on: On) {
    let store = with_user(on, "alice").await;
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    let ask = || async {
        (
            store.user("alice").await.unwrap(),
            store.user("nobody").await.unwrap(),
            store.policy(&project()).await.unwrap(),
            store.membership(&edge()).await.unwrap(),
        )
    };
    let first = ask().await;
    // A closed pool fails every query.
    store.close().await;
    assert_eq!(ask().await, first);
    assert!(store.user("other").await.is_err());
}

/// A read that began before a write and ends after it is not remembered.
#[test]
fn regression_a_late_reader_does_not_remember_the_old() {
    let cache = Cache::new(None);
    let name = "alice".to_owned();
    let writes = cache.recall::<User>(&name).unwrap_err();
    cache.forget(&Concern::User("bob".into()));
    cache.remember::<User>(name.clone(), None, writes);
    let writes = cache.recall::<User>(&name).unwrap_err();
    cache.remember::<User>(name.clone(), None, writes);
    assert_eq!(cache.recall::<User>(&name), Ok(None));
}

#[tokio::test]
async fn a_full_database_says_so_and_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.db");
    let store = Store::open_file(&file).await.unwrap();
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    sqlx::query("PRAGMA max_page_count = 1")
        .execute(&store.inner.pools.writer)
        .await
        .unwrap();
    let mut policy = store.policy(&project()).await.unwrap().unwrap();
    let members = (0..10_000)
        .map(|n| Member::Principal(Principal::User(format!("user-{n:0>100}"))))
        .collect();
    policy
        .bindings
        .push(Binding::new(Role::GatewayReader, members));
    let error = store
        .set_policy_of(&(&project()).into(), &policy)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, PolicyError::Store(StoreError::Full(named, _)) if *named == Database::Sqlite(file.clone())),
        "{error:?}"
    );
    assert!(error.to_string().contains("t.db is full"), "{error}");
    assert_eq!(
        store
            .policy(&project())
            .await
            .unwrap()
            .unwrap()
            .bindings
            .len(),
        1
    );
    // The writer goes on.
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_locked_database_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.db");
    let store = Store::open_file(&file).await.unwrap();
    sqlx::query("PRAGMA busy_timeout = 0")
        .execute(&store.inner.pools.writer)
        .await
        .unwrap();
    let mut other = SqliteConnectOptions::new()
        .filename(&file)
        .connect()
        .await
        .unwrap();
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut other)
        .await
        .unwrap();
    let error = store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ProjectError::Store(StoreError::Locked(named, _)) if *named == Database::Sqlite(file.clone())),
        "{error:?}"
    );
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_database_is_named_and_left() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.db");
    let text = "not a database, but long enough to be one ".repeat(100);
    std::fs::write(&file, &text).unwrap();
    let error = Store::open_file(&file).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged(..)), "{error:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    let error = Store::open_file(&dir.path().join("none").join("t.db"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Open(..)), "{error:?}");
}

async fn what_was_written_is_there_again(on: On) {
    let dir = tempfile::tempdir().unwrap();
    let database = on.lasting(dir.path());
    let store = Store::open(&database).await.unwrap();
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    let before = store.policy(&project()).await.unwrap();
    store.close().await;
    drop(store);
    let store = Store::open(&database).await.unwrap();
    assert_eq!(store.policy(&project()).await.unwrap(), before);
    assert_eq!(Arc::strong_count(&store.inner), 1);
}
