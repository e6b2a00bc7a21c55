//! The measurements, one after the other.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::future::try_join_all;
use reqwest::Client;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    caller::Caller,
    figures::{Figures, Memory, Spread, Transfer},
    kubectl::Kubectl,
    machine::resident,
};

/// What is measured with.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// The kubeconfig, with its current context.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The namespace with the objects and the pod.
    #[arg(long, default_value = "towline-bench")]
    namespace: String,
    /// The pod: it has `cat` and `tar`.
    #[arg(long, default_value = "box")]
    pod: String,
    /// A file to copy.
    #[arg(long)]
    file: PathBuf,
    /// A process whose memory counts.
    #[arg(long = "process", value_name = "NAME=PID", value_parser = process)]
    processes: Vec<(String, u32)>,
    /// How long each number of callers asks, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many watches.
    #[arg(long, default_value_t = 1000)]
    watches: usize,
}

fn process(text: &str) -> Result<(String, u32), String> {
    let (name, pid) = text.split_once('=').ok_or("write it as NAME=PID")?;
    Ok((
        name.to_owned(),
        pid.parse().map_err(|_| format!("{pid} is no process id"))?,
    ))
}

/// The small object.
const SMALL: &str = "small";
/// The label of the large ones.
const LARGE: &str = "towline.bench%2Flarge%3Dyes";
/// Requests that kube-apiserver takes on one HTTP/2 connection: 100, less some room.
const WATCHES_PER_CLIENT: usize = 50;

/// A `List` of one small `ConfigMap` and of large ones.
pub(crate) fn objects(mebibytes: usize) -> serde_json::Value {
    // Not one letter only: nothing on the way compresses, but it shall not matter.
    let line: String = (b' '..=b'~')
        .map(char::from)
        .filter(|c| !"\"\\<>&".contains(*c))
        .collect();
    let text = line.repeat((1 << 20) / line.len());
    let map = |name: String, label: &str, text: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"towline.bench/large": label}},
            "data": {"text": text},
        })
    };
    let mut items = vec![map(SMALL.to_owned(), "no", "small")];
    items.extend((0..mebibytes).map(|n| map(format!("large-{n}"), "yes", &text)));
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// All of them, with progress on standard error.
pub(crate) async fn all(settings: &Settings) -> anyhow::Result<Figures> {
    let kubectl = Kubectl::new(settings.kubeconfig.clone());
    let caller = Caller::from_kubeconfig(&kubectl).await?;
    let maps = format!(
        "{}/api/v1/namespaces/{}/configmaps",
        caller.server, settings.namespace
    );
    let idle = memory(settings);

    let mut get = BTreeMap::new();
    for callers in [1, 64] {
        eprintln!("bench: small GETs, {callers} at a time");
        let client = caller.client()?;
        get.insert(
            callers,
            small_gets(
                &client,
                &format!("{maps}/{SMALL}"),
                callers,
                settings.seconds,
            )
            .await?,
        );
    }
    eprintln!("bench: a large list");
    let list = large_list(&caller.client()?, &format!("{maps}?labelSelector={LARGE}")).await?;
    eprintln!("bench: exec echo");
    let began = Instant::now();
    let echoes = kubectl
        .echo(&settings.namespace, &settings.pod, 1000)
        .await?;
    let exec_echo = Spread::of(echoes, 0, began.elapsed());
    eprintln!("bench: cp");
    let (copy_in, copy_out) = copies(&kubectl, settings).await?;
    let loaded = memory(settings);
    eprintln!("bench: {} watches", settings.watches);
    let watches = Watches::open(
        &caller,
        &format!("{maps}?watch=1&fieldSelector=metadata.name%3D{SMALL}"),
        settings.watches,
    )
    .await?;
    let busy = memory(settings);
    let open = watches.0.len();
    drop(watches);

    let memory = idle
        .into_iter()
        .map(|(name, idle)| {
            let at = |when: &BTreeMap<String, u64>| when.get(&name).copied().unwrap_or(0);
            let (after_load, with_watches) = (at(&loaded), at(&busy));
            (
                name,
                Memory {
                    idle,
                    after_load,
                    with_watches,
                },
            )
        })
        .collect();
    Ok(Figures {
        get,
        list,
        exec_echo,
        copy_in,
        copy_out,
        watches: open,
        memory,
    })
}

fn memory(settings: &Settings) -> BTreeMap<String, u64> {
    settings
        .processes
        .iter()
        .map(|(name, pid)| (name.clone(), resident(*pid)))
        .collect()
}

async fn small_gets(
    client: &Client,
    url: &str,
    callers: usize,
    seconds: u64,
) -> anyhow::Result<Spread> {
    // Connections and caches on the way are not what is measured.
    try_join_all((0..callers).map(|_| async {
        client
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .bytes()
            .await
    }))
    .await?;
    let failed = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (client, url, failed) = (client.clone(), url.to_owned(), Arc::clone(&failed));
        tasks.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < end {
                let began = Instant::now();
                let answer = async {
                    client
                        .get(&url)
                        .send()
                        .await?
                        .error_for_status()?
                        .bytes()
                        .await
                };
                if answer.await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                } else {
                    took.push(began.elapsed());
                }
            }
            took
        });
    }
    let took = tasks.join_all().await.concat();
    Ok(Spread::of(
        took,
        failed.load(Ordering::Relaxed),
        began.elapsed(),
    ))
}

async fn large_list(client: &Client, url: &str) -> anyhow::Result<Transfer> {
    let mut rounds = Vec::new();
    let mut bytes = 0;
    for _ in 0..5 {
        let began = Instant::now();
        let mut answer = client.get(url).send().await?.error_for_status()?;
        bytes = 0;
        while let Some(chunk) = answer.chunk().await? {
            bytes += chunk.len() as u64;
        }
        rounds.push(began.elapsed());
    }
    Ok(Transfer::of(bytes, rounds))
}

async fn copies(kubectl: &Kubectl, settings: &Settings) -> anyhow::Result<(Transfer, Transfer)> {
    let bytes = tokio::fs::metadata(&settings.file).await?.len();
    let here = settings.file.to_string_lossy().into_owned();
    let back = format!("{here}.back");
    let there = format!("{}/{}:tmp/bench", settings.namespace, settings.pod);
    let (mut to, mut from) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        to.push(kubectl.time(&["cp", &here, &there]).await?);
        from.push(kubectl.time(&["cp", &there, &back]).await?);
    }
    let returned = tokio::fs::metadata(&back)
        .await
        .context("cp brought nothing back")?
        .len();
    if returned != bytes {
        bail!("cp brought {returned} of {bytes} bytes back");
    }
    tokio::fs::remove_file(&back).await?;
    Ok((Transfer::of(bytes, to), Transfer::of(bytes, from)))
}

/// Open watches; dropping them ends them.
struct Watches(Vec<reqwest::Response>);

impl Watches {
    async fn open(caller: &Caller, url: &str, count: usize) -> anyhow::Result<Self> {
        let mut open = Vec::with_capacity(count);
        while open.len() < count {
            let client = caller.client()?;
            let more = WATCHES_PER_CLIENT.min(count - open.len());
            let watches =
                try_join_all((0..more).map(|_| async {
                    anyhow::Ok(client.get(url).send().await?.error_for_status()?)
                }));
            open.extend(
                timeout(Duration::from_secs(30), watches)
                    .await
                    .context("watches did not open within 30 s")??,
            );
        }
        Ok(Self(open))
    }
}
