//! One HTTPS client for everything that goes to a gateway or to an identity provider, and what to say when it can't
//! be reached.

use std::{error::Error, fmt, fmt::Display, io, time::Duration};

use reqwest::{Certificate, Client, Response, redirect};
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::gateway_url::GatewayUrl;

/// No client can be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not PEM certificates.
    #[error("the certificate authority is not a PEM certificate")]
    Authority(#[source] Box<dyn Error + Send + Sync>),
    /// Nothing in it.
    #[error(
        "the certificate authority's file has no certificate in it (it should begin with -----BEGIN CERTIFICATE-----)"
    )]
    NoAuthority,
    /// The TLS library can't be set up.
    #[error("cannot set up HTTPS")]
    Build(#[from] reqwest::Error),
}

/// A gateway or an identity provider was not reached, or its answer can't be read.
#[derive(Debug)]
pub struct Unreachable {
    party: Party,
    why: Why,
    detail: String,
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    /// A gateway, by its address.
    Gateway(String),
    /// Whoever people or workloads sign in with, by its address.
    Provider(String),
}

impl Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(address) | Self::Provider(address) => f.write_str(address),
        }
    }
}

impl From<&GatewayUrl> for Party {
    fn from(gateway: &GatewayUrl) -> Self {
        Self::Gateway(gateway.to_string())
    }
}

/// Why a gateway was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody listens there.
    Refused,
    /// The proxy on the way doesn't let it through.
    Proxy,
    /// The name doesn't resolve.
    UnknownHost,
    /// Nothing came within the time.
    Timeout,
    /// Its certificate is signed by nobody that is known here.
    UnknownAuthority,
    /// Its certificate is for another name.
    OtherName,
    /// Its certificate is outside its time.
    Expired,
    /// Its certificate is no good otherwise.
    BadCertificate,
    /// What listens there doesn't speak TLS.
    NoTls,
    /// Another failure on the way.
    Other,
}

/// A client for one gateway: checks its certificate against `authority` (PEM), or the system's own.
///
/// # Errors
/// See [`ClientError`].
pub fn client(authority: Option<&str>) -> Result<Client, ClientError> {
    let builder = base();
    let builder = match authority {
        None => builder,
        Some(pem) => builder.tls_certs_only(certificates(pem)?),
    };
    Ok(builder.build()?)
}

/// What every client has: bounds on waiting, and no redirects (a sign-in's answer is one).
pub fn base() -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
        .https_only(true)
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .timeout(TOTAL)
}

fn certificates(pem: &str) -> Result<Vec<Certificate>, ClientError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| ClientError::Authority(Box::new(e)))?;
        found.push(Certificate::from_der(&certificate)?);
    }
    if found.is_empty() {
        Err(ClientError::NoAuthority)
    } else {
        Ok(found)
    }
}

/// A response's body, up to what any answer of a gateway may have.
///
/// # Errors
/// As [`Unreachable`].
pub async fn body(party: impl Into<Party>, mut response: Response) -> Result<Vec<u8>, Unreachable> {
    let party = party.into();
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| Unreachable::new(party.clone(), &e))?
    {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_BODY {
            return Err(Unreachable {
                party,
                why: Why::Other,
                detail: format!("its answer is longer than {MAX_BODY} bytes"),
            });
        }
    }
    Ok(bytes)
}

/// Sends one of `oauth2`'s requests.
///
/// # Errors
/// See [`Unreachable`].
pub async fn call(
    http: &Client,
    party: Party,
    request: oauth2::HttpRequest,
) -> Result<oauth2::HttpResponse, Unreachable> {
    let unreachable = |e: reqwest::Error| Unreachable::new(party.clone(), &e);
    let mut request: reqwest::Request = request.try_into().map_err(unreachable)?;
    *request.timeout_mut() = Some(ONE_TRY);
    let response = http.execute(request).await.map_err(unreachable)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut answer = oauth2::HttpResponse::new(body(party, response).await?);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(answer)
}

impl Unreachable {
    /// Sorts a failed request.
    pub fn new(party: impl Into<Party>, error: &reqwest::Error) -> Self {
        let why = if error.is_timeout() {
            Why::Timeout
        } else {
            sort(error)
        };
        let mut detail = String::new();
        let mut next: Option<&dyn Error> = error.source();
        while let Some(error) = next {
            let text = error.to_string();
            // Layers repeat each other.
            if !detail.contains(&text) {
                if !detail.is_empty() {
                    detail.push_str(": ");
                }
                detail.push_str(&text);
            }
            next = error.source();
        }
        Self {
            party: party.into(),
            why,
            detail,
        }
    }

