//! Out to a gateway: proxies, carriers, refusals, and what comes with the 101.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, ReadHalf, WriteHalf,
    },
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use towline_agent::{
    clock::{GatewayClock, unix_now},
    config::Gateway,
    dial::{DialError, Dialer, proxy::Proxies},
    enrol::{self, RedeemError},
    open::{OpenError, Opener},
};
use towline_proto::{
    api::{RedeemRequest, from_json},
    handshake::{self, Confirmation, Facts, Hello, Here, Opening, Resume, ResumptionKey},
    jws::KeyPair,
    registration::Registration,
    session::{Connection, Handle, Session},
    websocket::{End, WebSocketConnection},
};

use crate::gateway::{Keys, membership};

/// How the gateway's door behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Plain,
    /// Something on the way knows WebSockets only.
    WebSocketOnly,
    /// Something on the way swallows what it doesn't know.
    SilentToPlain,
    /// The gateway's clock is two hours ahead.
    Ahead,
    Refuses,
    /// The answer isn't signed under the pinned root.
    Impostor,
    /// Goes on with the session that it has.
    Resumes,
    /// Doesn't know its session any more.
    Forgets,
    /// Says that it goes on with a session whose secret it doesn't know.
    Pretends,
}

/// A session, as the gateway has it.
type Kept = Arc<Mutex<Option<(Handle, Arc<ResumptionKey>)>>>;

struct Listener {
    address: SocketAddr,
    ca: String,
    keys: Arc<Keys>,
    agent: Arc<KeyPair>,
    hellos: Arc<AtomicUsize>,
    redeemed: Arc<Mutex<Vec<RedeemRequest>>>,
    _tasks: JoinSet<()>,
}

pub(crate) fn certificate() -> (String, TlsAcceptor) {
    let _again = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    (certificate.pem(), TlsAcceptor::from(Arc::new(tls)))
}

impl Listener {
    async fn start(door: Door) -> Self {
        let (ca, acceptor) = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (keys, agent) = (
            Arc::new(Keys::new()),
            Arc::new(KeyPair::generate().unwrap()),
        );
        let hellos = Arc::new(AtomicUsize::new(0));
        let redeemed = Arc::new(Mutex::default());
        let kept = Kept::default();
        let mut tasks = JoinSet::new();
        let shared = (
            Arc::clone(&keys),
            Arc::clone(&agent),
            Arc::clone(&hellos),
            Arc::clone(&redeemed),
        );
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (keys, agent, hellos, redeemed) = shared.clone();
                let kept = Arc::clone(&kept);
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    assert_eq!(
                        stream.get_ref().1.protocol_version(),
                        Some(rustls::ProtocolVersion::TLSv1_3)
                    );
                    answer(door, stream, &keys, &agent, &hellos, &redeemed, &kept).await;
                });
            }
        });
        Self {
            address,
            ca,
            keys,
            agent,
            hellos,
            redeemed,
            _tasks: tasks,
        }
    }

    fn dialer(&self, proxies: Proxies) -> Dialer {
        let gateway = Gateway {
            host: "127.0.0.1".into(),
            port: self.address.port(),
        };
        Dialer::new(gateway, Some(&self.ca), proxies).unwrap()
    }

    fn opener(&self, proxies: Proxies) -> Opener {
        let key = KeyPair::from_pkcs8(self.agent.to_pkcs8()).unwrap();
        Opener::new(
            self.dialer(proxies),
            key,
            membership(),
            self.keys.root.public(),
        )
    }

    fn registration(&self) -> Registration {
        Registration {
            gateway: format!("https://{}", self.address),
            certificate_authority: Some(self.ca.clone()),
            root_key: self.keys.root.public(),
            membership: membership(),
            token: Some("once".into()),
            expires: None,
        }
    }
}

