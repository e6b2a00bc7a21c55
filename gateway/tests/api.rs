//! The management API over real HTTP: what it refuses, and that JSON and gRPC are one.

#[cfg(test)]
mod api {
    mod iam;
    pub(crate) mod office;
    mod quotas;
}

use api::office::{Office, bounded};
use http::StatusCode;
use serde_json::{Value, json};
use tonic::Code;
use towline_proto::{
    api::{
        ListMembershipsRequest, ListMembershipsResponse, Policy, SetIamPolicyRequest,
        WhoAmIRequest, WhoAmIResponse,
    },
    jws::KeyPair,
    names::Membership,
    registration::Registration,
};

fn project(name: &str) -> Value {
    json!({"project": name})
}

fn edge(name: &str) -> Value {
    json!({"project": "p", "name": name})
}

#[tokio::test]
async fn json_and_grpc_are_one() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let json = office.ok(&alice, "Identity/WhoAmI", json!({})).await;
    let (code, grpc) = office
        .grpc::<_, WhoAmIResponse>(&alice, "Identity/WhoAmI", &WhoAmIRequest {})
        .await;
    assert_eq!(code, Code::Ok);
    let grpc = grpc.unwrap();
    assert_eq!(
        json,
        serde_json::from_str::<Value>(&towline_proto::api::to_json(&grpc).unwrap()).unwrap()
    );
    assert_eq!(
        (grpc.principal.as_str(), grpc.groups.as_slice()),
        ("user:alice", &["dev".to_owned()][..])
    );

    let nobody = office.token("bob");
    let request = ListMembershipsRequest {
        project: "p".into(),
    };
    let (code, none) = office
        .grpc::<_, ListMembershipsResponse>(&nobody, "Memberships/List", &request)
        .await;
    assert_eq!((code, none), (Code::PermissionDenied, None));
    let (status, error) = office
        .json(Some(&nobody), "Memberships/List", project("p"))
        .await;
    assert_eq!(
        (status, error["code"].as_str()),
        (StatusCode::FORBIDDEN, Some("permission_denied"))
    );
}

#[tokio::test]
async fn every_method_asks_who_calls() {
    let office = Office::open().await;
    for service in towline_proto::api::DESCRIPTORS.services() {
        for method in service.methods() {
            let path = format!("{}/{}", service.name(), method.name());
            let (status, answer) = office.json(None, &path, json!({})).await;
            // An agent's first contact has its token in the message.
            let expected = if path == "Enrolment/Redeem" {
                (StatusCode::BAD_REQUEST, "invalid_argument")
            } else if path == "Memberships/List" || !needs_name(&path) {
                (StatusCode::UNAUTHORIZED, "unauthenticated")
            } else {
                // Names are parsed first; that tells nothing about what exists.
                (StatusCode::BAD_REQUEST, "invalid_argument")
            };
            assert_eq!(
                (status, answer["code"].as_str()),
                (expected.0, Some(expected.1)),
                "{path}: {answer}"
            );
        }
    }
}

/// Whether the method parses a name before it looks who calls.
fn needs_name(path: &str) -> bool {
    matches!(
        path,
        "Quotas/List"
            | "Quotas/Set"
            | "Projects/GetIamPolicy"
            | "Projects/SetIamPolicy"
            | "Memberships/Register"
            | "Memberships/Get"
            | "Memberships/Update"
            | "Memberships/Delete"
            | "Memberships/GenerateCredentials"
            | "Streams/List"
            | "Iam/GetPolicy"
            | "Iam/SetPolicy"
            | "Iam/GetRole"
            | "Iam/CreateRole"
            | "Iam/UpdateRole"
            | "Iam/DeleteRole"
            | "Iam/Explain"
    )
}

#[tokio::test]
async fn who_may_what() {
    let office = Office::open().await;
    let (operator, owner, reader, bob) = (
        office.token("root"),
        office.token("alice"),
        office.token("reader"),
        office.token("bob"),
    );
    office
        .ok(&owner, "Memberships/Register", edge("edge"))
        .await;
    let policy = office
        .ok(&owner, "Projects/GetIamPolicy", project("p"))
        .await;
    let set = json!({"project": "p", "policy": policy});
    // In the order operator, owner, reader, somebody else.
    for (path, message, expected) in [
        ("Users/List", json!({}), "yes no no no"),
        ("Projects/Delete", json!({"name": "p"}), "refused no no no"),
        ("Projects/List", json!({}), "yes yes yes yes"),
        ("Projects/GetIamPolicy", project("p"), "no yes no no"),
        ("Memberships/List", project("p"), "no yes yes no"),
        ("Memberships/Get", edge("edge"), "no yes yes no"),
        (
            "Memberships/GenerateCredentials",
            edge("edge"),
            "no yes yes no",
        ),
        ("Streams/List", project("p"), "no yes yes no"),
        ("Memberships/Register", edge("edge"), "no refused no no"),
        ("Memberships/Delete", edge("none"), "no refused no no"),
        ("Projects/SetIamPolicy", set, "no yes no no"),
    ] {
        let mut found = Vec::new();
        for token in [&operator, &owner, &reader, &bob] {
            let (status, _) = office.json(Some(token), path, message.clone()).await;
            found.push(match status {
                StatusCode::OK => "yes",
                StatusCode::FORBIDDEN => "no",
                _ => "refused",
            });
        }
        assert_eq!(found.join(" "), expected, "{path}");
    }
    assert_eq!(office.ok(&bob, "Projects/List", json!({})).await, json!({}));
    assert_eq!(
        office.ok(&bob, "Memberships/List", json!({})).await,
        json!({})
    );
}

