//! A double of an agent: a real session, verified as an agent verifies it, with answers from the test.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::{Mutex, Notify, mpsc},
    task::JoinHandle,
};
use towline_proto::{
    assertion::{Grant, Sealed},
    body::Aborted,
    endpoint,
    handshake::{self, Facts, Opened, Opening},
    jws::{KeyPair, PublicKey},
    keys::Chains,
    names::Membership,
    session::Session,
    tunnel, wire,
};

/// An answer's body that breaks.
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// What the double answers.
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Broken>>;

/// A task of the test's; it ends with the test's runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "owned by the test's runtime, which ends with the test"
)]
pub(crate) fn own<F: Future<Output: Send + 'static> + Send + 'static>(
    task: F,
) -> JoinHandle<F::Output> {
    tokio::spawn(task)
}

/// An agent's session; dropping it drops the connection.
pub(crate) struct Connected(JoinHandle<()>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a session and answers with `serve`.
pub(crate) async fn connect<S, F>(
    gateway: SocketAddr,
    key: &KeyPair,
    root: PublicKey,
    membership: Membership,
    serve: S,
) -> Connected
where
    S: Fn(Request<Incoming>, Grant) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send,
{
    let facts = Facts::default();
    let (opened, session) = open(gateway, key, root, &membership, &facts).await;
    answering(Arc::new(opened), session, membership, serve)
}

/// Answers a session's requests with `serve`.
pub(crate) fn answering<S, F>(
    opened: Arc<Opened>,
    session: Session,
    membership: Membership,
    serve: S,
) -> Connected
where
    S: Fn(Request<Incoming>, Grant) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send,
{
    Connected(own(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let grant = verify(&opened, &membership, &request);
            let serve = serve.clone();
            async move { Ok::<_, Aborted>(serve(request, grant).await) }
        });
        drop(
            tunnel::server()
                .serve_connection(TokioIo::new(session), service)
                .await,
        );
    }))
}

/// Opens a session whose bytes are all `serve`'s to write.
pub(crate) async fn connect_raw<F>(
    gateway: SocketAddr,
    key: &KeyPair,
    root: PublicKey,
    membership: Membership,
    serve: impl FnOnce(Session) -> F,
) -> Connected
where
    F: Future<Output = ()> + Send + 'static,
{
    let facts = Facts::default();
    let (_, session) = open(gateway, key, root, &membership, &facts).await;
    Connected(own(serve(session)))
}

/// Opens a session.
pub(crate) async fn open(
    gateway: SocketAddr,
    key: &KeyPair,
    root: PublicKey,
    membership: &Membership,
    facts: &Facts,
) -> (Opened, Session) {
    let now = towline_gateway::clock::Clock::System.unix();
    let opening = Opening::new(key, membership.clone(), root, facts, now).unwrap();
    let (head, mut connection) = switch(gateway, opening.hello()).await.unwrap();
    let [chain, proof] =
        [handshake::CHAIN, handshake::PROOF].map(|name| head[name].to_str().unwrap());
    let opened = opening.finish(root, chain, proof, now).unwrap();
    let confirmation = opened.confirmation.bytes();
    connection.write_all(confirmation).await.unwrap();
    connection.flush().await.unwrap();
    let session = Session::new(opened.session.clone(), connection);
    (opened, session)
}

/// What the gateway answers a hello: 101's headers and the connection, or its refusal.
pub(crate) async fn switch(
    gateway: SocketAddr,
    hello: &str,
) -> Result<(HeaderMap, TokioIo<Upgraded>), (StatusCode, String)> {
    switch_on(TcpStream::connect(gateway).await.unwrap(), hello).await
}