/// One request, by hand: so that what follows the 101 is in the same write.
async fn answer(
    door: Door,
    stream: TlsStream<TcpStream>,
    keys: &Keys,
    agent: &KeyPair,
    hellos: &AtomicUsize,
    redeemed: &Mutex<Vec<RedeemRequest>>,
    kept: &Kept,
) {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap() == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    if head[0].starts_with("POST /towline.v1.Enrolment/Redeem ") {
        let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let request: RedeemRequest = from_json(&body).unwrap();
        let answer = if request.token == "once" {
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()
        } else {
            let body =
                r#"{"code":"unauthenticated","message":"no valid registration token was found"}"#;
            format!(
                "HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        redeemed.lock().unwrap().push(request);
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        return;
    }
    assert_eq!(head[0], "GET /agent/v1/connect HTTP/1.1");
    assert_eq!(header("towline-version").unwrap(), "3");
    hellos.fetch_add(1, Ordering::SeqCst);
    let upgrade = header("upgrade").unwrap();
    let hello = header(handshake::HELLO).unwrap();
    match (door, upgrade.as_str()) {
        (Door::WebSocketOnly, "towline") => {
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nnginx")
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
            return;
        }
        (Door::SilentToPlain, "towline") => return std::future::pending().await,
        (Door::Refuses, _) => {
            let body = r#"{"code":"permission_denied","message":"unknown key"}"#;
            let head = format!(
                "HTTP/1.1 403 Forbidden\r\ntowline-gateway: 1\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream
                .write_all(format!("{head}{body}").as_bytes())
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
            return;
        }
        _ => {}
    }
    let now = if door == Door::Ahead {
        unix_now() + 7200
    } else {
        unix_now()
    };
    let Ok(claims) = handshake::verify_hello(agent.public(), keys.root.public(), &hello, now)
    else {
        let head = format!(
            "HTTP/1.1 401 Unauthorized\r\ntowline-gateway: 1\r\ntowline-time: {now}\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        return;
    };
    if let Some(resume) = &claims.resume {
        return go_on(door, stream, keys, (&hello, &claims, resume), kept).await;
    }
    let other = Keys::new();
    let keys = if door == Door::Impostor { &other } else { keys };
    let accepted =
        handshake::accept(&keys.signing, &hello, &claims, &Here::default(), now).unwrap();
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\ntowline-chain: {}\r\ntowline-proof: {}\r\n",
        keys.chain, accepted.proof
    );
    if upgrade == "websocket" {
        assert_eq!(header("sec-websocket-protocol").unwrap(), "towline");
        let accept = derive_accept_key(header("sec-websocket-key").unwrap().as_bytes());
        head.push_str(&format!(
            "sec-websocket-accept: {accept}\r\nsec-websocket-protocol: towline\r\n"
        ));
    }
    if matches!(door, Door::Resumes | Door::Forgets | Door::Pretends) {
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .await
            .unwrap();
        let mut said = [0; Confirmation::LENGTH];
        stream.read_exact(&mut said).await.unwrap();
        accepted.confirmation.check(&said).unwrap();
        let session = Session::new(accepted.session, stream);
        let secret = Arc::new(accepted.resumption);
        *kept.lock().unwrap() = Some((session.handle(), secret));
        let (mut read, mut write) = tokio::io::split(session);
        drop(tokio::io::copy(&mut read, &mut write).await);
        return;
    }
    // The first bytes of the session come in the same record as the 101.
    let early = data(0, b"early");
    let mut bytes = format!("{head}\r\n").into_bytes();
    if upgrade == "websocket" {
        bytes.extend([0x82, u8::try_from(early.len()).unwrap()]);
    }
    bytes.extend_from_slice(&early);
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    let confirmation = accepted.confirmation;
    if upgrade == "websocket" {
        let connection = WebSocketConnection::new(stream, End::Server).await;
        echo(connection, &confirmation).await;
    } else {
        echo(stream, &confirmation).await;
    }
}

/// Answers who asks to go on with a session.
async fn go_on(
    door: Door,
    mut stream: BufReader<TlsStream<TcpStream>>,
    keys: &Keys,
    (statement, claims, resume): (&str, &Hello, &Resume),
    kept: &Kept,
) {
    let (handle, secret) = kept.lock().unwrap().clone().unwrap();
    if door == Door::Forgets {
        let head = "HTTP/1.1 410 Gone\r\ntowline-gateway: 1\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        return stream.shutdown().await.unwrap();
    }
    handshake::verify_resume(claims, resume, &secret).unwrap();
    assert_eq!(resume.session, handle.id());
    let position = handle.fence(resume.generation).unwrap();
    let mut proof = handshake::resume(
        &keys.signing,
        statement,
        claims,
        resume,
        &secret,
        &Here::default(),
        (position, unix_now()),
    );
    if door == Door::Pretends {
        let agent = KeyPair::generate().unwrap();
        let root = keys.root.public();
        let opening =
            Opening::new(&agent, membership(), root, &Facts::default(), unix_now()).unwrap();
        let hello =
            handshake::verify_hello(agent.public(), root, opening.hello(), unix_now()).unwrap();
        let (signing, here) = (&keys.signing, &Here::default());
        let other = handshake::accept(signing, opening.hello(), &hello, here, unix_now()).unwrap();
        proof = handshake::resume(
            signing,
            statement,
            claims,
            resume,
            &other.resumption,
            here,
            (position, unix_now()),
        );
    }
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: towline\r\ntowline-chain: {}\r\ntowline-proof: {proof}\r\n\r\n",
        keys.chain
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    handle
        .attach(resume.generation, stream, resume.position)
        .unwrap();
}

/// A session's bytes from `place` on, in a frame.
fn data(place: u32, bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    frame.extend(place.to_be_bytes());
    frame.extend(bytes);
    frame
}

/// Sends back the five bytes that come first, after the five that were early.
async fn echo(mut connection: impl Connection, confirmation: &Confirmation) {
    let mut said = [0; Confirmation::LENGTH];
    if connection.read_exact(&mut said).await.is_err() {
        return;
    }
    confirmation.check(&said).unwrap();
    let mut frame = data(0, &[0; 5]);
    if connection.read_exact(&mut frame).await.is_err() {
        return;
    }
    let answer = data(5, &frame[9..]);
    connection.write_all(&answer).await.unwrap();
    connection.flush().await.unwrap();
    // Whoever dialled hangs up.
    let _read = connection.read(&mut frame).await;
}

async fn talks(opener: &Opener) {
    let (_, mut session) = opener.open(&Facts::default(), &[]).await.unwrap();
    session.write_all(b"-echo").await.unwrap();
    session.flush().await.unwrap();
    let mut heard = [0; 10];
    session.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"early-echo");
}

#[tokio::test]
async fn nothing_after_the_101_is_lost() {
    let listener = Listener::start(Door::Plain).await;
    let opener = listener.opener(Proxies::default());
    for _ in 0..20 {
        talks(&opener).await;
    }
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn a_websocket_where_nothing_else_passes_and_it_is_remembered() {
    let listener = Listener::start(Door::WebSocketOnly).await;
    let opener = listener.opener(Proxies::default());
    talks(&opener).await;
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 2);
    talks(&opener).await;
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_websocket_where_a_plain_upgrade_is_swallowed() {
    let listener = Listener::start(Door::SilentToPlain).await;
    talks(&listener.opener(Proxies::default())).await;
}

#[tokio::test]
async fn a_session_goes_on_over_other_connections() {
    let listener = Listener::start(Door::Resumes).await;
    let opener = listener.opener(Proxies::default());
    let facts = Facts::default();
    let (opened, session) = opener.open(&facts, &[]).await.unwrap();
    let handle = session.handle();
    let (mut read, mut write) = tokio::io::split(session);
    let clock = GatewayClock::new(0);
    heard(&mut read, &mut write).await;
    for round in 0..20 {
        // What is under way on the connection is lost with it.
        write.write_all(&[round; 100_000]).await.unwrap();
        opener
            .resume(
                &facts,
                (&handle, &opened.replica),
                &opened.resumption,
                &clock,
            )
            .await
            .unwrap();
        let mut heard = [0; 100_000];
        let flushing = async { write.flush().await.unwrap() };
        let (read, ()) = tokio::join!(read.read_exact(&mut heard), flushing);
        read.unwrap();
        assert!(heard == [round; 100_000], "{round}");
    }
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 21);
    // And goes by what the gateway said last.
    assert!(clock.now().abs_diff(unix_now()) < 60);
}

/// A word there and back: a session over which nothing came ends with its connection.
async fn heard(read: &mut ReadHalf<Session>, write: &mut WriteHalf<Session>) {
    write.write_all(b"heard").await.unwrap();
    write.flush().await.unwrap();
    read.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test]
async fn a_session_that_cannot_go_on_is_over() {
    for (door, says) in [
        (Door::Forgets, "the gateway refuses (410 Gone)"),
        (Door::Pretends, "the gateway's answer does not hold"),
    ] {
        let listener = Listener::start(door).await;
        let opener = listener.opener(Proxies::default());
        let facts = Facts::default();
        let (opened, session) = opener.open(&facts, &[]).await.unwrap();
        let handle = session.handle();
        let (mut read, mut write) = tokio::io::split(session);
        heard(&mut read, &mut write).await;
        let error = opener
            .resume(
                &facts,
                (&handle, &opened.replica),
                &opened.resumption,
                &GatewayClock::new(0),
            )
            .await
            .unwrap_err();
        assert!(error.ends_session(), "{error}");
        assert!(error.to_string().starts_with(says), "{error}");
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_reached_may_be_tried_again() {
    let listener = Listener::start(Door::Resumes).await;
    let opener = listener.opener(Proxies::default());
    let facts = Facts::default();
    let (opened, session) = opener.open(&facts, &[]).await.unwrap();
    let handle = session.handle();
    let (mut read, mut write) = tokio::io::split(session);
    heard(&mut read, &mut write).await;
    drop(listener);
    let error = opener
        .resume(
            &facts,
            (&handle, &opened.replica),
            &opened.resumption,
            &GatewayClock::new(0),
        )
        .await
        .unwrap_err();
    assert!(!error.ends_session(), "{error}");
}

#[tokio::test]
async fn a_clock_that_is_off_costs_one_more_try() {
    let listener = Listener::start(Door::Ahead).await;
    let opener = listener.opener(Proxies::default());
    talks(&opener).await;
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 2);
    // From then on the agent goes by the gateway's.
    talks(&opener).await;
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_refusal_by_the_gateway_is_no_reason_for_a_websocket() {
    let listener = Listener::start(Door::Refuses).await;
    let error = listener
        .opener(Proxies::default())
        .open(&Facts::default(), &[])
        .await
        .unwrap_err();
    assert!(error.refused());
    assert_eq!(
        error.to_string(),
        "the gateway refuses (403 Forbidden): unknown key"
    );
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_root_is_an_impostor() {
    let listener = Listener::start(Door::Impostor).await;
    let error = listener
        .opener(Proxies::default())
        .open(&Facts::default(), &[])
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::Handshake(_)), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let listener = Listener::start(Door::Plain).await;
    let (other, _) = certificate();
    let gateway = Gateway {
        host: "127.0.0.1".into(),
        port: listener.address.port(),
    };
    let dialer = Dialer::new(gateway, Some(&other), Proxies::default()).unwrap();
    let error = dialer.call("/", String::new()).await.map(drop).unwrap_err();
    assert!(matches!(error, DialError::Tls { .. }), "{error}");
    assert_eq!(listener.hellos.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_token_is_redeemed_and_a_used_one_is_said_to_be() {
    let listener = Listener::start(Door::Plain).await;
    let dialer = listener.dialer(Proxies::default());
    enrol::redeem(&dialer, &listener.registration(), &listener.agent)
        .await
        .unwrap();
    let request = listener.redeemed.lock().unwrap()[0].clone();
    assert_eq!(request.public_key, listener.agent.public().as_bytes());
    assert_eq!(
        (request.project.as_str(), request.membership.as_str()),
        ("p", "m")
    );
    let used = Registration {
        token: Some("used".into()),
        ..listener.registration()
    };
    let error = enrol::redeem(&dialer, &used, &listener.agent)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RedeemError::Refused(why, _) if why == "no valid registration token was found"),
        "{error}"
    );
    assert!(!error.is_network());
    let none = Registration {
        token: None,
        ..listener.registration()
    };
    assert!(matches!(
        enrol::redeem(&dialer, &none, &listener.agent).await,
        Err(RedeemError::NoToken)
    ));
}

/// A proxy that wants credentials; over TLS if it has an acceptor.
async fn proxy(
    acceptor: Option<TlsAcceptor>,
) -> (SocketAddr, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
    impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Both for T {}
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, asked) = (acceptor.clone(), Arc::clone(&shared));
            connections.spawn(async move {
                let stream: Box<dyn Both> = match acceptor {
                    Some(acceptor) => Box::new(acceptor.accept(stream).await.unwrap()),
                    None => Box::new(stream),
                };
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert_ne!(stream.read_line(&mut head).await.unwrap(), 0);
                }
                asked.lock().unwrap().push(head.clone());
                let credentials = format!("Basic {}", BASE64.encode("us@er:pass"));
                if !head.to_lowercase().contains(&format!(
                    "proxy-authorization: {}",
                    credentials.to_lowercase()
                )) {
                    let answer =
                        b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    stream.shutdown().await.unwrap();
                    return;
                }
                let target = head.split(' ').nth(1).unwrap();
                let mut upstream = TcpStream::connect(target).await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await
                    .unwrap();
                drop(tokio::io::copy_bidirectional(&mut stream, &mut upstream).await);
            });
        }
    });
    (address, asked, tasks)
}