#[tokio::test]
async fn existence_is_not_told() {
    let office = Office::open().await;
    office
        .ok(&office.token("alice"), "Memberships/Register", edge("edge"))
        .await;
    let bob = office.token("bob");
    let ask = async |path: &str, message: Value| {
        let (status, answer) = office.json(Some(&bob), path, message).await;
        (status, answer["message"].as_str().unwrap().to_owned())
    };
    let (there, elsewhere) = (
        ask("Memberships/Get", edge("edge")).await,
        ask("Memberships/Get", edge("none")).await,
    );
    assert_eq!(there.0, elsewhere.0);
    let named = |message: &str, id: &str| message.replace(&format!("memberships/{id};"), "");
    assert_eq!(named(&there.1, "edge"), named(&elsewhere.1, "none"));
    assert_ne!(named(&there.1, "edge"), there.1);
    let (there, elsewhere) = (
        ask("Memberships/List", project("p")).await,
        ask("Memberships/List", project("none")).await,
    );
    assert_eq!(there.0, elsewhere.0);
    assert_eq!(there.1.replace("projects/p", "projects/none"), elsewhere.1);
}

#[tokio::test]
async fn a_disabled_user_and_a_token_for_one_membership_are_refused() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let edge = office.token_for("alice", "/v1/projects/p/locations/global/memberships/edge");
    let (status, answer) = office.json(Some(&edge), "Projects/List", json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("memberships/edge only"),
        "{answer}"
    );
    let set = json!({"name": "alice", "disabled": true});
    office
        .ok(&office.token("root"), "Users/SetDisabled", set)
        .await;
    let (status, answer) = office.json(Some(&alice), "Projects/List", json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        answer["message"].as_str().unwrap().contains("disabled"),
        "{answer}"
    );
}

#[tokio::test]
async fn two_administrators_cannot_lose_each_others_change() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let read = office
        .ok(&alice, "Projects/GetIamPolicy", project("p"))
        .await;
    let with = |role: &str, member: &str| {
        let mut policy = read.clone();
        policy["bindings"]
            .as_array_mut()
            .unwrap()
            .push(json!({"role": role, "members": [member]}));
        json!({"project": "p", "policy": policy})
    };
    let first = office
        .ok(
            &alice,
            "Projects/SetIamPolicy",
            with("gatewayAdmin", "user:bob"),
        )
        .await;
    assert_ne!(first["etag"], read["etag"]);
    let (status, answer) = office
        .json(
            Some(&alice),
            "Projects/SetIamPolicy",
            with("gatewayEditor", "user:bob"),
        )
        .await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::CONFLICT, Some("aborted"))
    );
    assert_eq!(
        office
            .ok(&alice, "Projects/GetIamPolicy", project("p"))
            .await,
        first
    );

    for (role, member, says) in [
        ("gatewayGod", "user:bob", "gatewayReader, gatewayEditor"),
        ("gatewayAdmin", "bob", "user:NAME"),
        ("gatewayAdmin", "user:unknown", "does not exist"),
    ] {
        let (status, answer) = office
            .json(Some(&alice), "Projects/SetIamPolicy", with(role, member))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(
            answer["message"].as_str().unwrap().contains(says),
            "{answer}"
        );
    }
    let nobody = SetIamPolicyRequest {
        project: "p".into(),
        policy: Some(Policy {
            etag: first["etag"].as_str().unwrap().into(),
            bindings: vec![],
        }),
    };
    let (code, _) = office
        .grpc::<_, Policy>(&alice, "Projects/SetIamPolicy", &nobody)
        .await;
    assert_eq!(code, Code::FailedPrecondition, "the last owner stays");
}

