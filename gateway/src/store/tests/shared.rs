//! What only a database that several replicas share can do.

use towline_test_postgresql::{Server, USER};

use super::*;

pub(super) fn at(url: &str) -> Database {
    Database::parse(url, Path::new("/"), None).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_bring_it_to_its_form_once() {
    let database = at(&Server::shared().database());
    let mut starts = JoinSet::new();
    for _ in 0..6 {
        let database = database.clone();
        starts.spawn(async move { Store::open(&database).await.unwrap() });
    }
    let replicas = starts.join_all().await;
    replicas[0]
        .create_project(&project(), &alice(), NOW)
        .await
        .unwrap();
    for replica in replicas {
        assert_eq!(replica.projects().await.unwrap().len(), 1);
    }
}

/// What a writer has read holds until it has written, whichever replica it is at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_waits_for_the_one_of_another_replica() {
    let url = Server::shared().database();
    let replicas = [
        Store::open(&at(&url)).await.unwrap(),
        Store::open(&at(&url)).await.unwrap(),
    ];
    let writing = replicas[0].begin().await.unwrap();
    let other = replicas[1].clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { other.create_project(&project(), &alice(), NOW).await });
    let name = url.rsplit('/').next().unwrap().to_owned();
    until(|| {
        let waits = format!(
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
             WHERE d.datname = '{name}' AND l.locktype = 'advisory' AND NOT l.granted"
        );
        Server::shared().sql("postgres", &waits).trim() == "1"
    })
    .await;
    assert!(waiting.try_join_next().is_none());
    replicas[0].commit(writing, Concern::Tokens).await.unwrap();
    waiting.join_next().await.unwrap().unwrap().unwrap();
}

/// Waits for a condition, but not for ever.
pub(super) async fn until(condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it didn't come to be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_come_in_the_order_that_sqlite_has_too() {
    let mut listed = Vec::new();
    for on in [On::Sqlite, On::Postgresql] {
        let store = on.open().await;
        for name in ["b", "a-b", "ab", "a-c", "aa"] {
            let project = name.parse().unwrap();
            store.create_project(&project, &alice(), NOW).await.unwrap();
        }
        for name in ["b", "B", "_", "é", "a"] {
            let user = User {
                name: name.into(),
                groups: vec!["b".into(), "B".into(), "-b".into()],
                disabled: false,
                operator: false,
                created: NOW,
            };
            store.create_user(&user, "c", NOW).await.unwrap();
        }
        let users = store.users().await.unwrap();
        for user in &users {
            assert_eq!(store.user(&user.name).await.unwrap().as_ref(), Some(user));
        }
        listed.push((users, store.projects().await.unwrap()));
    }
    assert_eq!(listed[0], listed[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_server_is_told() {
    let server = Server::on_port("");
    let port = server.port();
    server.sql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'right'");
    let open = |url: String, password: Option<&str>| {
        let password = password.map(|password| Password::Given(password.into()));
        let database = Database::parse(&url, Path::new("/"), password).unwrap();
        async move { Store::open(&database).await.unwrap_err() }
    };
    let here = format!("127.0.0.1:{port}");

    let error = open(format!("postgres://reader@{here}/postgres"), Some("wrong")).await;
    assert!(matches!(error, StoreError::Refused(..)), "{error:?}");
    assert!(
        error
            .to_string()
            .contains(&format!("\"postgres\" at {here} refuses")),
        "{error}"
    );
    let error = open(server.url("none"), None).await;
    assert!(matches!(error, StoreError::Refused(..)), "{error:?}");
    // It may sign in, but make nothing.
    let error = open(format!("postgres://reader@{here}/postgres"), Some("right")).await;
    assert!(matches!(error, StoreError::Migrate(..)), "{error:?}");
    // Without TLS only where it is asked for.
    let error = open(
        format!("postgres://reader@{here}/postgres?sslmode=verify-full"),
        Some("right"),
    )
    .await;
    assert!(matches!(error, StoreError::Open(..)), "{error:?}");

    let database = at(&server.database());
    let store = Store::open(&database).await.unwrap();
    server.sql(
        "postgres",
        &format!("ALTER ROLE {USER} SET default_transaction_read_only = on"),
    );
    let read_only = Store::open(&at(&server.url("postgres"))).await.unwrap_err();
    assert!(
        matches!(read_only, StoreError::Migrate(..)),
        "{read_only:?}"
    );
    store.check().await.unwrap();
    server.stop();
    let error = Store::open(&database).await.unwrap_err();
    assert!(matches!(error, StoreError::Away(..)), "{error:?}");
}
