//! `peer_listen` and `peer_address`: the way from replica to replica.

use std::net::{Ipv6Addr, SocketAddr};

use super::{Check, File, address};

/// The way from replica to replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where this one listens.
    pub listen: SocketAddr,
    /// The host, and perhaps another port, that the others are told; as listened on when absent.
    address: Option<(String, Option<u16>)>,
}

impl Peer {
    /// What the others are told, where this one listens at `bound`.
    pub fn told(&self, bound: SocketAddr) -> String {
        match &self.address {
            Some((host, port)) => format!("{host}:{}", port.unwrap_or(bound.port())),
            None => bound.to_string(),
        }
    }
}

/// `Some(None)`: there is none.
pub(super) fn peer(file: &File, check: &mut Check) -> Option<Option<Peer>> {
    let told = match file.peer_address.as_deref() {
        None => None,
        Some(text) => Some(check.required("peer_address", Some(text), host)?),
    };
    let Some(listen) = file.peer_listen.as_deref() else {
        return match &file.peer_address {
            None => Some(None),
            Some(text) => check.problem("peer_address", text, "needs peer_listen, too"),
        };
    };
    let socket = check.required("peer_listen", Some(listen), address)?;
    if socket.ip().is_unspecified() && told.is_none() {
        return check.problem(
            "peer_listen",
            listen,
            "doesn't say where the other replicas reach this one; set peer_address to its own address",
        );
    }
    Some(Some(Peer {
        listen: socket,
        address: told,
    }))
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]:PORT`, or a bare IPv6 address.
fn host(text: &str) -> Result<(String, Option<u16>), String> {
    let wrong = || "is not HOST or HOST:PORT".to_owned();
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok((format!("[{address}]"), None));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse::<u16>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    url::Host::parse(name).map_err(|_| wrong())?;
    Ok((name.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        for (text, host_, port) in [
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1:9", "10.0.0.1", Some(9)),
            (
                "gw-0.gw.towline.svc:8444",
                "gw-0.gw.towline.svc",
                Some(8444),
            ),
            ("fd00::1", "[fd00::1]", None),
            ("[fd00::1]:9", "[fd00::1]", Some(9)),
        ] {
            assert_eq!(host(text), Ok((host_.to_owned(), port)), "{text}");
        }
        for text in ["", ":", ":9", "a:b", "a:99999", "a b", "https://a"] {
            assert!(host(text).is_err(), "{text}");
        }
    }
}