#[tokio::test]
async fn an_agent_redeems_what_register_gave() {
    let office = Office::open().await;
    let alice = office.token("alice");
    let made = office
        .ok(&alice, "Memberships/Register", edge("edge"))
        .await;
    assert_eq!(made["membership"]["state"], "PENDING");
    let file: Registration =
        serde_saphyr::from_str(made["registration"].as_str().unwrap()).unwrap();
    assert_eq!(file.gateway, "https://gateway.test");
    assert_eq!(file.root_key, office.root());
    assert_eq!(
        file.membership,
        "projects/p/locations/global/memberships/edge"
            .parse::<Membership>()
            .unwrap()
    );
    let (status, again) = office
        .json(Some(&alice), "Memberships/Register", edge("edge"))
        .await;
    assert_eq!(
        (status, again["code"].as_str()),
        (StatusCode::CONFLICT, Some("already_exists"))
    );
    let begins = "a membership with the same name already exists";
    assert!(
        again["message"].as_str().unwrap().starts_with(begins),
        "{again}"
    );

    let redeem = async |membership: &str, token: &str, key: &KeyPair| {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.encode(key.public().as_bytes());
        let message = json!({"project": "p", "location": "global", "membership": membership, "token": token, "publicKey": key});
        office.json(None, "Enrolment/Redeem", message).await
    };
    let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let token = file.token.unwrap();
    let none = (
        StatusCode::FORBIDDEN,
        "no valid registration token was found",
    );
    for (membership, token, key) in [("edge", "wrong", &mine), ("other", token.as_str(), &mine)] {
        let (status, answer) = redeem(membership, token, key).await;
        assert_eq!((status, answer["message"].as_str().unwrap()), none);
    }
    assert_eq!(
        redeem("edge", &token, &mine).await,
        (StatusCode::OK, json!({}))
    );
    assert_eq!(
        redeem("edge", &token, &mine).await,
        (StatusCode::OK, json!({})),
        "until it has connected"
    );
    let (status, answer) = redeem("edge", &token, &theirs).await;
    assert_eq!((status, answer["message"].as_str().unwrap()), none);

    assert_eq!(
        office.ok(&alice, "Memberships/Get", edge("edge")).await["state"],
        "DISCONNECTED"
    );
    let (status, _) = office
        .json(
            Some(&office.token("root")),
            "Projects/Delete",
            json!({"name": "p"}),
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "memberships are left");
    office.ok(&alice, "Memberships/Delete", edge("edge")).await;
    let (status, answer) = office
        .json(Some(&alice), "Memberships/Get", edge("edge"))
        .await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::NOT_FOUND, Some("not_found"))
    );
    office
        .ok(
            &office.token("root"),
            "Projects/Delete",
            json!({"name": "p"}),
        )
        .await;
}

#[tokio::test]
async fn operators_manage_users() {
    let office = Office::open().await;
    let root = office.token("root");
    let made = office
        .ok(
            &root,
            "Users/Create",
            json!({"name": "carol", "groups": ["dev", "ops"]}),
        )
        .await;
    assert_eq!(made["user"]["groups"], json!(["dev", "ops"]));
    assert_eq!(made["oneTimeCode"].as_str().unwrap().len(), 29);
    let (status, _) = office
        .json(Some(&root), "Users/Create", json!({"name": "carol"}))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    for bad in ["system:admin", "serviceAccount:x@p", "", "a\nb"] {
        let (status, answer) = office
            .json(Some(&root), "Users/Create", json!({"name": bad}))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}: {answer}");
    }
    let group = |name: &str| json!({"name": "carol", "groups": [name]});
    let (status, _) = office
        .json(Some(&root), "Users/AddGroup", group("system:masters"))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    office.ok(&root, "Users/AddGroup", group("new")).await;
    let user = office.ok(&root, "Users/RemoveGroup", group("dev")).await;
    assert_eq!(user["groups"], json!(["new", "ops"]));
    let reset = office
        .ok(&root, "Users/ResetPassword", json!({"name": "carol"}))
        .await;
    assert_ne!(reset["oneTimeCode"], made["oneTimeCode"]);
    let last = json!({"name": "root", "disabled": true});
    let (status, answer) = office.json(Some(&root), "Users/SetDisabled", last).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::BAD_REQUEST, Some("failed_precondition"))
    );
    let (status, _) = office
        .json(
            Some(&root),
            "Users/ResetPassword",
            json!({"name": "nobody"}),
        )
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let office = Office::open().await;
    let root = office.token("root");
    let (status, answer) = office
        .json(Some(&root), "Users/Create", json!({"nam": "x"}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        answer["message"].as_str().unwrap().contains("nam"),
        "{answer}"
    );
    let (status, _) = office.json(Some(&root), "Users/Nothing", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = office.json(Some(&root), "Nothing/List", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let long = json!({"name": "x".repeat(1024 * 1024)});
    let (status, answer) = bounded(office.json(Some(&root), "Users/Create", long)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}
