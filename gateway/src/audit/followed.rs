//! An answer's body that tells its record what was sent and how it ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use towline_proto::body::Aborted;

use super::Record;

/// A body with its request's record, which is written when the body is gone.
#[derive(Debug)]
pub struct Followed<B: HttpBody> {
    body: B,
    record: Record,
    sent: u64,
    over: bool,
}

impl<B: HttpBody> Followed<B> {
    /// Follows a body.
    pub const fn new(body: B, record: Record) -> Self {
        Self {
            body,
            record,
            sent: 0,
            over: false,
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Aborted> + Unpin> HttpBody for Followed<B> {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.sent += u64::try_from(length).unwrap_or_default();
            }
            Some(Err(aborted)) => {
                self.over = true;
                self.record.ended(&aborted.0);
            }
            None => self.over = true,
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

impl<B: HttpBody> Drop for Followed<B> {
    fn drop(&mut self) {
        if self.sent > 0 {
            self.record.sent(self.sent);
        }
        // Of a body with a length the HTTP library doesn't ask for the end.
        let complete = self.body.is_end_stream() || self.body.size_hint().upper() == Some(0);
        if !self.over && !complete {
            self.record.ended("the caller went away");
        }
    }
}
