//! What people type, through the gateway, on a real cluster. exec and cp have a file of their own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::Duration,
};

use tests::{
    Cmd, Program, place, shared,
    user::{Kubectl, Protocol},
    wait_until,
    world::{AGNHOST, BUSYBOX},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn file(name: &str, text: &str) -> PathBuf {
    let path = place::directory(name).join("file");
    fs::write(&path, text).unwrap();
    path
}

/// A pod of `image` that runs `script`, once it is ready.
fn pod(name: &str, image: &str, words: &[&str]) {
    let shared = shared();
    shared
        .kubectl(&format!(
            "run {name} --image {image} --image-pull-policy IfNotPresent --restart Never"
        ))
        .args([
            "--overrides",
            r#"{"spec":{"terminationGracePeriodSeconds":0}}"#,
            "--",
        ])
        .args(words)
        .ok();
    shared
        .kubectl(&format!(
            "wait --for condition=Ready pod/{name} --timeout 30s"
        ))
        .ok();
}

#[test]
fn get_lists_pods() {
    let said = shared().kubectl("get pods -o name").ok();
    assert!(said.lines().any(|line| line == "pod/box"), "{said}");
    let table = shared().kubectl("get pod box").ok();
    assert!(
        table
            .lines()
            .nth(1)
            .is_some_and(|row| row.contains("Running")),
        "{table}"
    );
}

#[test]
fn a_list_of_50_mib_arrives_whole_in_one_and_in_chunks() {
    let shared = shared();
    let namespace = "towline-bulk";
    let count = 520;
    let there = shared
        .cluster
        .kubectl(&format!(
            "get configmaps -n {namespace} -l bulk=yes -o name"
        ))
        .run();
    if there.text().lines().count() != count {
        // Kept between runs: making them takes longer than the test.
        shared
            .cluster
            .kubectl(&format!("delete namespace {namespace} --ignore-not-found"))
            .limit(PATIENCE * 4)
            .ok();
        shared
            .cluster
            .kubectl(&format!("create namespace {namespace}"))
            .ok();
        let mut list = String::new();
        let data = "0123456789abcdef".repeat(6400);
        for n in 0..count {
            write!(
                list,
                "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bulk-{n:03}, namespace: {namespace}, \
                 labels: {{bulk: \"yes\"}}}}\ndata: {{all: \"{data}{n}\"}}\n"
            )
            .unwrap();
        }
        shared
            .cluster
            .kubectl("create -f -")
            .input(list)
            .limit(PATIENCE * 10)
            .ok();
    }
    let path = format!(
        "/api/v1/namespaces/{namespace}/configmaps?labelSelector=bulk%3Dyes&resourceVersion="
    );
    let whole = shared
        .kubectl("get --raw")
        .arg(&path)
        .limit(PATIENCE * 4)
        .run();
    let direct = shared
        .cluster
        .kubectl("get --raw")
        .arg(&path)
        .limit(PATIENCE * 4)
        .run();
    assert!(
        whole.bytes.len() > 50 << 20,
        "only {} bytes",
        whole.bytes.len()
    );
    // The list's own resourceVersion moves on meanwhile.
    let items = |said: &tests::Output| said.text().split_once("\"items\":").unwrap().1.to_owned();
    assert!(
        items(&whole) == items(&direct),
        "the list differs from what the API server says"
    );

    let page = shared
        .kubectl("get --raw")
        .arg(format!("{path}&limit=100"))
        .limit(PATIENCE)
        .json();
    assert_eq!(page["items"].as_array().unwrap().len(), 100);
    assert!(
        page["metadata"]["continue"].is_string(),
        "{}",
        page["metadata"]
    );
    let names = shared
        .kubectl(&format!(
            "get configmaps -n {namespace} -l bulk=yes -o name --chunk-size 50"
        ))
        .limit(PATIENCE * 4)
        .ok();
    assert_eq!(names.lines().collect::<BTreeSet<_>>().len(), count);
}

#[test]
fn a_watch_tells_news_at_once_and_ends_cleanly() {
    let shared = shared();
    let mut watch = shared
        .kubectl("get configmaps -l watched=yes --watch --output-watch-events -o name")
        .start("watch");
    thread::scope(|scope| {
        scope.spawn(|| {
            shared.kubectl("create configmap watched").ok();
            shared.kubectl("label configmap watched watched=yes").ok();
            shared.kubectl("delete configmap watched").ok();
        });
        // The API server's word for what begins to match is ADDED, for what stops DELETED.
        watch.line("the addition", PATIENCE, |line| {
            line.contains("configmap/watched")
        });
    });
    wait_until("both events", PATIENCE, || watch.out().lines().count() >= 2);
    drop(watch);

    // An end by the API server is a clean end, in both versions of HTTP.
    let path = format!(
        "/api/v1/namespaces/{}/pods?watch=1&timeoutSeconds=2",
        shared.namespace
    );
    let ended = shared.kubectl("get --raw").arg(&path).run();
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(
        ended.text().lines().all(|line| line.contains("\"ADDED\"")),
        "{ended}"
    );
    assert!(
        ended
            .text()
            .lines()
            .any(|line| line.contains("\"name\":\"box\"")),
        "{ended}"
    );
    assert!(!ended.text().contains("\"ERROR\""), "{ended}");
}

#[test]
fn logs_are_followed_to_their_end() {
    let shared = shared();
    let script = "for n in $(seq 1 20); do echo line $n; done; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
                  for n in $(seq 21 2000); do echo line $n; done";
    pod("logger", BUSYBOX, &["sh", "-c", script]);
    let mut logs = shared.kubectl("logs -f logger").start("logs");
    logs.line("the twentieth line", PATIENCE, |line| line == "line 20");
    assert!(logs.runs());
    shared.kubectl("exec logger -- touch /tmp/go").ok();
    assert!(logs.wait(PATIENCE).success());
    let expected: String = (1..=2000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(logs.out(), expected);
    assert_eq!(shared.kubectl("logs logger --tail 1").ok(), "line 2000\n");
}

#[test]
fn server_side_apply_takes_an_object_of_one_and_a_half_megabytes() {
    let shared = shared();
    // ConfigMaps and Secrets end at 1 MiB; a custom resource may be as large as etcd takes.
    let definition = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: blobs.large.towline.test}
spec:
  group: large.towline.test
  scope: Namespaced
  names: {plural: blobs, singular: blob, kind: Blob}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
    shared
        .kubectl("apply --server-side -f -")
        .input(definition)
        .ok();
    shared
        .kubectl("wait --for condition=Established crd/blobs.large.towline.test --timeout 30s")
        .ok();
    let data = "x".repeat(1_500_000);
    let blob = format!(
        "apiVersion: large.towline.test/v1\nkind: Blob\nmetadata: {{name: large}}\ndata: \"{data}\"\n"
    );
    shared
        .kubectl("apply --server-side -f -")
        .input(blob.clone())
        .ok();
    let stored = shared.kubectl("get blob large -o jsonpath={.data}").ok();
    assert!(stored == data, "what is stored has {} bytes", stored.len());
    // Applied again by another owner: a conflict that the API server words.
    let other = blob.replacen("xx", "yy", 1);
    let said = shared
        .kubectl("apply --server-side --field-manager other -f -")
        .input(other)
        .fails();
    assert!(said.contains("conflict"), "{said}");
}

#[test]
fn apply_and_diff_and_edit() {
    let shared = shared();
    let manifest = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: edited}}\ndata: {{key: {value}}}\n"
        )
    };
    shared.kubectl("apply -f -").input(manifest("one")).ok();
    let same = shared.kubectl("diff -f -").input(manifest("one")).run();
    assert_eq!(same.code, Some(0), "{same}");
    let differs = shared.kubectl("diff -f -").input(manifest("two")).run();
    assert_eq!(differs.code, Some(1), "{differs}");
    assert!(
        differs.text().contains("-  key: one") && differs.text().contains("+  key: two"),
        "{differs}"
    );
    let editor = file(
        "editor",
        "#!/bin/sh\nsed -i 's/key: one/key: three/' \"$1\"\n",
    );
    Cmd::new("chmod").arg("755").arg(&editor).ok();
    let said = shared
        .kubectl("edit configmap edited")
        .env("KUBE_EDITOR", &editor)
        .ok();
    assert!(said.contains("configmap/edited edited"), "{said}");
    assert_eq!(
        shared
            .kubectl("get configmap edited -o jsonpath={.data.key}")
            .ok(),
        "three"
    );
}

