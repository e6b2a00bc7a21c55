//! Memberships, projects and users.

use serde_json::json;

use crate::{User, gateway::Gateway};

fn registration() -> serde_json::Value {
    json!({"registration": "gateway: https://gw\ntoken: secret\n", "expires": "2100-01-01T00:00:00Z"})
}

#[test]
fn a_registration_is_written_once() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer("Memberships/Register", 200, registration());
    let ran = user
        .run(&["memberships", "register", "prod", "--project", "p"])
        .succeeds();
    assert!(
        ran.err
            .contains("towline-agent run --registration registration.yaml"),
        "{ran:?}"
    );
    assert_eq!(
        user.read("registration.yaml"),
        "gateway: https://gw\ntoken: secret\n"
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            user.file("registration.yaml").metadata().unwrap().mode() & 0o777,
            0o600
        );
    }
    let calls = gateway.state().calls.len();
    user.run(&["memberships", "register", "other", "--project", "p"])
        .fails(&["registration.yaml", "--force"]);
    assert_eq!(
        gateway.state().calls.len(),
        calls,
        "no token is made that would be lost"
    );
    user.run(&[
        "memberships",
        "register",
        "prod",
        "--project",
        "p",
        "--renew",
        "--force",
    ])
    .succeeds();
    assert_eq!(gateway.state().calls.last().unwrap().1["renew"], true);
}

#[test]
fn a_manifest_goes_to_kubectl_and_what_it_means_to_the_user() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer("Memberships/Register", 200, registration());
    let register = |more: &[&str]| {
        user.run(
            &[
                &[
                    "memberships",
                    "register",
                    "prod",
                    "--project",
                    "p",
                    "--manifest",
                    "-",
                ],
                more,
            ]
            .concat(),
        )
    };
    let ran = register(&[
        "--impersonate-users",
        "alice,bob",
        "--namespace",
        "ns",
        "--image",
        "i:1",
    ])
    .succeeds();
    let documents: Vec<serde_json::Value> = serde_saphyr::from_str_multiple(&ran.out).unwrap();
    assert_eq!(documents[0]["metadata"]["name"], "ns");
    let rules = documents
        .iter()
        .find(|d| d["metadata"]["name"] == "gateway-impersonate-ns")
        .unwrap();
    assert_eq!(rules["rules"][0]["resourceNames"], json!(["alice", "bob"]));
    assert!(
        !ran.err.contains("secret") && !ran.err.contains("administrator"),
        "{ran:?}"
    );
    let ran = register(&["--impersonate-anyone"]).succeeds();
    assert!(ran.err.contains("administrator of the cluster"), "{ran:?}");
    let calls = gateway.state().calls.len();
    register(&["--impersonate-groups", "system:masters"]).fails(&["system:masters"]);
    assert_eq!(gateway.state().calls.len(), calls);
}

#[test]
fn a_list_has_what_one_looks_for() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let list = json!({"memberships": [
        {
            "project": "p", "location": "global", "name": "prod", "externalId": "uid-1",
            "kubernetesVersion": "v1.36.3", "agentVersion": "0.1.0", "state": "CONNECTED",
            "stateSince": "2020-01-01T00:00:00Z", "sessions": 2
        },
        {"project": "p", "location": "global", "name": "new", "state": "PENDING"},
    ]});
    gateway.answer("Memberships/List", 200, list);
    let out = user.run(&["memberships", "list"]).succeeds().out;
    let lines: Vec<Vec<&str>> = out
        .lines()
        .map(|line| {
            line.split("   ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME",
            "LOCATION",
            "EXTERNAL ID",
            "KUBERNETES",
            "AGENT",
            "STATUS",
            "SINCE"
        ]
    );
    assert_eq!(
        lines[1][..6],
        ["prod", "global", "uid-1", "v1.36.3", "0.1.0", "Connected"]
    );
    assert_eq!(
        lines[2],
        [
            "new", "global", "<none>", "<none>", "<none>", "Pending", "<none>"
        ]
    );
    let wide = user
        .run(&["memberships", "list", "-o", "wide"])
        .succeeds()
        .out;
    assert!(
        wide.contains("PROJECT") && wide.contains(&format!("{}/v1/projects/p", gateway.url())),
        "{wide}"
    );
    let names = user
        .run(&["memberships", "list", "-o", "name"])
        .succeeds()
        .out;
    assert_eq!(
        names.lines().next(),
        Some("projects/p/locations/global/memberships/prod")
    );
    let json: serde_json::Value = serde_json::from_str(
        &user
            .run(&["memberships", "list", "-o", "json"])
            .succeeds()
            .out,
    )
    .unwrap();
    assert_eq!(json[0]["externalId"], "uid-1");
    let yaml = user
        .run(&["memberships", "list", "-o", "yaml"])
        .succeeds()
        .out;
    assert!(yaml.contains("externalId: uid-1"), "{yaml}");
}

