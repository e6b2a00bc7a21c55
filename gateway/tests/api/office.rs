//! A gateway on a port of its own, with an operator `root`, an owner `alice` of project `p`, a `reader`, and `bob`.

#![allow(dead_code, reason = "it serves several programs of tests")]

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::Code;
use towline_gateway::{
    app::{Gateway, Running},
    clock::Clock,
    config::File,
    iam::{Binding, Member, Principal, Role},
    keys::Keys,
    store::{Store, User},
};
use towline_proto::{
    jws::{Kind, PublicKey},
    names::Project,
};

/// What every wait in these tests is bounded by.
pub(crate) async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("it should have happened within 10 s")
}

pub(crate) struct Office {
    running: Running,
    state: tempfile::TempDir,
}

impl Office {
    pub(crate) async fn open() -> Self {
        Self::with(&[]).await
    }

    /// With these files in the state directory; `gateway.toml` is appended to what there is.
    pub(crate) async fn with(files: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("gateway.toml");
        let mut text =
            "public_url = 'https://gateway.test'\nlisten = '127.0.0.1:0'\ntls.mode = 'off'\n"
                .to_owned();
        for (name, content) in files {
            if *name == "gateway.toml" {
                text.push_str(content);
            } else {
                std::fs::write(state.path().join(name), content).unwrap();
            }
        }
        let config = File::parse(&path, &text).unwrap().check(&path).unwrap();
        let store = Store::in_memory().await.unwrap();
        for name in ["root", "alice", "reader", "bob"] {
            let user = User {
                name: name.to_owned(),
                groups: if name == "alice" {
                    vec!["dev".to_owned()]
                } else {
                    Vec::new()
                },
                disabled: false,
                operator: name == "root",
                created: 0,
            };
            store.create_user(&user, name, 1).await.unwrap();
        }
        let project: Project = "p".parse().unwrap();
        store
            .create_project(&project, &Principal::User("alice".into()), 0)
            .await
            .unwrap();
        let mut policy = store.policy(&project).await.unwrap().unwrap();
        policy.bindings.push(Binding::new(
            Role::GatewayReader,
            vec![Member::Principal(Principal::User("reader".into()))],
        ));
        store
            .set_policy_of(&(&project).into(), &policy)
            .await
            .unwrap();
        let keys = Keys::create(&config.keys(), Clock::System).unwrap();
        let running = Gateway::start(config, Clock::System, keys.into(), store)
            .await
            .unwrap();
        Self { running, state }
    }

    pub(crate) fn root(&self) -> PublicKey {
        self.running.gateway().keys.root()
    }

    /// A file in the state directory.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.state.path().join(name)
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.running.gateway()
    }

    /// A page, with a bearer token where there is one, that is answered with JSON.
    pub(crate) async fn get(&self, token: &str, path: &str) -> (StatusCode, Value) {
        let stream = TcpStream::connect(self.running.public_address())
            .await
            .unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        let mut request = Request::get(path).header(header::HOST, "gateway.test");
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = bounded(sender.send_request(request)).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// A form that is answered with JSON.
    pub(crate) async fn form(&self, path: &str, fields: &[(&str, &str)]) -> (StatusCode, Value) {
        let stream = TcpStream::connect(self.running.public_address())
            .await
            .unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = Request::post(path)
            .header(header::HOST, "gateway.test")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::<Bytes>::from(body))
            .unwrap();
        let response = bounded(sender.send_request(request)).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// A token for the whole gateway.
    pub(crate) fn token(&self, user: &str) -> String {
        self.token_for(user, "")
    }

    /// A token for what has this path behind the public URL.
    pub(crate) fn token_for(&self, user: &str, path: &str) -> String {
        self.sign(user, path, 600)
    }

    /// A token for the whole gateway that ends in so many seconds.
    pub(crate) fn token_ending(&self, user: &str, seconds: i64) -> String {
        self.sign(user, "", seconds)
    }

    fn sign(&self, user: &str, path: &str, seconds: i64) -> String {
        let now = Clock::System.unix();
        let claims = json!({
            "iss": "https://gateway.test/oauth2", "sub": user, "aud": format!("https://gateway.test{path}"),
            "client_id": "towline", "iat": now, "exp": now.saturating_add_signed(seconds), "jti": "test",
        });
        self.running
            .gateway()
            .keys
            .signing()
            .sign(Kind::AccessToken, &claims)
    }

    /// A JSON call over HTTP/1.1.
    pub(crate) async fn json(
        &self,
        token: Option<&str>,
        method: &str,
        message: Value,
    ) -> (StatusCode, Value) {
        let stream = TcpStream::connect(self.running.public_address())
            .await
            .unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        let mut request = Request::post(format!("/towline.v1.{method}"))
            .header(header::HOST, "gateway.test")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::<Bytes>::from(message.to_string()))
            .unwrap();
        let response = bounded(sender.send_request(request)).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// A JSON call that is answered with a message.
    pub(crate) async fn ok(&self, token: &str, method: &str, message: Value) -> Value {
        let (status, answer) = self.json(Some(token), method, message).await;
        assert_eq!(status, StatusCode::OK, "{method}: {answer}");
        answer
    }

    /// A gRPC call over HTTP/2.
    pub(crate) async fn grpc<Q: Message, A: Message + Default>(
        &self,
        token: &str,
        method: &str,
        message: &Q,
    ) -> (Code, Option<A>) {
        let stream = TcpStream::connect(self.running.public_address())
            .await
            .unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        let mut owned = JoinSet::new();
        owned.spawn(async move { drop(connection.await) });
        let payload = message.encode_to_vec();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(payload.len().try_into().unwrap());
        frame.extend_from_slice(&payload);
        let request = Request::post(format!("http://gateway.test/towline.v1.{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Full::<Bytes>::from(frame.freeze()))
            .unwrap();
        let response = bounded(sender.send_request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let status = |headers: &HeaderMap| {
            headers
                .get("grpc-status")
                .map(|code| Code::from_bytes(code.as_bytes()))
        };
        let trailers = body.trailers().cloned().unwrap_or_default();
        let code = status(&head.headers)
            .or_else(|| status(&trailers))
            .expect("a gRPC answer has a status");
        let bytes = body.to_bytes();
        (
            code,
            (bytes.len() > 5).then(|| A::decode(&bytes[5..]).unwrap()),
        )
    }
}
