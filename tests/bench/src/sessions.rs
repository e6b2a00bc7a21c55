//! What it costs that a session outlives its connection: HTTP/2 over TLS on the loopback with nothing between, and
//! with a session between, in turns, both ends in this process.

use std::{convert::Infallible, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use towline_proto::{
    session::{Connection, Session},
    tunnel,
};

/// Medians over the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    /// How often each was measured.
    pub(crate) rounds: usize,
    /// A download on one stream, in MiB/s.
    pub(crate) plain_mib_per_second: f64,
    /// The same with a session between.
    pub(crate) session_mib_per_second: f64,
    /// The median of what each pair of rounds gave up, in percent.
    pub(crate) given_up_percent: f64,
    /// A small request, in microseconds.
    pub(crate) plain_request: f64,
    /// The same with a session between.
    pub(crate) session_request: f64,
}

/// What one round measured.
struct Round {
    mib_per_second: f64,
    request: f64,
}

const CHUNK: usize = 64 * 1024;
const REQUESTS: u32 = 3_000;

/// Downloads so much each time.
pub(crate) async fn cost(rounds: usize, mebibytes: usize) -> anyhow::Result<Costs> {
    let tls = Tls::new()?;
    round(&tls, false, mebibytes).await?;
    let (mut plain, mut session) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        // Each comes first as often as the other.
        let order = [number % 2 == 0, number % 2 != 0];
        for with in order {
            let measured = round(&tls, with, mebibytes).await?;
            if with { &mut session } else { &mut plain }.push(measured);
        }
    }
    let throughput = |rounds: &[Round]| median(rounds.iter().map(|r| r.mib_per_second));
    let request = |rounds: &[Round]| median(rounds.iter().map(|r| r.request));
    let pairs = plain.iter().zip(&session);
    Ok(Costs {
        rounds,
        plain_mib_per_second: throughput(&plain),
        session_mib_per_second: throughput(&session),
        given_up_percent: median(
            pairs.map(|(plain, with)| 100.0 * (1.0 - with.mib_per_second / plain.mib_per_second)),
        ),
        plain_request: request(&plain),
        session_request: request(&session),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    fn new() -> anyhow::Result<Self> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["bench".to_owned()])?;
        let key = signing_key
            .serialize_der()
            .try_into()
            .map_err(anyhow::Error::msg)?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone())?;
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        let client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }
}

async fn round(tls: &Tls, session: bool, mebibytes: usize) -> anyhow::Result<Round> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let dial = async {
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("bench")?;
        anyhow::Ok(tls.connector.connect(name, stream).await?)
    };
    let accept = async {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        anyhow::Ok(tls.acceptor.accept(stream).await?)
    };
    let (agent, gateway) = tokio::try_join!(dial, accept)?;
    let mut ends = JoinSet::new();
    let measured = if session {
        let end = |connection| -> Box<dyn Connection> { connection };
        let agent = Session::new("s".to_owned(), end(Box::new(agent)));
        let gateway = Session::new("s".to_owned(), end(Box::new(gateway)));
        measure(&mut ends, agent, gateway, mebibytes).await
    } else {
        measure(&mut ends, agent, gateway, mebibytes).await
    };
    ends.shutdown().await;
    measured
}

async fn measure(
    ends: &mut JoinSet<()>,
    agent: impl Connection,
    gateway: impl Connection,
    mebibytes: usize,
) -> anyhow::Result<Round> {
    let serving = tunnel::server().serve_connection(TokioIo::new(agent), service_fn(answer));
    ends.spawn(async move { drop(serving.await) });
    let (mut requests, connection) = tunnel::client().handshake(TokioIo::new(gateway)).await?;
    ends.spawn(async move { drop(connection.await) });

    let began = Instant::now();
    let path = format!("/bytes/{}", mebibytes * (1024 * 1024 / CHUNK));
    let got = get(&mut requests, &path).await?;
    let seconds = began.elapsed().as_secs_f64();
    (got == mebibytes * 1024 * 1024)
        .then_some(())
        .context("the download is of another length")?;

    let began = Instant::now();
    for _ in 0..REQUESTS {
        get(&mut requests, "/bytes/0").await?;
    }
    Ok(Round {
        mib_per_second: mebibytes as f64 / seconds,
        request: began.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS),
    })
}

async fn get(requests: &mut SendRequest<Empty<Bytes>>, path: &str) -> anyhow::Result<usize> {
    let request = Request::get(format!("https://bench{path}")).body(Empty::new())?;
    let mut body = requests.send_request(request).await?.into_body();
    let mut got = 0;
    while let Some(frame) = body.frame().await {
        got += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(got)
}

/// As many chunks as the path says.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let chunks = request.uri().path().rsplit('/').next();
    let chunks = chunks.and_then(|count| count.parse().ok()).unwrap_or(0);
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let frames = (0..chunks).map(move |_: usize| Ok(Frame::data(chunk.clone())));
    Ok(Response::new(
        StreamBody::new(stream::iter(frames)).boxed_unsync(),
    ))
}