/// The same on a connection that is there.
pub(crate) async fn switch_on(
    stream: TcpStream,
    hello: &str,
) -> Result<(HeaderMap, TokioIo<Upgraded>), (StatusCode, String)> {
    let request = Request::get(endpoint::AGENT_CONNECT)
        .header(header::HOST, "gateway")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, handshake::PROTOCOL)
        .header(handshake::VERSION_HEADER, handshake::VERSION)
        .header(handshake::HELLO, hello)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = own(connection.with_upgrades());
    let response = sender.send_request(request).await.unwrap();
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        return Err((status, String::from_utf8_lossy(&body).into_owned()));
    }
    let headers = response.headers().clone();
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    drop(connection);
    Ok((headers, TokioIo::new(upgraded)))
}

fn verify(opened: &Opened, membership: &Membership, request: &Request<Incoming>) -> Grant {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    };
    let upgrade = header(wire::UPGRADE);
    let sealed = Sealed {
        grant: header(wire::GRANT),
        request_id: header(wire::REQUEST_ID),
        method: if upgrade.is_empty() {
            request.method().as_str()
        } else {
            header(wire::METHOD)
        },
        upgrade,
        path: request.uri().path_and_query().unwrap().as_str(),
        nested: header(wire::NESTED),
    };
    opened
        .key
        .verify(
            &sealed,
            header(wire::SEQUENCE).parse().unwrap(),
            header(wire::MAC),
        )
        .unwrap();
    let now = towline_gateway::clock::Clock::System.unix();
    let signed_by = match header(wire::GRANT_CHAIN) {
        "" => opened.grants,
        chain => Chains::new(opened.root).signing_key(chain, now).unwrap(),
    };
    Grant::verify(sealed.grant, signed_by, membership, &opened.session, now).unwrap()
}

/// Answers 200 to everything and tells what it got.
pub(crate) fn recording() -> (
    impl Fn(Request<Incoming>, Grant) -> std::future::Ready<Answer> + Clone + Send + 'static,
    mpsc::UnboundedReceiver<(Parts, Grant)>,
) {
    let (tell, seen) = mpsc::unbounded_channel();
    let serve = move |request: Request<Incoming>, grant| {
        tell.send((request.into_parts().0, grant)).unwrap();
        std::future::ready(Response::new(
            Empty::new().map_err(|never| match never {}).boxed_unsync(),
        ))
    };
    (serve, seen)
}

/// The events of [`watching`].
pub(crate) struct Events {
    sender: mpsc::Sender<Bytes>,
    closed: Arc<Notify>,
}

impl Events {
    /// One chunk of the watch.
    pub(crate) async fn send(&self, chunk: Bytes) -> Result<(), mpsc::error::SendError<Bytes>> {
        self.sender.send(chunk).await
    }

    /// Resolves when a watch was dropped.
    pub(crate) async fn closed_once(&self) {
        self.closed.notified().await;
    }
}

/// Tells of its end.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A watch gets the events that the test sends; `/api/slow` gets no answer; all else an empty one.
pub(crate) fn watching() -> (
    impl Fn(Request<Incoming>, Grant) -> futures_util::future::BoxFuture<'static, Answer>
    + Clone
    + Send
    + 'static,
    Events,
) {
    let (sender, events) = mpsc::channel(8);
    let closed = Arc::new(Notify::new());
    let events = Arc::new(Mutex::new(events));
    let told = Arc::clone(&closed);
    let serve = move |request: Request<Incoming>,
                      _|
          -> futures_util::future::BoxFuture<'static, Answer> {
        let events = Arc::clone(&events);
        let on_drop = OnDrop(Arc::clone(&told));
        Box::pin(async move {
            if request.uri().path() == "/api/slow" {
                return std::future::pending().await;
            }
            if request.uri().query().is_none() {
                std::mem::forget(on_drop);
                return Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            }
            let chunks =
                futures_util::stream::unfold((events, on_drop), |(events, on_drop)| async move {
                    let chunk = events.lock().await.recv().await?;
                    Some((Ok(Frame::data(chunk)), (events, on_drop)))
                });
            let mut answer = Response::new(StreamBody::new(chunks).boxed_unsync());
            answer
                .headers_mut()
                .insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            answer
        })
    };
    (serve, Events { sender, closed })
}
