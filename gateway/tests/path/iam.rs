//! What takes a permission takes the streams that run on it; and what is asked in somebody's name is one question.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::mpsc, time::Instant};
use towline_gateway::{
    iam::{
        Binding, Condition, CustomRole, Permission, Permissions, Policy, Resource, Role, RoleName,
    },
    store::{Store, roles::RoleRow},
};
use towline_proto::{assertion::Grant, body, names::Membership, wire};

use super::{
    double,
    world::{Client, World, bounded},
};
use crate::{get, status_object, text};

/// How long a stream may outlive its permission.
const LIMIT: Duration = Duration::from_secs(5);

fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

fn bind(role: impl Into<RoleName>, member: &str, condition: Option<&str>) -> Binding {
    Binding {
        condition: condition.map(|expression| Condition {
            title: "t".into(),
            expression: expression.into(),
            ..Condition::default()
        }),
        ..Binding::new(role, vec![member.parse().unwrap()])
    }
}

/// Replaces a policy; a project's keeps its owner.
async fn set(store: &Store, resource: &str, bindings: Vec<Binding>) {
    let resource: Resource = resource.parse().unwrap();
    let etag = store.policy_of(&resource).await.unwrap().unwrap().etag;
    let mut all = bindings;
    if matches!(resource, Resource::Project(_)) {
        all.push(bind(Role::Owner, "user:owner", None));
    }
    let policy = Policy {
        etag,
        bindings: all,
    };
    store.set_policy_of(&resource, &policy).await.unwrap();
}

fn own_role(permissions: &[Permission]) -> RoleRow {
    RoleRow {
        role: CustomRole {
            project: "p".parse().unwrap(),
            id: "execOnly".into(),
        },
        title: String::new(),
        description: String::new(),
        permissions: Permissions::of(permissions),
        etag: String::new(),
        created: 0,
    }
}

/// An agent whose streams go on until the caller ends.
async fn streaming(world: &World) {
    world
        .agent(|request: Request<Incoming>, _| async move {
            let protocol = request.headers()[wire::UPGRADE].clone();
            let (sender, channel) = body::channel();
            double::own(async move {
                drop(request.into_body().collect().await);
                sender.finish();
            });
            Response::builder()
                .header(wire::UPGRADED, protocol)
                .body(channel.map_err(Into::into).boxed_unsync())
                .unwrap()
        })
        .await;
}

fn exec(protocol: &str) -> Request<http_body_util::Empty<Bytes>> {
    let mut request = get("/api/v1/namespaces/n/pods/x/exec");
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", protocol.parse().unwrap());
    request
}

/// A stream; the quota of the one before comes back a moment after its end.
async fn open(client: &Client, protocol: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    bounded(async {
        loop {
            let response = client.http1(exec(protocol)).await;
            match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => {
                    break TokioIo::new(hyper::upgrade::on(response).await.unwrap());
                }
                status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
            }
        }
    })
    .await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Binding,
    MembershipBinding,
    Group,
    Label,
    Time,
    Role,
    Disabled,
}

/// Lets `alice` in by what the change will take away.
async fn before(world: &World, change: Change) {
    let store = &world.running.gateway().store;
    let admin = Role::GatewayAdmin;
    let edge = membership().to_string();
    set(store, &edge, Vec::new()).await;
    let bindings = match change {
        Change::Binding | Change::Disabled => vec![bind(admin, "user:alice", None)],
        Change::MembershipBinding => {
            set(store, &edge, vec![bind(admin, "user:alice", None)]).await;
            Vec::new()
        }
        Change::Group => vec![bind(admin, "group:dev", None)],
        Change::Label => {
            let dev = |labels: &mut std::collections::BTreeMap<String, String>| {
                labels.insert("env".into(), "dev".into());
            };
            store.change_labels(&membership(), dev).await.unwrap();
            let condition = "resource.labels.env == 'dev' && request.subresource == 'exec'";
            vec![bind(admin, "user:alice", Some(condition))]
        }
        Change::Time => {
            let until = world.running.gateway().clock.unix() + 2;
            let condition = format!("int(request.time) < {until}");
            vec![bind(admin, "user:alice", Some(&condition))]
        }
        Change::Role => {
            let row = own_role(&[Permission::Stream]);
            let row = store.create_role(&row).await.unwrap();
            vec![bind(RoleName::Custom(row.role), "user:alice", None)]
        }
    };
    set(store, "projects/p", bindings).await;
}

