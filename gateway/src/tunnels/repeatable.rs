//! A caller's body that can be sent again: its beginning is kept until there is an answer.
//!
//! A request that nobody has taken goes another way, and clients don't repeat a POST themselves.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use towline_proto::body::Aborted;

use crate::assert::CallerBody;

/// How much of a body is kept, in bytes. More is sent once.
const MOST: usize = 256 * 1024;

/// How many pieces of it.
const PIECES: usize = 1_024;

/// One sending of a body.
#[derive(Debug)]
pub(super) struct Sending {
    body: Shared,
    next: usize,
}

/// A body, and what of it was sent.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    body: CallerBody,
    sent: Vec<Piece>,
    size: usize,
    /// There was too much of it.
    gone: bool,
}

#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Shared {
    pub(super) fn new(body: CallerBody) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            body,
            sent: Vec::new(),
            size: 0,
            gone: false,
        })))
    }

    /// Sends it from its beginning; `None` if that isn't there any more.
    pub(super) fn sending(&self) -> Option<Sending> {
        (!self.lock().gone).then(|| Sending {
            body: self.clone(),
            next: 0,
        })
    }

    /// There is an answer: nothing is kept any more.
    pub(super) fn answered(&self) {
        let mut kept = self.lock();
        kept.gone = true;
        kept.sent = Vec::new();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                self.size += data.len();
                Piece::Data(data.clone())
            }
            (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
            (None, None) => return,
        };
        if self.gone || self.size > MOST || self.sent.len() >= PIECES {
            self.gone = true;
            self.sent = Vec::new();
        } else {
            self.sent.push(piece);
        }
    }
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let next = self.next;
        let mut kept = self.body.lock();
        if let Some(piece) = kept.sent.get(next).cloned() {
            drop(kept);
            self.next += 1;
            return Poll::Ready(Some(Ok(match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        let polled = Pin::new(&mut kept.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            kept.keep(frame);
            let sent = kept.sent.len();
            drop(kept);
            self.next = sent;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.body.lock();
        self.next >= kept.sent.len() && kept.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.body.lock();
        // What was kept comes before the rest.
        let mut hint = kept.body.size_hint();
        let before: usize = kept
            .sent
            .iter()
            .skip(self.next)
            .map(|piece| match piece {
                Piece::Data(data) => data.len(),
                Piece::Trailers(_) => 0,
            })
            .sum();
        let before = u64::try_from(before).unwrap_or(u64::MAX);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(before));
        }
        hint.set_lower(hint.lower().saturating_add(before));
        hint
    }
}
