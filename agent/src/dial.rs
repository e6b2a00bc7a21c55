//! Out to the gateway: TCP (through a proxy where there is one), TLS 1.3, and one of two carriers.
//!
//! A plain `Upgrade: towline` is tried first. Where something on the way answers anything but a 101, or
//! nothing, the same bytes travel in a WebSocket, which such things know. What the gateway itself refuses is
//! told by its mark, and is no reason to try the other carrier.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use towline_proto::{
    endpoint,
    handshake::{self, NoRandomness},
    session::Connection,
    websocket::{End, WebSocketConnection},
};

use crate::{
    config::Gateway,
    tcp::{self, TcpError},
};

pub mod proxy;

use proxy::{Proxies, ProxyError};

/// How long each of TCP, proxy and TLS may take.
const PHASE: Duration = Duration::from_secs(10);

/// How long the gateway may take to answer an upgrade.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What a gateway marks its own answers with, so that a load balancer's can be told from them.
pub const MARK: &str = "towline-gateway";

/// The longest body of an answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// What carries a session's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The TLS connection itself, after a 101.
    Upgrade,
    /// A WebSocket in it.
    WebSocket,
}

impl Carrier {
    /// The one to try when this one didn't pass.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Upgrade => Self::WebSocket,
            Self::WebSocket => Self::Upgrade,
        }
    }
}

/// Why the gateway isn't reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// No way through the proxy.
    #[error("proxy {proxy}")]
    Proxy {
        /// Which.
        proxy: String,
        /// Why.
        #[source]
        source: ProxyError,
    },
    /// No TLS.
    #[error("no TLS with {with}")]
    Tls {
        /// Gateway or proxy.
        with: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The TLS handshake hangs.
    #[error("no TLS with {with} within {limit} s", with = .0, limit = PHASE.as_secs())]
    TlsTimeout(String),
    /// The connection broke.
    #[error("the connection to the gateway broke")]
    Http(#[source] hyper::Error),
    /// The request can't be made.
    #[error("the request to the gateway cannot be made")]
    Request(#[source] http::Error),
    /// No answer.
    #[error("the gateway did not answer within {} s", HANDSHAKE.as_secs())]
    Silent,
    /// Something answered that isn't a gateway, or doesn't let an upgrade pass.
    #[error("{status} instead of a switch of protocols: {message}")]
    NotSwitched {
        /// Its status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// The gateway refuses.
    #[error("the gateway refuses ({status}): {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// What it said.
        message: String,
        /// Its time in Unix seconds, if the agent's clock is the reason.
        time: Option<u64>,
    },
    /// A 101 without what makes it one of a gateway.
    #[error("the gateway's answer has no valid {0} header")]
    Header(&'static str),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl DialError {
    /// Whether the other carrier may pass where this one didn't.
    pub const fn wants_other_carrier(&self) -> bool {
        matches!(
            self,
            Self::Silent | Self::NotSwitched { .. } | Self::Http(_) | Self::Header(_)
        )
    }
}

/// A connection on which the gateway has answered a hello.
pub struct Switched {
    /// `handshake::CHAIN`.
    pub chain: String,
    /// `handshake::PROOF`.
    pub proof: String,
    /// What carries the session.
    pub connection: Box<dyn Connection>,
}

/// An answer to a call of the management API.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    /// The gateway itself gave it.
    pub marked: bool,
}

/// Knows the way to the gateway.
pub struct Dialer {
    gateway: Gateway,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    proxy_tls: Arc<ClientConfig>,
    proxies: Proxies,
}

/// Why there can't be a dialer.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    /// The registration's CA isn't one.
    #[error("the registration's certificateAuthority holds no PEM certificate")]
    Authority,
    /// The system has no CA certificates.
    #[error(
        "this system has no CA certificates; put the gateway's into the registration's certificateAuthority"
    )]
    NoRoots,
    /// The gateway's name can't stand in a certificate.
    #[error("the gateway's host {0:?} is neither a DNS name nor an address")]
    Name(String),
}

