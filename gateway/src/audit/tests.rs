use std::path::Path;

use http::StatusCode;

use super::{search::Query, *};
use crate::iam::Principal;

fn file(directory: &Path, max_bytes: u64) -> SinkConfig {
    SinkConfig::File {
        path: directory.join("audit.jsonl"),
        max_bytes,
        max_files: 5,
    }
}

async fn opened(sink: SinkConfig, when_full: WhenFull, queue: usize) -> (Audit, Writer) {
    let (clock, _) = Clock::fixed(1_700_000_000);
    let config = Config {
        sink,
        queue,
        when_full,
    };
    Audit::open(config, clock).await.unwrap()
}

fn begin(audit: &Audit, id: &str) -> Result<Record, NoRoom> {
    let uri = "/api/v1/pods?limit=1&secret=hunter2".parse().unwrap();
    let headers = [
        ("user-agent", "kubectl"),
        ("authorization", "Bearer hunter2"),
    ];
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    audit.begin(
        id,
        IpAddr::from([192, 0, 2, 1]),
        &Method::GET,
        &uri,
        &headers,
    )
}

/// A request of alice's in project `p`, from its beginning to its end.
fn request(audit: &Audit, id: &str) -> Result<(), NoRoom> {
    let record = begin(audit, id)?;
    record.membership(&"projects/p/locations/global/memberships/m".parse().unwrap());
    record.identity(&crate::authn::Identity::user(
        "alice".into(),
        vec!["dev".into()],
    ));
    record.answered(StatusCode::OK, None);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
fn run(writer: Writer) -> tokio::task::JoinHandle<()> {
    tokio::spawn(writer.run())
}

#[test]
fn ids_are_uuids() {
    let ids = [(); 100].map(|()| id().unwrap());
    for id in &ids {
        let parts: Vec<&str> = id.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert!(
            parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']),
            "{id}"
        );
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn an_event_is_kubernetes_own() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, writer) = opened(file(directory.path(), 10_000), WhenFull::Drop, 10).await;
    let writer = run(writer);
    request(&audit, "r1").unwrap();
    audit.flush().await;
    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    let mut event: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    let duration = event["annotations"]["towline.dev/duration-seconds"].take();
    assert!(duration.as_str().unwrap().starts_with("0.0"), "{duration}");
    assert_eq!(
        event,
        serde_json::json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
            "auditID": "r1", "stage": "ResponseComplete",
            "requestURI": "/api/v1/pods?limit=1&redacted", "verb": "get",
            "user": {"username": "alice", "groups": ["dev"]},
            "sourceIPs": ["192.0.2.1"], "userAgent": "kubectl",
            "responseStatus": {"code": 200},
            "requestReceivedTimestamp": "2023-11-14T22:13:20.000000Z",
            "stageTimestamp": "2023-11-14T22:13:20.000000Z",
            "annotations": {
                "towline.dev/project": "p",
                "towline.dev/membership": "projects/p/locations/global/memberships/m",
                "towline.dev/principal": "user:alice",
                "towline.dev/duration-seconds": null,
            },
        })
    );
    writer.abort();
}

