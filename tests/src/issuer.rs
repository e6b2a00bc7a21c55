//! An issuer of tokens in this process, over TLS: discovery, keys, and tokens with any claims.
//!
//! Tokens are signed by the `jsonwebtoken` crate, which verifies none of them: what is compared must not come
//! from one hand.

use std::{collections::BTreeMap, convert::Infallible, path::PathBuf, sync::Arc};

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
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::place;

/// A certificate authority of the test's own, and one certificate for `127.0.0.1`.
#[derive(Debug)]
pub struct Authority {
    /// The authority's certificate in PEM.
    pub pem: String,
    /// A directory with `ca.pem`, `tls.crt` and `tls.key`.
    pub directory: PathBuf,
    key: KeyPair,
    certificate: rcgen::Certificate,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// It can't be made.
    pub fn new(name: &str) -> Self {
        let authority_key = KeyPair::generate().expect("a key can be made");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(DnType::CommonName, format!("{name} of the tests"));
        let pem = parameters
            .self_signed(&authority_key)
            .expect("an authority signs itself")
            .pem();
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
            .expect("an address is a name")
            .signed_by(
                &key,
                &rcgen::Issuer::from_params(&parameters, &authority_key),
            )
            .expect("an authority signs");
        let directory = place::directory(&format!("{name}-authority"));
        for (file, text) in [
            ("ca.pem", pem.clone()),
            ("tls.crt", certificate.pem()),
            ("tls.key", key.serialize_pem()),
        ] {
            std::fs::write(directory.join(file), text).expect("a file can be written");
        }
        Self {
            pem,
            directory,
            key,
            certificate,
        }
    }
}

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
    pub async fn start(authority: &Authority, also: &[(&str, &Self)]) -> Self {
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
        let acceptor = acceptor(authority);
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

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(authority.key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS has versions")
        .with_no_client_auth()
        .with_single_cert(vec![authority.certificate.der().clone()], key)
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
