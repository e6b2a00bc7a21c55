//! An API server as far as an agent can tell: TLS, HTTP/2 with 100 streams a connection, HTTP/1.1 for upgrades.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use towline_agent::upstream::Upstream;
use towline_proto::body::Aborted;

pub(crate) type Body = UnsyncBoxBody<Bytes, Aborted>;

/// What one request looked like, and how its body ended.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
}

#[derive(Default)]
pub(crate) struct Record {
    pub(crate) requests: Mutex<Vec<Seen>>,
    pub(crate) uploads: Mutex<Vec<Result<usize, String>>>,
    pub(crate) exec: Mutex<Vec<String>>,
    /// What reviews asked for, and what they are told that it is allowed.
    pub(crate) reviews: Mutex<Vec<serde_json::Value>>,
    pub(crate) allowed: Mutex<Vec<serde_json::Value>>,
    /// Watches that are open now.
    pub(crate) watches: Arc<AtomicUsize>,
    pub(crate) connections: AtomicUsize,
    goaway: tokio::sync::Notify,
    /// The only token that is taken, if one is wanted.
    pub(crate) token: Mutex<Option<String>>,
}

pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    pub(crate) record: Arc<Record>,
    pub(crate) dir: tempfile::TempDir,
    connections: Arc<Mutex<JoinSet<()>>>,
    _tasks: JoinSet<()>,
}

/// Counts down when the answer's body is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let _again = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        std::fs::write(dir.path().join("token"), "first").unwrap();
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let record = Arc::new(Record::default());
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&record);
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let running = Arc::clone(&connections);
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, record) = (acceptor.clone(), Arc::clone(&shared));
                running.lock().unwrap().spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    record.connections.fetch_add(1, Ordering::SeqCst);
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let leaving = Arc::clone(&record);
                    let service = service_fn(move |request| {
                        let record = Arc::clone(&record);
                        async move { Ok::<_, Infallible>(answer(&record, request).await) }
                    });
                    if h2 {
                        let mut builder =
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        // As kube-apiserver; its guard against resets stays on.
                        builder
                            .max_concurrent_streams(100)
                            .max_header_list_size(1_048_896);
                        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
                        tokio::select! {
                            _ = connection.as_mut() => return,
                            () = leaving.goaway.notified() => connection.as_mut().graceful_shutdown(),
                        }
                        drop(connection.await);
                    } else {
                        let mut builder = hyper::server::conn::http1::Builder::new();
                        builder.max_headers(2000).max_buf_size(2 << 20);
                        drop(
                            builder
                                .serve_connection(TokioIo::new(stream), service)
                                .with_upgrades()
                                .await,
                        );
                    }
                });
            }
        });
        Self {
            address,
            record,
            dir,
            connections,
            _tasks: tasks,
        }
    }

    pub(crate) fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().unwrap());
        config.root_cert_file = Some(self.file("ca.crt"));
        config.auth_info.token_file = Some(self.file("token").display().to_string());
        config
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn upstream(&self) -> Arc<Upstream> {
        Arc::new(
            Upstream::new(&self.config(), TaskTracker::new())
                .await
                .unwrap(),
        )
    }

    /// All its connections take no further streams, and those that they have go on.
    pub(crate) fn goaway(&self) {
        self.record.goaway.notify_waiters();
    }

    /// All its connections die.
    pub(crate) fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }

    pub(crate) fn watches(&self) -> usize {
        self.record.watches.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> Seen {
        self.record.requests.lock().unwrap().last().unwrap().clone()
    }
}

fn text(text: impl Into<Bytes>) -> Body {
    towline_agent::body::text(text)
}

fn with_status(status: u16, body: Body) -> Response<Body> {
    Response::builder().status(status).body(body).unwrap()
}

