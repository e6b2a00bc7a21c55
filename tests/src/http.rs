//! Plain HTTPS to a membership, by hand: what no kubectl would send, too.

use std::{fs, io, path::Path, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, request};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A body of whatever kind.
pub type Body = BoxBody<Bytes, io::Error>;

/// Where a membership is, and as whom.
#[derive(Debug, Clone)]
pub struct Api {
    /// The membership's URL.
    pub server: Uri,
    /// The bearer token.
    pub token: Option<String>,
    roots: Arc<RootCertStore>,
}

/// An answer that was read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Version that it came in.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Trailers.
    pub trailers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// A connection, in either version.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1.
    One(http1::SendRequest<Body>),
    /// HTTP/2.
    Two(http2::SendRequest<Body>),
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body that is there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

impl Api {
    /// The membership at `server`, whose certificate the file's signs.
    ///
    /// # Panics
    /// No URL, or no certificates.
    pub fn new(server: &str, certificate_authority: &Path, token: Option<String>) -> Self {
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let pem = fs::read(certificate_authority).expect("the gateway's CA can be read");
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots
                .add(certificate.expect("the CA is PEM"))
                .expect("the CA is a certificate");
        }
        Self {
            server: server.parse().expect("a server is a URL"),
            token,
            roots: Arc::new(roots),
        }
    }

    /// The same, with another token.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self {
            token: token.map(str::to_owned),
            ..self.clone()
        }
    }

    /// The same gateway under another path.
    ///
    /// # Panics
    /// The path can't stand in a URL.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Self {
        let server = format!("https://{}{prefix}", self.authority())
            .parse()
            .expect("a path is a URI");
        Self {
            server,
            ..self.clone()
        }
    }

    /// Host and port.
    ///
    /// # Panics
    /// The URL has none.
    pub fn authority(&self) -> &str {
        self.server
            .authority()
            .expect("a server has a host")
            .as_str()
    }

    /// The membership's prefix.
    pub fn prefix(&self) -> &str {
        self.server.path().trim_end_matches('/')
    }

    /// A TLS connection that offers these protocols.
    ///
    /// # Panics
    /// It can't be made.
    pub async fn tls(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let connected = self.try_tls(protocols).await;
        connected.unwrap_or_else(|error| panic!("TLS with {}: {error}", self.authority()))
    }

    /// The same, where none is an answer.
    ///
    /// # Errors
    /// Nobody accepts, or it isn't the gateway.
    ///
    /// # Panics
    /// The URL has no host.
    pub async fn try_tls(&self, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.authority()).await?;
        stream.set_nodelay(true)?;
        let host = self.server.host().expect("a server has a host").to_owned();
        let name = ServerName::try_from(host).expect("a host is a name or an address");
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await
    }

    /// An HTTP/1.1 connection.
    pub async fn http1(&self) -> Connection {
        let stream = TokioIo::new(self.tls(&[b"http/1.1"]).await);
        let (sender, connection) = http1::handshake(stream)
            .await
            .expect("HTTP/1.1 with the gateway");
        #[expect(clippy::disallowed_methods, reason = "ends with its connection")]
        tokio::spawn(connection.with_upgrades());
        Connection::One(sender)
    }

    /// An HTTP/2 connection.
    ///
    /// # Panics
    /// The gateway doesn't choose it.
    pub async fn http2(&self) -> Connection {
        let stream = self.tls(&[b"h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "ALPN");
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .expect("HTTP/2 with the gateway");
        #[expect(clippy::disallowed_methods, reason = "ends with its connection")]
        tokio::spawn(connection);
        Connection::Two(sender)
    }

    /// A request for a Kubernetes path, with the token.
    ///
    /// # Panics
    /// Never for a path that can stand in a URL.
    pub fn request(&self, method: &str, path: &str) -> request::Builder {
        let uri = format!("https://{}{}{path}", self.authority(), self.prefix());
        let request = Request::builder().method(method).uri(uri);
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// One request on an HTTP/1.1 connection of its own, read whole.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path).body(empty()).expect("a request"))
            .await
    }

    /// One request on an HTTP/1.1 connection of its own, read whole.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        read(self.http1().await.send(request).await).await
    }

    /// Bytes as they are, and all that comes back until the gateway closes or `enough` holds.
    ///
    /// # Panics
    /// The gateway says nothing for 20 s.
    pub async fn raw(&self, bytes: &[u8], enough: impl Fn(&str) -> bool) -> String {
        let mut stream = self.tls(&[b"http/1.1"]).await;
        // The gateway may answer and close before it has read all.
        stream.write_all(bytes).await.ok();
        stream.flush().await.ok();
        let mut said = Vec::new();
        let read = async {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                said.extend_from_slice(&buffer[..length]);
                if enough(&String::from_utf8_lossy(&said)) {
                    break;
                }
            }
        };
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(20), read).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        in_time.unwrap_or_else(|_| panic!("no end within 20 s; so far: {said}"));
        said
    }
}

impl Connection {
    /// Sends a request; the answer's body is still to come.
    ///
    /// # Panics
    /// No answer.
    pub async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        let answer =
            tokio::time::timeout(std::time::Duration::from_secs(100), self.try_send(request)).await;
        answer
            .expect("a head within 100 s")
            .expect("the gateway answers")
    }

    /// The same, where no answer is an answer.
    ///
    /// # Errors
    /// hyper's.
    pub async fn try_send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(in_origin_form(request)).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// As HTTP/1.1 has it: the path alone, and a Host.
pub(crate) fn in_origin_form(request: Request<Body>) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    if let Some(authority) = head.uri.authority() {
        let host = authority
            .as_str()
            .parse()
            .expect("an authority can stand in a header");
        head.headers.entry("host").or_insert(host);
    }
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    head.uri = path.parse().expect("a path is a URI");
    Request::from_parts(head, body)
}

/// Reads an answer to its end.
///
/// # Panics
/// It ends early.
pub async fn read(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("the body comes to its end");
    let trailers = body.trailers().cloned().unwrap_or_default();
    Answer {
        status: head.status,
        version: head.version,
        headers: head.headers,
        trailers,
        body: body.to_bytes(),
    }
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// It is something else.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {} {}", self.status, self.text()))
    }

    /// The message of a `Status`, after its shape and code were checked.
    ///
    /// # Panics
    /// It is no `Status` with this code and reason.
    #[track_caller]
    pub fn refusal(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!(self.status.as_u16(), code, "{status}");
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["apiVersion"], "v1", "{status}");
        assert_eq!(status["status"], "Failure", "{status}");
        assert_eq!(status["code"], code, "{status}");
        assert_eq!(status["reason"], reason, "{status}");
        status["message"]
            .as_str()
            .expect("a Status has a message")
            .to_owned()
    }
}
