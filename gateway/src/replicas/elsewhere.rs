//! A session that another replica holds, and the way of requests and connections to it.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, copy_buf, split},
    time::timeout,
};
use towline_proto::{endpoint, names::Membership};

use super::{NOT_HERE, OF_CLIENT, OF_MEMBERSHIP, OF_SESSION, Replicas, peers::Peer};
use crate::{
    app::Gateway,
    authn::Identity,
    clock::Clock,
    keys::Keys,
    request::Body,
    store::SessionRow,
    tunnels::{Answered, Grants, Message, Unanswered},
};

/// How long a replica may take to answer an agent that is passed on to it.
const ANSWER: Duration = Duration::from_secs(10);

/// How long an agent waits for the database's answer who lives.
const READ: Duration = Duration::from_millis(1500);

/// Where the replica is that holds a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// At this address, as far as is known.
    At(String),
    /// It lives, or may live, and can't be reached just now.
    Unreached,
    /// There is no such replica, and so no such session.
    Gone,
}

/// The longest refusal that is passed back to an agent, in bytes.
const MAX_REFUSAL: usize = 64 * 1024;

/// What is carried at a time, each way, in bytes.
const BUFFER: usize = 64 * 1024;

/// A session of another replica's.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    membership: Membership,
    session: SessionRow,
    grants: Grants,
}

impl Elsewhere {
    pub(super) fn new(
        membership: Membership,
        session: SessionRow,
        keys: Arc<Keys>,
        clock: Clock,
    ) -> Self {
        Self {
            grants: Grants::new(membership.clone(), session.id.clone(), None, keys, clock),
            membership,
            session,
        }
    }

    pub(super) fn is(&self, row: &SessionRow) -> bool {
        self.session == *row
    }

    /// Whether it takes requests, as far as is known.
    pub(crate) const fn is_up(&self) -> bool {
        self.session.up
    }

    /// Sends an authorized request, in its caller's name, to the replica that holds the session, and waits for the
    /// answer's head.
    ///
    /// # Errors
    /// 503: replica or session are gone, or going.
    pub(crate) async fn send(
        &self,
        replicas: &Replicas,
        peer: &Arc<Peer>,
        mut message: Message,
        identity: &Arc<Identity>,
    ) -> Result<Answered, Unanswered> {
        message.grant(self.grants.of(identity)?);
        message.address(OF_SESSION, &self.session.id)?;
        message.address(OF_MEMBERSHIP, &self.membership.to_string())?;
        let answered = message.send(&peer.requests, &peer.closed).await;
        if matches!(answered, Err(Unanswered::NotTaken)) {
            // The replica is going.
            replicas.peers.done_with(&self.session.replica, peer).await;
        }
        let answered = answered?;
        if answered.response.headers().contains_key(NOT_HERE) {
            replicas.directory.doubt(&self.membership, &self.session.id);
            return Err(Unanswered::NotTaken);
        }
        replicas.requests_passed_on.fetch_add(1, Ordering::Relaxed);
        Ok(answered)
    }
}

impl Replicas {
    /// A membership's sessions at others that can be reached, the ones with a connection; and whether there are others
    /// that may yet get one.
    pub(crate) async fn sessions(&self, membership: &Membership) -> (Vec<Arc<Elsewhere>>, bool) {
        let all = self.directory.sessions(membership).await;
        let any = !all.is_empty();
        let up = all.into_iter().filter(|known| {
            let session = &known.session;
            known.is_up()
                && !self.directory.is_doubted(membership, &session.id)
                && self.address_of(&session.replica).is_some()
        });
        (up.collect(), any)
    }

