//! The caller's side of an upgraded stream: follows frames, reads none.
//!
//! When a stream ends early, its caller is owed a word, which may only stand between frames. So the headers of the
//! frames that pass are counted; payloads are not looked at.
//!
//! | protocol | the word |
//! | --- | --- |
//! | WebSocket | a Close frame (RFC 6455 §5.5.1) |
//! | SPDY/3.1 that carries a remote command | what a failed command has: a `Status` on the error stream |
//! | anything else | none; the connection is cut |
//!
//! A client of a remote command takes a cut connection for the command's good end, and exits with 0.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Close code: a policy ended the stream.
const POLICY: u16 = 1008;
/// How a sentence about somebody begins who may not any more.
const PRINCIPALS: [&str; 3] = ["user ", "serviceAccount ", "principal "];
/// Close code: something failed.
const FAILED: u16 = 1011;
/// The longest reason that fits a control frame, in bytes.
const MAX_REASON: usize = 123;
/// How long a caller has to take the word.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How long a client has to read its error stream before the connection's end overtakes it.
const HEARD: Duration = Duration::from_millis(100);

/// Which subprotocol was agreed on, in an answer that switches to SPDY.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The error stream: clients open it first (`remotecommand`, from v2 on), and theirs have odd numbers.
const ERROR_STREAM: [u8; 4] = [0, 0, 0, 1];
/// The last frame of a SPDY stream has this flag.
const FLAG_FIN: u8 = 1;

/// A protocol that has words for an early end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    WebSocket,
    /// A remote command over SPDY/3.1, whose error stream takes a `Status`, or in old versions plain text.
    RemoteCommand {
        status: bool,
    },
}

impl Protocol {
    /// That of an answer which switches to `upgrade`.
    pub(super) fn of(upgrade: &HeaderValue, head: &HeaderMap) -> Option<Self> {
        if upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") {
            return Some(Self::WebSocket);
        }
        if !upgrade.as_bytes().eq_ignore_ascii_case(b"SPDY/3.1") {
            return None;
        }
        match head.get(STREAM_PROTOCOL)?.as_bytes() {
            b"v4.channel.k8s.io" => Some(Self::RemoteCommand { status: true }),
            b"v3.channel.k8s.io" | b"v2.channel.k8s.io" => {
                Some(Self::RemoteCommand { status: false })
            }
            _ => None,
        }
    }

    /// The frame that says it.
    fn word(self, reason: &str, request_id: &str) -> Vec<u8> {
        let policy = PRINCIPALS.iter().any(|kind| reason.starts_with(kind));
        match self {
            Self::WebSocket => close_frame(if policy { POLICY } else { FAILED }, reason),
            Self::RemoteCommand { status } => {
                let message = format!("{reason} (towline, request {request_id})");
                let text = if status {
                    let (code, reason) = if policy {
                        (403, "Forbidden")
                    } else {
                        (503, "ServiceUnavailable")
                    };
                    json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": message, "reason": reason, "code": code,
                    })
                    .to_string()
                } else {
                    message
                };
                data_frame(ERROR_STREAM, text.as_bytes())
            }
        }
    }

    /// The payload's length, once a frame's header is whole.
    fn payload_length(self, header: &[u8]) -> Option<u64> {
        match self {
            Self::WebSocket => payload_length(header),
            // Data and control frames alike: four bytes, flags, 24 bits of length.
            Self::RemoteCommand { .. } => {
                let [a, b, c] = header.get(5..8)?.try_into().ok()?;
                Some(u64::from(u32::from_be_bytes([0, a, b, c])))
            }
        }
    }
}

/// A WebSocket's Close frame.
fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let mut text = reason;
    while text.len() > MAX_REASON {
        let end = text.char_indices().next_back().map_or(0, |(at, _)| at);
        text = text.get(..end).unwrap_or_default();
    }
    let mut frame = vec![0x88, u8::try_from(text.len() + 2).unwrap_or(2)];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A SPDY stream's last data frame.
