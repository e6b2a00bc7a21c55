//! The owner of one project at the management API of another: every method there is, found by its descriptor.

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use towline_gateway::{iam::Principal, store::Store};
use towline_proto::names::{Membership, Project};

use super::ground::Ground;
use crate::{double::own, world::bounded};

/// Who may call a method.
enum Whose {
    /// Whoever holds a permission in the project; the message is for project `q`.
    Project(Value),
    /// A `gatewayOperator`, whatever it is about.
    Operator(Value),
    /// Anybody who is signed in: what they are told is about themselves.
    Anybody(Value),
    /// Nobody who is signed in: an agent with a token.
    Agent(Value),
}

/// A message for every method. One without a row fails the test, so that none is forgotten.
fn message(method: &str, project: &str) -> Option<Whose> {
    use Whose::{Agent, Anybody, Operator, Project};
    let of = |mut more: Value| {
        more["project"] = json!(project);
        Project(more)
    };
    let resource = format!("projects/{project}");
    let membership = format!("projects/{project}/locations/global/memberships/m");
    let role = format!("projects/{project}/roles/own");
    let policy = json!({"bindings": [{"role": "owner", "members": ["user:owner"]}], "etag": "0"});
    Some(match method {
        "Identity.WhoAmI" => Anybody(json!({})),
        "Projects.Create" => Operator(json!({"name": "new", "owner": "user:owner"})),
        "Projects.List" => Anybody(json!({})),
        "Projects.Delete" => Operator(json!({"name": project})),
        "Projects.GetIamPolicy" => of(json!({})),
        "Projects.SetIamPolicy" => of(json!({"policy": policy})),
        "Memberships.Register" => of(json!({"name": "new"})),
        "Memberships.List" => of(json!({})),
        "Memberships.Get" | "Memberships.Delete" | "Memberships.GenerateCredentials" => {
            of(json!({"name": "m"}))
        }
        "Memberships.Update" => of(json!({"name": "m", "labels": {"a": "b"}})),
        "Users.Create" => Operator(json!({"name": "new", "operator": true})),
        "Users.List" => Operator(json!({})),
        "Users.SetDisabled" => Operator(json!({"name": "reader", "disabled": true})),
        "Users.ResetPassword" => Operator(json!({"name": "reader"})),
        "Users.AddGroup" | "Users.RemoveGroup" => {
            Operator(json!({"name": "owner", "groups": ["dev"]}))
        }
        "Enrolment.Redeem" => Agent(json!({
            "project": project, "location": "global", "membership": "m", "token": "guess",
            "publicKey": "l2mseHg6OSVTSPtumuTl7EYBy5yNqRZ1u9aJROfumM0",
        })),
        "Audit.List" => of(json!({})),
        "Streams.List" => of(json!({})),
        "Quotas.List" => of(json!({})),
        "Quotas.Set" => of(json!({
            "quota": "active_streams", "holder": "user:owner", "limit": 1,
        })),
        "Iam.GetPolicy" => Project(json!({"resource": resource})),
        "Iam.SetPolicy" => Project(json!({"resource": membership, "policy": policy})),
        "Iam.ListRoles" => of(json!({})),
        "Iam.GetRole" | "Iam.DeleteRole" => Project(json!({"name": role})),
        "Iam.CreateRole" | "Iam.UpdateRole" => {
            Project(json!({"role": {"name": role, "title": "own", "permissions": ["gateway.get"]}}))
        }
        "Iam.Explain" => Project(json!({
            "member": "user:owner", "membership": membership, "verb": "get", "resource": "pods",
        })),
        "ServiceAccounts.Create" => of(json!({"name": "new"})),
        "ServiceAccounts.List" => of(json!({})),
        "ServiceAccounts.Get" | "ServiceAccounts.Delete" | "ServiceAccounts.RevokeTokens" => {
            of(json!({"name": "ci"}))
        }
        "ServiceAccounts.SetDisabled" => of(json!({"name": "ci", "disabled": true})),
        "WorkloadIdentity.CreatePool" => of(json!({"name": "new"})),
        "WorkloadIdentity.ListPools" => of(json!({})),
        "WorkloadIdentity.DeletePool" | "WorkloadIdentity.ListProviders" => {
            of(json!({"pool": "ci"}))
        }
        "WorkloadIdentity.SetPoolDisabled" => of(json!({"pool": "ci", "disabled": true})),
        "WorkloadIdentity.CreateProvider" | "WorkloadIdentity.UpdateProvider" => of(json!({
            "pool": "ci", "name": "github", "issuerUri": "https://issuer.test", "allowedAudiences": ["x"],
            "attributeMapping": {"subject": "assertion.sub"},
        })),
        "WorkloadIdentity.GetProvider" | "WorkloadIdentity.DeleteProvider" => {
            of(json!({"pool": "ci", "name": "github"}))
        }
        _ => return None,
    })
}