#[test]
fn attach_reads_and_writes() {
    let shared = shared();
    for (name, protocol) in [
        ("attach-websocket", Protocol::WebSocket),
        ("attach-spdy", Protocol::Spdy),
    ] {
        shared
            .kubectl(&format!("run {name} --image {BUSYBOX} --image-pull-policy Never --restart Never --stdin --attach=false"))
            .args(["--", "sh", "-c", "while read line; do echo \"got $line\"; done; sleep 1000"])
            .ok();
        shared
            .kubectl(&format!(
                "wait --for condition=Ready pod/{name} --timeout 30s"
            ))
            .ok();
        let command =
            shared
                .world
                .admin
                .kubectl_of(Kubectl::Current, protocol, &format!("attach -i {name}"));
        let mut attached = command.input_open().start(name);
        attached.write("hello\n");
        attached.line("the answer", PATIENCE, |line| line == "got hello");
        attached.write("again\n");
        attached.line("the answer", PATIENCE, |line| line == "got again");
        drop(attached);
        shared
            .kubectl(&format!(
                "delete pod {name} --grace-period 0 --force --wait=false"
            ))
            .ok();
    }
}

/// A running `kubectl port-forward`, and the local port that it chose.
fn port_forward(kubectl: Kubectl, protocol: Protocol, words: &str) -> (Program, u16) {
    let command =
        shared()
            .world
            .admin
            .kubectl_of(kubectl, protocol, &format!("port-forward {words}"));
    let mut forward = command.start("port-forward");
    let port = forward.forwarded_port(PATIENCE);
    (forward, port)
}

