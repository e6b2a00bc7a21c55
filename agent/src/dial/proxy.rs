//! Through a proxy, where the network has one: `HTTPS_PROXY`, `NO_PROXY`, CONNECT with credentials.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use towline_proto::session::Connection;
use url::{Host, Url};

use super::PHASE;

/// The longest head of a proxy's answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Why a proxy doesn't carry us.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It answered, but not with a connection.
    #[error("the proxy refuses to connect: {status}{hint}", status = .0, hint = hint(.0))]
    Refused(StatusCode),
    /// It broke off.
    #[error("the proxy broke off")]
    Broken(#[source] hyper::Error),
    /// It said nothing.
    #[error("the proxy said nothing within {} s", PHASE.as_secs())]
    Silent,
    /// What we'd ask it can't be said.
    #[error("the proxy cannot be asked")]
    Ask(#[source] http::Error),
}

fn hint(status: &StatusCode) -> &'static str {
    if *status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        "; put credentials into HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT"
    } else {
        ""
    }
}

/// A proxy's address with its credentials, which don't print.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Whether TLS is spoken with the proxy itself.
    pub tls: bool,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// No proxy's address; the text itself may hold a password and is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form http://[USER:PASSWORD@]HOST[:PORT] or https://…")]
pub struct InvalidProxy;

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let text = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = Url::parse(&text).map_err(|_| InvalidProxy)?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(InvalidProxy),
        };
        let host = plain(url.host().ok_or(InvalidProxy)?);
        let port = url.port().unwrap_or(if tls { 443 } else { 80 });
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
            let pair = format!(
                "{}:{}",
                decoded(url.username()),
                decoded(url.password().unwrap_or_default())
            );
            HeaderValue::from_str(&format!("Basic {}", BASE64.encode(pair))).map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        Ok(Self {
            tls,
            host,
            port,
            authorization: authorization.transpose().map_err(|_| InvalidProxy)?,
        })
    }
}

/// A host without the brackets of an IPv6 address.
pub(crate) fn plain(host: Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// A host as it stands before a port.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Asks the proxy on `stream` for a connection.
pub(super) async fn connect(
    proxy: &Proxy,
    stream: Box<dyn Connection>,
    host: &str,
    port: u16,
) -> Result<Box<dyn Connection>, ProxyError> {
    let target = format!("{}:{port}", bracketed(host));
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(header::HOST, &target)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(ProxyError::Ask)?;
    if let Some(authorization) = &proxy.authorization {
        request
            .headers_mut()
            .insert(header::PROXY_AUTHORIZATION, authorization.clone());
    }
    let ask = async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        let answer = Box::pin(async move {
            let mut response = sender.send_request(request).await?;
            if response.status().is_success() {
                let upgraded = hyper::upgrade::on(&mut response).await?;
                return Ok(Ok(upgraded));
            }
            Ok(Err(response.status()))
        });
        super::drive(connection.with_upgrades(), answer).await
    };
    match timeout(PHASE, ask)
        .await
        .map_err(|_| ProxyError::Silent)?
        .map_err(ProxyError::Broken)?
    {
        // hyper gives back what came with the answer.
        Ok(upgraded) => Ok(Box::new(TokioIo::new(upgraded))),
        Err(status) => Err(ProxyError::Refused(status)),
    }
}

/// Which proxy is to be used, and where none is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `https://` addresses.
    pub https: Option<Proxy>,
    /// Hosts that are dialled directly, as in `NO_PROXY`.
    pub direct: Vec<String>,
}

impl Proxies {
    /// The proxy on the way to a host.
    pub fn on_the_way_to(&self, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = self.https.as_ref()?;
        (!self.direct.iter().any(|rule| matches(rule, host, port))).then_some(proxy)
    }
}

/// `*`, a domain (with all below it), an address, a network, each but `*` with a port if one is meant.
fn matches(rule: &str, host: &str, port: u16) -> bool {
    let rule = rule.trim().to_ascii_lowercase();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if rule.is_empty() {
        return false;
    }
    if rule == "*" {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        if let Some((network, bits)) = rule.split_once('/') {
            return within(address, network, bits).unwrap_or(false);
        }
        let unbracketed = rule.trim_start_matches('[').trim_end_matches(']');
        return unbracketed.parse() == Ok(address)
            || rule.parse() == Ok(std::net::SocketAddr::new(address, port));
    }
    let (rule, asked) = match rule.rsplit_once(':') {
        Some((rule, asked)) => (rule, asked.parse() == Ok(port)),
        None => (rule.as_str(), true),
    };
    let domain = rule.trim_start_matches("*.").trim_start_matches('.');
    asked
        && (host == domain
            || host
                .strip_suffix(domain)
                .is_some_and(|rest| rest.ends_with('.')))
}

fn within(address: IpAddr, network: &str, bits: &str) -> Option<bool> {
    let bits: u32 = bits.parse().ok()?;
    match (address, network.parse().ok()?) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let differs = u32::from(address) ^ u32::from(network);
            Some(differs.checked_shr(32 - bits).unwrap_or(0) == 0)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let differs = u128::from(address) ^ u128::from(network);
            Some(differs.checked_shr(128 - bits).unwrap_or(0) == 0)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_passwords_do_not_print() {
        let proxy: Proxy = "http://us%40er:p%3Ass@proxy.example:3128".parse().unwrap();
        assert_eq!(
            (proxy.tls, proxy.host.as_str(), proxy.port),
            (false, "proxy.example", 3128)
        );
        let basic = format!("Basic {}", BASE64.encode("us@er:p:ss"));
        assert_eq!(proxy.authorization.as_ref().unwrap(), basic.as_str());
        assert_eq!(format!("{proxy:?}"), "Proxy(http://proxy.example:3128)");
        assert_eq!("proxy:8080".parse::<Proxy>().unwrap().port, 8080);
        assert!("https://[::1]".parse::<Proxy>().unwrap().tls);
        assert_eq!("socks5://x".parse::<Proxy>(), Err(InvalidProxy));
    }

    #[test]
    fn exceptions_as_others_read_them() {
        for (rule, host, port, direct) in [
            ("*", "a.example", 443, true),
            ("example", "a.example", 443, true),
            (".a.example", "a.example", 443, true),
            ("*.a.example", "b.a.example", 443, true),
            ("a.example", "ba.example", 443, false),
            ("a.example:8443", "a.example", 443, false),
            ("a.example:443", "a.example", 443, true),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("0.0.0.0/0", "11.1.2.3", 443, true),
            ("10.1.2.3", "10.1.2.3", 443, true),
            ("10.1.2.3:80", "10.1.2.3", 443, false),
            ("::1", "::1", 443, true),
            ("fd00::/8", "fd12::1", 443, true),
            ("", "a.example", 443, false),
        ] {
            assert_eq!(matches(rule, host, port), direct, "{rule} {host}:{port}");
        }
    }
}
