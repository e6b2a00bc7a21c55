//! An issuer over TLS in this process, whose documents the test sets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::issuer::IssuerConfiguration;

/// What a path answers.
#[derive(Clone)]
pub(crate) enum Page {
    Json(String),
    CachedJson(String, &'static str),
    Redirect(String),
    Status(u16),
    Endless,
    Hangs,
}

/// A running issuer; it ends when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) authority: String,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    pages: Mutex<HashMap<String, Page>>,
    requests: AtomicUsize,
}

impl Server {
    /// An issuer whose discovery document is right and whose keys are `jwks`.
    pub(crate) async fn start(jwks: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let authority_key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(
                &key,
                &rcgen::Issuer::from_params(&parameters, &authority_key),
            )
            .unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let shared = Arc::new(Shared::default());
        let mut task = JoinSet::new();
        task.spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            shared.clone(),
        ));
        let server = Self {
            url,
            authority: authority.pem(),
            shared,
            _task: task,
        };
        server.set(
            "/.well-known/openid-configuration",
            server.discovery("/keys"),
        );
        server.set("/keys", Page::Json(jwks.to_owned()));
        server
    }

    /// A discovery document that names a path for the keys.
    pub(crate) fn discovery(&self, keys: &str) -> Page {
        let keys = format!("{}{keys}", self.url);
        Page::Json(json!({"issuer": self.url, "jwks_uri": keys}).to_string())
    }

    /// Changes what a path answers.
    pub(crate) fn set(&self, path: &str, page: Page) {
        self.shared
            .pages
            .lock()
            .unwrap()
            .insert(path.to_owned(), page);
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How it is configured.
    pub(crate) fn configuration(&self) -> IssuerConfiguration {
        IssuerConfiguration {
            url: self.url.clone(),
            audiences: vec!["towline".to_owned()],
            certificate_authority: Some(self.authority.clone()),
            ..IssuerConfiguration::default()
        }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| answer(request, shared.clone()));
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let page = shared
        .pages
        .lock()
        .unwrap()
        .get(request.uri().path())
        .cloned();
    let full = |text: String| Full::new(Bytes::from(text)).boxed();
    let response = Response::builder();
    let response = match page.unwrap_or(Page::Status(404)) {
        Page::Json(text) => response.body(full(text)),
        Page::CachedJson(text, cache) => response.header("cache-control", cache).body(full(text)),
        Page::Redirect(to) => response
            .status(302)
            .header("location", to)
            .body(full(String::new())),
        Page::Status(status) => response.status(status).body(full(String::new())),
        Page::Endless => response.body(full(" ".repeat(2 * 1024 * 1024))),
        Page::Hangs => std::future::pending().await,
    };
    Ok(response.unwrap())
}
