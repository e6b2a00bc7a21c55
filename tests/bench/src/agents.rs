//! What idle agents cost a gateway: sessions of the real protocol, thousands of them from one program.

use std::{collections::BTreeMap, convert::Infallible, fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Response;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{task::JoinSet, time::sleep};
use towline_agent::{
    dial::{Dialer, proxy::Proxies},
    open::Opener,
};
use towline_gateway::store::Store;
use towline_proto::{
    handshake::Facts,
    jws::{KeyPair, PublicKey},
    names::Membership,
    tunnel,
};

use crate::{
    clock,
    process::{Process, command, listening},
    scene::{Gateway, Programs},
};

/// How many agents dial at once.
const AT_ONCE: usize = 32;

/// How long the gateway is let alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(5);

/// Memory of a gateway for each idle agent, in KiB, by how many there are.
pub(crate) async fn memory(
    programs: &Programs,
    directory: &Path,
    counts: &[usize],
) -> anyhow::Result<BTreeMap<usize, f64>> {
    let gateway = Gateway::init(programs, directory).await?;
    let mut config = fs::read_to_string(gateway.config())?;
    config.push_str("\n[limits]\nconnections_per_address = 100000\n");
    fs::write(gateway.config(), config)?;
    let most = counts.iter().copied().max().unwrap_or_default();
    let known = register(&gateway, most).await?;

    let process = Process::start(
        command(
            &programs.towline.join("towline-gateway"),
            &["run", "--config"],
        )
        .arg(gateway.config())
        .env("TOWLINE_LOG", "warn"),
        &directory.join("gateway-of-agents.log"),
    )?;
    listening(gateway.port).await?;
    sleep(SETTLE).await;
    let alone = process.resident();
    let root: PublicKey = fs::read_to_string(gateway.state.join("keys/root.pub"))?
        .trim()
        .parse()?;
    let authority = fs::read_to_string(&gateway.authority)?;
    let mut each = BTreeMap::new();
    let mut sessions = JoinSet::new();
    let mut dialled = known.into_iter();
    for count in counts {
        let more = dialled.by_ref().take(count - sessions.len());
        let mut opened = stream::iter(more.map(|(membership, key)| {
            let (port, authority) = (gateway.port, authority.as_str());
            async move {
                let address = format!("https://127.0.0.1:{port}");
                let address = address.parse().map_err(anyhow::Error::msg)?;
                let proxies = Proxies {
                    https: None,
                    direct: Vec::new(),
                };
                let dialer = Dialer::new(address, Some(authority), proxies)?;
                let opener = Opener::new(dialer, key, membership, root);
                let facts = Facts {
                    host: "simulated".to_owned(),
                    ..Facts::default()
                };
                anyhow::Ok(opener.open(&facts, &[]).await?)
            }
        }))
        .buffer_unordered(AT_ONCE);
        while let Some(session) = opened.next().await {
            let (_, session) = session?;
            sessions.spawn(async move {
                let nothing = service_fn(|_| async {
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                });
                let serving = tunnel::server().serve_connection(TokioIo::new(session), nothing);
                drop(serving.await);
            });
        }
        sleep(SETTLE).await;
        let ended = std::iter::from_fn(|| sessions.try_join_next()).count();
        if ended > 0 {
            bail!("{ended} of {count} sessions ended");
        }
        let kib = process.resident().saturating_sub(alone);
        each.insert(*count, kib as f64 / *count as f64);
    }
    drop(sessions);
    process.end().await;
    Ok(each)
}

/// As many memberships, each with its agent's key.
async fn register(gateway: &Gateway, count: usize) -> anyhow::Result<Vec<(Membership, KeyPair)>> {
    let store = Store::open_file(&gateway.state.join("towline.db")).await?;
    let now = clock::now().as_secs();
    let mut known = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("projects/demo/locations/global/memberships/m{number}");
        let membership: Membership = name.parse()?;
        let (key, token) = (KeyPair::generate()?, format!("token {number}"));
        store
            .register(&membership, false, &token, now, now + 3600)
            .await?;
        store
            .redeem(&membership, &token, key.public(), now)
            .await
            .context("the key is not taken")?;
        known.push((membership, key));
    }
    store.close().await;
    Ok(known)
}
