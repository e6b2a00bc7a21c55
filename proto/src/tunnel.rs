//! HTTP/2 over a session, the same at both ends.
//!
//! With the defaults of the HTTP/2 library any one caller can stop a whole tunnel; each setting below
//! closes one of those ways, and each has a test that fails without it.
//!
//! HTTP/2's own pings are off: a session knows by itself when its connection is dead, and HTTP/2 must not give up what
//! the session goes on with.

use hyper::{client, server};
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// What one stream may have in flight, in bytes: 2 MiB at 50 ms of round trip are 40 MB/s. A stalled reader
/// holds at most this much and [`SEND_BUFFER`].
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// What all streams together may have in flight, in bytes: effectively no limit, because a limit here
/// lets a few stalled readers stop everybody. Each stream's own window bounds memory.
pub const CONNECTION_WINDOW: u32 = 1 << 30;

/// What one stream may queue for sending, in bytes.
pub const SEND_BUFFER: usize = 256 * 1024;

/// What a connection may hold in the kernel without having sent it, in bytes (`TCP_NOTSENT_LOWAT`).
pub const UNSENT_IN_KERNEL: u32 = 128 * 1024;

/// The longest header list that either end takes, in bytes; kube-apiserver's own limit. A longer one would
/// end the connection, so the gateway refuses callers with more than a quarter of it.
pub const MAX_HEADER_LIST: u32 = 1024 * 1024;

/// Streams that an agent takes in one session. A limit in HTTP/2 would leave the next caller hanging, so
/// it is out of reach, and the gateway has a limit of its own ([`MAX_STREAMS`]) that answers.
const H2_MAX_STREAMS: u32 = 1 << 20;

/// Streams that a gateway opens in one session before it refuses.
pub const MAX_STREAMS: usize = 10_000;

/// Cancelled requests that may wait to be looked at. The library's 20 let one impatient client end everybody's
/// tunnel.
const PENDING_RESETS: usize = 100_000;

/// The gateway's end.
pub fn client() -> client::conn::http2::Builder<TokioExecutor> {
    let mut builder = client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_max_send_streams(H2_MAX_STREAMS as usize)
        .max_concurrent_reset_streams(PENDING_RESETS);
    builder
}

/// The agent's end.
pub fn server() -> server::conn::http2::Builder<TokioExecutor> {
    let mut builder = server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(H2_MAX_STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(None)
        .auto_date_header(false);
    builder
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::{body::Incoming, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{io::duplex, sync::mpsc, task::JoinSet, time::sleep};

    use super::*;
    use crate::{body, session::Session};

    #[tokio::test(start_paused = true)]
    async fn streams_wait_as_long_as_their_session() {
        let (near, far) = duplex(64 * 1024);
        let gateway = Session::new("s".to_owned(), near);
        let agent = Session::new("s".to_owned(), far);
        let (at_gateway, at_agent) = (gateway.handle(), agent.handle());

        let mut ends = JoinSet::new();
        let (tell, mut served) = mpsc::channel(1);
        let service = service_fn(move |_: Request<Incoming>| {
            let (sender, body) = body::channel();
            let tell = tell.clone();
            async move {
                let _told = tell.send(sender).await;
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let serving = server().serve_connection(TokioIo::new(agent), service);
        ends.spawn(async move { drop(serving.await) });
        let (mut requests, connection) = client().handshake(TokioIo::new(gateway)).await.unwrap();
        ends.spawn(async move { drop(connection.await) });

        let request = Request::get("https://test/").body(Empty::<Bytes>::new());
        let mut answer = requests.send_request(request.unwrap()).await.unwrap();
        let sender = served.recv().await.unwrap();
        sender.send(Bytes::from_static(b"before")).await.unwrap();
        let heard = answer.frame().await.unwrap().unwrap();
        assert_eq!(heard.into_data().unwrap(), "before");

        let from_gateway = at_gateway.fence(1).unwrap();
        let from_agent = at_agent.fence(1).unwrap();
        sender.send(Bytes::from_static(b"meanwhile")).await.unwrap();
        sleep(Duration::from_secs(55)).await;
        let (near, far) = duplex(64 * 1024);
        at_gateway.attach(1, near, from_agent).unwrap();
        at_agent.attach(1, far, from_gateway).unwrap();
        let heard = answer.frame().await.unwrap().unwrap();
        assert_eq!(heard.into_data().unwrap(), "meanwhile");
        // And so does what begins now.
        let request = Request::get("https://test/").body(Empty::<Bytes>::new());
        requests.send_request(request.unwrap()).await.unwrap();
    }
}
