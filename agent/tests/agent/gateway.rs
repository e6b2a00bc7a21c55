//! A gateway's end of a session.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, request::Builder};
use hyper::{body::Incoming, client::conn::http2::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use towline_agent::{
    body,
    clock::unix_now,
    guard::{AllowedSystem, Guard},
    role::Role,
    serve::{self, Shared},
    upstream::Upstream,
};
use towline_proto::{
    assertion::{GRANT_SECONDS, Grant, Nested, Sealed, SessionKey},
    body::{Channel, Sender, channel},
    handshake::{self, Facts, Opening},
    jws::KeyPair,
    keys::{self, Chain, Use},
    names::Membership,
    tunnel, wire,
};

use crate::apiserver::Body;

pub(crate) fn membership() -> Membership {
    "projects/p/locations/global/memberships/m".parse().unwrap()
}

/// Root, signing key and the chain between them.
pub(crate) struct Keys {
    pub(crate) root: KeyPair,
    pub(crate) signing: KeyPair,
    pub(crate) chain: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let [root, issuing, signing] = [0; 3].map(|_| KeyPair::generate().unwrap());
        let now = unix_now();
        let chain = Chain::new(
            keys::certify(&root, issuing.public(), Use::Issuing, now),
            keys::certify(&issuing, signing.public(), Use::Signing, now),
        );
        Self {
            root,
            signing,
            chain: chain.to_header(),
        }
    }
}

/// Makes requests in a session.
pub(crate) struct Gateway {
    sender: SendRequest<Body>,
    key: SessionKey,
    named: Grant,
    grant: String,
    pub(crate) over: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Gateway {
    /// A session with a served `upstream` at its other end.
    pub(crate) async fn open(upstream: Arc<Upstream>) -> Self {
        Self::open_as(upstream, vec!["dev".into()]).await
    }

    pub(crate) async fn open_as(upstream: Arc<Upstream>, groups: Vec<String>) -> Self {
        Self::open_at(&membership(), upstream, &Keys::new(), groups).await
    }

    /// With an agent whose role is known.
    pub(crate) async fn open_under(
        upstream: Arc<Upstream>,
        role: Role,
        groups: Vec<String>,
    ) -> Self {
        Self::serve(
            &membership(),
            upstream,
            Arc::new(role),
            &Keys::new(),
            groups,
        )
        .await
    }

    /// A session of one of a gateway's memberships.
    pub(crate) async fn open_at(
        membership: &Membership,
        upstream: Arc<Upstream>,
        keys: &Keys,
        groups: Vec<String>,
    ) -> Self {
        Self::serve(membership, upstream, Arc::default(), keys, groups).await
    }

    async fn serve(
        membership: &Membership,
        upstream: Arc<Upstream>,
        role: Arc<Role>,
        keys: &Keys,
        groups: Vec<String>,
    ) -> Self {
        let agent = KeyPair::generate().unwrap();
        let now = unix_now();
        let opening = Opening::new(
            &agent,
            membership.clone(),
            keys.root.public(),
            &Facts::default(),
            now,
        )
        .unwrap();
        let hello =
            handshake::verify_hello(agent.public(), keys.root.public(), opening.hello(), now)
                .unwrap();
        let accepted = handshake::accept(
            &keys.signing,
            opening.hello(),
            &hello,
            &handshake::Here::default(),
            now,
        )
        .unwrap();
        let opened = opening
            .finish(keys.root.public(), &keys.chain, &accepted.proof, now)
            .unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let over = CancellationToken::new();
        let shared = Arc::new(Shared {
            guard: Guard::new(
                opened,
                membership.clone(),
                Arc::new(AllowedSystem::default()),
                None,
            ),
            upstream,
            role,
            reviews: Arc::default(),
            streams: Arc::new(Semaphore::new(serve::MAX_STREAMS)),
            joins: TaskTracker::new(),
            over: over.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(serve::request(&shared, request).await) }
            });
            drop(
                tunnel::server()
                    .serve_connection(TokioIo::new(far), service)
                    .await,
            );
        });
        let mut gateway =
            Self::over(near, &keys.signing, accepted.session, accepted.key, groups).await;
        gateway.regrant(&keys.signing, |grant| {
            grant.membership.clone_from(membership)
        });
        gateway
            ._tasks
            .spawn(async move { while tasks.join_next().await.is_some() {} });
        gateway.over = over;
        gateway
    }

    /// Over a connection on which the handshake is done.
    pub(crate) async fn over(
        connection: impl towline_proto::session::Connection,
        signing: &KeyPair,
        session: String,
        key: SessionKey,
        groups: Vec<String>,
    ) -> Self {
        let (sender, connection) = tunnel::client()
            .handshake(TokioIo::new(connection))
            .await
            .unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let now = unix_now();
        let grant = Grant {
            membership: membership(),
            session,
            principal: "user:alice".into(),
            user: "alice".into(),
            uid: None,
            groups,
            extra: std::collections::BTreeMap::new(),
            iat: now,
            exp: now + GRANT_SECONDS,
        };
        let signed = grant.sign(signing);
        Self {
            sender,
            key,
            named: grant,
            grant: signed,
            over: CancellationToken::new(),
            _tasks: tasks,
        }
    }

    /// Names others from now on.
    pub(crate) fn regrant(&mut self, signing: &KeyPair, change: impl FnOnce(&mut Grant)) {
        change(&mut self.named);
        self.grant = self.named.sign(signing);
    }

    /// A sealed request.
    pub(crate) fn request(&self, method: &str, path: &str, upgrade: &str) -> Builder {
        self.sealed(method, path, upgrade, "")
    }

    /// A sealed GET whose caller asks to be somebody else.
    pub(crate) fn asking(&self, path: &str, nested: &Nested) -> Builder {
        let nested = nested.to_header();
        let builder = self.sealed("GET", path, "", &nested);
        builder.header(wire::NESTED, nested)
    }

    fn sealed(&self, method: &str, path: &str, upgrade: &str, nested: &str) -> Builder {
        let sealed = Sealed {
            grant: &self.grant,
            request_id: "r-1",
            method,
            upgrade,
            path,
            nested,
        };
        let (sequence, mac) = self.key.seal(&sealed);
        let mut builder = Request::builder()
            .method(method)
            .uri(format!("https://m{path}"))
            .header(wire::GRANT, &self.grant)
            .header(wire::REQUEST_ID, "r-1")
            .header(wire::SEQUENCE, sequence)
            .header(wire::MAC, mac);
        if !upgrade.is_empty() {
            builder = builder
                .method("POST")
                .header(wire::METHOD, method)
                .header(wire::UPGRADE, upgrade);
        }
        builder
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let answer = self.sender.clone().send_request(request);
        tokio::time::timeout(std::time::Duration::from_secs(120), answer)
            .await
            .expect("no answer")
    }

    pub(crate) async fn get(&self, path: &str) -> hyper::Result<Response<Incoming>> {
        self.send(self.request("GET", path, "").body(body::empty()).unwrap())
            .await
    }

    /// A request whose body is told piece by piece.
    pub(crate) fn streaming(request: Builder) -> (Sender, Request<Body>) {
        let (sender, body): (Sender, Channel) = channel();
        let body = http_body_util::BodyExt::boxed_unsync(body);
        (sender, request.body(body).unwrap())
    }
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let bytes: Bytes = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