    /// The way to the replica that holds a session; `None` if it isn't reached, which is remembered.
    pub(crate) async fn way(&self, to: &Elsewhere) -> Option<Arc<Peer>> {
        let replica = &to.session.replica;
        let address = self.address_of(replica)?;
        match self.peers.peer(replica, &address).await {
            Ok(peer) => {
                self.reached(replica);
                Some(peer)
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "not passed on");
                self.unreached(replica);
                None
            }
        }
    }

    /// Where another replica is that holds a session, as its agent says.
    pub(crate) async fn holder(&self, replica: &str) -> Holder {
        let known = |this: &Self| match this.lock().get(replica) {
            Some(other) if other.address.is_empty() => Some(Holder::Unreached),
            Some(other) if other.is_reached() => Some(Holder::At(other.address.clone())),
            Some(other) if other.is_live() => Some(Holder::Unreached),
            Some(_) | None => None,
        };
        if replica == self.id || !self.store.is_shared() {
            return Holder::Gone;
        }
        if let Some(holder) = known(self) {
            return holder;
        }
        // One that has only just begun, or one that is gone.
        match timeout(READ, self.store.replicas()).await {
            Ok(Ok(rows)) => match rows.into_iter().find(|row| row.id == replica) {
                Some(row) if !row.address.is_empty() => Holder::At(row.address),
                Some(_) => Holder::Unreached,
                None => Holder::Gone,
            },
            Ok(Err(_)) | Err(_) => Holder::Unreached,
        }
    }
}

/// Passes an agent's connection on to the replica that holds its session.
///
/// # Errors
/// That replica isn't reached, or doesn't answer.
pub(crate) async fn pass_on(
    gateway: &Arc<Gateway>,
    client: IpAddr,
    request: Request<Incoming>,
    (replica, address): (String, String),
) -> Result<Response<Body>, String> {
    let unreached = |error: &dyn std::error::Error| {
        gateway.replicas.unreached(&replica);
        format!("the replica that holds the session is not reached: {error}")
    };
    let stream = gateway.replicas.peers.connection(&replica, &address).await;
    let stream = stream.map_err(|error| unreached(&error))?;
    let (mut head, _) = request.into_parts();
    let near = head.extensions.remove::<OnUpgrade>();
    let mut on = Request::get(endpoint::AGENT_CONNECT);
    if let Some(headers) = on.headers_mut() {
        *headers = head.headers;
        headers.insert(header::HOST, HeaderValue::from_static("replica"));
        if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
            headers.insert(HeaderName::from_static(OF_CLIENT), client);
        }
    }
    let on = on
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        gateway.peers.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an agent's way through this replica ended");
            }
        });
        sender.send_request(on).await
    };
    let mut answer = timeout(ANSWER, asked)
        .await
        .map_err(|_| "the replica that holds the session does not answer".to_owned())?
        .map_err(|error| unreached(&error))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_REFUSAL).collect().await;
        let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        let body = Full::new(body).map_err(|never| match never {});
        return Ok(Response::from_parts(head, body.boxed_unsync()));
    }
    let passed_on = &gateway.replicas.connections_passed_on;
    passed_on.fetch_add(1, Ordering::Relaxed);
    let far = hyper::upgrade::on(&mut answer);
    let near = near.ok_or_else(|| "the connection can't be switched".to_owned())?;
    let drain = gateway.drain.clone();
    gateway.peers.spawn(async move {
        let carry = async {
            let (near, far) = tokio::try_join!(near, far)?;
            let (near_in, near_out) = split(TokioIo::new(near));
            let (far_in, far_out) = split(TokioIo::new(far));
            // A session's connection is done with when either end is.
            tokio::select! {
                () = copy(near_in, far_out) => {}
                () = copy(far_in, near_out) => {}
            }
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            // The session goes on over another connection, through a replica that stays.
            () = drain.cancelled() => {}
            carried = carry => if let Err(error) = carried {
                tracing::debug!(%error, "an agent's connection could not be passed on");
            }
        }
    });
    let (head, _) = answer.into_parts();
    let nothing = Empty::new().map_err(|never| match never {});
    Ok(Response::from_parts(head, nothing.boxed_unsync()))
}

/// Copies until either end is done.
async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut from = BufReader::with_capacity(BUFFER, from);
    if let Err(error) = copy_buf(&mut from, &mut to).await {
        tracing::debug!(%error, "an agent's connection that was passed on broke");
    }
}
