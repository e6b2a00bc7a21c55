//! A server that is away for a while, comes back, and is not believed in for ever.

use towline_test_postgresql::Server;

use super::{
    shared::{at, until},
    *,
};

/// A server of a test's own, reached over TCP, and a gateway's store on it that hears of changes.
async fn on_a_server(limit: Duration) -> (Server, Database, Store) {
    let server = Server::on_port("");
    let password = "secret";
    let sql = format!("ALTER ROLE towline PASSWORD '{password}'");
    server.sql("postgres", &sql);
    let url = format!("postgres://towline@127.0.0.1:{}/postgres", server.port());
    let database = at(&url)
        .with_password(password.into())
        .with_offline_limit(limit);
    let store = Store::open(&database).await.unwrap();
    until(|| store.is_believed()).await;
    (server, database, store)
}

async fn populate(store: &Store) {
    store
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    let user = User {
        name: "alice".into(),
        groups: vec!["dev".into()],
        disabled: false,
        operator: true,
        created: NOW,
    };
    store.create_user(&user, "code", NOW + 60).await.unwrap();
    store
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    store.redeem(&edge(), "t", key(), NOW).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_served_while_it_is_away_and_changes_are_refused() {
    for kill in [false, true] {
        let (server, database, store) = on_a_server(OFFLINE_LIMIT).await;
        populate(&store).await;
        let ask = async || {
            (
                store.user("alice").await.unwrap(),
                store.user("nobody").await.unwrap(),
                store
                    .policies_for(&(&edge()).into())
                    .await
                    .unwrap()
                    .is_some(),
                store.quotas(&project()).await.unwrap(),
                store.enrolled(&edge()).await.unwrap(),
            )
        };
        let known = ask().await;
        assert!(known.0.is_some() && known.4.is_some());
        // An agent comes just before: who may do what is the same.
        up(&store, "s", &hello("v1"), NOW).await;

        if kill {
            server.kill();
        } else {
            server.stop();
        }
        assert_eq!(ask().await, known);
        assert!(store.membership(&edge()).await.unwrap().is_some());
        let other: Project = "other".parse().unwrap();
        let error = store
            .create_project(&other, &alice(), NOW)
            .await
            .unwrap_err();
        let ProjectError::Store(error) = error else {
            panic!("{error:?}");
        };
        assert!(error.is_away(), "{error:?}");
        until(|| store.away().is_some()).await;
        let error = store.user("other").await.unwrap_err();
        assert!(matches!(error, StoreError::StillAway(..)), "{error:?}");
        assert!(error.to_string().contains("out of reach"), "{error}");
        assert!(store.is_believed());
        assert_eq!(ask().await, known);

        server.resume();
        until(|| store.away().is_none()).await;
        assert_eq!(store.projects().await.unwrap().len(), 1, "half a change");
        store.create_project(&other, &alice(), NOW).await.unwrap();
        // Changes are heard again.
        let replica = Store::open(&database).await.unwrap();
        let mut changes = store.changes();
        replica
            .change_groups("alice", &["ops".into()], &[])
            .await
            .unwrap();
        timeout(Duration::from_secs(10), changes.changed())
            .await
            .expect("nothing was heard")
            .unwrap();
        let alice = store.user("alice").await.unwrap().unwrap();
        assert_eq!(alice.groups, ["dev", "ops"]);
    }
}

/// It may have missed that somebody's right was taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_believed_for_longer_than_the_limit() {
    let (server, _, store) = on_a_server(Duration::from_secs(4)).await;
    populate(&store).await;
    let known = store.user("alice").await.unwrap();
    let mut changes = store.changes();
    server.stop();
    assert_eq!(store.user("alice").await.unwrap(), known);
    timeout(Duration::from_secs(20), changes.changed())
        .await
        .expect("nobody was woken")
        .unwrap();
    assert!(!store.is_believed());
    let error = store.user("alice").await.unwrap_err();
    assert!(error.is_away(), "{error:?}");
    server.resume();
    until(|| store.is_believed()).await;
    assert_eq!(store.user("alice").await.unwrap(), known);
}

/// The password is another, as one from a secret that is renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_is_taken_without_a_restart() {
    let server = Server::on_port("");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let set = |password: &str| {
        server.sql(
            "postgres",
            &format!("ALTER ROLE towline PASSWORD '{password}'"),
        );
        std::fs::write(&file, password).unwrap();
    };
    set("first");
    let url = format!("postgres://towline@127.0.0.1:{}/postgres", server.port());
    let password = Some(Password::File(file.clone()));
    let database = Database::parse(&url, dir.path(), password).unwrap();
    let store = Store::open(&database).await.unwrap();
    until(|| store.is_believed()).await;
    set("second");
    server.stop();
    until(|| store.away().is_some()).await;
    server.resume();
    until(|| store.away().is_none()).await;
    populate(&store).await;
}
