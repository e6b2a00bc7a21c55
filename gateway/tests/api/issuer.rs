//! An issuer on a port of its own: discovery, keys, and tokens as they are asked for.

#![allow(dead_code, reason = "it serves several programs of tests")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs as tls,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

/// An issuer of tokens; its server ends with it.
pub(crate) struct Issuer {
    pub(crate) url: String,
    /// What its certificate is checked against, in PEM.
    pub(crate) authority: String,
    key: EncodingKey,
    key_id: Mutex<String>,
    jwk: Value,
    asked: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Issuer {
    /// Serves discovery and keys over HTTPS.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            certificate.signing_key.serialize_der(),
        ));
        let config = ServerConfig::builder_with_provider(Arc::new(tls::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let mut issuer = Self::unreachable(&url);
        issuer.authority = certificate.cert.pem();
        let documents = [
            (
                "/.well-known/openid-configuration",
                json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string(),
            ),
            ("/keys", issuer.keys()),
        ];
        let (acceptor, asked) = (TlsAcceptor::from(Arc::new(config)), issuer.asked.clone());
        issuer._server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, asked, documents) =
                    (acceptor.clone(), asked.clone(), documents.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        asked.fetch_add(1, Ordering::SeqCst);
                        let found = documents
                            .iter()
                            .find(|(path, _)| *path == request.uri().path());
                        let answer = match found {
                            Some((_, text)) => Response::new(Full::new(Bytes::from(text.clone()))),
                            None => Response::builder()
                                .status(404)
                                .body(Full::default())
                                .unwrap(),
                        };
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    drop(
                        http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        issuer
    }

    /// One that nobody can ask: its keys are given.
    pub(crate) fn unreachable(url: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        let x = BASE64URL.encode(pair.public_key().as_ref());
        Self {
            url: url.to_owned(),
            authority: String::new(),
            key: EncodingKey::from_ed_der(document.as_ref()),
            key_id: Mutex::new("one".to_owned()),
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "one", "x": x}),
            asked: Arc::default(),
            _server: JoinSet::new(),
        }
    }

    /// Its JWK set.
    pub(crate) fn keys(&self) -> String {
        json!({"keys": [self.jwk]}).to_string()
    }

    /// How often it was asked for anything.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// From now on tokens say that they are by this key.
    pub(crate) fn name_key(&self, id: &str) {
        *self.key_id.lock().unwrap() = id.to_owned();
    }

    /// A token with these claims, besides `iss`, `iat` and `exp`.
    pub(crate) fn sign(&self, claims: Value) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut all = json!({"iss": self.url, "iat": now, "exp": now + 300});
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let header = Header {
            kid: Some(self.key_id.lock().unwrap().clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, &all, &self.key).unwrap()
    }
}
