//! The caller's side of an upgraded stream: follows WebSocket frames, reads none.
//!
//! When a stream ends early, a WebSocket's caller is owed a Close frame (RFC 6455 §5.5.1), which may only stand
//! between frames. So the headers of the frames that pass are counted; payloads are not looked at.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Close code: a policy ended the stream.
const POLICY: u16 = 1008;
/// How a sentence about somebody begins who may not any more.
const PRINCIPALS: [&str; 3] = ["user ", "serviceAccount ", "principal "];
/// Close code: something failed.
const FAILED: u16 = 1011;
/// The longest reason that fits a control frame, in bytes.
const MAX_REASON: usize = 123;
/// How long a caller has to take the Close frame.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A connection that knows where its frames end.
pub(super) struct Framed<C> {
    connection: C,
    frames: Option<Frames>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Framed<C> {
    /// Follows frames where it is a WebSocket.
    pub(super) fn new(connection: C, websocket: bool) -> Self {
        Self {
            connection,
            frames: websocket.then(Frames::default),
        }
    }

    /// Tells the caller why, where its protocol can and no frame is cut; the connection is then dropped.
    pub(super) async fn close(mut self, reason: &str) {
        if !self.frames.as_ref().is_some_and(Frames::at_boundary) {
            return;
        }
        let code = if PRINCIPALS.iter().any(|kind| reason.starts_with(kind)) {
            POLICY
        } else {
            FAILED
        };
        let mut text = reason;
        while text.len() > MAX_REASON {
            let end = text.char_indices().next_back().map_or(0, |(at, _)| at);
            text = text.get(..end).unwrap_or_default();
        }
        let mut frame = vec![0x88, u8::try_from(text.len() + 2).unwrap_or(2)];
        frame.extend_from_slice(&code.to_be_bytes());
        frame.extend_from_slice(text.as_bytes());
        let write = async {
            self.connection.write_all(&frame).await?;
            self.connection.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_LIMIT, write).await {
            tracing::debug!(%error, "the caller did not take the Close frame");
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Framed<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Framed<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.connection).poll_write(cx, buf))?;
        if let Some(frames) = &mut this.frames {
            frames.pass(buf.get(..written).unwrap_or_default());
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

/// Where a stream of frames stands. A server's frames are not masked, but a mask's length is known as well.
#[derive(Debug, Default)]
struct Frames {
    /// The header so far; at most 14 bytes.
    header: Vec<u8>,
    payload_left: u64,
}

impl Frames {
    fn at_boundary(&self) -> bool {
        self.header.is_empty() && self.payload_left == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload_left -= skip as u64;
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            self.header.push(*first);
            bytes = rest;
            if let Some(length) = payload_length(&self.header) {
                self.header.clear();
                self.payload_left = length;
            }
        }
    }
}

/// The payload's length, once the header is whole (RFC 6455 §5.2).
fn payload_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (extended, length) = match second & 0x7f {
        126 => (
            2,
            u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)),
        ),
        127 => (8, u64::from_be_bytes(header.get(2..10)?.try_into().ok()?)),
        short => (0, u64::from(short)),
    };
    (header.len() >= 2 + extended + mask).then_some(length)
}

/// Whether a Close frame could stand after each of these pieces of a stream.
pub(crate) fn boundaries<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<bool> {
    let mut frames = Frames::default();
    pieces
        .map(|piece| {
            frames.pass(piece);
            frames.at_boundary()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(mask | u8::try_from(length).unwrap()),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend([1, 2, 3, 4]);
        }
        frame.extend(vec![0xff; length]);
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_are_cut(
            lengths in prop::collection::vec((prop_oneof![0_usize..130, 65_500_usize..65_600], any::<bool>()), 1..5),
            cuts in prop::collection::vec(1_usize..40_000, 1..20),
        ) {
            let mut frames = Frames::default();
            let mut ends = std::collections::HashSet::from([0]);
            let mut bytes = Vec::new();
            for (length, masked) in lengths {
                bytes.extend(frame(length, masked));
                ends.insert(bytes.len());
            }
            let mut at = 0;
            for cut in cuts.into_iter().cycle() {
                let end = (at + cut).min(bytes.len());
                frames.pass(&bytes[at..end]);
                at = end;
                prop_assert_eq!(frames.at_boundary(), ends.contains(&at), "at {}", at);
                if at == bytes.len() {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_close_frame_stands_between_frames_or_not_at_all() {
        use tokio::io::AsyncReadExt as _;
        for (cut, told) in [(false, true), (true, false)] {
            let (near, mut far) = tokio::io::duplex(1024);
            let mut framed = Framed::new(near, true);
            let mut frame = frame(10, false);
            if cut {
                frame.pop();
            }
            framed.write_all(&frame).await.unwrap();
            framed.close("user \"alice\" lacks permission").await;
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            let after = &got[frame.len()..];
            assert_eq!(after.is_empty(), !told);
            if told {
                assert_eq!(&after[..4], &[0x88, 31, 0x03, 0xf0]);
            }
        }
    }
}
