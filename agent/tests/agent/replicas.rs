//! Sessions to several replicas behind one address, and replicas that go.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::Notify, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use towline_agent::{
    clock::unix_now,
    cluster::Cluster,
    config,
    dial::{Dialer, proxy::Proxies},
    open::Opener,
    sessions::{self, Parts},
    state::State,
};
use towline_proto::{
    handshake::{self, Confirmation, Hello, Here, ResumptionKey},
    jws::KeyPair,
    registration::Registration,
    session::{Handle, Notice, Session},
};

use crate::{
    apiserver::ApiServer,
    dialing::certificate,
    eventually,
    gateway::{Gateway, Keys, membership, text},
};

/// Replicas that share an address, and which of them the next connection comes to.
struct Replicas {
    keys: Keys,
    agent: KeyPair,
    all: Mutex<Vec<Arc<Replica>>>,
    /// How many each says that there are.
    told: AtomicUsize,
    next: AtomicUsize,
    hellos: AtomicUsize,
    /// They don't know yet that those who are gone are.
    unaware: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

struct Replica {
    name: String,
    leaving: AtomicUsize,
    sessions: Mutex<Vec<Held>>,
}

/// A session, as its replica has it.
struct Held {
    handle: Handle,
    secret: ResumptionKey,
    /// Makes requests in it.
    gateway: Option<Gateway>,
}

impl Replica {
    fn handles(&self) -> Vec<Handle> {
        let sessions = self.sessions.lock().unwrap();
        sessions
            .iter()
            .map(|held| held.handle.clone())
            .filter(|handle| handle.is_up())
            .collect()
    }

    /// Whether the agent has said on all of its sessions that it has another.
    fn answered(&self) -> bool {
        let sessions = self.sessions.lock().unwrap();
        sessions
            .iter()
            .all(|held| held.handle.told().borrow().leaving)
    }

    fn take(&self) -> Gateway {
        self.sessions.lock().unwrap()[0].gateway.take().unwrap()
    }

    /// Ends its sessions, as it does when it has drained.
    fn end(&self) {
        self.sessions.lock().unwrap().clear();
    }

    /// Its process is gone, without a word.
    fn die(&self) {
        for held in self.sessions.lock().unwrap().drain(..) {
            held.handle.end("it died");
        }
    }
}

impl Replicas {
    fn add(&self, name: &str) -> Arc<Replica> {
        let replica = Arc::new(Replica {
            name: name.to_owned(),
            leaving: AtomicUsize::new(0),
            sessions: Mutex::default(),
        });
        self.all.lock().unwrap().push(Arc::clone(&replica));
        replica
    }

    /// What every replica says from now on.
    fn tell(&self, count: usize) {
        self.told.store(count, Ordering::SeqCst);
        for replica in &*self.all.lock().unwrap() {
            for handle in replica.handles() {
                handle.tell(self.notice(replica));
            }
        }
    }

    fn notice(&self, replica: &Replica) -> Notice {
        Notice {
            leaving: replica.leaving.load(Ordering::SeqCst) > 0,
            replicas: u32::try_from(self.told.load(Ordering::SeqCst)).unwrap(),
        }
    }

    fn leave(&self, replica: &Replica) {
        replica.leaving.store(1, Ordering::SeqCst);
        for handle in replica.handles() {
            handle.tell(self.notice(replica));
        }
    }

    fn remove(&self, replica: &Replica) {
        let mut all = self.all.lock().unwrap();
        all.retain(|other| other.name != replica.name);
    }

    fn named(&self, name: &str) -> Arc<Replica> {
        let all = self.all.lock().unwrap();
        Arc::clone(all.iter().find(|replica| replica.name == name).unwrap())
    }

    fn with_sessions(&self) -> Vec<String> {
        let all = self.all.lock().unwrap();
        let held = all.iter().filter(|replica| !replica.handles().is_empty());
        held.map(|replica| replica.name.clone()).collect()
    }

    /// Which replica a connection comes to, by turns.
    fn balanced(&self) -> Arc<Replica> {
        let all = self.all.lock().unwrap();
        let turn = self.next.fetch_add(1, Ordering::SeqCst);
        Arc::clone(&all[turn % all.len()])
    }

