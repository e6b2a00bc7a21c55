//! What bad input gets: a clear refusal, worded so that kubectl's user knows what to do, and nothing lost.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use http::StatusCode;
use tests::{
    Agent, Cluster, Cmd, Gateway, Stopwatch, User, World,
    http::{Api, empty, read},
    place, shared,
    user::{Kubectl, Protocol},
    wait_until,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(30);

fn membership() -> Api {
    static API: LazyLock<Api> = LazyLock::new(|| shared().world.admin.api());
    API.clone()
}

async fn ready() -> Api {
    tokio::task::spawn_blocking(membership).await.unwrap()
}

/// `admin`'s kubectl at another URL of the same gateway.
fn kubectl_at(path: &str, words: &str) -> Cmd {
    let world = &shared().world;
    world
        .admin
        .kubectl(words)
        .arg("--server")
        .arg(format!("{}{path}", world.gateway.url))
}

/// A user who may only read, in the cluster too.
fn reader() -> &'static User {
    static READER: LazyLock<User> = LazyLock::new(|| {
        let shared = shared();
        let reader = shared.world.user("reader", "gatewayReader");
        shared
            .world
            .grant(&shared.cluster, "reader", "cluster-admin");
        reader.get_credentials("it");
        reader
    });
    &READER
}

/// kubectl asks for the cluster's APIs first, and words what it is told of those itself; once it knows them, or
/// where it needn't, it prints the gateway's words.
fn knows_the_apis() {
    shared().kubectl("get pods").ok();
}