fn through(url: &str, direct: &[&str]) -> Proxies {
    Proxies {
        https: Some(url.parse().unwrap()),
        direct: direct.iter().map(|rule| (*rule).to_owned()).collect(),
    }
}

#[tokio::test]
async fn through_a_proxy_with_credentials() {
    let listener = Listener::start(Door::Plain).await;
    let (address, asked, _tasks) = proxy(None).await;
    let url = format!("http://us%40er:pass@{address}");
    talks(&listener.opener(through(&url, &[]))).await;
    assert!(
        asked.lock().unwrap()[0].starts_with(&format!("CONNECT {} HTTP/1.1\r\n", listener.address))
    );
    // And past it where NO_PROXY says so.
    talks(&listener.opener(through(&url, &["127.0.0.0/8"]))).await;
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn through_a_proxy_over_tls() {
    let mut listener = Listener::start(Door::WebSocketOnly).await;
    let (ca, acceptor) = certificate();
    listener.ca.push_str(&ca);
    let (address, asked, _tasks) = proxy(Some(acceptor)).await;
    talks(&listener.opener(through(&format!("https://us%40er:pass@{address}"), &[]))).await;
    assert_eq!(asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_without_its_password() {
    let listener = Listener::start(Door::Plain).await;
    let (address, _, _tasks) = proxy(None).await;
    let opener = listener.opener(through(&format!("http://us%40er:wrong@{address}"), &[]));
    let error =
        towline_agent::upstream::chain(&opener.open(&Facts::default(), &[]).await.unwrap_err());
    assert!(
        error.contains(&format!(
            "proxy http://{address}: the proxy refuses to connect: 407"
        )),
        "{error}"
    );
    assert!(!error.contains("wrong"));
}
