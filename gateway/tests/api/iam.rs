//! Policies at every level, roles of a project's own, and who may change them.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{api::office::Office, edge};

const EDGE: &str = "projects/p/locations/global/memberships/edge";

fn of(resource: &str) -> Value {
    json!({"resource": resource})
}

/// A policy with one more binding.
fn with(policy: &Value, binding: Value) -> Value {
    let mut policy = policy.clone();
    match policy["bindings"].as_array_mut() {
        Some(bindings) => bindings.push(binding),
        None => policy["bindings"] = json!([binding]),
    }
    policy
}

async fn message(
    office: &Office,
    user: &str,
    method: &str,
    message: Value,
) -> (StatusCode, String) {
    let token = office.token(user);
    let (status, answer) = office.json(Some(&token), method, message).await;
    (
        status,
        answer["message"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn a_membership_has_a_policy_of_its_own() {
    let office = Office::open().await;
    let (alice, bob) = (office.token("alice"), office.token("bob"));
    office
        .ok(&alice, "Memberships/Register", edge("edge"))
        .await;
    let policy = office.ok(&alice, "Iam/GetPolicy", of(EDGE)).await;
    assert_eq!(policy["etag"], "none");
    let (status, _) = office
        .json(Some(&bob), "Memberships/Get", edge("edge"))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    let policy = with(
        &policy,
        json!({"role": "gatewayReader", "members": ["user:bob"]}),
    );
    let stored = office
        .ok(
            &alice,
            "Iam/SetPolicy",
            json!({"resource": EDGE, "policy": policy}),
        )
        .await;
    assert_eq!(office.ok(&alice, "Iam/GetPolicy", of(EDGE)).await, stored);
    office.ok(&bob, "Memberships/Get", edge("edge")).await;
    for list in [json!({}), json!({"project": "p"})] {
        let listed = office.ok(&bob, "Memberships/List", list).await;
        assert_eq!(listed["memberships"][0]["name"], "edge");
    }
    // What holds there holds nowhere else.
    for (method, asked) in [
        ("Iam/GetPolicy", of("projects/p")),
        ("Iam/SetPolicy", json!({"resource": EDGE, "policy": stored})),
        ("Memberships/Update", edge("edge")),
        ("Memberships/Delete", edge("edge")),
    ] {
        let (status, said) = message(&office, "bob", method, asked).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method}: {said}");
    }
    // Somebody else was faster.
    let (status, said) = message(
        &office,
        "alice",
        "Iam/SetPolicy",
        json!({"resource": EDGE, "policy": policy}),
    )
    .await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");
    let (status, said) = message(
        &office,
        "alice",
        "Iam/GetPolicy",
        of(&EDGE.replace("edge", "none")),
    )
    .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_told_when_it_is_set() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let policy = office.ok(&alice, "Iam/GetPolicy", of("projects/p")).await;
    let many: Vec<String> = (0..20_001).map(|n| format!("group:{n}")).collect();
    let conditions: Vec<Value> = (0..101)
        .map(|n| json!({"role": "gatewayReader", "members": ["group:a"], "condition": {"title": n.to_string(), "expression": "true"}}))
        .collect();
    let condition = |expression: &str| json!({"role": "gatewayAdmin", "members": ["user:bob"], "condition": {"title": "t", "expression": expression}});
    let member = |member: &str| json!({"role": "gatewayAdmin", "members": [member]});
    let role = |role: &str| json!({"role": role, "members": ["user:bob"]});
    for (wrong, says) in [
        (role("gatewayGod"), "gatewayReader, gatewayEditor"),
        (role("projects/p/roles/none"), "does not exist"),
        (role("projects/q/roles/theirs"), "is not one of project p"),
        (member("bob"), "write user:NAME"),
        (member("user:unknown"), "does not exist"),
        (
            json!({"role": "gatewayAdmin", "members": []}),
            "has no members",
        ),
        (
            json!({"role": "gatewayAdmin", "members": many}),
            "20000 may be",
        ),
        (condition("request.path =="), "no CEL expression"),
        (condition("request.path"), "not a bool"),
        (
            condition("user.name == 'bob'"),
            "there is no variable \"user\"",
        ),
        (condition(""), "no CEL expression"),
    ] {
        let policy = json!({"resource": "projects/p", "policy": with(&policy, wrong)});
        let (status, said) = message(&office, "alice", "Iam/SetPolicy", policy).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(said.contains(says), "{said}");
    }
    let mut much = policy.clone();
    much["bindings"].as_array_mut().unwrap().extend(conditions);
    let (_, said) = message(
        &office,
        "alice",
        "Iam/SetPolicy",
        json!({"resource": "projects/p", "policy": much}),
    )
    .await;
    assert!(said.contains("100 may be"), "{said}");
    // The last owner stays, and one under a condition, or a machine, is none.
    for owner in [
        json!([]),
        json!([{"role": "owner", "members": ["user:alice"], "condition": {"title": "t", "expression": "true"}}]),
        json!([{"role": "owner", "members": ["serviceAccount:ci@p"]}]),
        json!([{"role": "gatewayAdmin", "members": ["user:alice"]}]),
    ] {
        let policy = json!({"resource": "projects/p", "policy": {"etag": policy["etag"], "bindings": owner}});
        let (status, said) = message(&office, "alice", "Iam/SetPolicy", policy).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(said.contains("without an owner"), "{said}");
    }
    assert_eq!(
        office.ok(&alice, "Iam/GetPolicy", of("projects/p")).await,
        policy
    );
}

#[tokio::test]
async fn a_project_makes_roles_of_its_own() {
    let office = Office::open().await;
    let (alice, bob) = (office.token("alice"), office.token("bob"));
    let name = "projects/p/roles/registrar";
    let role = |permissions: &[&str]| json!({"role": {"name": name, "title": "Registers", "permissions": permissions}});
    for (wrong, says) in [
        (
            role(&["memberships.creat"]),
            "did you mean \"memberships.create\"?",
        ),
        (role(&[]), "one at least"),
        (
            json!({"role": {"name": "owner", "permissions": ["audit.list"]}}),
            "is predefined",
        ),
        (
            json!({"role": {"name": "registrar", "permissions": ["audit.list"]}}),
            "projects/PROJECT/roles/ROLE",
        ),
    ] {
        let (status, said) = message(&office, "alice", "Iam/CreateRole", wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(said.contains(says), "{said}");
    }
    let made = office
        .ok(&alice, "Iam/CreateRole", role(&["memberships.create"]))
        .await;
    let (status, _) = message(&office, "alice", "Iam/CreateRole", role(&["audit.list"])).await;
    assert_eq!(status, StatusCode::CONFLICT);

    let policy = office.ok(&alice, "Iam/GetPolicy", of("projects/p")).await;
    let bound = with(&policy, json!({"role": name, "members": ["user:bob"]}));
    office
        .ok(
            &alice,
            "Iam/SetPolicy",
            json!({"resource": "projects/p", "policy": bound}),
        )
        .await;
    office.ok(&bob, "Memberships/Register", edge("edge")).await;
    // One who may only register may not give roles, nor change the one he has.
    for (method, asked) in [
        ("Iam/UpdateRole", json!({"role": made})),
        ("Iam/CreateRole", role(&["audit.list"])),
        ("Iam/DeleteRole", json!({"name": name})),
        ("Iam/ListRoles", json!({"project": "p"})),
        ("Iam/GetRole", json!({"name": name})),
    ] {
        let (status, said) = message(&office, "bob", method, asked).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method}: {said}");
    }
    let (status, said) = message(&office, "alice", "Iam/DeleteRole", json!({"name": name})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    assert!(
        said.contains("in use by the policy of projects/p"),
        "{said}"
    );

    // A change of the role is a change of what its holders may, at once.
    let mut less = made.clone();
    less["permissions"] = json!(["audit.list"]);
    let changed = office
        .ok(&alice, "Iam/UpdateRole", json!({"role": less}))
        .await;
    assert_ne!(changed["etag"], made["etag"]);
    let (status, _) = message(&office, "bob", "Memberships/Register", edge("other")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, said) = message(&office, "alice", "Iam/UpdateRole", json!({"role": made})).await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");

    let policy = office.ok(&alice, "Iam/GetPolicy", of("projects/p")).await;
    let mut without = policy.clone();
    without["bindings"]
        .as_array_mut()
        .unwrap()
        .retain(|binding| binding["role"] != name);
    office
        .ok(
            &alice,
            "Iam/SetPolicy",
            json!({"resource": "projects/p", "policy": without}),
        )
        .await;
    office
        .ok(&alice, "Iam/DeleteRole", json!({"name": name}))
        .await;
    let roles = office
        .ok(&alice, "Iam/ListRoles", json!({"project": "p"}))
        .await;
    assert_eq!(roles["roles"].as_array().unwrap().len(), 9);
}

#[tokio::test]
async fn labels_are_kubernetes_labels() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let labelled = |labels: Value| {
        let mut message = edge("edge");
        message["labels"] = labels;
        message
    };
    for wrong in [
        json!({"": "a"}),
        json!({"a b": "c"}),
        json!({"a": "b c"}),
        json!({"-a": "b"}),
        json!({"a": "x".repeat(64)}),
        json!({"a/b/c": "d"}),
    ] {
        let (status, said) = message(
            &office,
            "alice",
            "Memberships/Register",
            labelled(wrong.clone()),
        )
        .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}: {said}");
        assert!(said.contains("KEY=VALUE"), "{said}");
    }
    let made = office
        .ok(
            &alice,
            "Memberships/Register",
            labelled(json!({"env": "prod", "example.com/team": ""})),
        )
        .await;
    assert_eq!(
        made["membership"]["labels"],
        json!({"env": "prod", "example.com/team": ""})
    );
    let mut change = labelled(json!({"tier": "1"}));
    change["removeLabels"] = json!(["env"]);
    let changed = office.ok(&alice, "Memberships/Update", change).await;
    assert_eq!(
        changed["labels"],
        json!({"example.com/team": "", "tier": "1"})
    );
    let mut clear = labelled(json!({"a": "b"}));
    clear["clearLabels"] = json!(true);
    office.ok(&alice, "Memberships/Update", clear).await;
    let read = office.ok(&alice, "Memberships/Get", edge("edge")).await;
    assert_eq!(read["labels"], json!({"a": "b"}));
}
