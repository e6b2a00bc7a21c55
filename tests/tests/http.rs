//! HTTP itself through the gateway: what libraries other than kubectl's send and expect.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tests::{
    Cmd, Stopwatch,
    front::Kind,
    http::{Answer, Api, Body, Connection, empty, full, read},
    shared, wait_until,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(30);

/// The shared membership, and the path of the test server behind the service proxy.
fn membership() -> (Api, String) {
    static API: LazyLock<(Api, String)> = LazyLock::new(|| {
        let shared = shared();
        shared.server();
        let server = format!(
            "/api/v1/namespaces/{}/services/https:server:443/proxy",
            shared.namespace
        );
        (shared.world.admin.api(), server)
    });
    API.clone()
}

/// [`membership`] from within a runtime, whose threads must not wait.
async fn ready() -> (Api, String) {
    tokio::task::spawn_blocking(membership).await.unwrap()
}

/// What stands before the gateway in this run.
fn front() -> Option<Kind> {
    shared().front.as_ref().and_then(|front| front.kind)
}

fn echoed(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_answer_the_same() {
    let (api, _) = ready().await;
    let one = api.get("/version").await;
    let mut connection = api.http2().await;
    let two = read(
        connection
            .send(api.request("GET", "/version").body(empty()).unwrap())
            .await,
    )
    .await;
    assert_eq!(
        (one.version, two.version),
        (Version::HTTP_11, Version::HTTP_2)
    );
    assert_eq!(one.json(), two.json());
    assert!(
        one.headers.contains_key("audit-id"),
        "the API server's own headers: {:?}",
        one.headers
    );
    // Many at once on one connection, as client-go does.
    let Connection::Two(sender) = &mut connection else {
        unreachable!("asked for")
    };
    let answers: Vec<_> = (0..200)
        .map(|_| sender.send_request(api.request("GET", "/version").body(empty()).unwrap()))
        .collect();
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(read(answer.unwrap()).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_within_the_api_server_keeps_the_prefix() {
    let (api, server) = ready().await;
    let answer = api.get(&format!("{server}/redirect?to=/echo/there")).await;
    assert_eq!(answer.status, StatusCode::FOUND, "{}", answer.text());
    let location = answer.headers["location"].to_str().unwrap();
    let own = format!("https://{}", api.authority());
    let path = location.strip_prefix(&own).unwrap_or(location);
    assert_eq!(path, format!("{}{server}/echo/there", api.prefix()));
    // And it leads where it says.
    let request = Request::get(format!("{own}{path}")).header(
        "authorization",
        format!("Bearer {}", api.token.as_deref().unwrap()),
    );
    let there = api.send(request.body(empty()).unwrap()).await;
    assert_eq!(echoed(&there)["uri"], "/echo/there");
    // What leads elsewhere isn't passed on: clients send their token along.
    let elsewhere = api
        .get(&format!(
            "{server}/redirect?to=https%3A%2F%2Fexample.com%2Fx"
        ))
        .await;
    let said = elsewhere.refusal(502, "BadGateway");
    assert!(said.contains("https://example.com/x"), "{said}");
    assert!(!elsewhere.headers.contains_key("location"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregated_api_answers_like_any_other() {
    let (api, _) = ready().await;
    let group = "it.towline.test";
    tokio::task::spawn_blocking(move || {
        let shared = shared();
        let service = format!(
            "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {{name: v1.{group}}}\nspec:\n  \
             service: {{namespace: {}, name: server, port: 443}}\n  group: {group}\n  version: v1\n  \
             insecureSkipTLSVerify: true\n  groupPriorityMinimum: 10\n  versionPriority: 10\n",
            shared.namespace
        );
        shared.cluster.kubectl(&format!("delete apiservice v1.{group} --ignore-not-found")).ok();
        shared.kubectl("apply -f -").input(service).ok();
        shared.kubectl(&format!("wait --for condition=Available apiservice/v1.{group} --timeout 30s")).ok();
        let path = format!("/apis/{group}/v1/echo/");
        wait_until("it is served", PATIENCE, || shared.cluster.kubectl("get --raw").arg(&path).run().code == Some(0));
    })
    .await
    .unwrap();
    let said = echoed(&api.get(&format!("/apis/{group}/v1/echo/x?y=z")).await);
    assert_eq!(said["uri"], format!("/apis/{group}/v1/echo/x?y=z"));
    // Who the caller is to the cluster arrives behind the API server.
    assert_eq!(said["headers"]["X-Remote-User"][0], "admin", "{said}");
    assert!(
        said["headers"].get("Authorization").is_none(),
        "the caller's credential got through: {said}"
    );

    // Bodies of any kind, byte by byte: protobuf and CBOR are bytes like others.
    for (kind, length) in [
        ("application/vnd.kubernetes.protobuf", 3_000_000),
        ("application/cbor", 1),
        ("x/y", 0),
    ] {
        let body: Vec<u8> = (0..length)
            .map(|at: u32| u8::try_from((at.wrapping_mul(7) >> 2) & 0xff).unwrap_or_default())
            .collect();
        let request = api
            .request("POST", &format!("/apis/{group}/v1/echo/"))
            .header("content-type", kind);
        let said = echoed(&api.send(request.body(full(body.clone())).unwrap()).await);
        assert_eq!(said["headers"]["Content-Type"][0], kind);
        assert_eq!(said["length"], length);
        assert_eq!(said["sha256"], sha256(body).await);
    }
    tokio::task::spawn_blocking(move || {
        shared()
            .kubectl("api-resources --api-group it.towline.test -o name")
            .ok();
        shared()
            .kubectl(&format!("delete apiservice v1.{group}"))
            .ok()
    })
    .await
    .unwrap();
}

async fn sha256(bytes: Vec<u8>) -> String {
    let said = tokio::task::spawn_blocking(|| Cmd::new("sha256sum").input(bytes).ok())
        .await
        .unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_cbor_and_json_are_the_api_servers_own_bytes() {
    let (api, _) = ready().await;
    for (accept, begins) in [
        ("application/vnd.kubernetes.protobuf", &b"k8s\0"[..]),
        ("application/cbor", &[0xd9, 0xd9, 0xf7]),
        ("application/json", b"{"),
        ("application/yaml", b"apiVersion"),
    ] {
        let request = api
            .request("GET", "/api/v1/namespaces/kube-system")
            .header("accept", accept);
        let through = api.send(request.body(empty()).unwrap()).await;
        assert_eq!(
            through.status,
            StatusCode::OK,
            "{accept}: {}",
            through.text()
        );
        assert_eq!(through.headers["content-type"], accept);
        assert!(
            through.body.starts_with(begins),
            "{accept}: {:?}",
            through.body
        );
        let direct =
            tokio::task::spawn_blocking(move || direct("/api/v1/namespaces/kube-system", accept))
                .await
                .unwrap();
        // The order of keys in CBOR changes from answer to answer.
        let same = if accept == "application/cbor" {
            through.body.len() == direct.len()
        } else {
            through.body == direct
        };
        assert!(same, "{accept}: not the same bytes");
    }
}

/// The API server's answer without a gateway.
fn direct(path: &str, accept: &str) -> Vec<u8> {
    let cluster = &shared().cluster;
    let pki = format!("{}/pki", cluster.setting("CLUSTER_DIR"));
    let curl = Cmd::new("curl")
        .args([
            "--silent",
            "--fail",
            "--user-agent",
            "tests",
            "--header",
            &format!("Accept: {accept}"),
        ])
        .args([
            "--cacert",
            cluster.setting("CA_CERT"),
            "--cert",
            &format!("{pki}/admin.crt"),
        ])
        .args([
            "--key",
            &format!("{pki}/admin.key"),
            &format!("{}{path}", cluster.setting("APISERVER_URL")),
        ]);
    let said = cluster.inside(curl).run();
    assert_eq!(said.code, Some(0), "{said}");
    said.bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_answers_stay_compressed() {
    let (api, _) = ready().await;
    let path = "/openapi/v2";
    let plain = api.get(path).await;
    assert_eq!(plain.status, StatusCode::OK);
    assert!(
        !plain.headers.contains_key("content-encoding"),
        "{:?}",
        plain.headers
    );
    let request = api.request("GET", path).header("accept-encoding", "gzip");
    let packed = api.send(request.body(empty()).unwrap()).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.body.len() < plain.body.len() / 2);
    let body = packed.body.to_vec();
    let unpacked = tokio::task::spawn_blocking(|| Cmd::new("gzip").arg("-dc").input(body).run())
        .await
        .unwrap();
    assert_eq!(unpacked.code, Some(0), "{unpacked}");
    // Both are the same document; other tests add APIs to it meanwhile.
    assert!(
        unpacked.bytes.starts_with(b"{\"swagger\":\"2.0\""),
        "{:?}",
        &unpacked.bytes[..40]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_arrive_in_both_versions() {
    let (api, server) = ready().await;
    let path = format!("{server}/trailers");
    // Without `TE: trailers` they may be left out on HTTP/1.1.
    let request = || {
        api.request("GET", &path)
            .header("te", "trailers")
            .body(empty())
            .unwrap()
    };
    let one = api.send(request()).await;
    let two = read(api.http2().await.send(request()).await).await;
    for answer in [one, two] {
        assert_eq!(
            answer.text(),
            "a body, and then trailers",
            "{:?}",
            answer.version
        );
        if front() == Some(Kind::Nginx) {
            assert!(
                answer.trailers.is_empty(),
                "nginx learnt to pass trailers: drop this exception"
            );
            continue;
        }
        assert_eq!(
            answer.trailers.get("x-sum").map(|v| v.as_bytes()),
            Some(&b"one"[..]),
            "{:?}",
            answer.version
        );
        assert_eq!(
            answer.trailers.get("x-count").map(|v| v.as_bytes()),
            Some(&b"2"[..]),
            "{:?}",
            answer.version
        );
        assert!(
            !answer
                .trailers
                .keys()
                .any(|name| name.as_str().starts_with("towline-"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_close_ends_the_connection_and_nothing_else() {
    let (api, server) = ready().await;
    let token = api.token.clone().unwrap();
    let head = |path: &str, more: &str| {
        let (host, prefix) = (api.authority(), api.prefix());
        format!("GET {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{more}\r\n").into_bytes()
    };
    // Read to its end: the gateway has to close.
    let said = api
        .raw(&head("/version", "Connection: close\r\n"), |_| false)
        .await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("gitVersion"),
        "{said}"
    );
    // What the caller lists is between the caller and the gateway.
    let more =
        "Connection: close, X-Private\r\nX-Private: 1\r\nX-Public: 2\r\nTowline-Private: 3\r\n";
    let said = api
        .raw(&head(&format!("{server}/echo/"), more), |_| false)
        .await;
    assert!(said.contains("X-Public"), "{said}");
    // And what is between gateway and agent stays there: HTTP's libraries take away the rest by themselves.
    assert!(!said.contains("Towline-"), "{said}");
    // nginx passes what is listed, and drops the list.
    assert!(
        !said.contains("X-Private") || front() == Some(Kind::Nginx),
        "{said}"
    );
    // Without it the connection stays.
    let both = [
        head("/version", ""),
        head("/healthz", "Connection: close\r\n"),
    ]
    .concat();
    let said = api.raw(&both, |_| false).await;
    assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn percent_encoding_passes_untouched() {
    let (api, server) = ready().await;
    for path in [
        "/echo/a%2Fb%20c/%7Ed?x=%2F&y=a+b&z=%C3%A9",
        "/echo//double//",
        "/echo/%25zz?%3F=1",
        "/echo/a;b=1,c@d:e",
    ] {
        let said = echoed(&api.get(&format!("{server}{path}")).await);
        let sent = format!("{server}{path}");
        let direct = tokio::task::spawn_blocking(move || direct(&sent, "*/*"))
            .await
            .unwrap();
        let direct: Value = serde_json::from_slice(&direct).unwrap();
        assert_eq!(said["uri"], direct["uri"], "{path}");
    }
    // A name with a colon, written both ways.
    for name in ["system:discovery", "system%3Adiscovery"] {
        let role = api
            .get(&format!(
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}"
            ))
            .await;
        assert_eq!(role.json()["metadata"]["name"], "system:discovery");
    }
}

#[test]
fn a_user_in_a_thousand_groups_is_in_all_of_them() {
    let shared = shared();
    let world = &shared.world;
    let user = world.user("many", "gatewayAdmin");
    let groups: Vec<String> = (0..1000)
        .map(|n| format!("group-with-quite-a-long-name-{n:04}"))
        .collect();
    world
        .admin
        .towline("users add-group many")
        .args(&groups)
        .ok();
    user.sign_in_again();
    user.get_credentials("it");
    let said = user.kubectl("auth whoami -o json").json();
    let there = said["status"]["userInfo"]["groups"].as_array().unwrap();
    assert!(
        groups
            .iter()
            .all(|group| there.iter().any(|name| name == group)),
        "{} arrived",
        there.len()
    );
    assert_eq!(
        there.len(),
        groups.len() + 1,
        "system:authenticated beside them"
    );
    // Upgrades carry as many headers.
    world.grant(&shared.cluster, "many", "cluster-admin");
    let said = user
        .kubectl(&format!("exec -n {} box -- echo there", shared.namespace))
        .ok();
    assert_eq!(said, "there\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_heads_pass() {
    let (api, server) = ready().await;
    let long = "x".repeat(60_000);
    let request = api
        .request("GET", &format!("{server}/echo/"))
        .header("x-long", &long);
    let said = echoed(&api.send(request.body(empty()).unwrap()).await);
    assert_eq!(said["headers"]["X-Long"][0], long);
    let mut request = api.request("GET", &format!("{server}/echo/"));
    for n in 0..300 {
        request = request.header(format!("x-one-of-many-{n}"), "1");
    }
    let said = echoed(&read(api.http2().await.send(request.body(empty()).unwrap()).await).await);
    assert!((0..300).all(|n| said["headers"][format!("X-One-Of-Many-{n}")][0] == "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_downloads_hinder_nobody() {
    tokio::time::timeout(PATIENCE * 3, beside_stalled_downloads())
        .await
        .expect("nobody waits for stalled downloads");
}

async fn beside_stalled_downloads() {
    let (api, server) = ready().await;
    let path = format!("{server}/bytes/67108864");
    let mut stalled = Vec::new();
    for n in 0..64 {
        // Half on connections of their own, half on one.
        let mut connection = if n % 2 == 0 {
            api.http1().await
        } else {
            api.http2().await
        };
        let response = connection
            .send(api.request("GET", &path).body(empty()).unwrap())
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        stalled.push((connection, body, first.len()));
    }
    let mut times = Vec::new();
    for _ in 0..50 {
        let since = Stopwatch::new();
        assert_eq!(api.get("/version").await.status, StatusCode::OK);
        times.push(since.elapsed());
    }
    times.sort();
    assert!(
        times[48] < Duration::from_secs(1),
        "small requests beside stalled downloads took up to {times:?}"
    );
    let since = Stopwatch::new();
    let whole = api.get(&path).await;
    assert_eq!(whole.body.len(), 64 << 20);
    assert!(
        since.elapsed() < PATIENCE,
        "a download beside stalled ones took {:?}",
        since.elapsed()
    );
    // One that was stalled goes on where it was, to the last byte.
    let (connection, mut body, mut length) = stalled.pop().unwrap();
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(length, 64 << 20);
    drop(connection);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_answer_is_not_mistaken_for_a_whole_one() {
    let (api, server) = ready().await;
    for round in 0..10 {
        let version = if round % 2 == 0 { 1 } else { 2 };
        let mut connection = if version == 1 {
            api.http1().await
        } else {
            api.http2().await
        };
        let response = connection
            .send(
                api.request("GET", &format!("{server}/abort"))
                    .body(empty())
                    .unwrap(),
            )
            .await;
        let mut body = response.into_body();
        let mut got = Vec::new();
        let end = loop {
            match body.frame().await {
                None => break Ok(()),
                Some(Err(error)) => break Err(error),
                Some(Ok(frame)) => got.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        };
        // HAProxy 2.6 turns an HTTP/1.1 answer that breaks off into a whole one on HTTP/2.
        let forgiven = front() == Some(Kind::Haproxy) && version == 2;
        assert!(
            end.is_err() || forgiven,
            "a clean end on HTTP/{version} after {:?}",
            String::from_utf8_lossy(&got)
        );
        // What came before the end arrives, as it does straight from the API server.
        assert_eq!(String::from_utf8_lossy(&got), "half of it");
    }
}

/// The API server's audit log from some moment on: the whole of it is hundreds of megabytes after a day of tests.
#[derive(Clone, Copy)]
struct Audit {
    path: &'static Path,
    from: u64,
}

impl Audit {
    fn from_now() -> Self {
        let path = shared().cluster.audit_log();
        let from = fs::metadata(path).map_or(0, |file| file.len());
        Self { path, from }
    }

    /// Events of `stage` whose URI contains `marker`.
    fn count(self, marker: &str, stage: &str) -> usize {
        let stage = format!("\"stage\":\"{stage}\"");
        let mut file = File::open(self.path).unwrap();
        file.seek(SeekFrom::Start(self.from)).unwrap();
        BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains(marker) && line.contains(&stage))
            .count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_sees_within_a_second_that_a_client_vanished() {
    let (api, _) = ready().await;
    let namespace = &shared().namespace;
    let audit = Audit::from_now();
    for how in ["http1", "http2", "stream"] {
        // The audit log outlives runs. The watch has an event: nginx keeps a head on HTTP/2 until something follows.
        let marker = format!("vanish-{how}-{namespace}");
        let path = format!("/api/v1/namespaces/{namespace}/pods?watch=1&{marker}");
        let request = api.request("GET", &path).body(empty()).unwrap();
        let mut connection = if how == "http1" {
            api.http1().await
        } else {
            api.http2().await
        };
        let response = connection.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let marker = tokio::task::spawn_blocking(move || {
            wait_until("the watch is in the audit log", PATIENCE, || {
                audit.count(&marker, "ResponseStarted") == 1
            });
            assert_eq!(audit.count(&marker, "ResponseComplete"), 0, "it runs");
            marker
        })
        .await
        .unwrap();
        let since = Stopwatch::new();
        // On HTTP/1.1 the connection goes; on HTTP/2 first the whole connection, then one stream of it alone.
        drop(response);
        if how != "stream" {
            drop(connection);
        }
        tokio::task::spawn_blocking(move || {
            wait_until("the API server ends the watch", PATIENCE, || {
                audit.count(&marker, "ResponseComplete") == 1
            });
        })
        .await
        .unwrap();
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{how}: {:?}",
            since.elapsed()
        );
    }
}

#[test]
fn the_api_server_sees_within_a_second_that_an_exec_vanished() {
    let shared = shared();
    let audit = Audit::from_now();
    for (name, protocol) in [
        ("ws", tests::user::Protocol::WebSocket),
        ("spdy", tests::user::Protocol::Spdy),
    ] {
        let marker = format!("vanished-{name}-{}", shared.namespace);
        let command = format!("exec -i box -- sh -c sleep\t1000;{marker}").replace('\t', "${IFS}");
        let kubectl =
            shared
                .world
                .admin
                .kubectl_of(tests::user::Kubectl::Current, protocol, &command);
        let mut exec = kubectl.input_open().start(&marker);
        wait_until("the exec runs", PATIENCE, || {
            audit.count(&marker, "ResponseStarted") > 0
        });
        let ended = audit.count(&marker, "ResponseComplete");
        let since = Stopwatch::new();
        exec.kill();
        wait_until("the API server ends the exec", PATIENCE, || {
            audit.count(&marker, "ResponseComplete") > ended
        });
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{name}: {:?}",
            since.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_stream_and_expect_continue_is_answered() {
    let (api, server) = ready().await;
    let path = format!("{server}/echo/");
    // 64 MiB in chunks, longer than anything that might hold it.
    let chunk = Bytes::from(vec![b'x'; 1 << 16]);
    let frames = futures_util::stream::iter(
        (0..1024).map(move |_| Ok(hyper::body::Frame::data(chunk.clone()))),
    );
    let body: Body = http_body_util::StreamBody::new(frames).boxed();
    let said = echoed(
        &api.send(api.request("POST", &path).body(body).unwrap())
            .await,
    );
    assert_eq!(said["length"], 64 << 20);

    let mut stream = api.tls(&[b"http/1.1"]).await;
    let mut head = String::new();
    let (host, prefix, token) = (api.authority(), api.prefix(), api.token.clone().unwrap());
    write!(
        head,
        "POST {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
    )
    .unwrap();
    write!(
        head,
        "Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first[..21], b"HTTP/1.1 100 Continue");
    stream.write_all(b"later").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.starts_with("HTTP/1.1 200") && rest.contains("\"length\":5"),
        "{rest}"
    );
}

#[test]
fn http_libraries_find_the_gateway_by_alpn() {
    let shared = shared();
    let api = membership().0;
    let url = format!("https://{}{}/version", api.authority(), api.prefix());
    let ca = shared.world.gateway.certificate_authority.clone();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let command = Cmd::new("curl")
            .args(["--silent", "--show-error", "--fail", flag, "--cacert"])
            .arg(&ca);
        let header = format!("Authorization: Bearer {}", api.token.as_deref().unwrap());
        let said = command
            .args([
                "--header",
                &header,
                "--write-out",
                "\n%{http_version}",
                &url,
            ])
            .ok();
        assert_eq!(said.lines().last(), Some(version), "{said}");
    }
}
