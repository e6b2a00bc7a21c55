//! A gateway on a port of its own, with users, one membership and clients.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{net::TcpStream, task::JoinHandle};
use towline_gateway::{
    app::{Gateway, Running},
    clock::Clock,
    config::{Config, File},
    handed::Sockets,
    iam::{Binding, Policy, Principal, Role},
    keys::Keys,
    live::Stream,
    login,
    quota::{InUse, Quota},
    store::{Database, Store, User},
};
use towline_proto::{
    jws::{KeyPair, Kind},
    names::{Membership, Project},
};

use towline_test_postgresql::Server;

use super::double::{self, Answer, Connected, own};

/// The database, where it is a file.
const FILE: &str = "towline.db";

/// What every wait in these tests is bounded by.
pub(crate) async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("it should have happened within 10 s")
}

/// A gateway and what a test needs to know of it.
pub(crate) struct World {
    /// Where callers come.
    pub(crate) running: Running,
    /// Another replica where agents come, if that isn't the same.
    elsewhere: Option<(Running, tempfile::TempDir)>,
    /// The key that membership `m` is enrolled with.
    pub(crate) agent_key: KeyPair,
    agents: Mutex<Vec<Connected>>,
    state: tempfile::TempDir,
}

impl World {
    /// Users `alice` (`gatewayAdmin`, group `dev`), `reader`, `nobody`; project `p`; membership `m`; two streams each.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same, with more configuration.
    pub(crate) async fn start_with(more: &str) -> Self {
        let database = crate::ELSEWHERE.then(|| at(&Server::shared().database()));
        Self::start_on(database, more).await
    }

    /// The same, on a database of a PostgreSQL server.
    pub(crate) async fn start_on(database: Option<Database>, more: &str) -> Self {
        Self::put_up(database, None, more).await
    }

    /// The same, on a socket that is there already.
    #[allow(dead_code, reason = "of sockets that are handed over alone")]
    pub(crate) async fn handed(socket: TcpListener, more: &str) -> Self {
        Self::put_up(None, Some(socket), more).await
    }

    async fn put_up(database: Option<Database>, socket: Option<TcpListener>, more: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let open = async || match &database {
            Some(database) => Store::open(database).await.unwrap(),
            // Another will have it open, too.
            None if socket.is_some() => Store::open_file(&state.path().join(FILE)).await.unwrap(),
            None => Store::in_memory().await.unwrap(),
        };
        let store = open().await;
        for name in ["owner", "alice", "reader", "nobody"] {
            let groups = if name == "alice" {
                vec!["dev".to_owned()]
            } else {
                Vec::new()
            };
            let user = User {
                name: name.to_owned(),
                groups,
                disabled: false,
                operator: false,
                created: 0,
            };
            store.create_user(&user, name, u64::MAX >> 1).await.unwrap();
        }
        let project: Project = "p".parse().unwrap();
        store
            .create_project(&project, &Principal::User("owner".into()), 0)
            .await
            .unwrap();
        let agent_key = KeyPair::generate().unwrap();
        store
            .register(&membership(), false, "token", 0, 10)
            .await
            .unwrap();
        store
            .redeem(&membership(), "token", agent_key.public(), 1)
            .await
            .unwrap();
        let keys = Keys::create(&state.path().join("keys"), Clock::System).unwrap();
        let start = async |dir: &Path, keys, store, public| {
            let config = config(dir, more);
            let sockets = Sockets {
                public,
                ..Sockets::default()
            };
            Gateway::start_on(sockets, config, Clock::System, keys, store)
                .await
                .unwrap()
        };
        let elsewhere = if crate::ELSEWHERE {
            let dir = tempfile::tempdir().unwrap();
            let keys = under_the_root_of(state.path(), dir.path());
            Some((start(dir.path(), keys, open().await, None).await, dir))
        } else {
            None
        };
        let running = start(state.path(), keys.into(), store, socket).await;
        let world = Self {
            running,
            elsewhere,
            agent_key,
            agents: Mutex::default(),
            state,
        };
        world.set_policy("user:alice").await;
        world
    }

