//! HTTP/1.1 byte by byte: what no client library would send.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::world::bounded;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// Sends bytes on a connection of their own and reads all the answers, until the gateway closes it.
///
/// The last request should ask to close, so that an end means that the gateway has seen all that it takes.
pub(crate) async fn exchange(gateway: SocketAddr, bytes: &[u8]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    // The gateway may have refused and closed before all was written.
    drop(stream.write_all(bytes).await);
    let mut got = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = bounded(stream.read(&mut buffer)).await {
        got.extend_from_slice(&buffer[..read]);
    }
    answers(&got)
}

fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lower = head.to_ascii_lowercase();
        let length = lower
            .split("\r\n")
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = match length {
            Some(length) => length.parse().unwrap(),
            None if lower.contains("transfer-encoding: chunked") => {
                find(bytes, b"0\r\n\r\n").map_or(bytes.len(), |at| at + 5)
            }
            None => 0,
        };
        let body = bytes[..length.min(bytes.len())].to_vec();
        bytes = &bytes[body.len()..];
        all.push(Answer { status, head, body });
    }
    all
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
