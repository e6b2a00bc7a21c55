//! The two ways in which kube-apiserver reaches a node through konnectivity's server: an HTTP CONNECT, or packets in
//! a gRPC stream. In both, one connection to the server stands for one connection to the node.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicI64, Ordering},
    task::{Context, Poll, ready},
};

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    task::JoinSet,
};

/// The most data in one packet, as konnectivity's own client has it.
const MOST: usize = 32 * 1024;

/// `konnectivity-client/proto/client/client.proto`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Packet {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    dial_request: Option<DialRequest>,
    #[prost(message, optional, tag = "3")]
    dial_response: Option<DialResponse>,
    #[prost(message, optional, tag = "4")]
    data: Option<Data>,
    #[prost(message, optional, tag = "5")]
    close_request: Option<CloseRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DialRequest {
    #[prost(string, tag = "1")]
    protocol: String,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(int64, tag = "3")]
    random: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DialResponse {
    #[prost(string, tag = "1")]
    error: String,
    #[prost(int64, tag = "2")]
    connection: i64,
    #[prost(int64, tag = "3")]
    random: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Data {
    #[prost(int64, tag = "1")]
    connection: i64,
    #[prost(string, tag = "2")]
    error: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CloseRequest {
    #[prost(int64, tag = "1")]
    connection: i64,
}

/// Connections dialled so far.
static DIALS: AtomicI64 = AtomicI64::new(1);

const DIAL_REQUEST: i32 = 0;
const DIAL_RESPONSE: i32 = 1;
const CLOSE_REQUEST: i32 = 2;
const CLOSE_RESPONSE: i32 = 3;
const DATA: i32 = 4;

/// Asks for a connection to `address`, which the stream then is.
pub(crate) async fn connect<S>(mut stream: S, address: &str) -> anyhow::Result<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream
        .write_all(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    stream.flush().await?;
    // Nothing comes behind the head before something was said.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 4096 {
            bail!("CONNECT was answered with more than a head");
        }
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 200") {
        bail!("CONNECT: {}", String::from_utf8_lossy(&head));
    }
    Ok(stream)
}

/// A connection to a node, in a gRPC stream.
pub(crate) struct Tunnel {
    connection: i64,
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// gRPC messages that are not whole yet.
    arrived: BytesMut,
    data: Bytes,
    ended: bool,
    _driver: JoinSet<()>,
}

/// The same by gRPC.
pub(crate) async fn dial<S>(stream: S, address: &str) -> anyhow::Result<Tunnel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(2 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::post("https://localhost/ProxyService/Proxy")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut send) = requests.ready().await?.send_request(request, false)?;
    // The server knows a dial by it until it is answered.
    let random = DIALS.fetch_add(1, Ordering::Relaxed);
    let asked = Packet {
        kind: DIAL_REQUEST,
        dial_request: Some(DialRequest {
            protocol: "tcp".to_owned(),
            address: address.to_owned(),
            random,
        }),
        ..Packet::default()
    };
    send.send_data(framed(&asked), false)?;
    let receive = response.await?.into_body();
    let mut tunnel = Tunnel {
        connection: 0,
        send,
        receive,
        arrived: BytesMut::new(),
        data: Bytes::new(),
        ended: false,
        _driver: driver,
    };
    let answer = std::future::poll_fn(|cx| tunnel.poll_packet(cx))
        .await?
        .context("konnectivity closed the stream")?;
    let dialled = answer
        .dial_response
        .filter(|_| answer.kind == DIAL_RESPONSE)
        .context("konnectivity did not dial")?;
    if !dialled.error.is_empty() {
        bail!("konnectivity: {}", dialled.error);
    }
    tunnel.connection = dialled.connection;
    Ok(tunnel)
}

/// As a gRPC message that is not compressed.
fn framed(packet: &Packet) -> Bytes {
    let length = packet.encoded_len();
    let mut message = BytesMut::with_capacity(5 + length);
    message.put_u8(0);
    message.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as it needs to.
    let _encoded = packet.encode(&mut message);
    message.freeze()
}

impl Tunnel {
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Packet>>> {
        loop {
            if let Some(length) = self.arrived.get(1..5) {
                let length = length
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                if self.arrived.len() >= 5 + length {
                    self.arrived.advance(5);
                    let message = self.arrived.split_to(length).freeze();
                    return Poll::Ready(
                        Packet::decode(message).map(Some).map_err(io::Error::other),
                    );
                }
            }
            match ready!(self.receive.poll_data(cx)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(data)) => {
                    let released = self.receive.flow_control().release_capacity(data.len());
                    released.map_err(io::Error::other)?;
                    self.arrived.extend_from_slice(&data);
                }
            }
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() && !self.ended {
            match ready!(self.poll_packet(cx))? {
                Some(packet) if packet.kind == DATA => {
                    self.data = packet.data.unwrap_or_default().data;
                }
                Some(packet) if packet.kind == CLOSE_RESPONSE => self.ended = true,
                Some(_) => {}
                None => self.ended = true,
            }
        }
        let count = self.data.len().min(buf.remaining());
        buf.put_slice(&self.data.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = buf.len().min(MOST);
        if self.send.capacity() == 0 {
            self.send.reserve_capacity(count + 64);
            if let Some(Err(error)) = ready!(self.send.poll_capacity(cx)) {
                return Poll::Ready(Err(io::Error::other(error)));
            }
        }
        let packet = Packet {
            kind: DATA,
            data: Some(Data {
                connection: self.connection,
                error: String::new(),
                data: Bytes::copy_from_slice(buf.get(..count).unwrap_or_default()),
            }),
            ..Packet::default()
        };
        let sent = self.send.send_data(framed(&packet), false);
        Poll::Ready(sent.map(|()| count).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let packet = Packet {
            kind: CLOSE_REQUEST,
            close_request: Some(CloseRequest {
                connection: self.connection,
            }),
            ..Packet::default()
        };
        // Whoever is gone needs no goodbye.
        drop(self.send.send_data(framed(&packet), false));
        Poll::Ready(Ok(()))
    }
}
