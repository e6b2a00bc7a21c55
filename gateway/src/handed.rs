//! Listening sockets that the system hands over (`LISTEN_FDS`, systemd's socket activation), so that a gateway can be
//! replaced by another on the same machine while neither refuses a connection.

use std::{io, net::TcpListener};

use listenfd::ListenFd;

/// What the socket of the admin listener is called (`FileDescriptorName=`).
const ADMIN: &str = "admin";

/// What the socket of the listener for other replicas is called.
const PEER: &str = "peer";

/// Sockets that somebody else has bound.
#[derive(Debug, Default)]
pub struct Sockets {
    /// In place of `listen`.
    pub public: Option<TcpListener>,
    /// In place of `admin_listen`.
    pub admin: Option<TcpListener>,
    /// In place of `peer_listen`.
    pub peer: Option<TcpListener>,
}

/// A socket that can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// It listens to no TCP.
    #[error("socket {number} of LISTEN_FDS ({name:?}) can't be used")]
    Socket {
        /// Which, from 0.
        number: usize,
        /// As `LISTEN_FDNAMES` calls it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are two of one name.
    #[error(
        "socket {number} of LISTEN_FDS ({name:?}) is one too many: there is one for the public port, one called {ADMIN:?} and one called {PEER:?}"
    )]
    Many {
        /// Which, from 0.
        number: usize,
        /// As `LISTEN_FDNAMES` calls it.
        name: String,
    },
}

impl Sockets {
    /// Those that this process was given; `names` is `LISTEN_FDNAMES`. One called `admin` is the admin listener's, one
    /// called `peer` the one for other replicas, any other the public port's.
    ///
    /// To be called before there is a second thread: it takes the variables out of the environment.
    ///
    /// # Errors
    /// See [`HandedError`].
    pub fn take(names: &str) -> Result<Self, HandedError> {
        let mut given = ListenFd::from_env();
        let mut names = names.split(':').map(str::to_owned);
        let mut sockets = Self::default();
        for number in 0..given.len() {
            let name = names.next().unwrap_or_default();
            let socket = given
                .take_tcp_listener(number)
                .map_err(|source| HandedError::Socket {
                    number,
                    name: name.clone(),
                    source,
                })?;
            let place = match name.as_str() {
                ADMIN => &mut sockets.admin,
                PEER => &mut sockets.peer,
                _ => &mut sockets.public,
            };
            if place.is_some() {
                return Err(HandedError::Many { number, name });
            }
            *place = socket;
        }
        Ok(sockets)
    }
}
