//! Where an issuer's keys come from: its discovery document, the JWK Set that this names, and
//! what was fetched last.
//!
//! Threat: a stranger can send tokens with ever new key ids; the issuer can hang, send a document
//! without end, or send us elsewhere.
//! Decision: one fetch at a time, at most three in thirty seconds, in a task that belongs to this
//! source: a caller who goes away cannot stop it, and all callers wait for the same one, for a
//! bounded time. Bodies have 1 MiB, a fetch ten seconds; redirects stay on the host and on TLS.
//! Consequence: a new key is known when it is first seen, unless strangers spend the three fetches:
//! then within thirty seconds. When the issuer is down the keys that are known go on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::IssuerConfiguration;
use super::addresses::{self, PublicOnly};
use crate::configuration::Invalid;
use crate::keys::KeySet;

/// Discovery and keys together take no longer.
const FETCH: Duration = Duration::from_secs(10);

/// How long a caller waits for the fetch that is under way.
const WAIT: Duration = Duration::from_secs(11);

/// So many fetches may begin within [`PERIOD`]: the first of all, and a rotation right after it.
const FETCHES: usize = 3;

/// See [`FETCHES`].
const PERIOD: Duration = Duration::from_secs(30);

/// How long keys are fresh: `max-age` within these bounds, the lower when the issuer says nothing.
const FRESH: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3600));

/// The largest document that is read, in bytes.
const MAX_BODY: usize = 1024 * 1024;

/// How often an issuer may redirect.
const MAX_REDIRECTS: usize = 3;

/// One issuer's documents.
pub(super) struct Source {
    endpoint: Arc<Endpoint>,
    certificate_authority: Option<String>,
    known: watch::Sender<Known>,
    fetches: Mutex<Fetches>,
}

/// Whom to ask.
struct Endpoint {
    issuer: String,
    discovery: String,
    allow_http: bool,
    public_addresses: bool,
    client: Client,
}

/// What the fetches so far have brought.
#[derive(Clone, Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    stale_from: Option<SystemTime>,
    failure: Option<String>,
    finished: u64,
}

/// The fetch that is under way, and when the last ones began, the oldest first.
#[derive(Default)]
struct Fetches {
    task: JoinSet<()>,
    begun: VecDeque<SystemTime>,
}

/// The parts of OpenID Connect Discovery 1.0 §3 that matter here.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    pub(super) fn new(configuration: &IssuerConfiguration) -> Result<Self, Invalid> {
        Ok(Self {
            endpoint: Arc::new(Endpoint {
                issuer: configuration.url.clone(),
                discovery: discovery_url(configuration),
                allow_http: configuration.allow_http,
                public_addresses: configuration.public_addresses,
                client: client(configuration)?,
            }),
            certificate_authority: configuration.certificate_authority.clone(),
            known: watch::Sender::new(Known::default()),
            fetches: Mutex::new(Fetches::default()),
        })
    }

    /// Whether this source asks the same host in the same way.
    pub(super) fn is_for(&self, configuration: &IssuerConfiguration) -> bool {
        self.endpoint.issuer == configuration.url
            && self.endpoint.discovery == discovery_url(configuration)
            && self.endpoint.allow_http == configuration.allow_http
            && self.endpoint.public_addresses == configuration.public_addresses
            && self.certificate_authority == configuration.certificate_authority
    }

    /// The keys of the last fetch that succeeded.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.known.borrow().keys.clone()
    }

    /// Why the last fetch failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        self.known.borrow().failure.clone()
    }

    /// Begins a fetch when the keys are no longer fresh; nobody waits for it.
    pub(super) fn refresh_if_stale(&self, now: SystemTime) {
        let stale = self
            .known
            .borrow()
            .stale_from
            .is_none_or(|stale_from| now >= stale_from);
        if stale {
            self.begin(now);
        }
    }

    /// Fetches the keys, or waits for the fetch that is under way; says whether one has finished
    /// meanwhile. Nothing happens after [`FETCHES`] within [`PERIOD`].
    pub(super) async fn ask_again(&self, now: SystemTime) -> bool {
        let mut known = self.known.subscribe();
        let before = known.borrow().finished;
        if !self.begin(now) {
            return self.known.borrow().finished != before;
        }
        timeout(WAIT, known.wait_for(|known| known.finished != before))
            .await
            .is_ok_and(|waited| waited.is_ok())
    }

    /// Begins a fetch if one may; says whether one is under way.
    fn begin(&self, now: SystemTime) -> bool {
        let mut fetches = self.fetches();
        while fetches.task.try_join_next().is_some() {}
        if !fetches.task.is_empty() {
            return true;
        }
        // A clock that was set back is no reason never to ask again.
        fetches.begun.retain(|begun| {
            now.duration_since(*begun)
                .is_ok_and(|elapsed| elapsed < PERIOD)
        });
        if fetches.begun.len() >= FETCHES {
            return false;
        }
        fetches.begun.push_back(now);
        let (endpoint, known) = (self.endpoint.clone(), self.known.clone());
        fetches.task.spawn(async move {
            let fetched = timeout(FETCH, endpoint.fetch())
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH.as_secs())));
            if let Err(reason) = &fetched {
                tracing::warn!(issuer = %endpoint.issuer, %reason, "signing keys not fetched");
            }
            known.send_modify(|known| known.learn(fetched, now));
        });
        true
    }

    fn fetches(&self) -> MutexGuard<'_, Fetches> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn learn(&mut self, fetched: Result<(KeySet, Duration), String>, now: SystemTime) {
        self.finished = self.finished.wrapping_add(1);
        match fetched {
            Ok((keys, fresh)) => {
                self.keys = Some(Arc::new(keys));
                self.stale_from = now.checked_add(fresh);
                self.failure = None;
            }
            Err(reason) => self.failure = Some(reason),
        }
    }
}

