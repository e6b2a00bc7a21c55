//! What stands on the path in real networks: TLS terminators before the gateway, HTTP proxies before the agent.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::LazyLock,
    time::Duration,
};

use tests::{
    Agent, Cluster, Cmd, Stopwatch, User, World,
    front::{self, Front, Kind},
    place,
    user::{Kubectl, Protocol},
    wait_until,
    world::{BUSYBOX, POD, new_namespace, run_server},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The namespace with the pod that all tests here use.
fn namespace() -> &'static str {
    static NAMESPACE: LazyLock<String> = LazyLock::new(|| {
        let cluster = Cluster::with_node();
        let name = new_namespace(&cluster);
        let run = cluster.kubectl(&format!(
            "-n {name} run {POD} --image {BUSYBOX} --image-pull-policy Never"
        ));
        run.args(["--restart", "Never", "--", "sh", "-c", "sleep 100000"])
            .ok();
        cluster
            .kubectl(&format!(
                "-n {name} wait --for condition=Ready pod/{POD} --timeout 60s"
            ))
            .ok();
        run_server(&cluster, &name);
        name
    });
    &NAMESPACE
}

/// A gateway behind a middlebox, its agent, and `admin` in the namespace.
fn world_behind(
    kind: Kind,
    name: &str,
    change: impl FnOnce(String) -> String,
) -> (World, Agent, Front) {
    let cluster = Cluster::with_node();
    let (gateway, front) = front::gateway_behind(kind, name, &cluster, change);
    let world = World::of(gateway);
    let agent = world.join(&cluster, name);
    world
        .admin
        .kubectl("config set-context --current --namespace")
        .arg(namespace())
        .ok();
    (world, agent, front)
}

fn carrier(agent: &mut Agent) -> String {
    let said = format!("{}{}", agent.program().out(), agent.program().err());
    let line = said
        .lines()
        .rfind(|line| line.contains("session open"))
        .unwrap_or_default();
    line.split("carrier")
        .nth(1)
        .unwrap_or_default()
        .to_lowercase()
}

#[test]
fn everything_passes_nginx() {
    let (world, mut agent, front) = world_behind(Kind::Nginx, "nginx", |text| text);
    assert!(
        carrier(&mut agent).contains("upgrade") || carrier(&mut agent).contains("plain"),
        "{}",
        carrier(&mut agent)
    );
    the_core_set(&world.admin, "nginx");
    assert!(
        front.log("access.log").contains("memberships/nginx"),
        "requests did not pass nginx"
    );
}

#[test]
fn everything_passes_haproxy() {
    let (world, _agent, _front) = world_behind(Kind::Haproxy, "haproxy", |text| text);
    the_core_set(&world.admin, "haproxy");
}

#[test]
fn agents_take_a_websocket_where_nothing_else_passes() {
    let only_websockets = |text: String| {
        let from = "        default upgrade;\n        ''      '';";
        assert!(text.contains(from));
        text.replace(from, "        default   '';\n        websocket upgrade;")
            .replace("proxy_set_header Upgrade $http_upgrade;", "proxy_set_header Upgrade $towline_only_websocket;")
            .replace(
                "    upstream towline_gateway",
                "    map $http_upgrade $towline_only_websocket { default ''; websocket websocket; }\n    upstream towline_gateway",
            )
    };
    let (world, mut agent, _front) = world_behind(Kind::Nginx, "websocket", only_websockets);
    assert!(
        carrier(&mut agent).contains("websocket"),
        "{}",
        carrier(&mut agent)
    );
    let user = &world.admin;
    user.kubectl("get pods").ok();
    exec_works(user, Protocol::WebSocket);
    cp_works(user, Protocol::WebSocket, "websocket", 64 << 20);
    logs_follow(user, "websocket");
    port_forward_works(user, Protocol::WebSocket);
}

/// What people do all day, once through whatever is in between.
fn the_core_set(user: &User, name: &str) {
    let said = user.kubectl("get pods -o name").ok();
    assert!(said.contains("pod/box"), "{said}");
    watch_tells(user, name);
    logs_follow(user, name);
    for protocol in [Protocol::WebSocket, Protocol::Spdy] {
        exec_works(user, protocol);
        cp_works(user, protocol, name, 128 << 20);
        port_forward_works(user, protocol);
    }
    // A large body each way that isn't a stream.
    let blob = "x".repeat(900_000);
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large-{name}}}\ndata: {{a: {blob}}}\n"
    );
    user.kubectl("apply --server-side -f -").input(map).ok();
    assert!(
        user.kubectl(&format!(
            "get configmap large-{name} -o jsonpath={{.data.a}}"
        ))
        .ok()
            == blob
    );
    // Refusals keep their words.
    let said = user.kubectl("get pods --as nobody").fails();
    assert!(said.contains("User \"nobody\" cannot list"), "{said}");
    let said = user.kubectl("get pod not-there").fails();
    assert!(said.contains("pods \"not-there\" not found"), "{said}");
}