impl Dialer {
    /// To `gateway`, whose certificate is checked against `authority` (PEM) or the system's own.
    ///
    /// # Errors
    /// See [`DialerError`].
    pub fn new(
        gateway: Gateway,
        authority: Option<&str>,
        proxies: Proxies,
    ) -> Result<Self, DialerError> {
        let given: Vec<CertificateDer<'static>> = match authority {
            Some(pem) => CertificateDer::pem_slice_iter(pem.as_bytes())
                .filter_map(Result::ok)
                .collect(),
            None => Vec::new(),
        };
        let system = || rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        let trusted = if authority.is_some() {
            given.clone()
        } else {
            system()
        };
        if roots.add_parsable_certificates(trusted).0 == 0 {
            return Err(if authority.is_some() {
                DialerError::Authority
            } else {
                DialerError::NoRoots
            });
        }
        let mut tls = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A proxy is the network's and not the gateway's; its certificate may be of either.
        let mut roots = RootCertStore::empty();
        if proxies.https.as_ref().is_some_and(|proxy| proxy.tls) {
            roots.add_parsable_certificates(given.into_iter().chain(system()));
        }
        let proxy_tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(gateway.host.clone())
            .map_err(|_| DialerError::Name(gateway.host.clone()))?;
        Ok(Self {
            gateway,
            name,
            tls: Arc::new(tls),
            proxy_tls: Arc::new(proxy_tls),
            proxies,
        })
    }

    /// Opens a carrier with a hello (which is good for one try).
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn switch(&self, carrier: Carrier, hello: &str) -> Result<Switched, DialError> {
        let key = BASE64.encode(handshake::random_id()?.get(..16).unwrap_or_default());
        let mut request = Request::builder()
            .uri(endpoint::AGENT_CONNECT)
            .header(header::CONNECTION, "Upgrade")
            .header(handshake::VERSION_HEADER, handshake::VERSION)
            .header(handshake::HELLO, hello);
        request = match carrier {
            Carrier::Upgrade => request.header(header::UPGRADE, handshake::PROTOCOL),
            Carrier::WebSocket => request
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_VERSION, "13")
                .header(header::SEC_WEBSOCKET_PROTOCOL, handshake::PROTOCOL)
                .header(header::SEC_WEBSOCKET_KEY, &key),
        };
        let request = request.body(Full::default()).map_err(DialError::Request)?;
        let stream = self.connect().await?;
        let (response, upgraded) = timeout(HANDSHAKE, self.exchange(stream, request))
            .await
            .map_err(|_| DialError::Silent)??;
        let (head, body) = response.into_parts();
        let Some(upgraded) = upgraded else {
            return Err(not_switched(head.status, &head.headers, &body));
        };
        let chain = text(&head.headers, handshake::CHAIN)?;
        let proof = text(&head.headers, handshake::PROOF)?;
        let upgraded = TokioIo::new(upgraded);
        let connection: Box<dyn Connection> = match carrier {
            Carrier::Upgrade => Box::new(upgraded),
            Carrier::WebSocket => {
                if text(&head.headers, "sec-websocket-accept")? != derive_accept_key(key.as_bytes())
                {
                    return Err(DialError::Header("sec-websocket-accept"));
                }
                Box::new(WebSocketConnection::new(upgraded, End::Client).await)
            }
        };
        Ok(Switched {
            chain,
            proof,
            connection,
        })
    }

    /// Calls a method of the management API with a message in JSON.
    ///
    /// # Errors
    /// See [`DialError`]; an answer of any status is none.
    pub async fn call(&self, path: &str, json: String) -> Result<Answer, DialError> {
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::from(json))
            .map_err(DialError::Request)?;
        let stream = self.connect().await?;
        let (response, _) = timeout(PHASE, self.exchange(stream, request))
            .await
            .map_err(|_| DialError::Silent)??;
        let marked = response.headers().contains_key(MARK);
        Ok(Answer {
            status: response.status(),
            body: response.into_body(),
            marked,
        })
    }

    /// One request on a connection; `Some` if it was switched.
    async fn exchange(
        &self,
        stream: TlsStream<Box<dyn Connection>>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Bytes>, Option<hyper::upgrade::Upgraded>), DialError> {
        let host = HeaderValue::from_str(&self.gateway.authority())
            .map_err(|e| DialError::Request(e.into()))?;
        request.headers_mut().insert(header::HOST, host);
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(DialError::Http)?;
        let answer = Box::pin(async move {
            let mut response = sender.send_request(request).await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let upgraded = hyper::upgrade::on(&mut response).await?;
                return Ok((response.map(|_| Bytes::new()), Some(upgraded)));
            }
            let (head, body) = response.into_parts();
            Ok((Response::from_parts(head, bounded(body).await), None))
        });
        drive(connection.with_upgrades(), answer)
            .await
            .map_err(DialError::Http)
    }

    /// TLS with the gateway.
    async fn connect(&self) -> Result<TlsStream<Box<dyn Connection>>, DialError> {
        let Gateway { host, port } = &self.gateway;
        let stream: Box<dyn Connection> = match self.proxies.on_the_way_to(host, *port) {
            None => Box::new(self.tcp(host, *port).await?),
            Some(proxy) => {
                let stream = self.tcp(&proxy.host, proxy.port).await?;
                let stream: Box<dyn Connection> = if proxy.tls {
                    let name = ServerName::try_from(proxy.host.clone());
                    let name = name.map_err(|e| DialError::Tls {
                        with: proxy.to_string(),
                        source: io::Error::new(io::ErrorKind::InvalidInput, e),
                    })?;
                    Box::new(tls(&self.proxy_tls, name, stream, &proxy.to_string()).await?)
                } else {
                    Box::new(stream)
                };
                proxy::connect(proxy, stream, host, *port)
                    .await
                    .map_err(|source| DialError::Proxy {
                        proxy: proxy.to_string(),
                        source,
                    })?
            }
        };
        tls(
            &self.tls,
            self.name.clone(),
            stream,
            &self.gateway.authority(),
        )
        .await
    }

    async fn tcp(&self, host: &str, port: u16) -> Result<tokio::net::TcpStream, DialError> {
        let stream = tcp::connect(host, port).await?;
        tcp::suit_a_session(&stream);
        Ok(stream)
    }
}

