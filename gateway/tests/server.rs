//! The two listeners over real sockets: TLS, which door a path takes, whose address counts, health and draining.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use towline_gateway::{
    app::{Gateway, Running},
    authority,
    clock::Clock,
    config::File,
    keys::Keys,
    store::Store,
    tls::Certificate,
};

#[cfg(test)]
mod site {
    use super::*;

    pub(crate) async fn bounded<F: Future>(future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(20), future)
            .await
            .expect("it should have happened within 20 s")
    }

    /// A gateway with an authority of its own; `more` stands in its configuration.
    pub(crate) async fn start(state: &Path, more: &str) -> Running {
        authority::create(
            &state.join("tls"),
            &["localhost".to_owned()],
            Clock::System.unix(),
        )
        .unwrap();
        let text = format!(
            "public_url = 'https://localhost'\nlisten = '127.0.0.1:0'\ndrain_limit = '5s'\n\
             tls.certificate = 'tls/server.crt'\ntls.key = 'tls/server.key'\n{more}"
        );
        let path = state.join("gateway.toml");
        let config = File::parse(&path, &text).unwrap().check(&path).unwrap();
        let keys = Keys::create(&config.keys(), Clock::System).unwrap();
        let store = Store::in_memory().await.unwrap();
        Gateway::start(config, Clock::System, keys.into(), store)
            .await
            .unwrap()
    }

    pub(crate) fn connector(
        state: &Path,
        alpn: &[&str],
        version: &'static SupportedProtocolVersion,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(state.join("tls/ca.crt")).unwrap())
            .unwrap();
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub(crate) async fn dial(state: &Path, to: SocketAddr, alpn: &[&str]) -> TlsStream<TcpStream> {
        let connector = connector(state, alpn, &rustls::version::TLS13);
        let tcp = TcpStream::connect(to).await.unwrap();
        bounded(connector.connect("localhost".try_into().unwrap(), tcp))
            .await
            .unwrap()
    }

    pub(crate) async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Response<Bytes>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        whole(bounded(sender.send_request(request)).await.unwrap()).await
    }

    pub(crate) async fn whole(response: Response<Incoming>) -> Response<Bytes> {
        let (head, body) = response.into_parts();
        Response::from_parts(head, bounded(body.collect()).await.unwrap().to_bytes())
    }

    pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
        Request::get(path)
            .header(header::HOST, "localhost")
            .body(Full::default())
            .unwrap()
    }

    pub(crate) async fn admin(running: &Running, path: &str) -> (StatusCode, String) {
        let tcp = TcpStream::connect(running.admin_address()).await.unwrap();
        let answer = send(tcp, get(path)).await;
        (
            answer.status(),
            String::from_utf8(answer.body().to_vec()).unwrap(),
        )
    }
}

use site::{admin, bounded, connector, dial, get, send, start, whole};