fn watch_tells(user: &User, name: &str) {
    let mut watch = user
        .kubectl("get configmaps --watch -o name")
        .start(&format!("watch-{name}"));
    watch.line("the first object", PATIENCE, |line| {
        line.contains("kube-root-ca.crt")
    });
    user.kubectl(&format!("create configmap watched-{name}"))
        .ok();
    watch.line("the new object", PATIENCE, |line| {
        line.contains(&format!("watched-{name}"))
    });
    let ended = user.kubectl("get --raw").arg(format!(
        "/api/v1/namespaces/{}/pods?watch=1&timeoutSeconds=1",
        namespace()
    ));
    assert_eq!(ended.run().code, Some(0));
}

fn logs_follow(user: &User, name: &str) {
    let pod = format!("logger-{name}");
    user.kubectl(&format!(
        "run {pod} --image {BUSYBOX} --image-pull-policy Never --restart Never"
    ))
    .args([
        "--",
        "sh",
        "-c",
        "echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last",
    ])
    .ok();
    user.kubectl(&format!(
        "wait --for condition=Ready pod/{pod} --timeout 30s"
    ))
    .ok();
    let mut logs = user
        .kubectl(&format!("logs -f {pod}"))
        .start(&format!("logs-{name}"));
    logs.line("the first line", PATIENCE, |line| line == "first");
    user.kubectl(&format!("exec {pod} -- touch /tmp/go")).ok();
    assert!(logs.wait(PATIENCE).success());
    assert_eq!(logs.out(), "first\nlast\n");
}

fn exec_works(user: &User, protocol: Protocol) {
    let exec = |script: &str| {
        user.kubectl_of(Kubectl::Current, protocol, &format!("exec -i {POD} --"))
            .args(["sh", "-c", script])
    };
    let said = exec("cat; echo to-err >&2; exit 42").input("to-out").run();
    assert_eq!(
        (said.code, said.text().as_str()),
        (Some(42), "to-out"),
        "{said}"
    );
    assert!(said.stderr.contains("to-err"), "{said}");
    let said = exec("true").arg("-v").arg("8").run();
    assert_eq!(said.code, Some(0), "{said}");
}

fn cp_works(user: &User, protocol: Protocol, name: &str, size: u64) {
    let directory = place::directory(&format!("cp-{name}"));
    let (there, back) = (directory.join("there"), directory.join("back"));
    let count = format!("count={}", size >> 20);
    Cmd::new("dd")
        .args([
            "if=/dev/urandom",
            "bs=1M",
            &count,
            &format!("of={}", there.display()),
        ])
        .ok();
    let remote = format!("{POD}:/tmp/{name}-{protocol:?}");
    let limit = Duration::from_secs(120);
    let cp = || {
        user.kubectl_of(Kubectl::Current, protocol, "cp")
            .limit(limit)
    };
    cp().arg(&there).arg(&remote).ok();
    cp().arg(&remote).arg(&back).ok();
    Cmd::new("cmp").arg(&there).arg(&back).limit(limit).ok();
    std::fs::remove_dir_all(directory).unwrap();
}

fn port_forward_works(user: &User, protocol: Protocol) {
    let forward = user.kubectl_of(Kubectl::Current, protocol, "port-forward server :7000");
    let mut forward = forward.start("port-forward");
    let port = forward.forwarded_port(PATIENCE);
    std::thread::scope(|scope| {
        for n in 0..16_u8 {
            scope.spawn(move || {
                let sent = vec![n; 100_000];
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&sent).unwrap();
                let mut got = vec![0; sent.len()];
                stream.read_exact(&mut got).unwrap();
                assert!(got == sent);
            });
        }
    });
}

/// An agent that dials through `proxy`; requests pass, or what it said about it.
fn through(world: &World, name: &str, proxy: &str) -> Agent {
    let registration = world.register(name);
    Agent::new(&Cluster::second(), name, registration).env("HTTPS_PROXY", proxy)
}

fn connected(world: &World, name: &str) -> bool {
    let said = world
        .admin
        .towline("memberships describe --project demo -o json")
        .arg(name)
        .json();
    said["state"] == "CONNECTED"
}

fn serves(world: &World, name: &str) {
    wait_until("it is connected", PATIENCE, || connected(world, name));
    world.grant(&Cluster::second(), &world.admin.name, "cluster-admin");
    let user = world
        .admin
        .with_kubeconfig(&place::directory(name).join("kubeconfig"));
    user.get_credentials(name);
    assert_eq!(
        user.kubectl("get namespace kube-system -o jsonpath={.metadata.uid}")
            .ok(),
        Cluster::second().uid()
    );
    let list = user.kubectl("get --raw /openapi/v2").run();
    assert!(list.bytes.len() > 1 << 20);
}

