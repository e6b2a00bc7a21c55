//! Callers who ask one thing after the other on connections that are kept alive, as programs do all day.
//!
//! A request that fails is counted, never tried again; only one of which nothing was written yet, because the connection
//! was seen to be closed before, goes over another. That is what clients do with a POST, too.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{runtime::Runtime, task::JoinHandle, time::timeout};

use crate::{
    http::{Api, empty, full, in_origin_form},
    wait::Stopwatch,
};

/// How long a request may take: what waits for an agent is told after five seconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Between two requests of a caller.
const PAUSE: Duration = Duration::from_millis(20);

/// After one that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// What callers came to.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Reads that were answered.
    pub gets: usize,
    /// Writes that were answered.
    pub posts: usize,
    /// Connections that were made.
    pub connections: usize,
    /// What went wrong, and when since the beginning.
    pub failed: Vec<(Duration, String)>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

/// Callers that go on until they are told to stop.
#[derive(Debug)]
pub struct Callers {
    runtime: Option<Runtime>,
    tasks: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
}

impl Callers {
    /// So many of each: readers, and those who post what has no effect but an answer. Each asks for the way and the token
    /// anew from time to time, as a token ends. Failures are told by `since`.
    ///
    /// # Panics
    /// No threads can be had.
    pub fn start(
        count: usize,
        since: Stopwatch,
        api: impl Fn() -> Api + Clone + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (stop, counts) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Counts>>::default(),
        );
        let first = api();
        let tasks = (0..count * 2)
            .map(|n| {
                let caller = Caller {
                    writes: n % 2 == 1,
                    api: first.clone(),
                    connection: None,
                    counts: Arc::clone(&counts),
                    since,
                };
                runtime.spawn(caller.run(api.clone(), Arc::clone(&stop)))
            })
            .collect();
        Self {
            runtime: Some(runtime),
            tasks,
            stop,
            counts,
        }
    }

    /// So far.
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Lets each finish what it has.
    ///
    /// # Panics
    /// One of them did.
    pub fn stop(mut self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        let runtime = self.runtime.take().expect("it is stopped once");
        for task in self.tasks.drain(..) {
            runtime.block_on(task).expect("a caller doesn't fail");
        }
        runtime.shutdown_background();
        lock(&self.counts).clone()
    }
}

/// One read on a connection of its own.
///
/// # Errors
/// What went wrong.
///
/// # Panics
/// No threads can be had.
pub fn ask_once(api: &Api, limit: Duration) -> Result<(), String> {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    let mut caller = Caller {
        writes: false,
        api: api.clone(),
        connection: None,
        counts: Arc::default(),
        since: Stopwatch::new(),
    };
    RUNTIME.block_on(async move {
        let answer = timeout(limit, caller.ask()).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    })
}

struct Caller {
    writes: bool,
    api: Api,
    connection: Option<http1::SendRequest<crate::http::Body>>,
    counts: Arc<Mutex<Counts>>,
    since: Stopwatch,
}

impl Caller {
    async fn run(mut self, api: impl Fn() -> Api + Send + Sync + 'static, stop: Arc<AtomicBool>) {
        /// Tokens are good for ten minutes.
        const FRESH: Duration = Duration::from_secs(240);
        let mut token = Stopwatch::new();
        while !stop.load(Ordering::Relaxed) {
            if token.elapsed() > FRESH {
                token = Stopwatch::new();
                self.api = tokio::task::block_in_place(&api);
            }
            let began = Stopwatch::new();
            let asked = timeout(LIMIT, self.ask()).await;
            let failed = match asked {
                Ok(Ok(())) => {
                    let mut counts = lock(&self.counts);
                    *(if self.writes {
                        &mut counts.posts
                    } else {
                        &mut counts.gets
                    }) += 1;
                    counts.slowest = counts.slowest.max(began.elapsed());
                    None
                }
                Ok(Err(error)) => Some(error),
                Err(_) => Some(format!("no answer within {LIMIT:?}")),
            };
            let pause = if failed.is_some() {
                AFTER_FAILURE
            } else {
                PAUSE
            };
            if let Some(error) = failed {
                self.connection = None;
                let kind = if self.writes { "POST" } else { "GET" };
                let at = self.since.elapsed();
                lock(&self.counts)
                    .failed
                    .push((at, format!("{kind}: {error}")));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One request, over the connection that there is.
    async fn ask(&mut self) -> Result<(), String> {
        let (method, path, body) = if self.writes {
            // It makes nothing, and nobody may send it twice for a client.
            let review = r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":"get","resource":"pods","namespace":"default"}}}"#;
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            ("POST", path, full(review))
        } else {
            ("GET", "/api/v1/namespaces/kube-system", empty())
        };
        let request = self.api.request(method, path);
        let request = request
            .header("content-type", "application/json")
            .body(body);
        let mut request = in_origin_form(request.expect("a request"));
        let answer = loop {
            let mut sender = match self.connection.take() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            // Closed with the last answer, or since.
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    self.connection = Some(sender);
                    break answer;
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("{:?}", error.into_error())),
                },
            }
        };
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| format!("{status}, then {error:?}"))?;
        if status.is_success() {
            return Ok(());
        }
        Err(format!(
            "{status}: {}",
            String::from_utf8_lossy(&body.to_bytes())
        ))
    }

    async fn connect(&self) -> Result<http1::SendRequest<crate::http::Body>, String> {
        let stream = self.api.try_tls(&[b"http/1.1"]).await;
        let stream = stream.map_err(|error| format!("no connection: {error}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("no HTTP: {error}"))?;
        #[expect(clippy::disallowed_methods, reason = "ends with its connection")]
        tokio::spawn(connection);
        lock(&self.counts).connections += 1;
        Ok(sender)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