#[test]
fn port_forward_carries_many_connections_at_once() {
    shared().server();
    for (kubectl, protocol) in [
        (Kubectl::Current, Protocol::WebSocket),
        (Kubectl::Current, Protocol::Spdy),
        (Kubectl::V1_31, Protocol::WebSocket),
        (Kubectl::V1_31, Protocol::Spdy),
        (Kubectl::V1_29, Protocol::Spdy),
    ] {
        let (mut forward, port) = port_forward(kubectl, protocol, "pod/server :7000");
        thread::scope(|scope| {
            for n in 0..48_u8 {
                scope.spawn(move || echoed_whole(port, n));
            }
        });
        assert!(
            forward.runs(),
            "{kubectl:?} {protocol:?}: {}",
            forward.err()
        );
        drop(forward);
    }
}

/// A quarter of a mebibyte there and back over one connection.
fn echoed_whole(port: u16, seed: u8) {
    let sent: Vec<u8> = (0..256 * 1024_u32)
        .map(|at| u8::try_from((at.wrapping_mul(31) >> 3) & 0xff).unwrap_or_default() ^ seed)
        .collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        let mut got = vec![0; sent.len()];
        stream
            .read_exact(&mut got)
            .unwrap_or_else(|e| panic!("connection {seed}: {e}"));
        assert!(got == sent, "connection {seed} brought back something else");
    });
}

#[test]
fn kubectl_proxy_serves_a_port_and_a_unix_socket() {
    let shared = shared();
    let ask = |mut stream: Box<dyn ReadWrite>, path: &str| {
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    let pods = format!("/api/v1/namespaces/{}/pods/box", shared.namespace);
    let mut proxy = shared.kubectl("proxy --port 0").start("proxy");
    let line = proxy.line("its port", PATIENCE, |line| {
        line.starts_with("Starting to serve on ")
    });
    let address = line.trim_start_matches("Starting to serve on ").to_owned();
    let said = ask(Box::new(TcpStream::connect(&address).unwrap()), &pods);
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("\"box\""),
        "{said}"
    );
    drop(proxy);

    let socket = place::directory("proxy").join("socket");
    let _proxy = shared
        .kubectl("proxy --unix-socket")
        .arg(&socket)
        .start("proxy-unix");
    wait_until("the socket is there", PATIENCE, || {
        UnixStream::connect(&socket).is_ok()
    });
    let said = ask(Box::new(UnixStream::connect(&socket).unwrap()), &pods);
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("\"box\""),
        "{said}"
    );
    let said = ask(Box::new(UnixStream::connect(&socket).unwrap()), "/version");
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("gitVersion"),
        "{said}"
    );
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