async fn take_away(world: &World, change: Change) {
    let store = &world.running.gateway().store;
    match change {
        Change::Binding => set(store, "projects/p", Vec::new()).await,
        Change::MembershipBinding => set(store, &membership().to_string(), Vec::new()).await,
        Change::Group => {
            let dev = ["dev".to_owned()];
            store.change_groups("alice", &[], &dev).await.unwrap();
        }
        Change::Label => {
            let prod = |labels: &mut std::collections::BTreeMap<String, String>| {
                labels.insert("env".into(), "prod".into());
            };
            store.change_labels(&membership(), prod).await.unwrap();
        }
        Change::Time => {}
        Change::Role => {
            let row = store.role(&own_role(&[]).role).await.unwrap().unwrap();
            let row = RoleRow {
                permissions: Permissions::of(&[Permission::Get]),
                ..row
            };
            store.update_role(&row).await.unwrap();
        }
        Change::Disabled => store.set_disabled("alice", true).await.unwrap(),
    }
}

#[tokio::test]
async fn whatever_takes_a_permission_ends_its_stream_with_the_reason() {
    let world = World::start().await;
    streaming(&world).await;
    let mut count = 0;
    for change in [
        Change::Binding,
        Change::MembershipBinding,
        Change::Group,
        Change::Label,
        Change::Time,
        Change::Role,
        Change::Disabled,
    ] {
        let reason = if change == Change::Disabled {
            "user \"alice\" is disabled"
        } else {
            "user \"alice\" lacks permission \"gateway.stream\" on projects/p/locations/global/memberships/m"
        };
        before(&world, change).await;
        let alice = world.as_user("alice");
        let mut websocket = open(&alice, "websocket").await;
        let mut spdy = open(&alice, "SPDY/3.1").await;
        take_away(&world, change).await;
        let taken = Instant::now();
        let (mut told, mut cut) = (Vec::new(), Vec::new());
        bounded(websocket.read_to_end(&mut told)).await.unwrap();
        // What SPDY has no words for is cut.
        drop(bounded(spdy.read_to_end(&mut cut)).await);
        assert!(taken.elapsed() < LIMIT, "{change:?}: {:?}", taken.elapsed());
        assert_eq!(cut, b"", "{change:?}");
        assert_eq!(
            (told[0], &told[2..4]),
            (0x88, &1008_u16.to_be_bytes()[..]),
            "{change:?}"
        );
        let said = String::from_utf8_lossy(&told[4..]).into_owned();
        assert!(said.starts_with(reason), "{change:?}: {said}");
        count += 2;
        for stream in &world.ended(count).await[..2] {
            assert!(stream.reason.starts_with(reason), "{change:?}: {stream:?}");
        }
    }
}

#[tokio::test]
async fn a_permission_on_one_membership_is_for_that_one() {
    let world = World::start().await;
    streaming(&world).await;
    let store = &world.running.gateway().store;
    let reader = world.as_user("reader");
    assert_eq!(
        reader.http1(exec("websocket")).await.status(),
        StatusCode::FORBIDDEN
    );
    set(
        store,
        &membership().to_string(),
        vec![bind(Role::GatewayAdmin, "user:reader", None)],
    )
    .await;
    drop(reader.upgrade(exec("websocket")).await);
    // The same binding elsewhere gives nothing here.
    let other: Membership = "projects/p/locations/global/memberships/other"
        .parse()
        .unwrap();
    store.register(&other, false, "other", 0, 10).await.unwrap();
    set(
        store,
        &other.to_string(),
        vec![bind(Role::GatewayAdmin, "user:nobody", None)],
    )
    .await;
    let nobody = world.as_user("nobody");
    assert_eq!(
        nobody.http1(exec("websocket")).await.status(),
        StatusCode::FORBIDDEN
    );
    // A membership that is made anew has nothing of the one before it.
    store.delete_membership(&other).await.unwrap();
    store.register(&other, false, "again", 0, 10).await.unwrap();
    let policy = store.policy_of(&(&other).into()).await.unwrap().unwrap();
    assert_eq!(policy.bindings, []);
}

