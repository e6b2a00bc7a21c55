//! The public port: TLS, HTTP/1.1 and HTTP/2, and which door a request takes.
//!
//! Kubernetes' own paths (`/api`, `/apis`, `/healthz`, `/version`, `/metrics`, …) are never taken by a page of the
//! gateway's: a token of one membership routes them to that membership.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use towline_proto::{endpoint, tunnel};

use crate::{
    agents, api,
    app::Gateway,
    audit::{self, Record},
    error::Refused,
    login, request,
    tls::Certificate,
};

mod connections;
mod opening;

use connections::Connections;
pub(crate) use connections::network;
use opening::Opening;

/// How long a TLS handshake may take.
const TLS_LIMIT: Duration = Duration::from_secs(10);
/// How long a new connection may say nothing.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// How long a request's head may take. hyper counts it from the answer before, so it is also how long an HTTP/1.1
/// connection may be idle: longer than clients and proxies keep theirs (60 to 90 s), who else send into the closing.
const HEAD_LIMIT: Duration = Duration::from_secs(120);
/// Streams of one caller's connection; more wait.
const MAX_STREAMS: u32 = 10_000;
/// Header lines of one request. The HTTP library makes room for as many on every HTTP/1.1 request.
const MAX_HEADERS: usize = 400;
/// What one HTTP/1.1 connection buffers, in bytes; a head that is longer than the gateway takes still gets an answer.
const MAX_BUFFER: usize = 1024 * 1024;
/// After how long without a byte a caller's connection is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a caller's connection may leave bytes unacknowledged.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);
/// Cancelled requests that may wait to be looked at; see `tunnel`.
const PENDING_RESETS: usize = 100_000;

/// Accepts connections until the gateway drains.
pub async fn run(gateway: Arc<Gateway>, listener: TcpListener, certificate: Option<Certificate>) {
    let tls = certificate.map(|certificate| TlsAcceptor::from(certificate.server_config()));
    let from = Connections::new(gateway.config.limits.connections_per_address);
    let room = Arc::new(Semaphore::new(connections::most()));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = gateway.closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that died in the queue: the next may do.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let trusted = |net: &ipnet::IpNet| net.contains(&peer.ip());
        let place = from.take(peer.ip());
        if place.is_none() && !gateway.config.trusted_proxies.iter().any(trusted) {
            tracing::debug!(%peer, "hung up: the address has as many connections as it may");
            continue;
        }
        let (serving, tls) = (Arc::clone(&gateway), tls.clone());
        gateway.connections.spawn(async move {
            if let Err(error) = connection(serving, stream, peer, tls).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop((permit, place));
        });
    }
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    configure(&stream)?;
    match tls {
        Some(tls) => {
            let stream = timeout(TLS_LIMIT, tls.accept(stream))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            http(gateway, stream, peer.ip()).await
        }
        None => http(gateway, stream, peer.ip()).await,
    }
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(Duration::from_secs(5)),
    )?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
        // An agent's connection suffers most from loss; a kernel without bbr says no, and that is fine.
        if let Err(error) = socket.set_tcp_congestion(b"bbr") {
            tracing::trace!(%error, "no bbr");
        }
    }
    Ok(())
}

async fn http<S>(gateway: Arc<Gateway>, stream: S, peer: IpAddr) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(tunnel::STREAM_WINDOW)
        .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
        .max_send_buf_size(tunnel::SEND_BUFFER)
        .max_header_list_size(tunnel::MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(Duration::from_secs(10));
    let drain = gateway.drain.clone();
    let (heard, mut version) = watch::channel(None);
    let service = service_fn(move |request: Request<Incoming>| {
        let (gateway, version) = (Arc::clone(&gateway), request.version());
        heard.send_if_modified(|known| known.replace(version) != Some(version));
        async move {
            let mut response = route(&gateway, peer, request).await;
            let last = version < Version::HTTP_2 && gateway.drain.is_cancelled();
            if last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                close_with(&mut response);
            }
            Ok::<_, Infallible>(response)
        }
    });
    // One of HTTP/1.1 ends with its next answer: whoever sends a request while it is closed can't know whether it was
    // heard. One that isn't used ends with HEAD_LIMIT, after whoever opened it has given it up.
    let may_close = async {
        drain.cancelled().await;
        let asked = async { version.wait_for(Option::is_some).await.is_ok() };
        let asked = timeout(HEAD_LIMIT, asked).await;
        let http1 = version
            .borrow()
            .is_some_and(|version| version < Version::HTTP_2);
        if asked.is_ok() && http1 {
            std::future::pending().await
        }
    };
    let connection = builder
        .serve_connection_with_upgrades(TokioIo::new(Opening::new(stream, OPENING_LIMIT)), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = may_close => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    outcome.map_err(io::Error::other)
}

/// The connection ends with this answer.
fn close_with(response: &mut Response<request::Body>) {
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Which door a request takes.
async fn route(
    gateway: &Arc<Gateway>,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Response<request::Body> {
    let client = client(peer, request.headers(), &gateway.config.trusted_proxies);
    let path = request.uri().path();
    let response = if let Err(refused) = framing(&request) {
        let mut response = refused.into_response("-");
        close_with(&mut response);
        response
    } else if path == endpoint::AGENT_CONNECT {
        agents::connect(gateway, client, request).await
    } else if path.starts_with("/oauth2/") {
        // Pages and keys that anybody may read are no deeds.
        if request.method() == Method::POST {
            audit::recorded(gateway, client, request, async |request, record: Record| {
                record.verb(request.uri().path().trim_start_matches("/oauth2/"));
                audit::within(record, login::serve(gateway, client, request)).await
            })
            .await
        } else {
            login::serve(gateway, client, request).await
        }
    } else if path.starts_with("/towline.v1.") {
        audit::recorded(gateway, client, request, async |request, record: Record| {
            audit::within(record, api::serve(gateway, client, request)).await
        })
        .await
    } else {
        request::serve(gateway, client, request).await
    };
    gateway.requests.count(response.status());
    response
}

/// `chunked` once, or no `Transfer-Encoding` at all (RFC 9112 §6.1): nobody in front may have read another coding, or
/// another of two headers, and so see another end of this request. The HTTP library refuses what is worse.
fn framing(request: &Request<Incoming>) -> Result<(), Refused> {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refused::Header(
            "Transfer-Encoding is not \"chunked\", once".to_owned(),
        )),
    }
}

/// The caller's address: the nearest one that no trusted proxy vouches away. An IPv4 address that a listener for both
/// gives as IPv6 is an IPv4 address: all of them are in one network, and would share one limit.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[ipnet::IpNet]) -> IpAddr {
    let trusted = |address: IpAddr| proxies.iter().any(|net| net.contains(&address));
    let peer = peer.to_canonical();
    if !trusted(peer) {
        return peer;
    }
    let forwarded: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let mut nearest = peer;
    for address in forwarded.into_iter().rev() {
        match address.parse::<IpAddr>() {
            Ok(address) => nearest = address.to_canonical(),
            Err(_) => return nearest,
        }
        if !trusted(nearest) {
            return nearest;
        }
    }
    nearest
}
