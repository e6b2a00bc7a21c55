//! Bodies in a tunnel: one that ends early says so.
//!
//! HTTP/2 throws queued bytes away with a reset, and a dropped body looks like a finished one. So in a tunnel
//! a body that ends early ends with the trailer [`wire::ABORT`], and dropping a sender is an abort; a clean end
//! has to be said.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tokio::sync::mpsc;

use crate::wire;

/// Chunks that wait in a channel.
const CHUNKS: usize = 2;

/// The longest reason that travels, in characters.
const MAX_REASON: usize = 1024;

/// What is percent-encoded in a reason, beside everything outside ASCII.
const REASON: &AsciiSet = &CONTROLS.add(b'%');

/// What the reason begins with when the tunnel itself was lost, and no far end told why.
pub const LOST: &str = "the tunnel was lost";

/// Why a body ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Aborted(pub String);

impl Aborted {
    fn to_trailer(&self) -> HeaderMap {
        let reason: String = self.0.chars().take(MAX_REASON).collect();
        let value = utf8_percent_encode(&reason, REASON).to_string();
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(
            wire::ABORT,
            HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static("aborted")),
        );
        trailers
    }

    fn take_from(trailers: &mut HeaderMap) -> Option<Self> {
        let value = trailers.remove(wire::ABORT)?;
        Some(Self(
            percent_decode_str(&String::from_utf8_lossy(value.as_bytes()))
                .decode_utf8_lossy()
                .into_owned(),
        ))
    }
}

/// The sending half of a channel into a tunnel's body. Dropping it is an abort.
#[derive(Debug)]
pub struct Sender {
    chunks: mpsc::Sender<Bytes>,
    end: Arc<OnceLock<Result<(), Aborted>>>,
}

/// What [`Aborted`] says of a stream whose far end went away without a word.
pub const RESET: &str = "the far end reset the stream";

/// The receiving end is gone: the stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the far end reset the stream")]
pub struct Closed;

impl Sender {
    /// Waits for room, then queues a chunk.
    ///
    /// # Errors
    /// The body is gone.
    pub async fn send(&self, chunk: Bytes) -> Result<(), Closed> {
        self.chunks.send(chunk).await.map_err(|_| Closed)
    }

    /// Resolves when the body is gone.
    pub async fn closed(&self) {
        self.chunks.closed().await;
    }

    /// The clean end, after what was queued.
    pub fn finish(self) {
        drop(self.end.set(Ok(())));
    }

    /// The early end, after what was queued.
    pub fn abort(self, reason: Aborted) {
        drop(self.end.set(Err(reason)));
    }
}

/// The receiving half of a channel: the body that travels.
#[derive(Debug)]
pub struct Channel {
    chunks: mpsc::Receiver<Bytes>,
    end: Arc<OnceLock<Result<(), Aborted>>>,
    ended: bool,
}

/// A channel into a tunnel's body.
pub fn channel() -> (Sender, Channel) {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let end = Arc::new(OnceLock::new());
    (
        Sender {
            chunks: sender,
            end: Arc::clone(&end),
        },
        Channel {
            chunks,
            end,
            ended: false,
        },
    )
}

impl Body for Channel {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.chunks.poll_recv(cx)) {
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None => {
                self.ended = true;
                match self.end.get() {
                    Some(Ok(())) => None,
                    Some(Err(aborted)) => Some(Ok(Frame::trailers(aborted.to_trailer()))),
                    None => Some(Ok(Frame::trailers(
                        Aborted("the stream was dropped".to_owned()).to_trailer(),
                    ))),
                }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// What goes into a tunnel: an error of the body becomes the trailer.
#[derive(Debug)]
pub struct IntoTunnel<B> {
    body: B,
    ended: bool,
}

impl<B> IntoTunnel<B> {
    /// Wraps a body.
    pub const fn new(body: B) -> Self {
        Self { body, ended: false }
    }
}

impl<B> Body for IntoTunnel<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                self.ended = true;
                Some(Ok(Frame::trailers(Aborted(error.to_string()).to_trailer())))
            }
            None => {
                self.ended = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What comes out of a tunnel: the trailer becomes an error of the body, and so does a reset, which the HTTP library
/// reports as an end (`CANCEL` and `NO_ERROR`).
#[derive(Debug)]
pub struct FromTunnel<B>(pub B);

impl<B> Body for FromTunnel<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            // Only a stream that was really finished says so.
            None if self.0.is_end_stream() => None,
            None => Some(Err(Aborted(RESET.to_owned()))),
            Some(Err(error)) => Some(Err(Aborted(format!("{LOST}: {error}")))),
            Some(Ok(frame)) => match frame.into_trailers() {
                Err(data) => Some(Ok(data)),
                Ok(mut trailers) => Some(match Aborted::take_from(&mut trailers) {
                    Some(aborted) => Err(aborted),
                    None => Ok(Frame::trailers(trailers)),
                }),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn far_end(body: Channel) -> (Vec<u8>, Option<Aborted>) {
        let mut body = FromTunnel(body);
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                Err(aborted) => return (bytes, Some(aborted)),
            }
        }
        (bytes, None)
    }

    #[tokio::test]
    async fn a_clean_end_has_to_be_said() {
        let (sender, body) = channel();
        sender.send(Bytes::from_static(b"all")).await.unwrap();
        sender.finish();
        assert_eq!(far_end(body).await, (b"all".to_vec(), None));
    }

    #[tokio::test]
    async fn an_abort_comes_after_the_bytes_before_it() {
        let (sender, body) = channel();
        sender.send(Bytes::from_static(b"part")).await.unwrap();
        sender.abort(Aborted("reset\nby peer — 100 %".into()));
        assert_eq!(
            far_end(body).await,
            (
                b"part".to_vec(),
                Some(Aborted("reset\nby peer — 100 %".into()))
            )
        );
    }

    #[tokio::test]
    async fn a_dropped_sender_is_an_abort() {
        let (sender, body) = channel();
        drop(sender);
        assert!(far_end(body).await.1.is_some());
    }
}
