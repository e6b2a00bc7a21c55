//! TCP out: every address of a name is tried, a little after the one before, and the first to answer is taken.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use towline_proto::tunnel;

/// How long a connection may take, the name's look-up included.
pub const CONNECT: Duration = Duration::from_secs(10);

/// How far apart the addresses of a name are tried (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// How often all addresses are tried anew while none has answered. The system's own repetitions come at ever
/// longer intervals, and a link that is back would wait for the next.
const ROUNDS: u32 = 5;

/// Between those.
const ROUND: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The name has no address.
    #[error("cannot resolve {host:?}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// No address answered.
    #[error("cannot connect to {address}")]
    Connect {
        /// The last one tried.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("no connection to {host}:{port} within {} s", CONNECT.as_secs())]
    Timeout {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Connects, with keepalive on and Nagle's delay off.
///
/// # Errors
/// See [`TcpError`].
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, TcpError> {
    timeout(CONNECT, race(host, port))
        .await
        .unwrap_or_else(|_| {
            Err(TcpError::Timeout {
                host: host.to_owned(),
                port,
            })
        })
}

/// Asks for BBR, which keeps its pace on lossy links where the usual default collapses, and for little to be held back
/// in the kernel, which is what a keystroke waits behind. A system without them keeps its default.
pub fn suit_a_session(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(stream);
        for set in [
            socket.set_tcp_congestion(b"bbr"),
            socket.set_tcp_notsent_lowat(tunnel::UNSENT_IN_KERNEL),
        ] {
            if let Err(error) = set {
                tracing::debug!(%error, "the connection keeps the system's setting");
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _unused = stream;
}

async fn race(host: &str, port: u16) -> Result<TcpStream, TcpError> {
    let resolve = |source| TcpError::Resolve {
        host: host.to_owned(),
        source,
    };
    let found = lookup_host((host, port)).await.map_err(resolve)?;
    let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
    let mut attempts: FuturesUnordered<_> = (0..ROUNDS)
        .flat_map(|round| {
            addresses
                .iter()
                .zip(0_u32..)
                .map(move |(address, nth)| (round, nth, *address))
        })
        .map(|(round, nth, address)| async move {
            sleep(ROUND * round + STAGGER * nth).await;
            let connected = TcpStream::connect(address).await.and_then(tune);
            (address, connected)
        })
        .collect();
    let mut failed = Vec::with_capacity(addresses.len());
    while let Some((address, attempt)) = attempts.next().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                if !failed.contains(&address) {
                    failed.push(address);
                }
                // Every address has said no; asking again is the caller's affair.
                if failed.len() == addresses.len() {
                    return Err(TcpError::Connect { address, source });
                }
            }
        }
    }
    Err(resolve(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    )))
}

fn tune(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_connection_names_its_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        connect("127.0.0.1", address.port()).await.unwrap();
        drop(listener);
        let error = connect("127.0.0.1", address.port()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot connect to {address}"));
    }
}