impl Endpoint {
    /// The keys, and how long they are fresh.
    async fn fetch(&self) -> Result<(KeySet, Duration), String> {
        let (document, _) = self.get(&self.discovery).await?;
        let discovery: Discovery = serde_json::from_slice(&document)
            .map_err(|error| format!("{} is no discovery document: {error}", self.discovery))?;
        if discovery.issuer != self.issuer {
            return Err(format!(
                "{} is of another issuer: {}",
                self.discovery,
                crate::token::quoted(&discovery.issuer)
            ));
        }
        let secure = Url::parse(&discovery.jwks_uri).is_ok_and(|url| {
            url.scheme() == "https" || (self.allow_http && url.scheme() == "http")
        });
        if !secure {
            return Err(format!(
                "jwks_uri {} is not an https URL",
                crate::token::quoted(&discovery.jwks_uri)
            ));
        }
        let (document, fresh) = self.get(&discovery.jwks_uri).await?;
        let keys =
            KeySet::parse(&document).map_err(|error| format!("{}: {error}", discovery.jwks_uri))?;
        Ok((keys, fresh))
    }

    /// A document and how long it is fresh.
    async fn get(&self, url: &str) -> Result<(Vec<u8>, Duration), String> {
        let failed = |error: reqwest::Error| format!("GET {url}: {}", chain(&error));
        if self.public_addresses {
            addresses::check(url)
                .await
                .map_err(|reason| format!("GET {url}: {reason}"))?;
        }
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("GET {url}: {}", response.status()));
        }
        let fresh = freshness(&response);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(format!("GET {url}: more than {MAX_BODY} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, fresh))
    }
}

/// `max-age` of `Cache-Control` (RFC 9111 §5.2.2.1), within bounds.
fn freshness(response: &Response) -> Duration {
    let (least, most) = FRESH;
    response
        .headers()
        .get("cache-control")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .split(',')
                .find_map(|directive| directive.trim().strip_prefix("max-age="))
        })
        .and_then(|seconds| seconds.parse().ok())
        .map_or(least, |seconds| {
            Duration::from_secs(seconds).clamp(least, most)
        })
}

/// As go-oidc makes it, so that one file means the same to kube-apiserver.
fn discovery_url(configuration: &IssuerConfiguration) -> String {
    configuration.discovery_url.clone().unwrap_or_else(|| {
        let url = configuration.url.strip_suffix('/');
        let url = url.unwrap_or(&configuration.url);
        format!("{url}/.well-known/openid-configuration")
    })
}

fn client(configuration: &IssuerConfiguration) -> Result<Client, Invalid> {
    let mut builder = Client::builder()
        .timeout(FETCH)
        .https_only(!configuration.allow_http)
        .user_agent("towline")
        .redirect(Policy::custom(|attempt| {
            let same_host = attempt.previous().first().is_some_and(|first| {
                first.scheme() == attempt.url().scheme()
                    && first.host_str() == attempt.url().host_str()
                    && first.port_or_known_default() == attempt.url().port_or_known_default()
            });
            if same_host && attempt.previous().len() <= MAX_REDIRECTS {
                attempt.follow()
            } else {
                attempt.error("redirected to another host, or too often")
            }
        }));
    if configuration.public_addresses {
        builder = builder.dns_resolver(Arc::new(PublicOnly));
    }
    if let Some(pem) = &configuration.certificate_authority {
        let certificates = read_certificates(pem)
            .map_err(|reason| Invalid::one("certificateAuthority", reason))?;
        builder = builder.tls_certs_only(certificates);
    }
    builder
        .build()
        .map_err(|error| Invalid::one("certificateAuthority", chain(&error)))
}

/// PEM certificates to trust, at least one.
pub(crate) fn read_certificates(pem: &str) -> Result<Vec<Certificate>, String> {
    let certificates =
        Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| chain(&error))?;
    if certificates.is_empty() {
        return Err("there is no PEM certificate in it".to_owned());
    }
    Ok(certificates)
}

/// An error and its causes: reqwest's own sentence leaves out the TLS failure.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("discovery", &self.endpoint.discovery)
            .finish_non_exhaustive()
    }
}