#[test]
fn debug_adds_a_container_and_runs_in_it() {
    let shared = shared();
    pod("debugged", BUSYBOX, &["sleep", "1000"]);
    let said = shared
        .kubectl(&format!(
            "debug debugged --image {BUSYBOX} --image-pull-policy IfNotPresent -i --quiet -c probe"
        ))
        .args(["--", "sh", "-c", "read line; echo debug says $line"])
        .input("hello\n")
        .run();
    let logs = shared.kubectl("logs debugged -c probe").ok();
    assert!(
        said.text().contains("debug says hello") || logs.contains("debug says hello"),
        "{said}\nlogs: {logs}"
    );
}

#[test]
fn discovery_serves_explain_and_api_resources() {
    let shared = shared();
    let said = shared.kubectl("explain pods.spec.containers.image").ok();
    assert!(
        said.contains("image <string>") && said.contains("VERSION:"),
        "{said}"
    );
    let said = shared.kubectl("explain deployments.spec --recursive").ok();
    assert!(said.contains("progressDeadlineSeconds"), "{said}");
    let through: BTreeSet<_> = shared
        .kubectl("api-resources --no-headers -o name")
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    let direct = shared
        .cluster
        .kubectl("api-resources --no-headers -o name")
        .ok();
    for name in [
        "pods",
        "deployments.apps",
        "selfsubjectreviews.authentication.k8s.io",
    ] {
        assert!(through.contains(name), "{name} is missing");
    }
    // Other tests add and take away APIs of their own meanwhile.
    let own = |name: &&str| !name.contains("towline");
    assert_eq!(
        through
            .iter()
            .map(String::as_str)
            .filter(own)
            .collect::<BTreeSet<_>>(),
        direct.lines().filter(own).collect::<BTreeSet<_>>()
    );
    assert!(shared.kubectl("api-versions").ok().contains("apps/v1"));
    assert!(shared.kubectl("version -o json").json()["serverVersion"]["gitVersion"].is_string());
    assert!(
        shared
            .kubectl("cluster-info")
            .ok()
            .contains("is running at")
    );
}