#[tokio::test]
async fn whoever_goes_away_leaves_a_record() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, writer) = opened(file(directory.path(), 100_000), WhenFull::Drop, 10).await;
    let writer = run(writer);
    // Cancelled before there was an answer.
    drop(begin(&audit, "cancelled").unwrap());
    // A stage that panics.
    let record = begin(&audit, "panicked").unwrap();
    let panicked = std::thread::spawn(move || {
        let _record = record;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    panicked.join().unwrap_err();
    audit.flush().await;
    let found = search::search(&audit, &all()).unwrap();
    let told: Vec<_> = found
        .events
        .iter()
        .map(|event| (event.audit_id.as_str(), &*event.stage))
        .collect();
    assert_eq!(
        told,
        [("panicked", "Panic"), ("cancelled", "ResponseComplete")]
    );
    assert_eq!(
        found.events[1].annotation("towline.dev/reason"),
        "the caller went away before the answer"
    );
    writer.abort();
}

fn all() -> Query {
    Query {
        limit: 1_000,
        ..Query::default()
    }
}

#[tokio::test]
async fn a_search_goes_through_all_files_and_shows_one_project_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, writer) = opened(file(directory.path(), 20_000), WhenFull::Refuse, 1_000).await;
    let writer = run(writer);
    for number in 0..100 {
        request(&audit, &format!("r{number}")).unwrap();
        if number % 10 == 0 {
            drop(begin(&audit, &format!("nobody{number}")).unwrap());
            audit.flush().await;
        }
    }
    audit.flush().await;
    assert!(directory.path().join("audit.jsonl.1").exists());
    let of = |query: Query| search::search(&audit, &query).unwrap();
    let project = |name: &str| Query {
        project: Some(name.to_owned()),
        ..all()
    };
    assert_eq!(of(all()).events.len(), 110);
    assert_eq!(of(project("p")).events.len(), 100);
    assert_eq!(of(project("p")).events[0].audit_id, "r99");
    assert!(of(project("q")).events.is_empty());
    for user in ["alice", "user:alice"] {
        let query = Query {
            user: user.to_owned(),
            limit: 7,
            ..project("p")
        };
        let found = of(query);
        assert_eq!((found.events.len(), found.incomplete), (7, true), "{user}");
    }
    for (query, count) in [
        (
            Query {
                id: "r42".into(),
                ..project("p")
            },
            1,
        ),
        (
            Query {
                user: Principal::User("bob".into()).to_string(),
                ..project("p")
            },
            0,
        ),
        (
            Query {
                membership: "projects/p/locations/global/memberships/m".into(),
                ..project("p")
            },
            100,
        ),
        (
            Query {
                since: 1_700_000_001,
                ..project("p")
            },
            0,
        ),
        (
            Query {
                since: 1_700_000_000,
                ..project("p")
            },
            100,
        ),
    ] {
        assert_eq!(of(query.clone()).events.len(), count, "{query:?}");
    }
    writer.abort();
}

#[tokio::test]
async fn a_full_log_drops_and_counts() {
    let directory = tempfile::tempdir().unwrap();
    // Nobody writes yet.
    let (audit, writer) = opened(file(directory.path(), 100_000), WhenFull::Drop, 4).await;
    for number in 0..10 {
        request(&audit, &number.to_string()).unwrap();
    }
    assert_eq!((audit.counts().written(), audit.counts().dropped()), (0, 6));
    let writer = run(writer);
    audit.flush().await;
    assert_eq!((audit.counts().written(), audit.counts().dropped()), (4, 6));
    writer.abort();
}

#[tokio::test]
async fn a_full_log_refuses_and_loses_nothing_that_was_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, writer) = opened(file(directory.path(), 100_000), WhenFull::Refuse, 4).await;
    // Let in while there was room, and longer there than there is.
    let running: Vec<Record> = (0..8)
        .map(|number| begin(&audit, &number.to_string()).unwrap())
        .collect();
    for record in &running {
        record.identity(&crate::authn::Identity::user("alice".into(), Vec::new()));
    }
    drop(running);
    assert_eq!(request(&audit, "refused"), Err(NoRoom));
    let writer = run(writer);
    audit.flush().await;
    request(&audit, "again").unwrap();
    audit.flush().await;
    assert_eq!((audit.counts().written(), audit.counts().dropped()), (9, 0));
    writer.abort();
}

#[tokio::test]
async fn nobody_fills_the_log_for_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let (audit, _writer) = opened(file(directory.path(), 100_000), WhenFull::Refuse, 10).await;
    for number in 0..100 {
        drop(begin(&audit, &number.to_string()).unwrap());
    }
    assert!(audit.counts().dropped() >= 90);
    request(&audit, "somebody").unwrap();
}