    fn answer(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let replica = self.balanced();
        self.hellos.fetch_add(1, Ordering::SeqCst);
        let statement = request.headers()[handshake::HELLO]
            .to_str()
            .unwrap()
            .to_owned();
        let (agent, root, now) = (self.agent.public(), self.keys.root.public(), unix_now());
        let hello = handshake::verify_hello(agent, root, &statement, now).unwrap();
        if hello.avoid.contains(&replica.name) {
            return refused(StatusCode::MISDIRECTED_REQUEST);
        }
        if hello.resume.is_some() {
            return self.go_on(request, &statement, &hello);
        }
        if replica.leaving.load(Ordering::SeqCst) > 0 {
            return refused(StatusCode::SERVICE_UNAVAILABLE);
        }
        let here = Here {
            replica: &replica.name,
            replicas: u32::try_from(self.told.load(Ordering::SeqCst)).unwrap(),
            ..Here::default()
        };
        let accepted =
            handshake::accept(&self.keys.signing, &statement, &hello, &here, now).unwrap();
        let proof = accepted.proof.clone();
        let replicas = Arc::clone(self);
        let begin = async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let mut connection = TokioIo::new(upgraded);
            let mut said = [0; Confirmation::LENGTH];
            connection.read_exact(&mut said).await.unwrap();
            accepted.confirmation.check(&said).unwrap();
            let session = Session::new(accepted.session.clone(), connection);
            let handle = session.handle();
            handle.tell(replicas.notice(&replica));
            let gateway = Gateway::over(
                session,
                &replicas.keys.signing,
                accepted.session,
                accepted.key,
                vec!["dev".into()],
            )
            .await;
            replica.sessions.lock().unwrap().push(Held {
                handle,
                secret: accepted.resumption,
                gateway: Some(gateway),
            });
        };
        self.tasks.lock().unwrap().spawn(begin);
        self.switched(&proof)
    }

    /// Whoever holds a session goes on with it.
    fn go_on(
        &self,
        mut request: Request<Incoming>,
        statement: &str,
        hello: &Hello,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let resume = hello.resume.as_ref().unwrap();
        for replica in &*self.all.lock().unwrap() {
            for held in &*replica.sessions.lock().unwrap() {
                if held.handle.id() != resume.session {
                    continue;
                }
                handshake::verify_resume(hello, resume, &held.secret).unwrap();
                let Ok(position) = held.handle.fence(resume.generation) else {
                    return refused(StatusCode::GONE);
                };
                let (signing, here) = (&self.keys.signing, Here::default());
                let proof = handshake::resume(
                    signing,
                    statement,
                    hello,
                    resume,
                    &held.secret,
                    &here,
                    (position, unix_now()),
                );
                let (handle, theirs, generation) =
                    (held.handle.clone(), resume.position, resume.generation);
                self.tasks.lock().unwrap().spawn(async move {
                    let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
                    handle
                        .attach(generation, TokioIo::new(upgraded), theirs)
                        .unwrap();
                });
                return self.switched(&proof);
            }
        }
        refused(if self.unaware.load(Ordering::SeqCst) {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::GONE
        })
    }

    fn switched(&self, proof: &str) -> Response<BoxBody<Bytes, Infallible>> {
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, handshake::PROTOCOL)
            .header(handshake::CHAIN, &self.keys.chain)
            .header(handshake::PROOF, proof)
            .body(Empty::new().boxed())
            .unwrap()
    }
}

fn refused(status: StatusCode) -> Response<BoxBody<Bytes, Infallible>> {
    Response::builder()
        .status(status)
        .header("towline-gateway", "1")
        .body(Full::from("refused").boxed())
        .unwrap()
}

/// An agent, its cluster, and replicas that it can dial.
struct World {
    replicas: Arc<Replicas>,
    state: Arc<State>,
    shutdown: CancellationToken,
    agent: JoinSet<()>,
    _listening: JoinSet<()>,
    _api_server: ApiServer,
}