    /// The gateway that comes after this one on the same machine.
    #[allow(dead_code, reason = "of sockets that are handed over alone")]
    pub(crate) async fn successor(&self, socket: TcpListener) -> Running {
        let store = Store::open_file(&self.state.path().join(FILE))
            .await
            .unwrap();
        let sockets = Sockets {
            public: Some(socket),
            ..Sockets::default()
        };
        let config = config(self.state.path(), "audit.sink = 'none'");
        let keys = Keys::open(&config.keys(), Clock::System).unwrap();
        Gateway::start_on(sockets, config, Clock::System, keys.into(), store)
            .await
            .unwrap()
    }

    /// Makes `admin` the only `gatewayAdmin`.
    pub(crate) async fn set_policy(&self, admin: &str) {
        self.set_policy_at(&self.running, admin).await;
    }

    /// The same, at the gateway that agents come to.
    #[allow(dead_code, reason = "of several replicas alone")]
    pub(crate) async fn set_policy_at_holder(&self, admin: &str) {
        self.set_policy_at(self.holder(), admin).await;
    }

    async fn set_policy_at(&self, running: &Running, admin: &str) {
        Self::set_policy_in(&running.gateway().store, admin).await;
    }

    /// The same, through the store of one.
    pub(crate) async fn set_policy_in(store: &Store, admin: &str) {
        let project: Project = "p".parse().unwrap();
        let etag = store.policy(&project).await.unwrap().unwrap().etag;
        let bind = |role: Role, member: &str| Binding::new(role, vec![member.parse().unwrap()]);
        let bindings = vec![
            bind(Role::Owner, "user:owner"),
            bind(Role::GatewayAdmin, admin),
            bind(Role::GatewayReader, "user:reader"),
        ];
        store
            .set_policy_of(&(&project).into(), &Policy { etag, bindings })
            .await
            .unwrap();
    }

