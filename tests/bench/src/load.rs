//! What one way to the origin is asked for, and how long that takes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use futures_util::{future::try_join_all, stream};
use http::{Method, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    clock,
    origin::CHUNK,
    route::{Client, Route, Stream, read},
};

/// The small object.
pub(crate) const SMALL: &str = "/api/v1/namespaces/bench/configmaps/small";
const MAPS: &str = "/api/v1/namespaces/bench/configmaps";
const EXEC: &str = "/api/v1/namespaces/bench/pods/box/exec?command=cat&stdin=true&stdout=true";

/// More than anybody reads.
const ENDLESS: u64 = 1 << 50;

/// Between two events of a watch.
const EVERY: Duration = Duration::from_millis(5);

/// Between two lines that are typed.
const TYPED: Duration = Duration::from_millis(4);

/// How long anything may take that isn't a measurement's own length.
const LIMIT: Duration = Duration::from_secs(30);

/// Streams of one HTTP/2 connection.
const STREAMS: usize = 100;

/// How long something took each time.
#[derive(Debug, Default)]
pub(crate) struct Times {
    took: Vec<Duration>,
}

impl Times {
    pub(crate) fn count(&self) -> usize {
        self.took.len()
    }

    /// In milliseconds; of nothing, nothing.
    pub(crate) fn percentile(&mut self, percent: usize) -> Option<f64> {
        self.took.sort_unstable();
        let place = (self.took.len() * percent / 100).min(self.took.len().saturating_sub(1));
        Some(self.took.get(place)?.as_secs_f64() * 1e3)
    }

    pub(crate) fn push(&mut self, took: Duration) {
        self.took.push(took);
    }
}

/// Small GETs by so many callers, each on a connection of its own; how long each took, and how many there were in a
/// second.
pub(crate) async fn small_gets(
    route: &Route,
    callers: usize,
    length: Duration,
) -> anyhow::Result<(Times, f64)> {
    let mut clients = try_join_all((0..callers).map(|_| route.client())).await?;
    for client in &mut clients {
        for _ in 0..5 {
            read(client.send(route.get(SMALL)?).await?).await?;
        }
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        let route = route.clone();
        tasks.spawn(async move {
            let mut took = Vec::new();
            let mut now = Instant::now();
            while now.duration_since(began) < length {
                read(client.send(route.get(SMALL)?).await?).await?;
                let done = Instant::now();
                took.push(done - now);
                now = done;
            }
            anyhow::Ok(took)
        });
    }
    let mut times = Times::default();
    while let Some(took) = tasks.join_next().await {
        times.took.extend(took??);
    }
    let rate = times.count() as f64 / began.elapsed().as_secs_f64();
    Ok((times, rate))
}

/// From dialling to the first answer, one connection after the other.
pub(crate) async fn new_connections(route: &Route, count: usize) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for _ in 0..count {
        let began = Instant::now();
        let mut client = route.client().await?;
        let answer = client.send(route.get(SMALL)?).await?;
        times.push(began.elapsed());
        read(answer).await?;
    }
    Ok(times)
}

/// So many bytes down on so many streams; in MiB/s.
pub(crate) async fn download(route: &Route, streams: usize, bytes: u64) -> anyhow::Result<f64> {
    let each = bytes / streams as u64;
    let clients = try_join_all((0..streams).map(|_| route.client())).await?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        let request = route.get(&format!("{MAPS}?bytes={each}"))?;
        tasks.spawn(async move { read(client.send(request).await?).await });
    }
    while let Some(got) = tasks.join_next().await {
        let got = got??;
        if got != each {
            bail!("a download brought {got} of {each} bytes");
        }
    }
    Ok(mebibytes(bytes) / began.elapsed().as_secs_f64())
}

/// So many bytes up on so many streams; in MiB/s.
pub(crate) async fn upload(route: &Route, streams: usize, bytes: u64) -> anyhow::Result<f64> {
    let each = bytes / streams as u64;
    let clients = try_join_all((0..streams).map(|_| route.client())).await?;
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        let chunk = chunk.clone();
        let frames = (0..each / CHUNK as u64).map(move |_| Ok(Frame::data(chunk.clone())));
        let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let request = route.request(Method::POST, MAPS, body)?;
        tasks.spawn(async move {
            let answer = client.send(request).await?;
            anyhow::Ok(answer.into_body().collect().await?.to_bytes())
        });
    }
    while let Some(said) = tasks.join_next().await {
        let said = said??;
        if said != format!("{{\"bytes\":{}}}", each / CHUNK as u64 * CHUNK as u64) {
            bail!(
                "an upload of {each} bytes: {}",
                String::from_utf8_lossy(&said)
            );
        }
    }
    Ok(mebibytes(bytes) / began.elapsed().as_secs_f64())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A watch's events: how late each came, and how many of those that were due came at all, in percent.
pub(crate) async fn watch(route: &Route, length: Duration) -> anyhow::Result<(Times, f64)> {
    let mut client = route.client().await?;
    let path = format!("{MAPS}?watch=true&every={}", EVERY.as_micros());
    let opened = async {
        let mut body = client.send(route.get(&path)?).await?.into_body();
        // The first comes at once.
        body.frame().await.context("a watch without an event")??;
        anyhow::Ok(body)
    };
    let mut times = Times::default();
    let Ok(body) = timeout(length, opened).await else {
        return Ok((times, 0.0));
    };
    let mut body = body?;
    let end = Instant::now() + length;
    let mut text = BytesMut::new();
    while let Ok(frame) = tokio::time::timeout_at(end, body.frame()).await {
        let frame = frame.context("the watch ended")??;
        text.extend_from_slice(frame.data_ref().context("an event")?);
        let now = clock::now();
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let event = text.split_to(end + 1);
            times.push(now.saturating_sub(stamp(&event)?));
        }
    }
    // The origin is as late as the machine is, so only what is far too few counts.
    let due = length.as_secs_f64() / EVERY.as_secs_f64();
    let share = (100.0 * times.count() as f64 / due).min(100.0);
    Ok((times, share))
}