impl World {
    /// With replicas of these names.
    async fn start(names: &[&str]) -> Self {
        let replicas = Arc::new(Replicas {
            keys: Keys::new(),
            agent: KeyPair::generate().unwrap(),
            all: Mutex::default(),
            told: AtomicUsize::new(names.len()),
            next: AtomicUsize::new(0),
            hellos: AtomicUsize::new(0),
            unaware: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        for name in names {
            replicas.add(name);
        }
        let (ca, acceptor) = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, acceptor, Arc::clone(&replicas)));
        let api_server = ApiServer::start().await;
        let parts = parts(&replicas, address, ca, &api_server).await;
        let (state, shutdown) = (Arc::clone(&parts.state), CancellationToken::new());
        let mut agent = JoinSet::new();
        agent.spawn(sessions::keep(Arc::new(parts), false, shutdown.clone()));
        Self {
            replicas,
            state,
            shutdown,
            agent,
            _listening: listening,
            _api_server: api_server,
        }
    }

    async fn sessions_with(&self, names: &[&str]) {
        let what = format!("sessions with {names:?}");
        eventually(&what, async || {
            let mut with = self.replicas.with_sessions();
            with.sort();
            with == names
        })
        .await;
    }
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor, replicas: Arc<Replicas>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, replicas) = (acceptor.clone(), Arc::clone(&replicas));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                let answer = replicas.answer(request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.with_upgrades().await);
        });
    }
}

async fn parts(
    replicas: &Replicas,
    address: SocketAddr,
    ca: String,
    api_server: &ApiServer,
) -> Parts {
    let gateway = config::Gateway {
        host: "127.0.0.1".into(),
        port: address.port(),
    };
    let dialer = Dialer::new(gateway, Some(&ca), Proxies::default()).unwrap();
    let key = KeyPair::from_pkcs8(replicas.agent.to_pkcs8()).unwrap();
    let root = replicas.keys.root.public();
    let upstream = api_server.upstream().await;
    Parts {
        opener: Opener::new(dialer, key, membership(), root),
        registration: Registration {
            gateway: format!("https://{address}"),
            certificate_authority: Some(ca),
            root_key: root,
            membership: membership(),
            token: None,
            expires: None,
        },
        cluster: Cluster::new(api_server.config()).unwrap(),
        role: Arc::default(),
        reviews: Arc::default(),
        state: Arc::new(State::new(Arc::clone(&upstream))),
        upstream,
        allowed: Arc::default(),
        end_to_end: None,
        drain_limit: Duration::from_secs(5),
        news: Notify::new(),
    }
}

#[tokio::test]
async fn two_sessions_where_there_are_several_replicas_and_one_where_there_is_one() {
    let world = World::start(&["a"]).await;
    world.sessions_with(&["a"]).await;
    assert_eq!(world.state.wanted(), 1);
    // Two more come up.
    world.replicas.add("b");
    world.replicas.add("c");
    world.replicas.tell(3);
    eventually("two sessions", async || {
        world.replicas.with_sessions().len() == 2
    })
    .await;
    assert_eq!((world.state.wanted(), world.state.sessions()), (2, 2));
    // Told that there is one, it keeps what it has and wants no other.
    world.replicas.tell(1);
    eventually("one is enough", async || world.state.wanted() == 1).await;
    let lost = world.replicas.named(&world.replicas.with_sessions()[1]);
    let hellos = world.replicas.hellos.load(Ordering::SeqCst);
    world.replicas.remove(&lost);
    lost.die();
    eventually("it is gone", async || world.state.sessions() == 1).await;
    // The one that asked whether it can go on.
    assert!(world.replicas.hellos.load(Ordering::SeqCst) <= hellos + 1);
}

