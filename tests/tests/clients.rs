//! Programs that talk to clusters by themselves: client-go, the Python client, kube-rs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config,
    api::{
        AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams,
        WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use serde_json::json;
use tests::{Cmd, place, shared, world::POD};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PATIENCE: Duration = Duration::from_secs(60);

/// Builds the Go program in the tree, with the modules that the cluster is built from.
fn go_program() -> PathBuf {
    let binary = place::cache().join("tests/clients");
    let cache = place::variable("GOCACHE");
    let build = Cmd::new("go")
        .words("build -trimpath -buildvcs=false -mod=readonly -o")
        .arg(&binary)
        .arg(".")
        .directory(place::tree().join("tests/clients/go"))
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .limit(Duration::from_secs(600));
    cache
        .into_iter()
        .fold(build, |build, cache| build.env("GOCACHE", cache))
        .ok();
    binary
}

#[test]
fn client_go_lists_watches_and_executes() {
    let shared = shared();
    let program = go_program();
    for test in [
        "informers",
        "exec-websocket",
        "exec-spdy",
        "exec-fallback",
        "protobuf",
        "cbor",
    ] {
        let command = Cmd::new(&program)
            .arg("--kubeconfig")
            .arg(&shared.world.admin.kubeconfig)
            .args(["--namespace", &shared.namespace, "--pod", POD, test]);
        let said = shared.world.admin.at_home(command).ok();
        assert_eq!(said, format!("{test} passed\n"));
    }
}

/// A virtual environment in the cache, made anew when the requirements change.
fn python() -> PathBuf {
    let requirements = place::tree().join("tests/clients/python/requirements.txt");
    let pinned = std::fs::read_to_string(&requirements).unwrap();
    let environment = place::cache()
        .join("tests/python")
        .join(pinned.trim().replace("==", "-"));
    let python = environment.join("bin/python");
    if Cmd::new(&python)
        .args(["-c", "import kubernetes"])
        .run()
        .code
        != Some(0)
    {
        let long = Duration::from_secs(300);
        Cmd::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment)
            .limit(long)
            .ok();
        let pip = Cmd::new(&python)
            .words("-m pip install --quiet --disable-pip-version-check --requirement");
        // The only place of the tests that may need the way out that the caller configured.
        [
            "PIP_INDEX_URL",
            "PIP_CONFIG_FILE",
            "HTTPS_PROXY",
            "https_proxy",
            "PIP_CERT",
            "SSL_CERT_FILE",
        ]
        .into_iter()
        .filter_map(|name| Some((name, place::variable(name)?)))
        .fold(pip.arg(&requirements).limit(long), |pip, (name, value)| {
            pip.env(name, value)
        })
        .ok();
    }
    python
}

#[test]
fn the_python_client_lists_watches_and_executes() {
    let shared = shared();
    let script = place::tree().join("tests/clients/python/client.py");
    let command = Cmd::new(python())
        .arg(script)
        .args([&shared.namespace, POD])
        .limit(PATIENCE);
    assert_eq!(shared.world.admin.at_home(command).ok(), "passed\n");
}