/// When an event was sent.
fn stamp(event: &[u8]) -> anyhow::Result<Duration> {
    let text = std::str::from_utf8(event)?;
    let (_, at) = text.split_once("\"at\":\"").context("an event's time")?;
    let nanos: u64 = at.split('"').next().unwrap_or_default().parse()?;
    Ok(Duration::from_nanos(nanos))
}

/// A shell: a WebSocket on which what is typed comes back.
pub(crate) struct Shell(Box<dyn Stream>);

impl Shell {
    pub(crate) async fn open(route: &Route) -> anyhow::Result<Self> {
        let mut stream = route.stream(b"http/1.1").await?;
        let head = format!(
            "GET {}{EXEC} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
            route.prefix,
            route.dial,
            route.authorization.to_str()?,
        );
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            bail!("exec: {}", String::from_utf8_lossy(&head));
        }
        Ok(Self(stream))
    }

    /// Types a line of five bytes and waits until it is back.
    pub(crate) async fn echo(&mut self) -> anyhow::Result<()> {
        // A binary frame, masked with zeros.
        self.0
            .write_all(&[0x82, 0x85, 0, 0, 0, 0, 0, b'l', b's', b'\r', b'\n'])
            .await?;
        self.0.flush().await?;
        let mut back = [0; 7];
        self.0.read_exact(&mut back).await?;
        if back != [0x82, 5, 0, b'l', b's', b'\r', b'\n'] {
            bail!("what was typed came back as {back:?}");
        }
        Ok(())
    }
}

/// How long what is typed takes to come back.
pub(crate) async fn exec_echo(route: &Route, length: Duration) -> anyhow::Result<Times> {
    let mut shell = timeout(LIMIT, Shell::open(route)).await??;
    let mut times = Times::default();
    let end = Instant::now() + length;
    let mut typed = interval(TYPED);
    typed.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < end {
        typed.tick().await;
        let began = Instant::now();
        timeout(LIMIT, shell.echo()).await??;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Downloads beside a measurement; dropping it ends them.
pub(crate) struct Beside {
    readers: JoinSet<()>,
    failed: Arc<AtomicUsize>,
}

/// How a download beside a measurement is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As fast as it comes.
    Full,
    /// So many bytes in a second.
    Bytes(u64),
    /// Not at all.
    Never,
}

impl Beside {
    pub(crate) async fn start(route: &Route, paces: &[Pace]) -> anyhow::Result<Self> {
        let mut beside = Self {
            readers: JoinSet::new(),
            failed: Arc::default(),
        };
        for pace in paces {
            let request = route.get(&format!("{MAPS}?bytes={ENDLESS}"))?;
            let begun = async {
                let mut client = route.client().await?;
                let answer = client.send(request).await?;
                anyhow::Ok((client, answer))
            };
            // What never reads may be in the way of the next one.
            let Ok(begun) = timeout(Duration::from_secs(1), begun).await else {
                continue;
            };
            let (client, answer) = begun?;
            let (pace, failed) = (*pace, Arc::clone(&beside.failed));
            beside.readers.spawn(async move {
                if paced(answer, pace).await.is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                drop(client);
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(beside)
    }

    /// Ends them all; how many had ended by themselves.
    pub(crate) async fn end(mut self) -> usize {
        self.readers.shutdown().await;
        self.failed.load(Ordering::Relaxed)
    }
}

async fn paced(answer: Response<Incoming>, pace: Pace) -> anyhow::Result<()> {
    let mut body = answer.into_body();
    let began = Instant::now();
    let mut got = 0;
    loop {
        if matches!(pace, Pace::Never) {
            std::future::pending::<()>().await;
        }
        let frame = body.frame().await.context("it ended")??;
        got += frame.data_ref().map_or(0, Bytes::len) as u64;
        if let Pace::Bytes(rate) = pace {
            sleep_until(began + Duration::from_secs_f64(got as f64 / rate as f64)).await;
        }
    }
}

/// Open watches; dropping them ends them.
pub(crate) struct Watches(VecDeque<(Client, Vec<Response<Incoming>>)>);

impl Watches {
    /// So many. Towline's callers have up to a hundred on one HTTP/2 connection, as controllers do; where a
    /// connection stands for a stream, each has its own.
    pub(crate) async fn open(
        route: &Route,
        count: usize,
        each_its_own: bool,
    ) -> anyhow::Result<Self> {
        let path = format!("{MAPS}?watch=true");
        let mut open = VecDeque::new();
        let mut left = count;
        while left > 0 {
            let (mut client, more) = if each_its_own {
                (route.client().await?, 1)
            } else {
                (route.client2().await?, STREAMS.min(left))
            };
            let mut answers = Vec::with_capacity(more);
            for _ in 0..more {
                let mut answer = timeout(LIMIT, client.send(route.get(&path)?)).await??;
                timeout(LIMIT, answer.frame()).await?;
                answers.push(answer);
            }
            left -= more;
            open.push_back((client, answers));
        }
        Ok(Self(open))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|(_, answers)| answers.len()).sum()
    }
}