#[tokio::test]
async fn both_versions_of_tls_and_of_http_are_spoken() {
    let state = tempfile::tempdir().unwrap();
    let running = start(state.path(), "").await;
    let page = "/oauth2/jwks";
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connector = connector(state.path(), &[], version);
        let tcp = TcpStream::connect(running.public_address()).await.unwrap();
        let tls = connector
            .connect("localhost".try_into().unwrap(), tcp)
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(send(tls, get(page)).await.status(), StatusCode::OK);
    }
    let tls = dial(state.path(), running.public_address(), &["http/1.1"]).await;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(send(tls, get(page)).await.version(), Version::HTTP_11);

    let tls = dial(state.path(), running.public_address(), &["h2", "http/1.1"]).await;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    let mut owned = JoinSet::new();
    owned.spawn(async move { drop(connection.await) });
    let request = Request::get(format!("https://localhost{page}"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = whole(bounded(sender.send_request(request)).await.unwrap()).await;
    assert_eq!(
        (answer.status(), answer.version()),
        (StatusCode::OK, Version::HTTP_2)
    );
}

#[tokio::test]
async fn paths_of_kubernetes_are_not_the_gateways() {
    let state = tempfile::tempdir().unwrap();
    let running = start(state.path(), "").await;
    for path in [
        "/",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/readyz",
        "/version",
        "/metrics",
        "/openapi/v2",
        "/.well-known/openid-configuration",
        "/openid/v1/jwks",
        "/oauth2",
        "/v1/projects/p",
    ] {
        let tls = dial(state.path(), running.public_address(), &[]).await;
        let answer = send(tls, get(path)).await;
        let status: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(status["kind"], "Status", "{path}");
        let expected = if path.starts_with("/v1/") { 404 } else { 401 };
        assert_eq!(status["code"], expected, "{path}: {status}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_answered() {
    let state = tempfile::tempdir().unwrap();
    let running = start(state.path(), "").await;
    for kib in [300, 2_000] {
        let tls = dial(state.path(), running.public_address(), &[]).await;
        let mut request = get("/api");
        request
            .headers_mut()
            .insert("x-long", "x".repeat(kib * 1024).parse().unwrap());
        let answer = send(tls, request).await;
        assert_eq!(
            answer.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "{kib} KiB"
        );
    }
}

/// Whose address counts shows in who has used up their tries.
#[tokio::test]
async fn a_forwarded_address_counts_from_trusted_proxies_only() {
    let tries = |forwarded: &'static str| {
        let fields = "response_type=code&client_id=towline&redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2F\
                      &code_challenge_method=S256&code_challenge=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
        move |n: usize| {
            Request::post("/oauth2/authorize")
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header("x-forwarded-for", forwarded)
                .body(Full::<Bytes>::from(format!("{fields}&username=user-{n}")))
                .unwrap()
        }
    };
    for (more, kept_out) in [("trusted_proxies = ['127.0.0.0/8']", false), ("", true)] {
        let state = tempfile::tempdir().unwrap();
        let running = start(state.path(), more).await;
        let tls = dial(state.path(), running.public_address(), &[]).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        let mut last = StatusCode::OK;
        // The first address is whatever the caller wrote; the proxy added the second.
        for n in 0..500 {
            last = whole(
                bounded(sender.send_request(tries("10.9.9.9, 192.0.2.7")(n)))
                    .await
                    .unwrap(),
            )
            .await
            .status();
            if last == StatusCode::TOO_MANY_REQUESTS {
                break;
            }
            sender.ready().await.unwrap();
        }
        assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
        let same = whole(
            bounded(sender.send_request(tries("10.1.1.1, 192.0.2.7")(1_000)))
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(
            same.status(),
            StatusCode::TOO_MANY_REQUESTS,
            "what the caller wrote changes nothing"
        );
        let other = whole(
            bounded(sender.send_request(tries("192.0.2.8")(1_001)))
                .await
                .unwrap(),
        )
        .await;
        assert_eq!(
            other.status() == StatusCode::TOO_MANY_REQUESTS,
            kept_out,
            "{more}"
        );
    }
}

#[tokio::test]
async fn health_and_metrics_have_a_listener_of_their_own() {
    let state = tempfile::tempdir().unwrap();
    let running = start(state.path(), "").await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(
            admin(&running, path).await,
            (StatusCode::OK, "ok\n".to_owned())
        );
    }
    let tls = dial(state.path(), running.public_address(), &[]).await;
    assert_eq!(
        send(tls, get("/oauth2/jwks")).await.status(),
        StatusCode::OK
    );
    let (_, metrics) = admin(&running, "/metrics").await;
    for line in [
        "towline_sessions 0",
        "towline_streams 0",
        "towline_requests_total{code=\"2xx\"} 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "no {line:?} in\n{metrics}"
        );
    }
    assert_eq!(admin(&running, "/").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn draining_ends_idle_connections_and_takes_no_new_ones() {
    let state = tempfile::tempdir().unwrap();
    let running = start(state.path(), "").await;
    let public = running.public_address();
    let tls = dial(state.path(), public, &["h2"]).await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
        .await
        .unwrap();
    let mut idle = JoinSet::new();
    idle.spawn(async move { drop(connection.await) });
    let request = Request::get("https://localhost/oauth2/jwks")
        .body(Full::<Bytes>::default())
        .unwrap();
    assert_eq!(
        bounded(sender.send_request(request))
            .await
            .unwrap()
            .status(),
        StatusCode::OK
    );

    let gateway = Arc::clone(running.gateway());
    bounded(running.drain()).await;
    assert!(gateway.drain.is_cancelled());
    bounded(idle.join_next()).await.unwrap().unwrap();
    assert!(
        TcpStream::connect(public).await.is_err(),
        "nobody listens any more"
    );
}

/// Time is paused and the bytes go through memory: the wait for the files to change costs nothing.
#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("tls");
    let now = Clock::System.unix();
    // So long ago that it is due now.
    authority::create(&dir, &["localhost".to_owned()], now - 300 * 24 * 3600).unwrap();
    let (file, key) = (dir.join("server.crt"), dir.join("server.key"));
    let certificate = Certificate::load(&file, &key).unwrap();
    let mut owned = JoinSet::new();
    owned.spawn(certificate.clone().watch());
    let served = async || {
        // Room for the tickets that the server sends to a client that no longer reads.
        let (client, server) = tokio::io::duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(certificate.server_config());
        let connector = connector(state.path(), &[], &rustls::version::TLS13);
        let (client, _server) = tokio::join!(
            connector.connect("localhost".try_into().unwrap(), client),
            acceptor.accept(server)
        );
        client.unwrap().get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = served().await;
    assert!(authority::renew_due(&dir, now).unwrap());
    let renewed = CertificateDer::from_pem_file(&file).unwrap();
    assert_ne!(first, renewed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(served().await, renewed);

    std::fs::write(&file, "broken").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(served().await, renewed);
}
