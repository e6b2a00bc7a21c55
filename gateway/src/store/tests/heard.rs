//! What replicas hear of one another.

use towline_test_postgresql::Server;

use super::{
    shared::{at, until},
    *,
};

/// Two replicas on one database, in which there is a user.
struct Two {
    server: &'static Server,
    name: String,
    here: Store,
    there: Store,
}

impl Two {
    async fn new() -> Self {
        let server = Server::shared();
        let url = server.database();
        let name = url.rsplit('/').next().unwrap().to_owned();
        let (here, there) = (open(&url).await, open(&url).await);
        let user = User {
            name: "alice".into(),
            groups: vec![],
            disabled: false,
            operator: false,
            created: NOW,
        };
        let mut changes = there.changes();
        here.create_user(&user, "code", NOW + 60).await.unwrap();
        woken(&mut changes).await;
        Self {
            server,
            name,
            here,
            there,
        }
    }

    async fn groups_there(&self) -> Vec<String> {
        self.there.user("alice").await.unwrap().unwrap().groups
    }

    /// Ends the connections on which replicas listen.
    fn cut(&self) -> usize {
        let cut = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = '{}' AND (query LIKE 'LISTEN%' OR query LIKE '%FROM changes')",
            self.name
        );
        self.server.sql("postgres", &cut).lines().count()
    }
}

/// A replica that hears of the others.
async fn open(url: &str) -> Store {
    let store = Store::open(&at(url)).await.unwrap();
    let hearing = store.clone();
    until(move || hearing.cache().is_believed()).await;
    store
}

async fn woken(changes: &mut watch::Receiver<u64>) {
    let woken = timeout(Duration::from_secs(10), changes.changed()).await;
    woken.expect("nobody was woken").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_one_replica_is_heard_at_the_other_and_read() {
    let two = Two::new().await;
    assert!(two.groups_there().await.is_empty());
    let mut changes = two.there.changes();
    two.here
        .change_groups("alice", &["dev".into()], &[])
        .await
        .unwrap();
    woken(&mut changes).await;
    assert_eq!(two.groups_there().await, ["dev"]);
}

/// Nothing else tells of it: the numbers alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_notification_is_lost_is_found_soon() {
    let two = Two::new().await;
    assert!(two.groups_there().await.is_empty());
    let mut changes = two.there.changes();
    two.server.sql(
        &two.name,
        "BEGIN; INSERT INTO user_groups VALUES ('alice', 'dev'); \
         UPDATE changes SET version = version + 1 WHERE kind = 'rights'; COMMIT",
    );
    woken(&mut changes).await;
    assert_eq!(two.groups_there().await, ["dev"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_what_was_missed_is_found_and_changes_are_heard() {
    let two = Two::new().await;
    assert!(two.groups_there().await.is_empty());
    let mut changes = two.there.changes();
    two.server.sql(
        &two.name,
        "BEGIN; INSERT INTO user_groups VALUES ('alice', 'dev'); \
         UPDATE changes SET version = version + 1, mark = 'x' WHERE kind = 'rights'; COMMIT",
    );
    assert_eq!(two.cut(), 2);
    woken(&mut changes).await;
    assert_eq!(two.groups_there().await, ["dev"]);
    changes.mark_unchanged();
    two.here
        .change_groups("alice", &["ops".into()], &[])
        .await
        .unwrap();
    woken(&mut changes).await;
    assert_eq!(two.groups_there().await, ["dev", "ops"]);
}

/// A server that comes and goes doesn't take away what is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_what_is_known_stays_if_nothing_was_missed() {
    let two = Two::new().await;
    assert!(two.groups_there().await.is_empty());
    let (rights, mut sessions) = (two.there.changes(), two.there.notified(Kind::Sessions));
    // Nothing tells of it: whoever asked the database would see it.
    two.server
        .sql(&two.name, "INSERT INTO user_groups VALUES ('alice', 'dev')");
    assert_eq!(two.cut(), 2);
    let transaction = two.here.begin().await.unwrap();
    two.here
        .commit(transaction, Concern::Sessions)
        .await
        .unwrap();
    woken(&mut sessions).await;
    assert!(two.groups_there().await.is_empty());
    assert!(!rights.has_changed().unwrap());
}

/// What one write concerns is asked for anew, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_replica_wrote_is_all_that_is_forgotten() {
    let two = Two::new().await;
    let (p, q): (Project, Project) = ("p".parse().unwrap(), "q".parse().unwrap());
    let mut changes = two.there.changes();
    for project in [&p, &q] {
        two.here
            .create_project(project, &alice(), NOW)
            .await
            .unwrap();
        woken(&mut changes).await;
    }
    let known = (
        two.there.policy(&p).await.unwrap(),
        two.there.policy(&q).await.unwrap().unwrap(),
    );
    assert!(two.groups_there().await.is_empty());
    two.server.sql(
        &two.name,
        "UPDATE policies SET etag = 'other'; INSERT INTO user_groups VALUES ('alice', 'dev')",
    );
    two.here
        .register(&edge(), false, "t", NOW, NOW + 60)
        .await
        .unwrap();
    woken(&mut changes).await;
    assert_ne!(two.there.policy(&p).await.unwrap(), known.0);
    assert_eq!(two.there.policy(&q).await.unwrap().unwrap(), known.1);
    assert!(two.groups_there().await.is_empty());
    two.here
        .change_groups("alice", &["ops".into()], &[])
        .await
        .unwrap();
    woken(&mut changes).await;
    assert_eq!(two.groups_there().await, ["dev", "ops"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_wakes_those_who_wait_for_it() {
    let two = Two::new().await;
    let (mut rights, mut sessions) = (two.there.changes(), two.there.notified(Kind::Sessions));
    let transaction = two.here.begin().await.unwrap();
    two.here
        .commit(transaction, Concern::Sessions)
        .await
        .unwrap();
    woken(&mut sessions).await;
    assert!(!rights.has_changed().unwrap());
    // What is rolled back is not told.
    let mut transaction = two.here.begin().await.unwrap();
    let told = (Kind::Sessions, &Concern::Sessions);
    Changes::tell(&mut transaction, told, "m".into())
        .await
        .unwrap();
    drop(transaction);
    let transaction = two.here.begin().await.unwrap();
    two.here
        .commit(transaction, Concern::Everything)
        .await
        .unwrap();
    woken(&mut rights).await;
    assert!(!sessions.has_changed().unwrap());
}

/// A commit goes on without whoever asked for it, and is heard of at the same replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_waits_for_empties_the_memory_too() {
    for on in [On::Sqlite, On::Postgresql] {
        let store = with_user(on, "alice").await;
        let mut changes = store.changes();
        let mut transaction = store.begin().await.unwrap();
        sqlx::query("INSERT INTO user_groups VALUES ('alice', 'dev')")
            .execute(&mut *transaction)
            .await
            .unwrap();
        // Until it is under way, and no further.
        let mut commit = Box::pin(store.commit(transaction, Concern::Everything));
        while timeout(Duration::ZERO, commit.as_mut()).await.is_err()
            && store.inner.commits.is_empty()
        {}
        drop(commit);
        woken(&mut changes).await;
        assert_eq!(store.user("alice").await.unwrap().unwrap().groups, ["dev"]);
    }
}
