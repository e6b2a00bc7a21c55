//! A WebSocket as a connection: the same bytes, in binary messages (RFC 6455).
//!
//! For paths where a plain `Upgrade` doesn't pass. Message boundaries mean nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{Role, WebSocketConfig},
    },
};

/// The largest message written, in bytes.
const MESSAGE: usize = 64 * 1024;

/// The largest message read, in bytes; a peer of ours never sends more than [`MESSAGE`].
const MAX_MESSAGE: usize = 1024 * 1024;

/// Which end masks its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The agent.
    Client,
    /// The gateway.
    Server,
}

/// The bytes of a WebSocket's binary messages.
pub struct WebSocketConnection<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketConnection<S> {
    /// Over a connection on which the WebSocket handshake is done.
    pub async fn new(stream: S, end: End) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .write_buffer_size(0)
            .max_write_buffer_size(4 * MESSAGE);
        let role = match end {
            End::Client => Role::Client,
            End::Server => Role::Server,
        };
        Self {
            socket: WebSocketStream::from_raw_socket(stream, role, Some(config)).await,
            unread: Bytes::new(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketConnection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message in a session",
                    )));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let length = this.unread.len().min(buf.remaining());
        if let Some(bytes) = this.unread.get(..length) {
            buf.put_slice(bytes);
        }
        this.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketConnection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    /// One message of as much as fits: a session's frame comes in several pieces.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(into_io)?;
        let mut message =
            BytesMut::with_capacity(bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MESSAGE));
        for buf in bufs {
            let room = MESSAGE - message.len();
            message.extend_from_slice(buf.get(..buf.len().min(room)).unwrap_or(buf));
        }
        let length = message.len();
        Pin::new(&mut this.socket)
            .start_send(Message::Binary(message.freeze()))
            .map_err(into_io)?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket)
            .poll_flush(cx)
            .map_err(into_io)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket)
            .poll_close(cx)
            .map_err(into_io)
    }
}

fn into_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the WebSocket is closed")
        }
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_whole_through_a_small_pipe() {
        let (a, b) = tokio::io::duplex(10);
        let (client, server) = tokio::join!(
            WebSocketConnection::new(a, End::Client),
            WebSocketConnection::new(b, End::Server)
        );
        let data: Vec<u8> = (0..200_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let (mut from, mut to) = tokio::io::split(client);
        let echo = async {
            let (mut read, mut write) = tokio::io::split(server);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let send = async {
            to.write_all(&data).await.unwrap();
            to.flush().await.unwrap();
        };
        let receive = async {
            let mut got = vec![0; data.len()];
            from.read_exact(&mut got).await.unwrap();
            got
        };
        let (got, ()) = tokio::select! {
            got = async { tokio::join!(receive, send) } => got,
            () = echo => unreachable!("the client closes nothing"),
        };
        assert!(got == data);
    }
}
