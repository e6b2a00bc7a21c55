//! Quotas over the management API.

use http::StatusCode;
use serde_json::{Value, json};

use super::office::Office;

/// One row of `Quotas/List`.
fn row<'a>(answer: &'a Value, holder: &str, quota: &str) -> &'a Value {
    answer["quotas"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["holder"] == holder && row["quota"] == quota)
        .unwrap_or_else(|| panic!("{holder} {quota}: {answer}"))
}

#[tokio::test]
async fn limits_are_listed_set_and_unset() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let list = async || {
        office
            .ok(&alice, "Quotas/List", json!({"project": "p"}))
            .await
    };
    let before = list().await;
    for (holder, quota, limit) in [
        ("project", "requests_per_minute", json!(60_000)),
        ("project", "active_streams", json!(500)),
        ("project", "watches", Value::Null),
        ("default", "requests_per_minute", json!(6_000)),
        ("default", "active_streams", json!(50)),
        ("default", "watches", json!(5_000)),
    ] {
        let row = row(&before, holder, quota);
        assert_eq!(
            (&row["limit"], &row["set"]),
            (&limit, &Value::Null),
            "{row}"
        );
        assert_eq!(row["inUse"].is_null(), holder == "default", "{row}");
    }
    let set = async |message: Value| office.ok(&alice, "Quotas/Set", message).await;
    let answer =
        set(json!({"project": "p", "quota": "watches", "holder": "user:bob", "limit": 7})).await;
    assert_eq!(
        answer,
        json!({"quota": "watches", "holder": "user:bob", "limit": 7, "inUse": 0, "set": true})
    );
    set(json!({"project": "p", "quota": "active_streams", "holder": "default", "limit": 10})).await;
    set(json!({"project": "p", "quota": "active_streams", "holder": "project", "limit": 2400}))
        .await;
    let after = list().await;
    for (holder, quota, limit) in [
        ("user:bob", "watches", 7),
        ("user:bob", "active_streams", 10),
        ("default", "active_streams", 10),
        ("project", "active_streams", 2400),
    ] {
        assert_eq!(row(&after, holder, quota)["limit"], limit, "{after}");
    }
    let bobs = office
        .ok(
            &alice,
            "Quotas/List",
            json!({"project": "p", "member": "user:bob"}),
        )
        .await;
    assert_eq!(bobs["quotas"].as_array().unwrap().len(), 3);
    let answer = set(json!({"project": "p", "quota": "watches", "holder": "user:bob"})).await;
    assert_eq!(
        (&answer["limit"], &answer["set"]),
        (&json!(5_000), &Value::Null)
    );
}

#[tokio::test]
async fn who_may_not_is_refused_and_what_is_wrong_is_named() {
    let office = Office::open().await;
    let set = json!({"project": "p", "quota": "watches", "holder": "project", "limit": 1});
    for (user, method, message, code, says) in [
        (
            "reader",
            "Quotas/Set",
            set.clone(),
            StatusCode::FORBIDDEN,
            "lacks permission",
        ),
        (
            "bob",
            "Quotas/List",
            json!({"project": "p"}),
            StatusCode::FORBIDDEN,
            "lacks permission",
        ),
        (
            "alice",
            "Quotas/Set",
            json!({"project": "q", "quota": "watches", "holder": "project", "limit": 1}),
            StatusCode::FORBIDDEN,
            "projects/q",
        ),
        (
            "alice",
            "Quotas/Set",
            json!({"project": "p", "quota": "streams", "holder": "project", "limit": 1}),
            StatusCode::BAD_REQUEST,
            "quota \"streams\" is not one of requests_per_minute, active_streams, watches",
        ),
        (
            "alice",
            "Quotas/Set",
            json!({"project": "p", "quota": "watches", "holder": "bob", "limit": 1}),
            StatusCode::BAD_REQUEST,
            "holder: ",
        ),
        (
            "alice",
            "Quotas/Set",
            json!({"project": "p", "quota": "watches", "holder": "project", "limit": 0}),
            StatusCode::BAD_REQUEST,
            "limit: 0 is not between 1 and 10000000",
        ),
    ] {
        let token = office.token(user);
        let (status, answer) = office.json(Some(&token), method, message).await;
        assert_eq!(status, code, "{user} {answer}");
        let said = answer["message"].as_str().unwrap();
        assert!(said.contains(says), "{said}");
    }
}
