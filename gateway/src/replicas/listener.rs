//! The peer listener: requests for sessions that are held here, and connections of agents whose sessions are.

use std::{convert::Infallible, io, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use towline_proto::{endpoint, keys::Chains, tunnel};

use super::{OF_CLIENT, ask, identity::Identity, passed, peers};
use crate::{agents, app::Gateway, request::Body};

/// How long a handshake may take.
const TLS_LIMIT: Duration = Duration::from_secs(2);

/// Handshakes at a time: whoever isn't a replica keeps none from getting in for longer than [`TLS_LIMIT`].
const HANDSHAKES: usize = 1024;

/// After how long without a byte another replica is asked whether it lives.
const PING: Duration = Duration::from_secs(5);

/// Accepts connections for as long as it is polled: while the gateway drains, too.
pub async fn run(gateway: Arc<Gateway>, identity: Arc<Identity>, listener: TcpListener) {
    let config = match identity.server_config() {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::error!(%error, "other replicas can't reach this one");
            return;
        }
    };
    let tls = TlsAcceptor::from(config);
    let chains = Arc::new(Chains::new(gateway.keys.root()));
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a replica's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (serving, tls) = (Arc::clone(&gateway), tls.clone());
        let (identity, chains) = (Arc::clone(&identity), Arc::clone(&chains));
        gateway.peers.spawn(async move {
            let shaken = timeout(TLS_LIMIT, shake(&tls, stream)).await;
            drop(permit);
            let served = match shaken {
                Ok(Ok(stream)) => connection(&serving, &identity, chains, stream).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(error) = served {
                tracing::info!(%from, %error, "a replica's connection ended");
            }
        });
    }
}

async fn shake(tls: &TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    peers::configure(&stream)?;
    tls.accept(stream).await
}

async fn connection(
    gateway: &Arc<Gateway>,
    identity: &Identity,
    chains: Arc<Chains>,
    stream: TlsStream<TcpStream>,
) -> io::Result<()> {
    let (_, tls) = stream.get_ref();
    let replica = tls
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or_else(|| io::Error::other("no certificate"))
        .and_then(|shown| identity.replica_of(shown).map_err(io::Error::other))?;
    let requests = tls.alpn_protocol() == Some(b"h2");
    let gateway = Arc::clone(gateway);
    let stream = TokioIo::new(stream);
    if requests {
        let service = service_fn(move |request| {
            let (gateway, chains) = (Arc::clone(&gateway), Arc::clone(&chains));
            let replica = replica.clone();
            async move {
                Ok::<_, Infallible>(if ask::is_question(&request) {
                    ask::answer(&gateway, request).await
                } else {
                    passed::serve(&gateway, &chains, &replica, request).await
                })
            }
        });
        return tunnel::server()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(stream, service)
            .await
            .map_err(io::Error::other);
    }
    let service = service_fn(move |request| {
        let gateway = Arc::clone(&gateway);
        async move { Ok::<_, Infallible>(agent(&gateway, request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(stream, service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// An agent that came to another replica than the one that holds its session.
async fn agent(gateway: &Arc<Gateway>, request: Request<Incoming>) -> Response<Body> {
    let client = request
        .headers()
        .get(OF_CLIENT)
        .and_then(|client| client.to_str().ok()?.parse::<IpAddr>().ok());
    match client {
        Some(client) if request.uri().path() == endpoint::AGENT_CONNECT => {
            agents::connect_to_session(gateway, client, request).await
        }
        _ => {
            let nothing = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let mut response = Response::new(nothing);
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
                .headers_mut()
                .insert(agents::OWN_ANSWER, HeaderValue::from_static("1"));
            response
        }
    }
}