async fn answer(record: &Arc<Record>, mut request: Request<Incoming>) -> Response<Body> {
    record.requests.lock().unwrap().push(Seen {
        line: format!(
            "{} {}",
            request.method(),
            request.uri().path_and_query().unwrap()
        ),
        headers: request.headers().clone(),
    });
    let wanted = record.token.lock().unwrap().clone();
    if let Some(token) = wanted
        && request
            .headers()
            .get(header::AUTHORIZATION)
            .is_none_or(|value| *value != format!("Bearer {token}"))
    {
        return with_status(401, text("Unauthorized"));
    }
    match request.uri().path() {
        "/api/v1/pods"
            if request
                .uri()
                .query()
                .is_some_and(|query| query.contains("watch")) =>
        {
            record.watches.fetch_add(1, Ordering::SeqCst);
            let open = Open(Arc::clone(&record.watches));
            let frames = futures_util::stream::unfold((0, open), |(n, open)| async move {
                if n > 0 {
                    std::future::pending::<()>().await;
                }
                Some((Ok(Frame::data(Bytes::from_static(b"{}\n"))), (n + 1, open)))
            });
            with_status(200, StreamBody::new(frames).boxed_unsync())
        }
        "/download" => {
            let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
            let frames =
                futures_util::stream::iter((0..256).map(move |_| Ok(Frame::data(chunk.clone()))));
            with_status(200, StreamBody::new(frames).boxed_unsync())
        }
        "/abort" => {
            let frames = futures_util::stream::unfold(0, |n| async move {
                match n {
                    0 => Some((Ok(Frame::data(Bytes::from_static(b"part"))), 1)),
                    1 => {
                        // The part is on its way before the end comes.
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        Some((Err(Aborted("crashed".into())), 2))
                    }
                    _ => None,
                }
            });
            with_status(200, StreamBody::new(frames).boxed_unsync())
        }
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            let body = request.body_mut().collect().await.unwrap().to_bytes();
            let review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let asked = review["spec"]["resourceAttributes"].clone();
            let allowed = record.allowed.lock().unwrap().contains(&asked);
            record.reviews.lock().unwrap().push(asked);
            let answer = serde_json::json!({"status": {"allowed": allowed, "reason": "because"}});
            with_status(201, text(answer.to_string()))
        }
        "/upload" => {
            let mut length = 0;
            let mut ended = Ok(0);
            while let Some(frame) = request.body_mut().frame().await {
                match frame {
                    Ok(frame) => length += frame.data_ref().map_or(0, Bytes::len),
                    Err(error) => {
                        ended = Err(error.to_string());
                        break;
                    }
                }
            }
            let whole = http_body::Body::is_end_stream(request.body());
            let ended = match ended {
                Ok(_) if whole => Ok(length),
                Ok(_) => Err("reset".to_owned()),
                Err(error) => Err(error),
            };
            record.uploads.lock().unwrap().push(ended);
            with_status(200, text(length.to_string()))
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", "7".parse().unwrap());
            let frames = futures_util::stream::iter([
                Ok(Frame::data(Bytes::from_static(b"x"))),
                Ok(Frame::trailers(trailers)),
            ]);
            with_status(200, StreamBody::new(frames).boxed_unsync())
        }
        "/forbidden" => with_status(
            403,
            text(r#"{"message":"pods is forbidden: User \"alice\" cannot list"}"#),
        ),
        "/exec" => exec(record, request),
        "/silent" | "/log" => std::future::pending().await,
        "/no-exec" => {
            let mut response = with_status(400, text("container not found"));
            response
                .headers_mut()
                .insert("x-own", "kept".parse().unwrap());
            response
        }
        _ => with_status(200, text("ok")),
    }
}

/// Echoes what comes, and notes how it ended. Query `abort`: says `part` and drops the connection.
fn exec(record: &Arc<Record>, mut request: Request<Incoming>) -> Response<Body> {
    let protocol = request.headers().get(header::UPGRADE).cloned();
    let Some(protocol) = protocol else {
        return with_status(400, text("no upgrade"));
    };
    let record = Arc::clone(record);
    let abort = request.uri().query() == Some("abort");
    #[expect(clippy::disallowed_methods, reason = "a test's server")]
    tokio::spawn(async move {
        let mut connection = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
        let note = |what: String| record.exec.lock().unwrap().push(what);
        if abort {
            connection.write_all(b"part").await.unwrap();
            connection.flush().await.unwrap();
            return;
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match connection.read(&mut buffer).await {
                Ok(0) => {
                    note("clean end".into());
                    connection.write_all(b"bye").await.unwrap();
                    connection.shutdown().await.unwrap();
                    return;
                }
                Ok(n) => {
                    connection.write_all(&buffer[..n]).await.unwrap();
                    connection.flush().await.unwrap();
                }
                Err(error) => return note(format!("broken: {}", error.kind())),
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .header("x-stream-protocol-version", "v5.channel.k8s.io")
        .body(text(""))
        .unwrap()
}