#[tokio::test]
async fn a_replica_that_goes_keeps_its_streams_and_new_ones_come_elsewhere() {
    let world = World::start(&["a"]).await;
    world.sessions_with(&["a"]).await;
    let a = world.replicas.named("a");
    let of_a = a.take();
    let (upload, request) = Gateway::streaming(of_a.request("POST", "/upload", ""));
    let mut answer = pin!(of_a.send(request));
    let before = upload.send(Bytes::from_static(b"before "));
    tokio::select! {
        _ = answer.as_mut() => unreachable!("it is not all there"),
        sent = before => sent.unwrap(),
    }

    world.replicas.leave(&a);
    // Nobody else is there yet, and it goes on serving.
    eventually("it looks for another", async || {
        world.state.leaving() == 1 && world.replicas.hellos.load(Ordering::SeqCst) > 2
    })
    .await;
    assert!(!a.answered());
    assert_eq!(of_a.get("/api").await.unwrap().status(), StatusCode::OK);
    world.replicas.add("b");
    world.sessions_with(&["a", "b"]).await;
    eventually("it says so", async || a.answered()).await;
    let b = world.replicas.named("b");
    assert!(!b.answered());
    assert_eq!(b.take().get("/api").await.unwrap().status(), StatusCode::OK);

    // What runs on the old one goes on to its end.
    upload.send(Bytes::from_static(b"and after")).await.unwrap();
    upload.finish();
    assert_eq!(text(answer.await.unwrap()).await, "16");
    world.replicas.remove(&a);
    a.die();
    eventually("the old one is over", async || {
        (world.state.sessions(), world.state.leaving()) == (1, 0)
    })
    .await;
    assert!(world.state.ready());
}

#[tokio::test]
async fn a_replica_that_says_that_it_goes_and_dies_is_left_for_another() {
    let world = World::start(&["a", "b"]).await;
    world.sessions_with(&["a", "b"]).await;
    let (a, b) = (world.replicas.named("a"), world.replicas.named("b"));
    world.replicas.add("c");
    // Both at once, and one of them dies while the other is left for the third.
    world.replicas.leave(&a);
    world.replicas.leave(&b);
    world.replicas.remove(&a);
    a.die();
    eventually("the third serves", async || {
        world.replicas.with_sessions().contains(&"c".to_owned()) && b.answered()
    })
    .await;
    world.replicas.remove(&b);
    b.die();
    world.replicas.add("d");
    world.sessions_with(&["c", "d"]).await;
    eventually("nothing is left of the first two", async || {
        (world.state.sessions(), world.state.leaving()) == (2, 0)
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_dies_is_not_waited_for_until_the_others_miss_it() {
    let world = World::start(&["a"]).await;
    world.replicas.tell(2);
    world.sessions_with(&["a"]).await;
    eventually("it has looked for another often enough", async || {
        world.replicas.hellos.load(Ordering::SeqCst) > 8
    })
    .await;
    let a = world.replicas.named("a");
    world.replicas.unaware.store(true, Ordering::SeqCst);
    world.replicas.add("b");
    world.replicas.remove(&a);
    a.die();
    world.sessions_with(&["b"]).await;
}

#[tokio::test]
async fn a_hundred_drains_leave_no_more_than_a_few_sessions() {
    let mut world = World::start(&["0"]).await;
    world.sessions_with(&["0"]).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();
    let mut drained = Vec::new();
    for round in 0..100 {
        let old = world.replicas.named(&round.to_string());
        let new = world.replicas.add(&(round + 1).to_string());
        world.replicas.remove(&old);
        world.replicas.leave(&old);
        eventually("the next serves", async || !new.handles().is_empty()).await;
        // It never ends its sessions: its streams go on.
        drained.push(old);
        eventually("only so many are kept", async || {
            world.state.sessions() <= 16
        })
        .await;
    }
    let kept = drained.iter().filter(|old| !old.handles().is_empty());
    assert!(kept.count() >= 10, "the latest go on");
    for old in drained {
        old.end();
    }
    eventually("one session is left", async || {
        (world.state.sessions(), world.state.leaving()) == (1, 0)
    })
    .await;
    // Both ends' tasks, and connections that are kept for the next question to the API server.
    eventually("tasks are as many as before", async || {
        metrics.num_alive_tasks() <= tasks + 5
    })
    .await;
    world.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), world.agent.join_next());
    assert!(ended.await.unwrap().is_some());
    assert_eq!(world.state.sessions(), 0);
}