/// A kube-rs client as `admin`; its exec plugin runs in that user's environment.
async fn kube_client() -> Result<Client> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let admin = &shared().world.admin;
    let mut kubeconfig = Kubeconfig::read_from(&admin.kubeconfig)?;
    for user in &mut kubeconfig.auth_infos {
        let exec = user
            .auth_info
            .as_mut()
            .and_then(|info| info.exec.as_mut())
            .context("an exec plugin")?;
        let path = place::program("towline");
        let path = path.parent().context("a directory")?.display().to_string();
        for (name, value) in [
            ("PATH", format!("{path}:/usr/bin:/bin")),
            ("HOME", admin.home.display().to_string()),
            (
                "TOWLINE_CONFIG_DIR",
                admin.home.join("towline").display().to_string(),
            ),
        ] {
            let entry = [
                ("name".to_owned(), name.to_owned()),
                ("value".to_owned(), value),
            ];
            exec.env
                .get_or_insert_default()
                .push(entry.into_iter().collect());
        }
        if exec.command.as_deref() == Some("towline") {
            exec.command = Some(place::program("towline").display().to_string());
        }
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_lists_and_writes() -> Result<()> {
    let client = tokio::task::spawn_blocking(shared)
        .await
        .map(|_| kube_client())?
        .await?;
    let version = client.apiserver_version().await?;
    ensure!(version.git_version.starts_with("v1."), "{version:?}");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &shared().namespace);
    let made = ConfigMap {
        metadata: named("kube-rs"),
        ..ConfigMap::default()
    };
    maps.create(&PostParams::default(), &made).await?;
    let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}});
    maps.patch(
        "kube-rs",
        &PatchParams::apply("tests").force(),
        &Patch::Apply(patch),
    )
    .await?;
    let listed = maps.list(&ListParams::default().limit(1)).await?;
    ensure!(
        listed.items.len() == 1 && listed.metadata.continue_.is_some(),
        "{:?}",
        listed.metadata
    );
    let stored = maps.get("kube-rs").await?;
    ensure!(stored.data.is_some_and(|data| data["a"] == "1"));
    maps.delete("kube-rs", &DeleteParams::default()).await?;
    let pods: Api<Pod> = Api::default_namespaced(client);
    pods.logs(POD, &LogParams::default()).await?;
    match maps.get("kube-rs").await {
        Err(kube::Error::Api(status)) => ensure!(status.code == 404, "{status:?}"),
        other => anyhow::bail!("a deleted object is there: {other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_watches() -> Result<()> {
    let client = tokio::task::spawn_blocking(shared)
        .await
        .map(|_| kube_client())?
        .await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &shared().namespace);
    let only = watcher::Config::default().labels("kube-rs=watched");
    let mut seen = std::pin::pin!(watcher(maps.clone(), only));
    let mut next = async || -> Result<watcher::Event<ConfigMap>> {
        let event = tokio::time::timeout(PATIENCE, seen.try_next()).await??;
        event.context("the watch ended")
    };
    // Made once the list is done, so that the watch has to tell of it.
    while !matches!(next().await?, watcher::Event::InitDone) {}
    let mut made = ConfigMap {
        metadata: named("kube-rs-watched"),
        ..ConfigMap::default()
    };
    made.metadata.labels = Some([("kube-rs".to_owned(), "watched".to_owned())].into());
    maps.create(&PostParams::default(), &made).await?;
    let watcher::Event::Apply(object) = next().await? else {
        anyhow::bail!("no news of what was made");
    };
    ensure!(
        object.metadata.name.as_deref() == Some("kube-rs-watched"),
        "{:?}",
        object.metadata
    );

    // An end by the API server is the end of the stream, not an error in it.
    let stream = maps.watch(&WatchParams::default().timeout(2), "0").await?;
    let events: Vec<_> = tokio::time::timeout(PATIENCE, stream.collect()).await?;
    ensure!(!events.is_empty());
    for event in events {
        ensure!(!matches!(event?, kube::api::WatchEvent::Error(_)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_rs_executes_and_forwards() -> Result<()> {
    let client = tokio::task::spawn_blocking(shared)
        .await
        .map(|_| kube_client())?
        .await?;
    let pods: Api<Pod> = Api::namespaced(client, &shared().namespace);
    let how = AttachParams::default()
        .stdin(true)
        .stdout(true)
        .stderr(false);
    let mut process = pods
        .exec(POD, ["sh", "-c", "read line; echo got $line; exit 9"], &how)
        .await?;
    let mut stdin = process.stdin().context("stdin")?;
    let mut stdout = process.stdout().context("stdout")?;
    stdin.write_all(b"hello\n").await?;
    let mut said = String::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut said)).await??;
    ensure!(said == "got hello\n", "{said:?}");
    let status = process
        .take_status()
        .context("a status")?
        .await
        .context("the status came")?;
    let code = status
        .details
        .and_then(|details| details.causes)
        .into_iter()
        .flatten()
        .next();
    ensure!(
        code.as_ref().and_then(|cause| cause.message.as_deref()) == Some("9"),
        "{code:?}"
    );

    let listen = ["sh", "-c", "nc -l -p 7001 -e cat & sleep 1; wait"];
    let server = pods
        .exec(POD, listen, &AttachParams::default().stderr(false))
        .await?;
    let echoed = async {
        loop {
            let mut forward = pods.portforward(POD, &[7001]).await?;
            let mut stream = forward.take_stream(7001).context("a stream")?;
            stream.write_all(b"through").await?;
            let mut got = [0; 7];
            if stream.read_exact(&mut got).await.is_ok() {
                ensure!(&got == b"through");
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, echoed).await??;
    drop(server);
    Ok(())
}

fn named(name: &str) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: Some(name.to_owned()),
        ..Default::default()
    }
}
