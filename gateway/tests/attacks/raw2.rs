//! HTTP/2 frame by frame (RFC 9113), with headers that no client library would write.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::ground::message;
use crate::world::bounded;

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

/// How a stream went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer with a body; of a `Status` its code and message.
    Answered(u64, String),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, and the connection's end.
    GoneAway(u32),
    /// The connection ended without a word.
    Closed,
}

impl Outcome {
    /// Whether the stream or the connection was refused as malformed, without a look at what it asks for.
    pub(crate) fn is_protocol_error(&self) -> bool {
        matches!(self, Self::Reset(0x1) | Self::GoneAway(0x1))
    }
}

/// A connection after its preface.
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects, with the preface and empty settings sent.
    pub(crate) async fn open(gateway: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut this = Self { stream };
        this.write(&frame(SETTINGS, 0, 0, &[])).await;
        this
    }

    /// Writes frames; a connection that the gateway has closed is no failure here, [`Self::outcome`] tells.
    pub(crate) async fn write(&mut self, frames: &[u8]) {
        drop(bounded(self.stream.write_all(frames)).await);
    }

    /// A whole request without a body.
    pub(crate) async fn request(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = block(headers);
        self.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block))
            .await;
    }

    /// Reads until it is clear how the stream went.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        bounded(self.read_outcome(stream)).await
    }

    async fn read_outcome(&mut self, wanted: u32) -> Outcome {
        let mut body = Vec::new();
        loop {
            let mut head = [0; 9];
            if self.stream.read_exact(&mut head).await.is_err() {
                return Outcome::Closed;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            if self.stream.read_exact(&mut payload).await.is_err() {
                return Outcome::Closed;
            }
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                SETTINGS if flags & ACK == 0 => self.write(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => self.write(&frame(PING, ACK, 0, &payload)).await,
                GOAWAY if code(4) != 0 => return Outcome::GoneAway(code(4)),
                RST_STREAM if stream == wanted => return Outcome::Reset(code(0)),
                DATA if stream == wanted => body.extend(payload),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && stream == wanted && flags & END_STREAM != 0 {
                let status: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
                let code = status.and_then(|status| status["code"].as_u64());
                return Outcome::Answered(code.unwrap_or(0), message(&body));
            }
        }
    }
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block of literals without indexing (RFC 7541 §6.2.2), in the very bytes that are given.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0x00);
        for text in [name, value] {
            integer(&mut block, 0x00, 7, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A literal with incremental indexing (§6.2.1): it goes into the dynamic table.
pub(crate) fn indexed_literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    for text in [name, value] {
        integer(&mut block, 0x00, 7, text.len());
        block.extend(text.as_bytes());
    }
    block
}

/// An entry of the tables (§6.1).
pub(crate) fn indexed(index: usize) -> Vec<u8> {
    let mut block = Vec::new();
    integer(&mut block, 0x80, 7, index);
    block
}

/// An integer with a prefix of so many bits (§5.1).
fn integer(block: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        block.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    block.push(pattern | u8::try_from(most).unwrap());
    let mut left = value - most;
    while left >= 0x80 {
        block.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    block.push(u8::try_from(left).unwrap());
}