    /// Makes a service account that may read, and a token with which `user` acts as it.
    pub(crate) async fn acting_as(&self, user: &str, account: &str) -> String {
        let gateway = self.running.gateway();
        let account_id = account.parse().unwrap();
        gateway
            .store
            .create_service_account(&account_id, "", 0)
            .await
            .unwrap();
        self.bind(Role::GatewayReader, &format!("serviceAccount:{account}"))
            .await;
        self.bind(Role::ServiceAccountTokenCreator, &format!("user:{user}"))
            .await;
        let answer = self
            .oauth(
                "token",
                &[
                    (
                        "grant_type",
                        "urn:ietf:params:oauth:grant-type:token-exchange",
                    ),
                    (
                        "subject_token_type",
                        "urn:ietf:params:oauth:token-type:access_token",
                    ),
                    ("subject_token", &self.token(user, None, 600)),
                    ("impersonate_service_account", account),
                ],
            )
            .await;
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// Takes back something on which a token of [`World::acting_as`] for `reader` rests.
    pub(crate) async fn take_back(&self, what: &str, token: &str) {
        let store = &self.running.gateway().store;
        let account = "ci@p".parse().unwrap();
        match what {
            "link" => self.set_policy("serviceAccount:ci@p").await,
            "account" => store
                .set_service_account_disabled(&account, true)
                .await
                .unwrap(),
            "revoked" => store
                .revoke_service_account_tokens(&account, 1)
                .await
                .unwrap(),
            "signed out" => drop(self.oauth("revoke", &[("token", token)]).await),
            "user" => store.set_disabled("reader", true).await.unwrap(),
            other => panic!("{other}"),
        }
    }

    async fn oauth(&self, page: &str, fields: &[(&str, &str)]) -> serde_json::Value {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = Request::post(format!("/oauth2/{page}"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::<Bytes>::from(body))
            .unwrap();
        let client = [192, 0, 2, 1].into();
        let answer = login::serve(self.running.gateway(), client, request).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    async fn bind(&self, role: Role, member: &str) {
        let store = &self.running.gateway().store;
        let project: Project = "p".parse().unwrap();
        let mut policy = store.policy(&project).await.unwrap().unwrap();
        policy
            .bindings
            .push(Binding::new(role, vec![member.parse().unwrap()]));
        store
            .set_policy_of(&(&project).into(), &policy)
            .await
            .unwrap();
    }

    /// Connects an agent's double; returns when its session is up.
    pub(crate) async fn agent<S, F>(&self, serve: S)
    where
        S: Fn(Request<Incoming>, towline_proto::assertion::Grant) -> F + Clone + Send + 'static,
        F: Future<Output = Answer> + Send,
    {
        self.agent_untold(serve).await;
        self.known(1).await;
    }

    /// The same, where the database can't be told of the session.
    pub(crate) async fn agent_untold<S, F>(&self, serve: S)
    where
        S: Fn(Request<Incoming>, towline_proto::assertion::Grant) -> F + Clone + Send + 'static,
        F: Future<Output = Answer> + Send,
    {
        let root = self.running.gateway().keys.root();
        let connected = double::connect(
            self.holder().public_address(),
            &self.agent_key,
            root,
            membership(),
            serve,
        )
        .await;
        bounded(async {
            while self.sessions() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.agents.lock().unwrap().push(connected);
    }

    /// Waits until all replicas can know of so many sessions of the membership, at least.
    pub(crate) async fn known(&self, count: usize) {
        let store = &self.holder().gateway().store;
        bounded(async {
            while store.sessions_of(&membership()).await.unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Whether that is another than callers come to.
    #[allow(dead_code, reason = "not asked in every program that has this module")]
    pub(crate) const fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// The gateway that agents come to.
    pub(crate) fn holder(&self) -> &Running {
        self.elsewhere
            .as_ref()
            .map_or(&self.running, |(running, _)| running)
    }

    /// Cuts the connection of the session that began first.
    #[allow(dead_code, reason = "of several replicas alone")]
    pub(crate) fn cut_first(&self) {
        self.agents.lock().unwrap().remove(0);
    }

    /// Cuts every agent's connection.
    pub(crate) fn cut_agents(&self) {
        self.agents.lock().unwrap().clear();
    }

    /// Waits until so many of the membership's sessions are up.
    pub(crate) async fn connected(&self, count: usize) {
        bounded(async {
            while self.sessions() != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Sessions of the membership that are up.
    pub(crate) fn sessions(&self) -> usize {
        self.holder().gateway().tunnels.sessions(&membership())
    }

    /// Bytes that are held for those who don't read.
    pub(crate) fn stalled_bytes(&self) -> u64 {
        self.running.gateway().slow.held()
    }

    /// How many answers were cut.
    pub(crate) fn answers_cut(&self) -> u64 {
        self.running.gateway().slow.cut()
    }

    /// Waits until `count` answers were cut.
    pub(crate) async fn cut(&self, count: u64) {
        bounded(async {
            while self.answers_cut() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(self.answers_cut(), count);
    }

    /// Waits until `count` streams have ended; the latest comes first.
    pub(crate) async fn ended(&self, count: usize) -> Vec<Stream> {
        bounded(async {
            loop {
                let ended = self.running.gateway().live.ended(None);
                if ended.len() >= count {
                    return ended;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Waits until the audit log has so many events; its text, and the events.
    pub(crate) async fn audit(&self, count: usize) -> (String, Vec<serde_json::Value>) {
        let path = self.state.path().join("audit.jsonl");
        bounded(async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap();
                let events: Vec<serde_json::Value> = text
                    .lines()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .collect();
                if events.len() >= count {
                    assert_eq!(events.len(), count, "{text}");
                    return (text, events);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// What a user holds in the project.
    pub(crate) fn in_use(&self, user: &str) -> InUse {
        let principal = Principal::User(user.to_owned());
        let quotas = &self.running.gateway().quotas;
        quotas.in_use(&"p".parse().unwrap(), &principal)
    }

    /// How many streams of a user are noted at other replicas than callers come to.
    #[allow(dead_code, reason = "of several replicas alone")]
    pub(crate) async fn held_elsewhere(&self, user: &str) -> u32 {
        let principal = Principal::User(user.to_owned());
        let gateway = self.running.gateway();
        let project = "p".parse().unwrap();
        let rows = gateway.quotas.rows_of(&project, &principal).await.unwrap();
        let streams = rows.iter().find(|row| row.quota == Quota::ActiveStreams);
        streams.unwrap().in_use.unwrap()
    }

    /// Waits until a user holds nothing, and no stream is left anywhere.
    pub(crate) async fn nothing_held(&self, user: &str, after: &str) {
        let left = || {
            let in_use = self.in_use(user);
            let gateway = self.running.gateway();
            let tunnels = &self.holder().gateway().tunnels;
            let tunnels = tunnels.streams(&membership());
            (
                in_use.streams,
                in_use.watches,
                gateway.live.count(),
                tunnels,
            )
        };
        let gone = async {
            while left() != (0, 0, 0, 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
        assert!(gone.is_ok(), "after {after} there is left: {:?}", left());
    }

    /// Drains the gateway, and hands out what is left of it.
    pub(crate) async fn drain(self) -> Arc<Gateway> {
        let gateway = Arc::clone(self.running.gateway());
        self.running.drain().await;
        gateway
    }

    /// An access token of the gateway's issuer; `seconds` from now it ends.
    pub(crate) fn token(&self, user: &str, membership: Option<&str>, seconds: i64) -> String {
        let gateway = self.running.gateway();
        let base = gateway.config.public_url.as_str().trim_end_matches('/');
        let audience = match membership {
            Some(id) => format!("{base}/v1/projects/p/locations/global/memberships/{id}"),
            None => base.to_owned(),
        };
        let now = Clock::System.unix();
        let claims = json!({
            "iss": format!("{base}/oauth2"), "sub": user, "aud": audience, "client_id": "towline",
            "iat": now - 3600, "exp": now.saturating_add_signed(seconds), "jti": "test",
        });
        gateway.keys.signing().sign(Kind::AccessToken, &claims)
    }

    /// A client with a user's token.
    pub(crate) fn as_user(&self, user: &str) -> Client {
        self.with_token(&self.token(user, None, 600))
    }

    /// The same, of the gateway that agents come to.
    #[allow(dead_code, reason = "of several replicas alone")]
    pub(crate) fn at_holder(&self, user: &str) -> Client {
        Client {
            gateway: self.holder().public_address(),
            ..self.as_user(user)
        }
    }

    /// A client with this token.
    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client {
            gateway: self.running.public_address(),
            authorization: format!("Bearer {token}"),
            http2: Mutex::default(),
            connections: Mutex::default(),
            resets: AtomicBool::new(false),
        }
    }
}

/// Keys of another replica of the same gateway.
fn under_the_root_of(state: &Path, other: &Path) -> Arc<Keys> {
    let (from, to) = (state.join("keys"), other.join("keys"));
    std::fs::create_dir(&to).unwrap();
    for file in ["root.key", "root.pub"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    Keys::create(&to, Clock::System).unwrap().into()
}

fn config(state: &Path, more: &str) -> Config {
    let text = "public_url = 'https://gateway.test'\n\
                listen = '127.0.0.1:0'\n\
                peer_listen = '127.0.0.1:0'\n\
                drain_limit = '5s'\n\
                tls.mode = 'off'\n\
                limits.streams_per_principal = 2\n\
                limits.requests_per_minute_per_principal = 10000000\n\
                limits.requests_per_minute_per_project = 10000000";
    let path = state.join("gateway.toml");
    // Most doubles of agents don't go on with a session that they lost.
    let unless_given = |key: &str, value: &str| {
        if more.contains(key) {
            String::new()
        } else {
            format!("{key} = '{value}'")
        }
    };
    let (grace, delay) = (
        unless_given("session_grace", "1s"),
        unless_given("drain_delay", "0s"),
    );
    File::parse(&path, &format!("{text}\n{grace}\n{delay}\n{more}"))
        .unwrap()
        .check(&path)
        .unwrap()
}

/// The database of this URL.
pub(crate) fn at(url: &str) -> Database {
    Database::parse(url, Path::new("/"), None).unwrap()
}

pub(crate) fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

/// Connections of one caller.
pub(crate) struct Client {
    gateway: SocketAddr,
    authorization: String,
    http2: Mutex<Option<http2::SendRequest<Empty<Bytes>>>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    resets: AtomicBool,
}

impl Client {
    /// One request on an HTTP/1.1 connection of its own.
    pub(crate) async fn http1(&self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.gateway).await.unwrap();
        if self.resets.load(Ordering::Relaxed) {
            let now = Some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(now).unwrap();
        }
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(2000)
            .max_buf_size(2 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = own(async move { drop(connection.with_upgrades().await) });
        self.connections.lock().unwrap().push(connection);
        bounded(sender.send_request(self.authorized(request)))
            .await
            .unwrap()
    }

    /// A request on the caller's one HTTP/2 connection.
    pub(crate) async fn http2(&self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        let open = self.http2.lock().unwrap().clone();
        let mut sender = match open {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.gateway).await.unwrap();
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_connection_window_size(1 << 30)
                    .max_concurrent_reset_streams(100_000)
                    .handshake(TokioIo::new(stream))
                    .await
                    .unwrap();
                let connection = own(async move { drop(connection.await) });
                self.connections.lock().unwrap().push(connection);
                self.http2.lock().unwrap().get_or_insert(sender).clone()
            }
        };
        let mut request = self.authorized(request);
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = format!("http://gateway{}", request.uri()).parse().unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// A POST whose body the test sends, on an HTTP/2 connection of its own.
    pub(crate) async fn upload(
        &self,
        path: &str,
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let stream = TcpStream::connect(self.gateway).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = own(async move { drop(connection.await) });
        self.connections.lock().unwrap().push(connection);
        let uri = format!("http://gateway/v1/{}{path}", membership());
        let mut request = Request::post(uri).body(()).unwrap();
        let authorization = self.authorization.parse().unwrap();
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, authorization);
        sender
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap()
    }

    /// GETs on one HTTP/2 connection whose reader has room for 1 KiB of each answer.
    pub(crate) async fn narrow(
        &self,
    ) -> impl Fn(&str) -> futures_util::future::BoxFuture<'static, h2::RecvStream> + use<> {
        let stream = TcpStream::connect(self.gateway).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (sender, connection) = builder
            .initial_window_size(1024)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(stream)
            .await
            .unwrap();
        let connection = own(async move { drop(connection.await) });
        self.connections.lock().unwrap().push(connection);
        let authorization = self.authorization.clone();
        move |path| {
            let uri = format!("http://gateway/v1/{}{path}", membership());
            let request = Request::get(uri).header(header::AUTHORIZATION, &authorization);
            let request = request.body(()).unwrap();
            let sender = sender.clone();
            Box::pin(async move {
                let mut sender = sender.ready().await.unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                response.await.unwrap().into_body()
            })
        }
    }

    /// An upgraded stream.
    pub(crate) async fn upgrade(&self, request: Request<Empty<Bytes>>) -> TokioIo<Upgraded> {
        let response = self.http1(request).await;
        assert_eq!(response.status(), 101);
        TokioIo::new(hyper::upgrade::on(response).await.unwrap())
    }

    /// Whether HTTP/1.1 connections made from now on end with a reset.
    pub(crate) fn resets(&self, resets: bool) {
        self.resets.store(resets, Ordering::Relaxed);
    }

    /// Drops every connection, as a caller that vanishes does.
    pub(crate) fn forget(&self) {
        drop(self.http2.lock().unwrap().take());
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    fn authorized(&self, mut request: Request<Empty<Bytes>>) -> Request<Empty<Bytes>> {
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.authorization.parse().unwrap());
        headers.insert(header::HOST, "gateway".parse().unwrap());
        request
    }
}
