//! The agent's bodies: what it answers with, and what it passes upstream.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use towline_proto::body::{Aborted, FromTunnel};

use crate::{guard, upstream::chain};

/// A body that goes into a tunnel or upstream.
pub type Boxed = UnsyncBoxBody<Bytes, Aborted>;

/// A body that holds the whole text.
pub fn text(sentence: impl Into<Bytes>) -> Boxed {
    http_body_util::Full::new(sentence.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
pub fn empty() -> Boxed {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A request's body on its way upstream: refuses trailers that name an identity, and tells when it was sent.
pub struct Upload<B> {
    body: FromTunnel<B>,
    tainted: Arc<OnceLock<String>>,
    sent: Option<oneshot::Sender<()>>,
}

/// What is known of an [`Upload`] from outside.
#[derive(Debug)]
pub struct UploadWatch {
    tainted: Arc<OnceLock<String>>,
    sent: oneshot::Receiver<()>,
}

impl UploadWatch {
    /// What resolves when the body was sent or is gone, and where the name of a trailer will stand that
    /// must not be there.
    pub fn split(self) -> (oneshot::Receiver<()>, Arc<OnceLock<String>>) {
        (self.sent, self.tainted)
    }
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// Wraps the body of a tunnelled request.
    pub fn new(body: B) -> (Self, UploadWatch) {
        let tainted = Arc::new(OnceLock::new());
        let (tell, sent) = oneshot::channel();
        let tell = (!body.is_end_stream()).then_some(tell);
        let watch = UploadWatch {
            tainted: Arc::clone(&tainted),
            sent,
        };
        (
            Self {
                body: FromTunnel(body),
                tainted,
                sent: tell,
            },
            watch,
        )
    }
}

impl<B> Body for Upload<B>
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
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(name) = frame
                .trailers_ref()
                .and_then(|trailers| trailers.keys().find(|name| guard::names_an_identity(name)))
        {
            let name = name.to_string();
            let aborted = Aborted(format!("the request carries {name} in its trailers"));
            drop(self.tainted.set(name));
            return Poll::Ready(Some(Err(aborted)));
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.sent = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The API server's answer: half of one is never taken for all of it.
pub struct Answered {
    body: Incoming,
    http2: bool,
}

impl Answered {
    /// As it comes off a connection.
    pub const fn new(body: Incoming, http2: bool) -> Self {
        Self { body, http2 }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            // The HTTP library reports a reset with NO_ERROR as an end; only a stream that was finished says so.
            None if self.http2 && !self.body.is_end_stream() => {
                Some(Err(Aborted("the API server reset the stream".to_owned())))
            }
            frame => frame.map(|frame| frame.map_err(|error| Aborted(chain(&error)))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that holds something for as long as it lives: a slot, a permit.
pub struct Holding<B, T> {
    body: B,
    _held: T,
}

impl<B, T> Holding<B, T> {
    /// `held` is dropped with the body.
    pub const fn new(body: B, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body + Unpin, T: Unpin> Body for Holding<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    #[tokio::test]
    async fn half_an_answer_is_never_a_whole_one() {
        for (whole, reset) in [(true, false), (true, true), (false, true)] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let server = async move {
                let mut server = h2::server::handshake(far).await.unwrap();
                let (_request, mut respond) = server.accept().await.unwrap().unwrap();
                let mut body = respond
                    .send_response(http::Response::new(()), false)
                    .unwrap();
                body.send_data(Bytes::from_static(b"bytes"), whole).unwrap();
                if reset {
                    // What was sent has to be out: a reset throws away what is queued.
                    let _out =
                        tokio::time::timeout(std::time::Duration::from_millis(50), server.accept())
                            .await;
                    body.send_reset(h2::Reason::NO_ERROR);
                }
                server.accept().await
            };
            let client = async move {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(near))
                        .await
                        .unwrap();
                let get = async move {
                    let request = http::Request::get("http://a/").body(empty()).unwrap();
                    let answer = sender.send_request(request).await.unwrap().into_body();
                    Answered::new(answer, true).collect().await
                };
                tokio::select! { answer = get => answer, _ = connection => unreachable!("it serves the request") }
            };
            let answer = tokio::select! { answer = client => answer, _ = server => unreachable!("one request") };
            assert_eq!(answer.is_ok(), whole, "{whole} {reset}");
        }
    }
}
