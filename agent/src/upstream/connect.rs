//! One TLS connection to the API server.

use std::{io, sync::Arc};

use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::credentials::Credentials;
use crate::tcp::{self, TcpError};

/// Why the API server can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// No TLS on it.
    #[error("no TLS with the API server")]
    Tls(#[source] io::Error),
    /// No HTTP/2 on it.
    #[error("no HTTP/2 with the API server")]
    Http(#[source] hyper::Error),
    /// It closed the connection at once.
    #[error("the API server closed the connection at once")]
    Closed,
    /// It said nothing.
    #[error("the API server said nothing within {} s", tcp::CONNECT.as_secs())]
    Silent,
}

/// Which HTTP is to be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpn {
    H1,
    H2,
}

/// Knows where the API server is.
pub(super) struct Connector {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) name: ServerName<'static>,
    pub(super) credentials: Arc<Credentials>,
}

impl Connector {
    /// A connection, and the generation of the credentials that it was made with.
    pub(super) async fn connect(
        &self,
        alpn: Alpn,
    ) -> Result<(TlsStream<TcpStream>, u64), ConnectError> {
        let current = self.credentials.current();
        let config = match alpn {
            Alpn::H1 => &current.h1,
            Alpn::H2 => &current.h2,
        };
        let stream = tcp::connect(&self.host, self.port).await?;
        let tls = TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), stream);
        let stream = timeout(tcp::CONNECT, tls)
            .await
            .map_err(|_| ConnectError::Silent)?
            .map_err(ConnectError::Tls)?;
        Ok((stream, current.generation))
    }

    /// The generation of the credentials that hold now.
    pub(super) fn generation(&self) -> u64 {
        self.credentials.current().generation
    }
}