    /// Whether it may have got the request, and only its answer was lost.
    pub const fn may_have_arrived(&self) -> bool {
        matches!(self.why, Why::Timeout | Why::Other)
    }

    /// Which of the failures it is.
    pub const fn why(&self) -> Why {
        self.why
    }
}

impl Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            party: gateway,
            why,
            detail,
        } = self;
        match why {
            Why::Refused if matches!(gateway, Party::Provider(_)) => write!(
                f,
                "{gateway} refuses connections: the identity provider is away, try again later ({detail})"
            ),
            Why::UnknownAuthority if matches!(gateway, Party::Provider(_)) => write!(
                f,
                "the certificate of {gateway} is signed by an authority that is not known here: the gateway's \
                 operator gives it as the issuer's certificateAuthority"
            ),
            Why::OtherName | Why::Expired if matches!(gateway, Party::Provider(_)) => write!(
                f,
                "the certificate of {gateway} is not accepted: tell whoever runs the identity provider ({detail})"
            ),
            Why::Refused => write!(
                f,
                "{gateway} refuses connections: is the gateway running, and is this its public port? ({detail})"
            ),
            Why::Proxy => write!(
                f,
                "the proxy on the way to {gateway} does not let it through: check HTTPS_PROXY, and NO_PROXY \
                 if none is needed ({detail})"
            ),
            Why::UnknownHost => write!(
                f,
                "the host of {gateway} is not known: check the spelling, or your DNS ({detail})"
            ),
            Why::Timeout => write!(
                f,
                "{gateway} did not answer in time: check your network, and HTTPS_PROXY if one is needed"
            ),
            Why::UnknownAuthority => write!(
                f,
                "the certificate of {gateway} is signed by an authority that is not known here; \
                 run: towline login {gateway} --certificate-authority FILE"
            ),
            Why::OtherName => write!(
                f,
                "the certificate of {gateway} is for another name; use the address that the gateway was set up with ({detail})"
            ),
            Why::Expired => write!(
                f,
                "the certificate of {gateway} is not valid at this time: check this machine's clock, \
                 else tell the gateway's operator ({detail})"
            ),
            Why::BadCertificate => {
                write!(f, "the certificate of {gateway} is not accepted: {detail}")
            }
            Why::NoTls => write!(
                f,
                "what listens at {gateway} does not speak TLS: check the port ({detail})"
            ),
            Why::Other => write!(f, "no answer from {gateway}: {detail}"),
        }
    }
}

impl Error for Unreachable {}

fn sort(error: &reqwest::Error) -> Why {
    let mut next: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(why) = error.downcast_ref::<rustls::Error>().and_then(sort_tls) {
            return why;
        }
        // hyper-util's connectors say it only in words.
        if error.to_string().starts_with("tunnel error") {
            return Why::Proxy;
        }
        if error.to_string().starts_with("dns error") {
            return Why::UnknownHost;
        }
        next = error.source();
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return Why::Refused,
                io::ErrorKind::TimedOut => return Why::Timeout,
                _ => {}
            }
            // What an I/O error wraps is not its source.
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
            }
        }
    }
    Why::Other
}

fn sort_tls(error: &rustls::Error) -> Option<Why> {
    match error {
        rustls::Error::InvalidCertificate(error) => Some(match error {
            // The system's verifier on other platforms says no more than `Other`; a bad signature is one by an
            // authority of the same name.
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::Other(_) => Why::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Why::OtherName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Why::Expired,
            _ => Why::BadCertificate,
        }),
        rustls::Error::InvalidMessage(_) => Some(Why::NoTls),
        _ => None,
    }
}

/// For a handshake across the world with a lost packet.
const CONNECT: Duration = Duration::from_secs(10);

/// Two of them are shorter than the half minute for which the gateway takes a used refresh token again.
const ONE_TRY: Duration = Duration::from_secs(12);

/// For a whole call; the gateway's own answers are small.
const TOTAL: Duration = Duration::from_secs(30);

/// A list of tens of thousands of memberships is well below.
const MAX_BODY: usize = 64 * 1024 * 1024;
