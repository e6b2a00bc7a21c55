//! What an agent tells of its cluster and of itself when it opens a session.

use std::time::Duration;

use tokio::time::Instant;
use towline_proto::handshake::{Facts, random_id};

use crate::cluster::Cluster;

/// How long a facts' answer is good for.
const FACTS: Duration = Duration::from_secs(600);

/// The cluster's facts, asked again when they are old or were not all known.
#[derive(Debug)]
pub(crate) struct KnownFacts {
    facts: Facts,
    asked: Option<Instant>,
}

impl KnownFacts {
    pub(crate) fn new() -> Self {
        let facts = Facts {
            host: host(),
            // Without randomness no session is opened anyway.
            process: random_id().unwrap_or_default(),
            ..Facts::default()
        };
        Self { facts, asked: None }
    }

    pub(crate) async fn fresh(&mut self, cluster: &Cluster) -> &Facts {
        let whole = !self.facts.external_id.is_empty() && !self.facts.kubernetes_version.is_empty();
        if !whole || self.asked.is_none_or(|asked| asked.elapsed() > FACTS) {
            let Facts { host, process, .. } = std::mem::take(&mut self.facts);
            self.facts = Facts {
                host,
                process,
                ..cluster.facts().await
            };
            self.asked = Some(Instant::now());
        }
        &self.facts
    }
}

/// The name of this machine or pod, empty where the system doesn't tell.
fn host() -> String {
    #[cfg(unix)]
    return rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(unix))]
    String::new()
}