async fn tls<S: Connection>(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
    with: &str,
) -> Result<TlsStream<S>, DialError> {
    timeout(
        PHASE,
        TlsConnector::from(Arc::clone(config)).connect(name, stream),
    )
    .await
    .map_err(|_| DialError::TlsTimeout(with.to_owned()))?
    .map_err(|source| DialError::Tls {
        with: with.to_owned(),
        source,
    })
}

/// Polls a connection for as long as an answer on it takes.
async fn drive<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    mut answer: impl Future<Output = hyper::Result<T>> + Unpin,
) -> hyper::Result<T> {
    tokio::select! {
        // The answer comes first even if the connection ends with it.
        biased;
        answered = &mut answer => answered,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

/// As much of a body as is read; a longer or broken one says nothing.
async fn bounded(body: Incoming) -> Bytes {
    Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default()
}

fn not_switched(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> DialError {
    let message = sentence(body);
    // The gateway itself says 400 where something on the way took the `Upgrade` out.
    if headers.contains_key(MARK) && status != StatusCode::BAD_REQUEST {
        let time = headers
            .get(handshake::TIME)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        return DialError::Refused {
            status,
            message,
            time,
        };
    }
    DialError::NotSwitched { status, message }
}

/// What an answer says for people: the message of a JSON error, or the beginning of its text.
pub(crate) fn sentence(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Error {
        message: String,
    }
    match serde_json::from_slice::<Error>(body) {
        Ok(error) => error.message,
        Err(_) => String::from_utf8_lossy(body)
            .trim()
            .chars()
            .take(300)
            .collect(),
    }
}

fn text(headers: &HeaderMap, name: &'static str) -> Result<String, DialError> {
    let value = headers
        .get(HeaderName::from_static(name))
        .ok_or(DialError::Header(name))?;
    value
        .to_str()
        .map(str::to_owned)
        .map_err(|_| DialError::Header(name))
}
