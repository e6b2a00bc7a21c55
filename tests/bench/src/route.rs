//! The ways to the origin that are compared, and connections along them.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::konnectivity;

/// A connection, whatever it is made of.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// What is between the client and the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Between {
    /// Nothing.
    Direct,
    /// Towline's gateway and agent.
    Towline,
    /// konnectivity's server and agent, by gRPC.
    KonnectivityGrpc,
    /// The same by HTTP CONNECT.
    KonnectivityConnect,
}

impl Between {
    pub(crate) const ALL: [Self; 4] = [
        Self::Direct,
        Self::Towline,
        Self::KonnectivityGrpc,
        Self::KonnectivityConnect,
    ];

    /// As the table's head has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Towline => "Towline",
            Self::KonnectivityGrpc => "konn. gRPC",
            Self::KonnectivityConnect => "konn. CONNECT",
        }
    }
}

/// How to get to the origin.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) between: Between,
    /// Whom to dial: the origin, the gateway, or konnectivity's server.
    pub(crate) dial: SocketAddr,
    pub(crate) origin: SocketAddr,
    /// Towards whom is dialled.
    pub(crate) tls: Arc<ClientConfig>,
    /// Within konnectivity, towards the origin.
    pub(crate) inner: Arc<ClientConfig>,
    /// Before every path.
    pub(crate) prefix: String,
    pub(crate) authorization: HeaderValue,
}

impl Route {
    /// A connection on which HTTP is spoken.
    pub(crate) async fn stream(&self, alpn: &[u8]) -> anyhow::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect(self.dial).await?;
        tcp.set_nodelay(true)?;
        let outer: &[&[u8]] = match self.between {
            Between::Direct | Between::Towline => &[alpn],
            Between::KonnectivityGrpc => &[b"h2"],
            Between::KonnectivityConnect => &[],
        };
        let stream = tls(&self.tls, outer, tcp).await?;
        let origin = self.origin.to_string();
        Ok(match self.between {
            Between::Direct | Between::Towline => Box::new(stream),
            Between::KonnectivityGrpc => {
                let tunnel = konnectivity::dial(stream, &origin).await?;
                Box::new(tls(&self.inner, &[alpn], tunnel).await?)
            }
            Between::KonnectivityConnect => {
                let tunnel = konnectivity::connect(stream, &origin).await?;
                Box::new(tls(&self.inner, &[alpn], tunnel).await?)
            }
        })
    }

    /// A client with an HTTP/1.1 connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let stream = self.stream(b"http/1.1").await?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        Ok(Client {
            sender: Sender::One(sender),
            _driver: driver,
        })
    }

    /// A client with an HTTP/2 connection of its own.
    pub(crate) async fn client2(&self) -> anyhow::Result<Client> {
        let stream = self.stream(b"h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(1 << 30)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        Ok(Client {
            sender: Sender::Two(sender),
            _driver: driver,
        })
    }

    /// A request without a body.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Request<Body>> {
        self.request(Method::GET, path, Empty::new().boxed_unsync())
    }

    /// A request.
    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> anyhow::Result<Request<Body>> {
        Ok(Request::builder()
            .method(method)
            .uri(format!("https://{}{}{path}", self.dial, self.prefix))
            .header(header::HOST, self.dial.to_string())
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "bench")
            .body(body)?)
    }
}

async fn tls<S: Stream + 'static>(
    config: &ClientConfig,
    alpn: &[&[u8]],
    stream: S,
) -> anyhow::Result<tokio_rustls::client::TlsStream<S>> {
    let mut config = config.clone();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1")?;
    Ok(TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?)
}

/// One caller's connection.
pub(crate) struct Client {
    sender: Sender,
    _driver: JoinSet<()>,
}

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Client {
    /// An answer that is a success.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> anyhow::Result<Response<Incoming>> {
        let response = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                let path = request.uri().path_and_query().cloned();
                *request.uri_mut() = path.context("a path")?.into();
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                request.headers_mut().remove(header::HOST);
                sender.send_request(request).await?
            }
        };
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(response)
    }
}

/// Reads an answer to its end; how long it is.
pub(crate) async fn read(response: Response<Incoming>) -> anyhow::Result<u64> {
    let mut body = response.into_body();
    let mut got = 0;
    while let Some(frame) = body.frame().await {
        got += frame?.data_ref().map_or(0, Bytes::len) as u64;
    }
    Ok(got)
}