#[test]
fn agents_dial_through_http_proxies_with_credentials() {
    let cluster = Cluster::second();
    let world = World::new("proxied", &cluster);
    let target = format!("{}:{}", world.gateway.ip, world.gateway.port);
    // A password that has to be percent-encoded in a URL.
    let squid = front::squid(&cluster, "p@ss:w/rd");
    let tinyproxy = front::tinyproxy(&cluster, "plainword");
    let tls = front::tls_before(&tinyproxy, &world.gateway);

    let mut agent = through(
        &world,
        "squid",
        &format!("http://agent:p%40ss%3Aw%2Frd@{}", squid.address),
    );
    agent.run();
    serves(&world, "squid");
    assert!(squid.log("access.log").is_empty() || squid.log("access.log").contains(&target));

    let mut agent = through(
        &world,
        "tiny",
        &format!("http://agent:plainword@{}", tinyproxy.address),
    );
    agent.run();
    serves(&world, "tiny");
    assert!(
        tinyproxy
            .log("access.log")
            .contains(&format!("CONNECT {target}")),
        "{}",
        tinyproxy.log("access.log")
    );

    let before = tinyproxy.log("access.log").matches("CONNECT").count();
    let mut agent = through(
        &world,
        "tls",
        &format!("https://agent:plainword@{}", tls.address),
    )
    .env(
        "SSL_CERT_FILE",
        &world.gateway.certificate_authority.display().to_string(),
    );
    agent.run();
    serves(&world, "tls");
    assert!(
        tinyproxy.log("access.log").matches("CONNECT").count() > before,
        "not through the https:// proxy"
    );

    // Wrong credentials are told, with what to do; the password is not.
    let mut agent = through(
        &world,
        "wrong",
        &format!("http://agent:guessed@{}", squid.address),
    );
    agent.run();
    wait_until("the refusal is logged", PATIENCE, || {
        let said = format!("{}{}", agent.program().out(), agent.program().err());
        assert!(!said.contains("guessed"), "the password is logged: {said}");
        said.contains("407") && said.contains("HTTPS_PROXY")
    });
    assert!(!connected(&world, "wrong"));

    // NO_PROXY: dialled directly past a proxy that isn't there.
    let mut agent = through(&world, "direct", "http://127.0.0.1:1")
        .env("NO_PROXY", &format!("example.com,{}", world.gateway.ip));
    agent.run();
    serves(&world, "direct");
}

#[test]
fn a_watch_is_idle_for_ten_times_every_idle_limit() {
    let limit = Duration::from_secs(6);
    // The agent's connection: silent for 6 s, and these end it. Its pings come every 5 s.
    let nginx = |text: String| {
        let from = "        location / {";
        assert!(text.contains(from));
        let agents = "        location /agent/ {\n            proxy_pass http://towline_gateway;\n            proxy_http_version 1.1;\n            proxy_set_header Host $http_host;\n            proxy_set_header Upgrade $http_upgrade;\n            proxy_set_header Connection $towline_connection;\n            proxy_read_timeout 6s;\n            proxy_send_timeout 6s;\n        }\n";
        text.replace(from, &format!("{agents}{from}"))
    };
    let haproxy = |text: String| {
        let backend = "backend towline_gateway";
        let rule =
            "    use_backend agents if { path_beg /agent/ }\n    default_backend towline_gateway";
        assert!(text.contains(backend) && text.contains("    default_backend towline_gateway"));
        let server = text
            .lines()
            .rfind(|line| line.trim_start().starts_with("server "))
            .unwrap()
            .to_owned();
        let text = text.replace("    default_backend towline_gateway", rule);
        format!("{text}\nbackend agents\n    timeout tunnel 6s\n    timeout server 6s\n{server}\n")
    };
    let worlds = [
        world_behind(Kind::Nginx, "idle-nginx", nginx),
        world_behind(Kind::Haproxy, "idle-haproxy", haproxy),
    ];
    let mut idle = Vec::new();
    for (world, ..) in &worlds {
        let watch = world
            .admin
            .kubectl("get configmaps -l idle=yes --watch -o name")
            .start("idle-watch");
        let shell = world
            .admin
            .kubectl(&format!("exec -i {POD} -- sh -c cat"))
            .input_open()
            .start("idle-exec");
        idle.push((watch, shell));
    }
    let since = Stopwatch::new();
    wait_until("ten times the limit", limit * 11, || {
        for (watch, shell) in &mut idle {
            assert!(
                watch.runs(),
                "the watch ended after {:?}: {}",
                since.elapsed(),
                watch.err()
            );
            assert!(
                shell.runs(),
                "the exec ended after {:?}: {}",
                since.elapsed(),
                shell.err()
            );
        }
        since.elapsed() > limit * 10
    });
    let name = "after-idle";
    let make = worlds[0]
        .0
        .admin
        .kubectl(&format!("create configmap {name}"));
    make.ok();
    worlds[0]
        .0
        .admin
        .kubectl(&format!("label configmap {name} idle=yes"))
        .ok();
    for ((world, agent, _front), (watch, shell)) in worlds.into_iter().zip(&mut idle) {
        watch.line("news after the silence", PATIENCE, |line| {
            line.contains(name)
        });
        shell.write("still here\n");
        shell.line("the echo", PATIENCE, |line| line == "still here");
        // The watch survived because the session did, not because it was begun again.
        let mut agent = agent;
        let said = format!("{}{}", agent.program().out(), agent.program().err());
        assert_eq!(
            said.matches("session open").count(),
            1,
            "{}: {said}",
            world.gateway.url
        );
    }
}
