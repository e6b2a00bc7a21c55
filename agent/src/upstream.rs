//! To the API server: in a caller's name, and in no other way.
//!
//! Short requests and long-running ones go over different HTTP/2 connections, so that a connection that
//! the API server closes because of one impatient caller takes nobody's watch with it. An upgrade goes over
//! HTTP/1.1 on a connection of its own: kube-apiserver has no extended CONNECT.

use std::{error::Error, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::time::{interval, sleep};
use tokio_util::task::TaskTracker;
use towline_proto::{tunnel, wire::Refusal};

use crate::{
    body::{self, Answered, Boxed, Holding, UploadWatch},
    guard::Impersonation,
};

mod connect;
mod credentials;
mod kind;
mod pool;

pub use connect::ConnectError;
pub use credentials::{Credentials, CredentialsError};
pub use kind::Kind;

use connect::{Alpn, Connector};
use pool::Pool;

/// How long the API server may take to begin its answer once it has the whole request. Its own limit is 60 s.
const HEAD: Duration = Duration::from_secs(75);

/// Between two looks at the agent's credentials.
const RELOAD: Duration = Duration::from_secs(30);

/// Headers of an answer to an upgrade.
const MAX_HEADERS: usize = 1024;

/// How often a request is tried that the API server has surely not seen.
const TRIES: usize = 3;

/// A request as it goes to the API server. It is made from an [`Impersonation`] alone.
#[derive(Debug, Clone)]
pub struct Outbound {
    method: Method,
    path: PathAndQuery,
    upgrade: Option<HeaderValue>,
    headers: HeaderMap,
    kind: Kind,
}

impl From<&Impersonation> for Outbound {
    fn from(impersonation: &Impersonation) -> Self {
        Self {
            method: impersonation.method().clone(),
            path: impersonation.path().clone(),
            upgrade: impersonation.upgrade().cloned(),
            headers: impersonation.headers(),
            kind: Kind::of(impersonation.path()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection.
    #[error("the agent cannot reach the API server: {}", chain(.0.as_ref()))]
    Connect(Arc<ConnectError>),
    /// The connection broke before the answer began.
    #[error("the connection to the API server broke before it answered: {}", chain(.0))]
    Broken(hyper::Error),
    /// No answer in time.
    #[error("the API server did not begin to answer within {} s", HEAD.as_secs())]
    Silent,
    /// The request's trailers carry what they must not.
    #[error(
        "the request carries {0} in its trailers, which a caller must not send through the gateway"
    )]
    Tainted(String),
    /// The request can't be written.
    #[error("the request cannot be sent on: {0}")]
    Request(#[from] http::Error),
}

impl SendError {
    /// What the gateway is told.
    pub const fn refusal(&self) -> Refusal {
        match self {
            Self::Connect(_) | Self::Broken(_) | Self::Silent => Refusal::Upstream,
            Self::Tainted(_) | Self::Request(_) => Refusal::Malformed,
        }
    }
}

/// What the API server says to an upgrade.
pub enum Answer {
    /// 101: the connection belongs to both sides now.
    Switched(Response<()>, Upgraded),
    /// Anything else.
    Other(Response<Boxed>),
}

/// Why there can't be an upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The API server's address isn't one.
    #[error("the API server's address {0:?} is not of the form https://HOST[:PORT][/PATH]")]
    Address(String),
    /// See there.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The API server.
pub struct Upstream {
    authority: Authority,
    prefix: String,
    connector: Arc<Connector>,
    credentials: Arc<Credentials>,
    short: Pool,
    long: Pool,
    tasks: TaskTracker,
}

impl Upstream {
    /// As a kubeconfig or the service account's mount says. Connections run in `tasks`.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn new(config: &kube::Config, tasks: TaskTracker) -> Result<Self, UpstreamError> {
        let uri = &config.cluster_url;
        let address = || UpstreamError::Address(uri.to_string());
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(address());
        }
        let authority = uri.authority().ok_or_else(address)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = config
            .tls_server_name
            .clone()
            .unwrap_or_else(|| host.clone());
        let credentials = Arc::new(Credentials::load(config).await?);
        let connector = Arc::new(Connector {
            host,
            port: authority.port_u16().unwrap_or(443),
            name: ServerName::try_from(name).map_err(|_| address())?,
            credentials: Arc::clone(&credentials),
        });
        Ok(Self {
            authority: authority.clone(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            short: Pool::new("short", Arc::clone(&connector), tasks.clone()),
            long: Pool::new("long", Arc::clone(&connector), tasks.clone()),
            connector,
            credentials,
            tasks,
        })
    }

    /// Closes what is idle and reads credentials again, for as long as it is polled.
    pub async fn maintain(&self) {
        let mut tick = interval(RELOAD);
        loop {
            tick.tick().await;
            self.credentials.reload().await;
            self.short.reap();
            self.long.reap();
        }
    }

    /// Open connections for short and for long-running requests.
    pub fn connections(&self) -> (usize, usize) {
        (self.short.connections(), self.long.connections())
    }

    /// Sends a request that is no upgrade.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(
        &self,
        out: Outbound,
        body: Boxed,
        watch: UploadWatch,
    ) -> Result<Response<Boxed>, SendError> {
        let (sent, taint) = watch.split();
        let bounded = !out.kind.may_stay_silent();
        let answer = async {
            if body.is_end_stream() {
                self.send_replayable(&out).await
            } else {
                self.exchange(&out, body).await.map_err(Failed::into_error)
            }
        };
        let silence = async {
            // Ends with the body, however that ends.
            drop(sent.await);
            sleep(HEAD).await;
        };
        tokio::select! {
            biased;
            answered = answer => answered.map_err(|error| match taint.get() {
                Some(name) => SendError::Tainted(name.clone()),
                None => error,
            }),
            () = silence, if bounded => Err(SendError::Silent),
        }
    }

    /// A request without a body can be sent twice where that does no harm.
    async fn send_replayable(&self, out: &Outbound) -> Result<Response<Boxed>, SendError> {
        let mut response = self.exchange(out, body::empty()).await;
        if let Err(failed) = &response
            && failed.may_repeat(&out.method)
        {
            response = self.exchange(out, body::empty()).await;
        }
        let response = response.map_err(Failed::into_error)?;
        if response.status() == StatusCode::UNAUTHORIZED && self.credentials.reload().await {
            return self
                .exchange(out, body::empty())
                .await
                .map_err(Failed::into_error);
        }
        Ok(response)
    }

    async fn exchange(&self, out: &Outbound, body: Boxed) -> Result<Response<Boxed>, Failed> {
        let pool = if out.kind == Kind::Short {
            &self.short
        } else {
            &self.long
        };
        let mut request = self.request(out, body).map_err(Failed::Request)?;
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let slot = pool.slot().await.map_err(Failed::Connect)?;
            let mut error = match slot.send(request).await {
                Ok(response) => {
                    let body = |incoming: Incoming| {
                        Holding::new(Answered::new(incoming, true), slot).boxed_unsync()
                    };
                    return Ok(response.map(body));
                }
                Err(error) => error,
            };
            // The connection was closed before the request was on it.
            match error.take_message() {
                Some(unsent) if tries > 0 => {
                    slot.retire();
                    request = unsent;
                }
                _ => return Err(Failed::Broken(error.into_error())),
            }
        }
    }

    /// Asks the API server for an upgrade, on a connection of its own.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn upgrade(&self, out: &Outbound) -> Result<Answer, SendError> {
        let mut request = self.request(out, body::empty())?;
        *request.uri_mut() = Uri::from(self.path(&out.path)?);
        let headers = request.headers_mut();
        headers.insert(
            header::HOST,
            HeaderValue::from_str(self.authority.as_str()).map_err(http::Error::from)?,
        );
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = &out.upgrade {
            headers.insert(header::UPGRADE, protocol.clone());
        }
        headers.remove(header::CONTENT_LENGTH);
        let connected = self.connector.connect(Alpn::H1).await;
        let (stream, _) = connected.map_err(|e| SendError::Connect(Arc::new(e)))?;
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(2 * tunnel::MAX_HEADER_LIST as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(SendError::Broken)?;
        // Ends with the response's body, with the sender, or by handing the connection over.
        drop(self.tasks.spawn(connection.with_upgrades()));
        let mut response = sender
            .send_request(request)
            .await
            .map_err(SendError::Broken)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut response)
                .await
                .map_err(SendError::Broken)?;
            return Ok(Answer::Switched(response.map(drop), upgraded));
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            // The caller tries again by itself; the next one should have a token that holds.
            self.credentials.reload().await;
        }
        let body = |incoming: Incoming| {
            Holding::new(Answered::new(incoming, false), sender).boxed_unsync()
        };
        Ok(Answer::Other(response.map(body)))
    }

    fn request(&self, out: &Outbound, body: Boxed) -> Result<Request<Boxed>, http::Error> {
        let uri = Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(self.authority.clone())
            .path_and_query(self.path(&out.path)?)
            .build()?;
        let mut request = Request::builder()
            .method(out.method.clone())
            .uri(uri)
            .body(body)?;
        *request.headers_mut() = out.headers.clone();
        if let Some(authorization) = &self.credentials.current().authorization {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    fn path(&self, path: &PathAndQuery) -> Result<PathAndQuery, http::Error> {
        if self.prefix.is_empty() {
            return Ok(path.clone());
        }
        Ok(format!("{}{path}", self.prefix).parse()?)
    }
}

/// Why one exchange failed.
enum Failed {
    Connect(Arc<ConnectError>),
    Broken(hyper::Error),
    Request(http::Error),
}

impl Failed {
    fn into_error(self) -> SendError {
        match self {
            Self::Connect(error) => SendError::Connect(error),
            Self::Broken(error) => SendError::Broken(error),
            Self::Request(error) => SendError::Request(error),
        }
    }

    /// Whether a request without a body can be sent again: the API server refused it unseen, or it changes
    /// nothing.
    fn may_repeat(&self, method: &Method) -> bool {
        let Self::Broken(error) = self else {
            return false;
        };
        let refused = sources(error)
            .filter_map(|source| source.downcast_ref::<h2::Error>())
            .any(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM));
        refused || method.is_safe()
    }
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error with all its causes in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for source in sources(error) {
        let text = source.to_string();
        // Some libraries repeat the cause in their own message.
        if !line.ends_with(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
    }
    line
}
