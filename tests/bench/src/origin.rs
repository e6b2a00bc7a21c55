//! What stands in for an API server: it answers at once, so that what is measured is the way to it.
//!
//! TLS with HTTP/2 (kube-apiserver's own settings) and HTTP/1.1; a small object, lists and uploads of any length, JSON
//! watches whose events carry the time, and an exec that echoes.

use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_rustls::TlsAcceptor;

use crate::{certificates, clock};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The small object's size in bytes.
const SMALL: usize = 1024;

/// A piece of a long answer.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Serves for ever, with the certificate in `directory`; its address goes to standard output.
pub(crate) async fn serve(directory: &Path) -> anyhow::Result<()> {
    let mut tls = certificates::server(directory)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let origin = Arc::new(Origin::new());
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, origin) = (acceptor.clone(), Arc::clone(&origin));
        connections.spawn(async move { drop(connection(&acceptor, stream, origin).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    origin: Arc<Origin>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| {
        let origin = Arc::clone(&origin);
        async move { Ok::<_, Infallible>(origin.answer(request).await) }
    });
    if h2 {
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(100)
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(25 * 1024 * 1024)
            .max_frame_size(256 * 1024)
            .max_header_list_size(1_048_896)
            .serve_connection(TokioIo::new(stream), service)
            .await?;
    } else {
        http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await?;
    }
    Ok(())
}

struct Origin {
    small: Bytes,
    chunk: Bytes,
    padding: String,
    upgraded: std::sync::Mutex<JoinSet<()>>,
}

impl Origin {
    fn new() -> Self {
        let object = |text: &str| {
            serde_json::json!({
                "kind": "ConfigMap", "apiVersion": "v1",
                "metadata": {"name": "small", "namespace": "bench", "uid": "0b5a4c9e-3a0e-4b6e-8a6c-0d3b6f1f9a11"},
                "data": {"text": text},
            })
            .to_string()
        };
        let small = object(&"x".repeat(SMALL.saturating_sub(object("").len())));
        Self {
            small: small.into(),
            chunk: vec![b'x'; CHUNK].into(),
            padding: "x".repeat(300),
            upgraded: std::sync::Mutex::default(),
        }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let query = |key: &str| {
            let query = request.uri().query().unwrap_or_default();
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(own, _)| *own == key)
                .map(|(_, value)| value.to_owned())
        };
        if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
            return self.echo(request, protocol);
        }
        if query("watch").is_some() {
            let every = query("every").and_then(|every| every.parse().ok());
            return json(self.watch(every.map(Duration::from_micros)));
        }
        if let Some(bytes) = query("bytes").and_then(|bytes| bytes.parse().ok()) {
            return json(self.bytes(bytes));
        }
        if request.uri().path().ends_with("selfsubjectrulesreviews") {
            let mut answer = json(full(rules().into()));
            *answer.status_mut() = StatusCode::CREATED;
            return answer;
        }
        let mut got = 0;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            got += frame.data_ref().map_or(0, Bytes::len);
        }
        if got > 0 {
            return json(full(format!("{{\"bytes\":{got}}}").into()));
        }
        json(full(self.small.clone()))
    }

    fn bytes(&self, count: u64) -> Body {
        let chunk = self.chunk.clone();
        let frames = stream::unfold(count, move |left| {
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let piece = chunk.slice(..length);
            let later = left - length as u64;
            std::future::ready((length > 0).then_some((Ok(Frame::data(piece)), later)))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// One event at once, then one each time.
    fn watch(&self, every: Option<Duration>) -> Body {
        let padding = self.padding.clone();
        let ticks = every.map(|every| {
            let mut ticks = interval_at(Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        let frames = stream::unfold((0_u64, ticks), move |(number, mut ticks)| {
            let padding = padding.clone();
            async move {
                if number > 0 {
                    match &mut ticks {
                        Some(ticks) => drop(ticks.tick().await),
                        None => std::future::pending().await,
                    }
                }
                let event = format!(
                    "{{\"type\":\"MODIFIED\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\
                     \"name\":\"small\",\"resourceVersion\":\"{number}\"}},\"data\":{{\"text\":\"{padding}\",\"at\":\"{}\"}}}}}}\n",
                    clock::now().as_nanos()
                );
                Some((Ok(Frame::data(Bytes::from(event))), (number + 1, ticks)))
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// A WebSocket that sends back what each frame held.
    fn echo(&self, mut request: Request<Incoming>, protocol: HeaderValue) -> Response<Body> {
        let key = request.headers().get("sec-websocket-key").cloned();
        let offered = request.headers().get("sec-websocket-protocol").cloned();
        let upgrade = hyper::upgrade::on(&mut request);
        let mut upgraded = self
            .upgraded
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        while upgraded.try_join_next().is_some() {}
        upgraded.spawn(async move { drop(echo(upgrade).await) });
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
        if let Some(offered) = offered {
            headers.insert("sec-websocket-protocol", offered);
        }
        if let Some(accept) = key.and_then(|key| accept_key(&key)) {
            headers.insert("sec-websocket-accept", accept);
        }
        response
    }
}

/// RFC 6455 §4.2.2.
fn accept_key(key: &HeaderValue) -> Option<HeaderValue> {
    let mut text = key.as_bytes().to_vec();
    text.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    let text = base64::engine::general_purpose::STANDARD.encode(digest);
    HeaderValue::from_str(&text).ok()
}

async fn echo(upgrade: OnUpgrade) -> anyhow::Result<()> {
    let mut connection = TokioIo::new(upgrade.await?);
    loop {
        // Masked, and shorter than 126 bytes: that is all that the load sends.
        let [kind, length] = {
            let mut head = [0; 2];
            connection.read_exact(&mut head).await?;
            head
        };
        let mut rest = vec![0; 4 + usize::from(length & 0x7f)];
        connection.read_exact(&mut rest).await?;
        let (mask, payload) = rest.split_at_checked(4).context("four bytes of mask")?;
        let mut answer = vec![kind, length & 0x7f];
        answer.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        connection.write_all(&answer).await?;
        connection.flush().await?;
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// What the agent's role lets it do.
fn rules() -> String {
    serde_json::json!({
        "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}, "metadata": {},
        "status": {
            "incomplete": false, "nonResourceRules": [],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        },
    })
    .to_string()
}