/// A condition could be on what a membership isn't; so its absence is told only to who may whatever it is.
#[tokio::test]
async fn a_condition_tells_nobody_which_memberships_there_are() {
    let world = World::start().await;
    let store = &world.running.gateway().store;
    let condition = "!('env' in resource.labels)";
    set(
        store,
        "projects/p",
        vec![bind(Role::GatewayReader, "user:nobody", Some(condition))],
    )
    .await;
    let prod = |labels: &mut std::collections::BTreeMap<String, String>| {
        labels.insert("env".into(), "prod".into());
    };
    store.change_labels(&membership(), prod).await.unwrap();
    let ask = async |id: &str| {
        let path = format!("/v1/projects/p/locations/global/memberships/{id}/api/v1/pods");
        let request = Request::get(path)
            .body(http_body_util::Empty::new())
            .unwrap();
        let answer = world.as_user("nobody").http1(request).await;
        let status = answer.status();
        let message = status_object(answer).await["message"]
            .as_str()
            .unwrap()
            .to_owned();
        let message = message.split(" (towline").next().unwrap().to_owned();
        (status, message.replace(&format!("/{id};"), "/ID;"))
    };
    assert_eq!(ask("m").await, ask("x").await);
}

/// One call of the management API, as JSON.
pub(crate) async fn call(
    world: &World,
    user: &str,
    method: &str,
    message: Value,
) -> (StatusCode, Value) {
    let stream = TcpStream::connect(world.running.public_address())
        .await
        .unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    double::own(async move { drop(connection.await) });
    let request = Request::post(format!("/towline.v1.{method}"))
        .header("host", "gateway")
        .header("content-type", "application/json")
        .header(
            "authorization",
            format!("Bearer {}", world.token(user, None, 600)),
        )
        .body(Full::new(Bytes::from(message.to_string())))
        .unwrap();
    let answer = bounded(sender.send_request(request)).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn to_explain_is_one_question_in_somebodys_name() {
    let world = World::start().await;
    let (sender, mut seen) = mpsc::channel::<(Method, String, Grant, Value)>(8);
    world
        .agent(move |request: Request<Incoming>, grant| {
            let sender = sender.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap();
                sender
                    .send((head.method, head.uri.path().to_owned(), grant, body))
                    .await
                    .unwrap();
                let answer = json!({"status": {"allowed": false, "reason": "no rule"}});
                let mut response = text(answer.to_string());
                *response.status_mut() = StatusCode::CREATED;
                response
            }
        })
        .await;
    let question = json!({
        "member": "user:alice", "groups": ["on-call"], "membership": membership().to_string(),
        "verb": "create", "resource": "pods", "subresource": "exec", "namespace": "web",
    });
    // Whoever may not ask learns nothing, and the cluster isn't asked.
    for user in ["alice", "reader", "nobody"] {
        let (status, answer) = call(&world, user, "Iam/Explain", question.clone()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains("lacks permission \"iam.explain\""),
            "{message}"
        );
    }
    assert!(seen.try_recv().is_err());

    let (status, answer) = call(&world, "owner", "Iam/Explain", question.clone()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["allowed"], true);
    assert_eq!(answer["permission"], "gateway.stream");
    assert_eq!(answer["bindings"][0]["role"], "gatewayAdmin");
    assert_eq!(answer["bindings"][0]["resource"], "projects/p");
    assert_eq!(
        answer["cluster"],
        json!({"state": "DENIED", "reason": "no rule"})
    );
    let (method, path, grant, review) = bounded(seen.recv()).await.unwrap();
    assert_eq!(
        (method, path.as_str()),
        (
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        )
    );
    assert_eq!(grant.user, "alice");
    assert_eq!(grant.groups, ["dev", "on-call"]);
    assert_eq!(review["kind"], "SelfSubjectAccessReview");
    assert_eq!(review["spec"]["resourceAttributes"]["subresource"], "exec");
    assert!(seen.try_recv().is_err(), "one question");

    let mut asked = question;
    asked["member"] = "user:nobody".into();
    let (_, answer) = call(&world, "owner", "Iam/Explain", asked.clone()).await;
    // What JSON leaves out is false.
    assert_eq!(answer.get("allowed"), None);
    assert_eq!(answer["roles"], json!(["gatewayAdmin", "owner"]));
    asked["verb"] = "exec".into();
    let (status, answer) = call(&world, "owner", "Iam/Explain", asked).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}