#[test]
fn wait_and_rollout_follow_a_deployment() {
    let shared = shared();
    shared
        .kubectl(&format!(
            "create deployment web --image {BUSYBOX} --replicas 2"
        ))
        .args([
            "--",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
        ])
        .ok();
    let patch = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"busybox","imagePullPolicy":"Never"}]}}}}"#;
    shared
        .kubectl("patch deployment web --patch")
        .arg(patch)
        .ok();
    shared
        .kubectl("wait --for condition=Available deployment/web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
    let said = shared
        .kubectl("rollout status deployment/web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
    assert!(said.contains("successfully rolled out"), "{said}");
    shared.kubectl("rollout restart deployment/web").ok();
    shared
        .kubectl("rollout status deployment/web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
    assert!(
        shared
            .kubectl("rollout history deployment/web")
            .ok()
            .contains("REVISION")
    );
    shared.kubectl("rollout undo deployment/web").ok();
    shared
        .kubectl("rollout status deployment/web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
    shared.kubectl("scale deployment/web --replicas 1").ok();
    shared
        .kubectl("wait --for jsonpath={.status.replicas}=1 deployment/web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
    shared.kubectl("delete deployment web").ok();
    shared
        .kubectl("wait --for delete pod -l app=web --timeout 60s")
        .limit(PATIENCE * 3)
        .ok();
}

#[test]
fn drain_evicts_and_respects_a_budget() {
    let shared = shared();
    // A node of its own that no kubelet serves: the real one has everybody's pods.
    let node = format!("drained-{}", shared.namespace);
    let objects = format!(
        r#"
apiVersion: v1
kind: Node
metadata: {{name: {node}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: drained, labels: {{app: drained}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  containers: [{{name: a, image: {BUSYBOX}}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: drained}}
spec: {{minAvailable: 1, selector: {{matchLabels: {{app: drained}}}}}}
"#
    );
    shared.kubectl("apply -f -").input(objects).ok();
    // Ready, so that the budget counts it.
    shared.kubectl("patch pod drained --subresource status --type merge --patch").arg(
        r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#,
    ).ok();
    let drain = |limit: &str| {
        shared.kubectl(&format!(
            "drain {node} --force --grace-period 0 --timeout {limit}"
        ))
    };
    wait_until("the budget holds", PATIENCE, || {
        shared
            .kubectl("get pdb drained -o jsonpath={.status.currentHealthy}")
            .ok()
            == "1"
    });
    let said = drain("2s").fails();
    assert!(
        said.contains("violate the pod's disruption budget"),
        "{said}"
    );
    shared.kubectl("delete pdb drained").ok();
    let said = drain("30s").ok();
    assert!(said.contains("drained"), "{said}");
    let said = shared.kubectl("get pod drained").fails();
    assert!(said.contains("NotFound"), "{said}");
    shared.kubectl(&format!("uncordon {node}")).ok();
    shared.kubectl(&format!("delete node {node}")).ok();
}

#[test]
fn tokens_are_created_and_reviews_answered() {
    let shared = shared();
    let token = shared.kubectl("create token default --duration 10m").ok();
    assert_eq!(token.trim().split('.').count(), 3, "no JWT: {token}");
    assert_eq!(shared.kubectl("auth can-i delete pods").ok().trim(), "yes");
    let listed = shared.kubectl("auth can-i --list").ok();
    assert!(listed.contains("*.*"), "{listed}");

    // Somebody who may read only, in the cluster and at the gateway.
    let viewer = shared.world.user("viewer", "gatewayReader");
    shared.world.grant(&shared.cluster, "viewer", "view");
    viewer.get_credentials("it");
    let namespace = &shared.namespace;
    assert_eq!(
        viewer
            .kubectl(&format!("auth can-i list pods -n {namespace}"))
            .ok()
            .trim(),
        "yes"
    );
    let no = viewer
        .kubectl(&format!("auth can-i delete pods -n {namespace}"))
        .run();
    assert_eq!((no.code, no.text().trim()), (Some(1), "no"), "{no}");
}

#[test]
fn raw_paths_answer() {
    let shared = shared();
    assert_eq!(shared.kubectl("get --raw /healthz").ok(), "ok");
    assert_eq!(shared.kubectl("get --raw /readyz").ok(), "ok");
    let through = shared.kubectl("get --raw /version").json();
    assert_eq!(through, shared.cluster.kubectl("get --raw /version").json());
    assert!(
        shared
            .kubectl("get --raw /metrics")
            .ok()
            .contains("apiserver_request_total")
    );
    let said = shared.kubectl("get --raw /no/such/path").fails();
    assert!(
        said.contains("the server could not find the requested resource"),
        "{said}"
    );
}

#[test]
fn whoami_is_the_same_as_impersonating_directly() {
    let shared = shared();
    let world = &shared.world;
    let user = world.user("whoami", "gatewayReader");
    world.admin.towline("users add-group whoami dev ops").ok();
    user.sign_in_again();
    user.get_credentials("it");
    let through = user.kubectl("auth whoami -o json").json();
    let mut command = shared
        .cluster
        .kubectl("--as whoami --as-group dev --as-group ops auth whoami -o json");
    // What the gateway adds about the caller is part of what is impersonated.
    for (key, values) in through["status"]["userInfo"]["extra"]
        .as_object()
        .into_iter()
        .flatten()
    {
        assert!(key.contains("towline"), "{key} is not ours to say");
        for value in values.as_array().unwrap() {
            command = command
                .arg("--as-user-extra")
                .arg(format!("{key}={}", value.as_str().unwrap()));
        }
    }
    let direct = command.json();
    assert_eq!(through["status"]["userInfo"], direct["status"]["userInfo"]);
    let groups = &through["status"]["userInfo"]["groups"];
    for group in ["dev", "ops", "system:authenticated"] {
        assert!(
            groups.as_array().unwrap().iter().any(|name| name == group),
            "{groups}"
        );
    }
}

#[test]
fn an_image_of_kubernetes_own_answers_through_the_service_proxy() {
    let shared = shared();
    pod("netexec", AGNHOST, &["netexec", "--http-port", "8080"]);
    shared.kubectl("expose pod netexec --port 8080").ok();
    let base = format!(
        "/api/v1/namespaces/{}/services/netexec:8080/proxy",
        shared.namespace
    );
    wait_until("the service has its pod", PATIENCE, || {
        shared
            .kubectl("get --raw")
            .arg(format!("{base}/hostname"))
            .run()
            .text()
            == "netexec"
    });
    let said = shared
        .kubectl("get --raw")
        .arg(format!("{base}/echo?msg=a%2Fb%20c"))
        .ok();
    assert_eq!(said, "a/b c");
}