fn data_frame(stream: [u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or_default().to_be_bytes();
    let mut frame = stream.to_vec();
    frame.push(FLAG_FIN);
    frame.extend_from_slice(length.get(1..).unwrap_or_default());
    frame.extend_from_slice(data);
    frame
}

/// A connection that knows where its frames end.
pub(super) struct Framed<C> {
    connection: C,
    frames: Option<Frames>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Framed<C> {
    /// Follows the frames of a protocol that has words.
    pub(super) fn new(connection: C, protocol: Option<Protocol>) -> Self {
        Self {
            connection,
            frames: protocol.map(Frames::of),
        }
    }

    /// Tells the caller why, where its protocol can and no frame is cut; the connection is then dropped.
    pub(super) async fn close(mut self, reason: &str, request_id: &str) {
        let Some(frames) = self.frames.as_ref().filter(|frames| frames.at_boundary()) else {
            return;
        };
        let protocol = frames.protocol;
        let word = protocol.word(reason, request_id);
        let write = async {
            self.connection.write_all(&word).await?;
            self.connection.flush().await?;
            if protocol != Protocol::WebSocket {
                tokio::time::sleep(HEARD).await;
            }
            self.connection.shutdown().await
        };
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_LIMIT, write).await {
            tracing::debug!(%error, "the caller did not take the last word");
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

/// Where a stream of frames stands.
#[derive(Debug)]
struct Frames {
    protocol: Protocol,
    /// The header so far; at most 14 bytes.
    header: Vec<u8>,
    payload_left: u64,
}

impl Frames {
    const fn of(protocol: Protocol) -> Self {
        Self {
            protocol,
            header: Vec::new(),
            payload_left: 0,
        }
    }

    const fn at_boundary(&self) -> bool {
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
            if let Some(length) = self.protocol.payload_length(&self.header) {
                self.header.clear();
                self.payload_left = length;
            }
        }
    }
}

/// The payload's length, once a WebSocket frame's header is whole (RFC 6455 §5.2). A server's frames are not masked,
/// but a mask's length is known as well.
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
    let mut frames = Frames::of(Protocol::WebSocket);
    pieces
        .map(|piece| {
            frames.pass(piece);
            frames.at_boundary()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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

    /// Passes frames in pieces of these lengths, and looks at every cut whether one ends there.
    fn cut_up(
        protocol: Protocol,
        sent: impl IntoIterator<Item = Vec<u8>>,
        cuts: Vec<usize>,
    ) -> Result<(), TestCaseError> {
        let mut frames = Frames::of(protocol);
        let mut ends = HashSet::from([0]);
        let mut bytes = Vec::new();
        for frame in sent {
            bytes.extend(frame);
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
        Ok(())
    }

    /// A data frame, or a SYN_REPLY of version 3.
    fn spdy_frame(length: usize, control: bool) -> Vec<u8> {
        let mut frame = data_frame([0, 0, 0, 5], &vec![0x80; length]);
        if control {
            frame[..4].copy_from_slice(&[0x80, 3, 0, 2]);
        }
        frame
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_are_cut(
            lengths in prop::collection::vec((prop_oneof![0_usize..130, 65_500_usize..65_600], any::<bool>()), 1..5),
            cuts in prop::collection::vec(1_usize..40_000, 1..20),
        ) {
            let sent = lengths.into_iter().map(|(length, masked)| frame(length, masked));
            cut_up(Protocol::WebSocket, sent, cuts)?;
        }

        #[test]
        fn spdys_frames_end_where_their_lengths_say(
            lengths in prop::collection::vec((0_usize..70_000, any::<bool>()), 1..6),
            cuts in prop::collection::vec(1_usize..20_000, 1..20),
        ) {
            let sent = lengths.into_iter().map(|(length, control)| spdy_frame(length, control));
            cut_up(Protocol::RemoteCommand { status: true }, sent, cuts)?;
        }
    }

    /// What comes after `sent` when the stream is closed for a reason.
    async fn last_word(
        upgrade: &'static str,
        version: Option<&'static str>,
        sent: &[u8],
    ) -> Vec<u8> {
        use tokio::io::AsyncReadExt as _;
        let (near, mut far) = tokio::io::duplex(4096);
        let mut head = HeaderMap::new();
        if let Some(version) = version {
            head.insert(STREAM_PROTOCOL, HeaderValue::from_static(version));
        }
        let protocol = Protocol::of(&HeaderValue::from_static(upgrade), &head);
        let mut framed = Framed::new(near, protocol);
        framed.write_all(sent).await.unwrap();
        framed.close("user \"alice\" lacks permission", "r-1").await;
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        got.split_off(sent.len())
    }

    #[tokio::test]
    async fn a_close_frame_stands_between_frames_or_not_at_all() {
        let mut sent = frame(10, false);
        let word = last_word("websocket", None, &sent).await;
        assert_eq!(&word[..4], &[0x88, 31, 0x03, 0xf0]);
        sent.pop();
        assert!(last_word("websocket", None, &sent).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_remote_command_over_spdy_fails_with_the_reason() {
        let mut sent = data_frame([0, 0, 0, 5], b"output");
        for (version, status) in [("v4.channel.k8s.io", true), ("v2.channel.k8s.io", false)] {
            let word = last_word("SPDY/3.1", Some(version), &sent).await;
            assert_eq!(&word[..5], &[0, 0, 0, 1, FLAG_FIN]);
            let text = &word[8..];
            assert_eq!(
                word[5..8],
                u32::try_from(text.len()).unwrap().to_be_bytes()[1..]
            );
            let message = "user \"alice\" lacks permission (towline, request r-1)";
            if status {
                let status: serde_json::Value = serde_json::from_slice(text).unwrap();
                assert_eq!(status["message"], message);
                assert_eq!(
                    (&status["status"], &status["code"]),
                    (&"Failure".into(), &403.into())
                );
            } else {
                assert_eq!(text, message.as_bytes());
            }
        }
        // Another protocol's first stream is something else.
        for version in [Some("portforward.k8s.io"), None] {
            assert!(last_word("SPDY/3.1", version, &sent).await.is_empty());
        }
        sent.pop();
        assert!(
            last_word("SPDY/3.1", Some("v4.channel.k8s.io"), &sent)
                .await
                .is_empty()
        );
    }
}