#[test]
fn a_foreign_url_is_not_found() {
    for path in [
        "/v1/projects/demo/locations/global/clusters/it",
        "/v1/projects/demo/memberships/it",
        "/v1/projects//locations/global/memberships/it",
        "/v1/projects/DEMO/locations/global/memberships/it",
    ] {
        let said = kubectl_at(path, "get --raw /version").fails();
        assert!(
            said.contains("the requested URL was not found on this server"),
            "{path}: {said}"
        );
    }
    // Go's URLs decode this before they send it, so by hand: the prefix is never decoded.
    let api = membership().with_prefix("/v1/projects/demo/locations/global/memberships/%69t");
    let answer = tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(api.get("/version"));
    let message = answer.refusal(404, "NotFound");
    assert!(
        message.contains("the requested URL was not found on this server"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_can_be_read_two_ways_is_refused() {
    let api = ready().await;
    for path in [
        "/api/v1//pods",
        "/api/../apis",
        "/api/%2e%2e/apis",
        "/api/v1/namespaces/a%2Fb/pods",
        "/api/v1/./pods",
    ] {
        let message = api.get(path).await.refusal(400, "BadRequest");
        assert!(message.contains("the path is refused"), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_and_the_next_is_served() {
    let api = ready().await;
    let (host, prefix) = (api.authority().to_owned(), api.prefix().to_owned());
    for bytes in [
        "NONSENSE\r\n\r\n".to_owned(),
        "GET no-slash HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("GET {prefix}/version HTTP/1.1\r\nHost: {host}\r\nBad Header: x\r\n\r\n"),
        format!("GET {prefix}/version HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n"),
        format!("GET {prefix}/\u{1} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        format!(
            "POST {prefix}/version HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"
        ),
        format!(
            "POST {prefix}/version HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n"
        ),
    ] {
        let said = api
            .raw(bytes.as_bytes(), |said| said.contains("\r\n\r\n"))
            .await;
        let code = said.split(' ').nth(1).unwrap_or_default();
        assert!(
            matches!(code, "400" | "401" | "404" | ""),
            "{bytes:?}: {said}"
        );
    }
    assert_eq!(api.get("/version").await.status, StatusCode::OK);
    for method in ["TRACE", "BREW"] {
        let request = api.request(method, "/version").body(empty()).unwrap();
        let message = api.send(request).await.refusal(405, "MethodNotAllowed");
        assert!(message.contains(method), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_head_is_refused_and_the_tunnel_lives() {
    let api = ready().await;
    let namespace = &shared().namespace;
    let watch = api
        .request(
            "GET",
            &format!("/api/v1/namespaces/{namespace}/pods?watch=1"),
        )
        .body(empty())
        .unwrap();
    let mut other = api.http1().await;
    let watch = other.send(watch).await;
    assert_eq!(watch.status(), StatusCode::OK);
    for size in [300_000, 900_000] {
        let request = || {
            api.request("GET", "/version")
                .header("x-long", "x".repeat(size))
                .body(empty())
                .unwrap()
        };
        let one = api.http1().await.try_send(request()).await;
        if let Ok(response) = one {
            let message = read(response)
                .await
                .refusal(431, "RequestHeaderFieldsTooLarge");
            assert!(message.contains("the limit is"), "{message}");
        } else {
            assert!(size > 500_000, "no answer to a head of {size} bytes");
        }
        let two = api.http2().await.try_send(request()).await;
        if let Ok(response) = two {
            assert_eq!(
                response.status(),
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            );
        } else {
            assert!(
                size > 500_000,
                "no answer on HTTP/2 to a head of {size} bytes"
            );
        }
    }
    assert_eq!(api.get("/version").await.status, StatusCode::OK);
    // The watch that ran meanwhile still tells news.
    let mut body = watch.into_body();
    let made = tokio::task::spawn_blocking(|| shared().kubectl("label pod box headed=yes").ok());
    let read = async {
        let mut said = String::new();
        while !said.contains("headed") {
            let frame = http_body_util::BodyExt::frame(&mut body)
                .await
                .expect("it goes on")
                .expect("it goes on");
            said.push_str(&String::from_utf8_lossy(
                &frame.into_data().unwrap_or_default(),
            ));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    made.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonate_is_refused_in_any_spelling_and_position() {
    let api = ready().await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let says = |message: &str| assert!(message.to_lowercase().contains("impersonat"), "{message}");
    for headers in [
        &[("Impersonate-Group", "system:masters")][..],
        &[("Impersonate-Uid", "0")],
        &[("Impersonate-Extra-Scopes", "all")],
        &[("Impersonate_User", "root")],
        &[
            ("accept", "*/*"),
            ("impersonate-user", "a"),
            ("impersonate-user", "b"),
        ],
        &[("impersonate-user", "")],
    ] {
        for version in [1, 2] {
            let mut request = api
                .request("POST", path)
                .header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let mut connection = if version == 1 {
                api.http1().await
            } else {
                api.http2().await
            };
            let answer = read(connection.send(request.body(empty()).unwrap()).await).await;
            says(&answer.refusal(400, "BadRequest"));
        }
    }
    // As bytes: in the caller's own case, listed by Connection, and as a trailer.
    let (host, prefix, token) = (api.authority(), api.prefix(), api.token.clone().unwrap());
    let head = format!("Host: {host}\r\nAuthorization: Bearer {token}\r\n");
    let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let length = format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\n",
        review.len()
    );
    for extra in [
        "ImPeRsOnAtE-gRoUp: root\r\n",
        "Impersonate_User:root\r\n",
        "Connection: close, Impersonate-User\r\nImpersonate-User: root\r\n",
        "Connection: Impersonate-User\r\n",
        "Trailer: Impersonate-User\r\n",
    ] {
        let sent = format!("POST {prefix}{path} HTTP/1.1\r\n{head}{length}{extra}\r\n{review}");
        let said = api
            .raw(sent.as_bytes(), |said| said.contains("\"code\""))
            .await;
        assert!(said.starts_with("HTTP/1.1 400"), "{extra:?}: {said}");
        says(&said);
    }
    let chunked = format!(
        "POST {prefix}{path} HTTP/1.1\r\n{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{:x}\r\n{review}\r\n0\r\nImpersonate-User: root\r\n\r\n",
        review.len()
    );
    let said = api.raw(chunked.as_bytes(), |_| false).await;
    assert!(!said.contains("\"root\""), "a trailer impersonated: {said}");
    // An upgrade is no way around.
    let upgrade = format!(
        "GET {prefix}/api/v1/namespaces/x/pods/y/exec?command=id HTTP/1.1\r\n{head}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nImpersonate-User: root\r\nImpersonate-User: root\r\n\r\n"
    );
    let said = api
        .raw(upgrade.as_bytes(), |said| said.contains("\"code\""))
        .await;
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_says_which_check_failed() {
    let api = ready().await;
    let token = api.token.clone().unwrap();
    let message = api
        .with_token(None)
        .get("/version")
        .await
        .refusal(401, "Unauthorized");
    assert!(message.contains("towline login"), "{message}");
    let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("no JWT: {token}")
    };
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{head}.{claims}.{other}{}", &signature[1..]);
    for (token, why) in [
        (tampered.as_str(), "signature"),
        ("nonsense", "token"),
        ("a.b.c", "token"),
        ("", "token"),
    ] {
        let message = api
            .with_token(Some(token))
            .get("/version")
            .await
            .refusal(401, "Unauthorized");
        assert!(message.contains(why), "{token:?}: {message}");
        assert!(
            !message.contains(signature),
            "the token is in the message: {message}"
        );
    }
    let said = tokio::task::spawn_blocking(move || {
        knows_the_apis();
        shared()
            .world
            .admin
            .kubectl("get pods --token")
            .arg(tampered)
            .fails()
    });
    let said = said.await.unwrap();
    assert!(said.contains("signature"), "{said}");
}

#[test]
fn a_role_that_does_not_suffice_is_named() {
    let namespace = &shared().namespace;
    reader().kubectl(&format!("get pods -n {namespace}")).ok();
    for protocol in [Protocol::WebSocket, Protocol::Spdy] {
        let command = format!("exec -n {namespace} box -- id");
        let said = reader()
            .kubectl_of(Kubectl::Current, protocol, &command)
            .fails();
        assert!(
            said.contains(r#"user "reader" lacks permission "gateway.stream" on projects/demo"#),
            "{said}"
        );
        assert!(
            said.contains("roles with it: ") && said.contains("gatewayAdmin"),
            "{said}"
        );
    }
    for (words, permission) in [
        ("create configmap no", "gateway.post"),
        ("label pod box no=no", "gateway.patch"),
        ("delete pod box", "gateway.delete"),
    ] {
        let said = reader().kubectl(&format!("{words} -n {namespace}")).fails();
        assert!(
            said.contains(&format!(r#"lacks permission "{permission}""#)),
            "{words}: {said}"
        );
    }
}

/// The kubeconfig of `user` for `membership`, in a file of its own.
fn fetched(user: &User, membership: &str) -> User {
    let user = user.with_kubeconfig(
        &place::directory(&format!("{}-{membership}", user.name)).join("kubeconfig"),
    );
    user.get_credentials(membership);
    user
}

/// A kubeconfig as somebody has it whom nobody gave one: another's, with another name in it.
fn forged(user: &User, membership: &str) -> User {
    let admin = &shared().world.admin;
    let text = fs::read_to_string(&admin.kubeconfig).unwrap();
    let text = text.replace(
        &admin.home.display().to_string(),
        &user.home.display().to_string(),
    );
    let path = place::directory(&format!("{}-{membership}", user.name)).join("kubeconfig");
    fs::write(
        &path,
        text.replace("memberships/it", &format!("memberships/{membership}")),
    )
    .unwrap();
    user.with_kubeconfig(&path)
}

#[test]
fn a_membership_that_is_not_there_is_told_to_those_who_may_know() {
    let world = &shared().world;
    let said = world
        .admin
        .towline("get-credentials itt --project demo")
        .fails();
    assert!(
        said.contains(r#"membership "itt" not found in project "demo""#),
        "{said}"
    );
    assert!(said.contains("it"), "no name like it: {said}");
    world.register("gone");
    let gone = fetched(&world.admin, "gone");
    world
        .admin
        .towline("memberships delete gone --project demo --yes")
        .ok();
    let said = gone.kubectl("get --raw /version").fails();
    assert!(
        said.contains(r#"membership "gone" not found in project "demo""#),
        "{said}"
    );

    // Somebody without any role can't tell what exists: the same words, whichever way they ask.
    let made = world.admin.towline("users create stranger -o json").json();
    let stranger = User::sign_in(
        &world.gateway,
        "stranger",
        made["oneTimeCode"].as_str().unwrap(),
    );
    let mut said: Vec<_> = ["it", "itt"]
        .into_iter()
        .map(|name| {
            let said = forged(&stranger, name)
                .kubectl("get --raw /version")
                .fails();
            let message = said.split(" (towline").next().unwrap_or(&said).to_owned();
            message.replace(&format!("memberships/{name}"), "memberships/NAME")
        })
        .collect();
    assert!(
        said[0].contains(r#"user "stranger" lacks permission"#),
        "{said:?}"
    );
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    let mut said: Vec<_> = ["it", "itt"]
        .into_iter()
        .map(|name| {
            let said = stranger
                .towline("get-credentials --project demo")
                .arg(name)
                .fails();
            said.replace(&format!("memberships/{name}"), "memberships/NAME")
                .replace(&format!("{name:?}"), "NAME")
        })
        .collect();
    assert!(
        said[0].contains("lacks permission") && said[0].contains("gateway.generateCredentials"),
        "{said:?}"
    );
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_cluster_without_an_agent_is_unavailable_and_says_so_soon() {
    let world = &shared().world;
    world.register("lonely");
    let lonely = fetched(&world.admin, "lonely");
    let since = Stopwatch::new();
    let said = lonely.kubectl("get --raw /version").fails();
    assert!(
        said.contains(
            "no active connections found for cluster (project: demo, membership: lonely)"
        ),
        "{said}"
    );
    assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
}

#[test]
fn a_token_of_one_membership_is_refused_at_another() {
    shared().world.register("elsewhere");
    let said = kubectl_at(
        "/v1/projects/demo/locations/global/memberships/elsewhere",
        "get --raw /version",
    )
    .fails();
    assert!(
        said.contains("its audience is projects/demo/locations/global/memberships/it"),
        "{said}"
    );
}

#[test]
fn streams_over_the_quota_are_refused_by_name_and_come_back() {
    let cluster = Cluster::with_node();
    let gateway = Gateway::init("quota", &cluster);
    gateway.configure("[limits]\nstreams_per_principal = 2\n");
    let mut gateway = gateway;
    gateway.run();
    let world = World::of(gateway);
    let _agent = world.join(&cluster, "quota");
    let namespace = &shared().namespace;
    for protocol in [Protocol::WebSocket, Protocol::Spdy] {
        let exec = |script: &str| {
            let kubectl = world.admin.kubectl_of(
                Kubectl::Current,
                protocol,
                &format!("exec -n {namespace} -i box --"),
            );
            kubectl.args(["sh", "-c", script])
        };
        let mut held: Vec<_> = (0..2)
            .map(|_| exec("echo up; cat").input_open().start("held"))
            .collect();
        for one in &mut held {
            one.line("its output", PATIENCE, |line| line == "up");
        }
        let since = Stopwatch::new();
        let said = exec("id").fails();
        assert!(
            said.contains(r#"resource_exhausted: quota "active_streams" exhausted (2 of 2 in use by user:admin)"#),
            "{said}"
        );
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "client-go slept on it: {:?}",
            since.elapsed()
        );
        // What isn't a stream is not touched.
        world.admin.kubectl("get --raw /version").ok();
        held.pop();
        wait_until("the stream is given back", PATIENCE, || {
            exec("echo again").run().text() == "again\n"
        });
    }
}

#[test]
fn a_second_agent_cannot_take_a_name() {
    let shared = shared();
    let said = shared
        .world
        .admin
        .towline("memberships register it --project demo --impersonate-anyone --manifest -")
        .fails();
    assert!(
        said.contains("a membership with the same name already exists"),
        "{said}"
    );

    // The registration was used: whoever has the file can't be the cluster.
    let registration = shared.world.register("once");
    let second = Cluster::second();
    let mut first = Agent::new(&second, "once", registration.clone());
    first.run();
    wait_until("the first agent is connected", PATIENCE, || {
        state(&shared.world, "once") == "CONNECTED"
    });
    let mut thief = Agent::new(&shared.cluster, "once", registration.clone());
    thief.run();
    let said = thief.program().wait(PATIENCE);
    assert!(!said.success());
    let said = format!("{}{}", thief.program().err(), thief.program().out());
    assert!(
        said.contains("no valid registration token was found"),
        "{said}"
    );
    assert_eq!(
        state(&shared.world, "once"),
        "CONNECTED",
        "the first one is still there"
    );

    // And a key of somebody else's under this name is no better.
    let key = place::directory("stolen").join("agent.key");
    let made = shared.world.register("other");
    let mut other = Agent::new(&second, "other", made).key(&key);
    other.run();
    wait_until("the other agent is connected", PATIENCE, || {
        state(&shared.world, "other") == "CONNECTED"
    });
    other.stop();
    let mut thief = Agent::new(&shared.cluster, "once", registration).key(&key);
    thief.run();
    // It goes on asking, as an agent that may be registered again does; it is told why not.
    thief.program().err_line("the refusal", PATIENCE, |line| {
        line.contains("no agent enrolled under this key")
    });
    let uid = shared
        .world
        .admin
        .towline("memberships describe once --project demo -o json")
        .json();
    assert_eq!(uid["externalId"], second.uid(), "{uid}");
}

fn state(world: &World, membership: &str) -> String {
    let said = world
        .admin
        .towline("memberships describe --project demo -o json")
        .arg(membership)
        .json();
    said["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_has_expired_is_refused() {
    let cluster = Cluster::second();
    let mut world = World::new("expiry", &cluster);
    let mut agent = world.join(&cluster, "expiry");
    let late = world.register("late");
    let token = world.admin.token();
    agent.stop();
    world.gateway.stop();
    // Two hours later: beyond access tokens and registration tokens.
    world.gateway.clock("+2h");
    world.gateway.run();
    let said = world
        .admin
        .kubectl("get --raw /version --token")
        .arg(&token)
        .fails();
    assert!(said.contains("expired"), "{said}");
    let mut newcomer = Agent::new(&cluster, "late", late);
    newcomer.run();
    assert!(!newcomer.program().wait(PATIENCE).success());
    let said = format!("{}{}", newcomer.program().err(), newcomer.program().out());
    assert!(
        said.contains("no valid registration token was found"),
        "{said}"
    );
    // The known agent comes back, although the gateway's clock and its own differ by two hours.
    agent.run();
    wait_until("the known agent is back", PATIENCE, || {
        world.gateway.metric("towline_sessions") > 0.0
    });
}

#[test]
fn an_agents_clock_that_is_off_is_told_and_changes_nothing() {
    let shared = shared();
    for shift in ["+1h", "-1h"] {
        let name = format!(
            "clock-{}",
            if shift.starts_with('+') {
                "ahead"
            } else {
                "behind"
            }
        );
        let registration = shared.world.register(&name);
        let mut agent = Agent::new(&Cluster::second(), &name, registration).clock(shift);
        agent.run();
        wait_until("it is connected", PATIENCE, || {
            state(&shared.world, &name) == "CONNECTED"
        });
        let user = shared
            .world
            .admin
            .with_kubeconfig(&place::directory(&name).join("kubeconfig"));
        user.get_credentials(&name);
        user.kubectl("get --raw /version").ok();
        let logged = format!("{}{}", agent.program().err(), agent.program().out()).to_lowercase();
        let warned = logged
            .lines()
            .any(|line| line.contains("warn") && line.contains("clock"));
        assert!(warned, "{shift}: no word of the clock: {logged}");
    }
}

#[test]
fn an_agent_that_may_not_impersonate_says_which_rule_is_missing() {
    let shared = shared();
    let second = Cluster::second();
    let make = |words: &str| second.kubectl(words).run();
    make("create serviceaccount limited -n default");
    make("delete clusterrole limited --ignore-not-found");
    make("create clusterrole limited --verb impersonate --resource users --resource-name admin");
    make(
        "create clusterrolebinding limited --clusterrole limited --serviceaccount default:limited",
    );
    make("create clusterrole version --verb get --non-resource-url /version");
    let token = second
        .kubectl("create token limited -n default --duration 1h")
        .ok();
    let kubeconfig = place::directory("limited").join("kubeconfig");
    let config = |words: &str| {
        Cmd::new(place::cached("kubectl"))
            .env("KUBECONFIG", &kubeconfig)
            .words(words)
    };
    let (url, ca) = (second.setting("APISERVER_URL"), second.setting("CA_CERT"));
    config(&format!(
        "config set-cluster c --server {url} --certificate-authority {ca}"
    ))
    .ok();
    config(&format!(
        "config set-credentials u --token {}",
        token.trim()
    ))
    .ok();
    config("config set-context c --cluster c --user u").ok();
    config("config use-context c").ok();
    let registration = shared.world.register("limited");
    let mut agent = Agent::new(&second, "limited", registration).kubeconfig(kubeconfig);
    agent.run();
    wait_until("it is connected", PATIENCE, || {
        state(&shared.world, "limited") == "CONNECTED"
    });
    let admin = shared
        .world
        .admin
        .with_kubeconfig(&place::directory("limited-admin").join("kubeconfig"));
    admin.get_credentials("limited");
    admin.kubectl("get --raw /version").ok();
    let user = reader().with_kubeconfig(&place::directory("limited-reader").join("kubeconfig"));
    user.get_credentials("limited");
    let said = user.kubectl("get --raw /version").fails();
    assert!(
        said.contains(r#"agent is not authorized to impersonate user "reader""#),
        "{said}"
    );
    assert!(said.contains("impersonate"), "{said}");
}

#[test]
fn an_api_server_that_does_not_answer_is_told_from_a_gateway_that_does_not() {
    let shared = shared();
    let second = Cluster::second();
    // A way to the API server that can be taken away.
    let relay = Cmd::new(place::cached("relay"));
    let to = second
        .setting("APISERVER_URL")
        .trim_start_matches("https://")
        .to_owned();
    let relay = second.inside(relay.args(["--listen", "127.0.0.1:0", "--to", &to]));
    let mut relay = relay.start("relay");
    let line = relay.line("its address", PATIENCE, |line| {
        line.starts_with("listening on ")
    });
    let address = line.trim_start_matches("listening on ").to_owned();
    let kubeconfig = place::directory("broken").join("kubeconfig");
    let text = fs::read_to_string(second.admin_kubeconfig()).unwrap();
    let host = to.split(':').next().unwrap();
    let server = format!("https://{address}\n    tls-server-name: {host}");
    fs::write(
        &kubeconfig,
        text.replace(second.setting("APISERVER_URL"), &server),
    )
    .unwrap();
    let registration = shared.world.register("broken");
    let mut agent = Agent::new(&second, "broken", registration).kubeconfig(kubeconfig);
    agent.run();
    let user = shared
        .world
        .admin
        .with_kubeconfig(&place::directory("broken-admin").join("kubeconfig"));
    wait_until("it is connected", PATIENCE, || {
        state(&shared.world, "broken") == "CONNECTED"
    });
    user.get_credentials("broken");
    user.kubectl("get --raw /version").ok();
    relay.kill();
    let said = user.kubectl("get --raw /version").fails();
    assert!(
        said.contains("failed_precondition: error encountered within the cluster: "),
        "{said}"
    );
}

#[test]
fn a_kubeconfig_that_does_not_parse_is_left_as_it_is() {
    let shared = shared();
    for text in [
        "apiVersion: v1\nkind: Config\nclusters: [\n",
        "{",
        "just words\n",
        "apiVersion: v1\nclusters: {a: b}\n",
    ] {
        let path = place::directory("unparsable").join("kubeconfig");
        fs::write(&path, text).unwrap();
        let said = shared
            .world
            .admin
            .towline("get-credentials it --project demo --kubeconfig")
            .arg(&path)
            .fails();
        assert!(
            said.contains(&path.display().to_string()),
            "the file is not named: {said}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let beside = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(beside, 1, "something was left beside {}", path.display());
    }
}

#[test]
fn an_unknown_key_in_the_configuration_is_named_with_its_line() {
    let gateway = Gateway::init("unknown-key", &Cluster::second());
    let before = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("no_such_key = 1\n{before}")).unwrap();
    let said = gateway.command().run();
    assert_eq!(said.code, Some(64), "{said}");
    assert!(said.stderr.contains("no_such_key"), "{said}");
    assert!(
        said.stderr.contains("line 1") || said.stderr.contains(":1:"),
        "{said}"
    );
    assert!(
        said.stderr
            .contains(&gateway.config().display().to_string()),
        "{said}"
    );
    fs::write(gateway.config(), before).unwrap();
}

#[test]
fn wrong_passwords_and_codes_sign_nobody_in() {
    let world = &shared().world;
    let wrong = place::directory("wrong");
    let file = tests::gateway::secret_file(&wrong, "password", "not the password\n");
    let said = world
        .admin
        .login()
        .arg("--password-file")
        .arg(&file)
        .fails();
    assert!(said.to_lowercase().contains("password"), "{said}");
    let said = world
        .admin
        .login()
        .arg("--one-time-code")
        .arg("WRONG-CODE")
        .arg("--new-password-file")
        .arg(&file)
        .fails();
    assert!(said.to_lowercase().contains("code"), "{said}");
    // And nobody who was signed in is signed out by that.
    world.admin.kubectl("get --raw /version").ok();
}

/// A file system of one mebibyte, unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(path: &Path) -> Self {
        Cmd::new("mount")
            .words("-t tmpfs -o size=2m tmpfs")
            .arg(path)
            .ok();
        Self(path.to_owned())
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        Cmd::new("umount").arg("--lazy").arg(&self.0).run();
    }
}

#[test]
fn a_full_disk_refuses_changes_and_loses_nothing() {
    let cluster = Cluster::second();
    let place = place::directory("tiny");
    let _tiny = Tiny::mount(&place);
    let mut gateway = Gateway::init_in(&place.join("state"), "tiny", &cluster);
    gateway.run();
    let mut world = World::of(gateway);
    let agent = world.join(&cluster, "tiny");
    world.user("before", "gatewayReader");
    let filler = place.join("filler");
    Cmd::new("dd")
        .args(["if=/dev/zero", &format!("of={}", filler.display()), "bs=4k"])
        .run();
    let refused = (0..50).find_map(|n| {
        let said = world
            .admin
            .towline("users create")
            .arg(format!("during-{n}"))
            .run();
        (said.code != Some(0)).then_some((n, said))
    });
    let (made, said) = refused.expect("50 users fit onto a full disk");
    assert!(said.stderr.to_lowercase().contains("full"), "{said}");
    // Who is signed in goes on working.
    world.admin.kubectl("get --raw /version").ok();
    fs::remove_file(&filler).unwrap();
    world.admin.towline("users create after").ok();
    // What was said to be done is there after a restart, what was refused is not.
    world.gateway.stop();
    world.gateway.run();
    let listed = world.admin.towline("users list -o json").ok();
    for name in ["admin", "before", "after"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..made).map(|n| format!("during-{n}")))
    {
        assert!(
            listed.contains(&format!("\"{name}\"")),
            "{name} is lost: {listed}"
        );
    }
    assert!(!listed.contains(&format!("\"during-{made}\"")), "{listed}");
    world.wait_served(&world.admin);
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_holds_nobody_up() {
    let api = ready().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut stream = api.tls(&[b"http/1.1"]).await;
        stream.write_all(b"GET ").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(api.get("/version").await.status, StatusCode::OK);
    // And is not kept for ever.
    let mut last = silent.pop().unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(90), last.read_to_end(&mut rest)).await;
    assert!(
        ended.is_ok(),
        "half a request is kept open for more than 90 s"
    );
}