/// Services, as they are in the descriptors, that no gateway serves yet.
fn is_unserved(answer: &(StatusCode, Value)) -> bool {
    answer.0 == StatusCode::NOT_FOUND
        && answer.1["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("there is no service"))
}

async fn call(ground: &Ground, token: &str, method: &str, message: &Value) -> (StatusCode, Value) {
    let stream = tokio::net::TcpStream::connect(ground.world.running.public_address())
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    let connection = own(async move { drop(connection.await) });
    let request = Request::post(format!("/towline.v1.{}", method.replacen('.', "/", 1)))
        .header(header::HOST, "gateway.test")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::<bytes::Bytes>::from(message.to_string()))
        .unwrap();
    let (head, body) = bounded(sender.send_request(request))
        .await
        .unwrap()
        .into_parts();
    let body = bounded(body.collect()).await.unwrap().to_bytes();
    connection.abort();
    (
        head.status,
        serde_json::from_slice(&body).unwrap_or_default(),
    )
}

async fn state(store: &Store, project: &Project) -> (String, usize) {
    let policy = store.policy(project).await.unwrap().unwrap();
    (
        policy.etag,
        store.memberships(Some(project)).await.unwrap().len(),
    )
}

fn methods() -> Vec<String> {
    let services = towline_proto::api::DESCRIPTORS.services();
    services
        .flat_map(|service| {
            let name = service.name().to_owned();
            let methods: Vec<String> = service
                .methods()
                .map(|method| format!("{name}.{}", method.name()))
                .collect();
            methods
        })
        .collect()
}

#[tokio::test]
async fn the_owner_of_one_project_is_nobody_in_another() {
    let mut ground = Ground::new().await;
    let store = ground.gateway().store.clone();
    let q: Project = "q".parse().unwrap();
    // `reader` owns q, which has a membership of the same name as p's.
    store
        .create_project(&q, &Principal::User("reader".into()), 0)
        .await
        .unwrap();
    let membership: Membership = "projects/q/locations/global/memberships/m".parse().unwrap();
    store
        .register(&membership, false, "another token", 0, u64::MAX >> 1)
        .await
        .unwrap();
    let before = state(&store, &q).await;

    let mut failed = Vec::new();
    for method in methods() {
        let Some(whose) = message(&method, "q") else {
            failed.push(format!(
                "{method}: there is no message for it here; add one"
            ));
            continue;
        };
        for user in ["owner", "alice", "nobody"] {
            let token = ground.world.token(user, None, 600);
            match &whose {
                Whose::Project(message) | Whose::Operator(message) => {
                    let answer = call(&ground, &token, &method, message).await;
                    if is_unserved(&answer) {
                        continue;
                    }
                    if answer.0 != StatusCode::FORBIDDEN || answer.1["code"] != "permission_denied"
                    {
                        failed.push(format!("{method} by {user}: {answer:?}"));
                    }
                    // A project that isn't there is refused in the same words.
                    let (Some(Whose::Project(other)), Whose::Project(_)) =
                        (self::message(&method, "z"), &whose)
                    else {
                        continue;
                    };
                    let other = call(&ground, &token, &method, &other).await;
                    let words = |answer: &(StatusCode, Value)| {
                        answer.1["message"]
                            .as_str()
                            .unwrap_or_default()
                            .replace("projects/z", "projects/q")
                            .replace("\"z\"", "\"q\"")
                    };
                    if words(&other) != words(&answer) {
                        failed.push(format!(
                            "{method} by {user} tells what exists: {answer:?}, {other:?}"
                        ));
                    }
                }
                Whose::Anybody(message) => {
                    let (status, answer) = call(&ground, &token, &method, message).await;
                    let told = answer.to_string();
                    if status != StatusCode::OK
                        || told.contains("\"q\"")
                        || told.contains("projects/q")
                    {
                        failed.push(format!("{method} by {user}: {status} {told}"));
                    }
                }
                Whose::Agent(message) => {
                    let (status, answer) = call(&ground, &token, &method, message).await;
                    if status != StatusCode::FORBIDDEN {
                        failed.push(format!("{method} by {user}: {status} {answer}"));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(state(&store, &q).await, before);

    // The same messages by q's own owner aren't refused, so that what was refused above was who called.
    let token = ground.world.token("reader", None, 600);
    let mut last = Vec::new();
    for method in methods() {
        let Some(Whose::Project(message)) = message(&method, "q") else {
            continue;
        };
        // What takes things away comes last; what is asked of the agent has none to ask.
        if method.contains("Delete")
            || method.contains("SetPolicy")
            || method.contains("SetIamPolicy")
        {
            last.push((method, message));
        } else {
            last.insert(0, (method, message));
        }
    }
    for (method, message) in last {
        let answer = call(&ground, &token, &method, &message).await;
        let refused = matches!(
            answer.1["code"].as_str(),
            Some("permission_denied" | "unauthenticated" | "invalid_argument" | "unknown")
        );
        if refused && !is_unserved(&answer) {
            failed.push(format!("{method} by q's owner: {answer:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    ground.assert_nothing_came().await;
}
