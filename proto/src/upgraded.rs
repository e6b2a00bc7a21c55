//! An upgraded stream: the caller's or the API server's connection on one side, two bodies on the other.
//!
//! The same at both ends of a tunnel. Each direction ends for itself (half-close), and an end that is not
//! clean travels as one: the bytes before it are delivered, and the far connection is then dropped without a
//! TLS close notification.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::body::{Aborted, FromTunnel, RESET, Sender};

/// What is read at first, in bytes; an idle stream holds no more.
const SMALL: usize = 4 * 1024;

/// What is read at once from a connection that has much to say, in bytes.
const LARGE: usize = 64 * 1024;

/// How a stream ended and what it carried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// Bytes read from the connection.
    pub sent: u64,
    /// Bytes written to the connection.
    pub received: u64,
    /// `None`: both directions ended cleanly.
    pub aborted: Option<Aborted>,
}

/// Carries bytes both ways until both directions have ended or either is aborted.
///
/// `kill` ends the stream with a reason, which the far end is told.
pub async fn join<C, B>(
    connection: C,
    incoming: B,
    outgoing: Sender,
    kill: impl Future<Output = String>,
) -> Ended
where
    C: AsyncRead + AsyncWrite,
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    let (mut read, mut write) = tokio::io::split(connection);
    let mut ended = Ended::default();
    let mut outgoing = Some(outgoing);
    // Not moved into the future below: dropping it resets the stream, and an abort has to come first.
    let mut incoming = FromTunnel(incoming);
    let outcome = {
        let both = async {
            // The far end's reason arrives with its reset, and is the better one.
            tokio::try_join!(
                receive(&mut incoming, &mut write, &mut ended.received),
                send(&mut read, &mut outgoing, &mut ended.sent),
            )
        };
        tokio::select! {
            // A reason given from outside stands before what it causes.
            biased;
            reason = kill => Err(Aborted(reason)),
            both = both => both.map(|_| ()),
        }
    };
    if let Err(aborted) = outcome {
        if let Some(outgoing) = outgoing {
            outgoing.abort(aborted.clone());
        }
        ended.aborted = Some(aborted);
    }
    ended
}

async fn send<R: AsyncRead + Unpin>(
    read: &mut R,
    outgoing: &mut Option<Sender>,
    sent: &mut u64,
) -> Result<(), Aborted> {
    let mut room = SMALL;
    let mut buffer = BytesMut::with_capacity(room);
    while let Some(sender) = outgoing {
        let length = tokio::select! {
            // Nothing to read can come after a reset.
            biased;
            () = sender.closed() => return Err(Aborted(RESET.to_owned())),
            length = read.read_buf(&mut buffer) => length.map_err(|e| Aborted(format!("connection lost: {e}")))?,
        };
        if length == 0 {
            if let Some(sender) = outgoing.take() {
                sender.finish();
            }
            break;
        }
        *sent += length as u64;
        sender
            .send(buffer.split().freeze())
            .await
            .map_err(|e| Aborted(e.to_string()))?;
        room = if length == room {
            (room * 2).min(LARGE)
        } else {
            room
        };
        buffer.reserve(room);
    }
    Ok(())
}

async fn receive<B, W>(incoming: &mut B, write: &mut W, received: &mut u64) -> Result<(), Aborted>
where
    B: Body<Data = Bytes, Error = Aborted> + Unpin,
    W: AsyncWrite + Unpin,
{
    let lost = |e: std::io::Error| Aborted(format!("connection lost: {e}"));
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        write.write_all(&data).await.map_err(lost)?;
        write.flush().await.map_err(lost)?;
        *received += data.len() as u64;
    }
    write.shutdown().await.map_err(lost)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::duplex;

    use super::*;
    use crate::body::{Channel, channel};

    /// Two joined ends: what is written to one connection comes out of the other.
    fn tunnel() -> (
        tokio::io::DuplexStream,
        tokio::io::DuplexStream,
        impl Future<Output = (Ended, Ended)>,
    ) {
        let (near, a) = duplex(16);
        let (far, b) = duplex(16);
        let (to_far, from_near): (_, Channel) = channel();
        let (to_near, from_far) = channel();
        let both = async move {
            tokio::join!(
                join(a, from_far, to_far, pending()),
                join(b, from_near, to_near, pending())
            )
        };
        (near, far, both)
    }

    #[tokio::test]
    async fn a_half_closed_stream_goes_on_the_other_way() {
        let (mut near, mut far, both) = tunnel();
        let talk = async move {
            let ask = async {
                near.write_all(&[b'x'; 1000]).await.unwrap();
                near.shutdown().await.unwrap();
            };
            let mut asked = Vec::new();
            let (read, ()) = tokio::join!(far.read_to_end(&mut asked), ask);
            read.unwrap();
            assert_eq!(asked, [b'x'; 1000]);
            let answer = async {
                far.write_all(&[b'y'; 5000]).await.unwrap();
                drop(far);
            };
            let mut answered = Vec::new();
            let (read, ()) = tokio::join!(near.read_to_end(&mut answered), answer);
            read.unwrap();
            assert_eq!(answered, [b'y'; 5000]);
        };
        let ((a, b), ()) = tokio::join!(both, talk);
        assert_eq!(
            a,
            Ended {
                sent: 1000,
                received: 5000,
                aborted: None
            }
        );
        assert_eq!(
            b,
            Ended {
                sent: 5000,
                received: 1000,
                aborted: None
            }
        );
    }

    #[tokio::test]
    async fn a_killed_stream_tells_both_ends_why() {
        let (near, a) = duplex(16);
        let (_far, b) = duplex(16);
        let (to_far, from_near) = channel();
        let (to_near, from_far) = channel();
        let kill = async { "permission gone".to_owned() };
        let (a, b) = tokio::join!(
            join(a, from_far, to_far, kill),
            join(b, from_near, to_near, pending())
        );
        let aborted = Some(Aborted("permission gone".into()));
        assert_eq!((a.aborted, b.aborted), (aborted.clone(), aborted));
        drop(near);
    }
}
