//! An issuer of tokens in this process, over TLS: discovery, keys, and tokens with any claims.
//!
//! Tokens are signed by the `jsonwebtoken` crate, which verifies none of them: what is compared must not come
//! from one hand.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::certificate::Certificate;

/// An issuer that runs; it ends when dropped.
pub struct Issuer {
    /// The `iss` of its tokens.
    pub url: String,
    key: EncodingKey,
    _tasks: JoinSet<()>,
}

/// The name of every issuer's only key.
const KEY: &str = "key";

impl Issuer {
    /// Starts one with a P-256 key. `also` are paths that answer with a discovery document for another issuer.
    ///
    /// # Panics
    /// It can't listen.
    pub async fn start(tls: &Certificate, also: &[(&str, &Self)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let url = format!("https://{address}");
        let key = KeyPair::generate().expect("a key can be made");
        let (x, y) = key.der_bytes()[1..].split_at(32);
        let keys = json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]});
        let discovery = |url: &str| {
            json!({
                "issuer": url, "jwks_uri": format!("{url}/keys"),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            })
        };
        let mut pages = BTreeMap::from([
            (
                "/.well-known/openid-configuration".to_owned(),
                discovery(&url),
            ),
            ("/keys".to_owned(), keys),
        ]);
        for (path, other) in also {
            pages.insert((*path).to_owned(), discovery(&other.url));
        }
        let acceptor = acceptor(tls);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, acceptor, Arc::new(pages)));
        Self {
            url,
            key: EncodingKey::from_ec_der(&key.serialize_der()),
            _tasks: tasks,
        }
    }

    /// A token with these claims and no others.
    ///
    /// # Panics
    /// It can't be signed.
    pub fn token(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(KEY.to_owned());
        jsonwebtoken::encode(&header, claims, &self.key).expect("a token can be signed")
    }
}

fn acceptor(tls: &Certificate) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(&tls.certificate).expect("it is PEM");
    let key = PrivateKeyDer::from_pem_file(&tls.key).expect("it is PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS has versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key is the certificate's");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, pages: Arc<BTreeMap<String, Value>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, pages) = (acceptor.clone(), Arc::clone(&pages));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(|request: Request<Incoming>| {
                let page = pages.get(request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from(
                    page.map(Value::to_string).unwrap_or_default(),
                )));
                if page.is_none() {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
                async move { Ok::<_, Infallible>(response) }
            });
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
        });
    }
}
