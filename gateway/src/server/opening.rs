//! A connection whose first bytes are waited for, but not for ever.
//!
//! Threat: somebody opens connections and says nothing until there is room for nobody else.
//! Decision: HTTP/1.1's head and HTTP/2's pings are bounded by hyper, but only once it knows which of the two it is
//! and has HTTP/2's preface. Until as many bytes as that have come, a read that has waited too long fails.
//! Consequence: a silent connection ends. No HTTP/1.1 request with its `Host` is shorter than the preface.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The length of HTTP/2's preface, in bytes.
const PREFACE: usize = 24;

/// A connection that has to begin in time.
#[derive(Debug)]
pub(super) struct Opening<S> {
    stream: S,
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Opening<S> {
    /// The first bytes have to come within `limit` from now.
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            missing: PREFACE,
            deadline: Box::pin(sleep(limit)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.missing > 0 {
            match &read {
                Poll::Ready(_) => {
                    self.missing = self.missing.saturating_sub(buf.filled().len() - before);
                }
                Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending => {}
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::{Instant, timeout},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn silence_and_a_trickle_end() {
        let (mut client, server) = duplex(64);
        let mut server = Opening::new(server, LIMIT);
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n")
            .await
            .unwrap();
        let began = Instant::now();
        let mut buffer = [0; 64];
        assert_eq!(server.read(&mut buffer).await.unwrap(), 22);
        let error = server.read(&mut buffer).await.unwrap_err();
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, 10)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_begun_may_be_silent() {
        let (mut client, server) = duplex(64);
        let mut server = Opening::new(server, LIMIT);
        let mut buffer = [0; 64];
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(server.read(&mut buffer).await.unwrap(), 27);
        assert!(
            timeout(Duration::from_secs(3600), server.read(&mut buffer))
                .await
                .is_err()
        );
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read(&mut buffer).await.unwrap(), 1);
    }
}