#[test]
fn nothing_is_deleted_without_a_yes() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    gateway.answer("Memberships/Delete", 200, json!({}));
    let delete = ["memberships", "delete", "prod", "--project", "p"];
    user.run(&delete).fails(&["--yes"]);
    user.run(&["projects", "delete", "p"]).fails(&["--yes"]);
    user.run(&[&delete[..], &["--yes"]].concat()).succeeds();
    let calls = &gateway.state().calls;
    assert_eq!(
        calls
            .iter()
            .filter(|(method, _)| method.ends_with("Delete"))
            .count(),
        1
    );
}

#[test]
fn a_binding_is_added_to_what_is_there_even_when_somebody_else_is_faster() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let policy = |etag: &str, members: &[&str]| json!({"etag": etag, "bindings": [{"role": "owner", "members": members}]});
    gateway.answer("Iam/GetPolicy", 200, policy("1", &["user:a"]));
    gateway.answer("Iam/GetPolicy", 200, policy("2", &["user:a", "user:b"]));
    gateway.answer(
        "Iam/SetPolicy",
        409,
        json!({"code": "aborted", "message": "etag"}),
    );
    gateway.answer(
        "Iam/SetPolicy",
        200,
        policy("3", &["user:a", "user:b", "user:c"]),
    );
    let ran = user
        .run(&[
            "projects",
            "add-iam-policy-binding",
            "p",
            "--member",
            "user:c",
            "--role",
            "owner",
        ])
        .succeeds();
    assert!(ran.out.contains("user:c"), "{ran:?}");
    let sent = gateway.state().calls.last().unwrap().1["policy"].clone();
    assert_eq!(sent, policy("2", &["user:a", "user:b", "user:c"]));
    user.run(&[
        "projects",
        "remove-iam-policy-binding",
        "p",
        "--member",
        "user:x",
        "--role",
        "owner",
    ])
    .fails(&["user:x does not have owner"]);
}

#[test]
fn a_policy_file_needs_its_etag() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    std::fs::write(user.file("policy.yaml"), "bindings: []\n").unwrap();
    user.run(&["projects", "set-iam-policy", "p", "policy.yaml"])
        .fails(&["no etag", "get-iam-policy p"]);
    std::fs::write(user.file("policy.yaml"), "bindigns: []\n").unwrap();
    user.run(&["projects", "set-iam-policy", "p", "policy.yaml"])
        .fails(&["policy.yaml", "bindigns"]);
}

#[test]
fn a_new_user_is_told_how_to_sign_in() {
    let gateway = Gateway::start();
    let user = User::signed_in(&gateway);
    let answer =
        json!({"user": {"name": "bob"}, "oneTimeCode": "XY-12", "expires": "2100-01-01T00:00:00Z"});
    gateway.answer("Users/Create", 200, answer);
    let ran = user
        .run(&["users", "create", "bob", "--group", "dev", "--group", "ops"])
        .succeeds();
    let command = format!(
        "towline login {} --username bob --one-time-code XY-12",
        gateway.url()
    );
    assert!(ran.out.contains(&command), "{ran:?}");
    assert_eq!(
        gateway.state().calls.last().unwrap().1,
        json!({"name": "bob", "groups": ["dev", "ops"]})
    );
}
