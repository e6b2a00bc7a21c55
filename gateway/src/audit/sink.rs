//! Where events go: standard output, a file that is rotated, or a webhook.

mod file;
mod webhook;

use std::{io, path::PathBuf, time::Duration};

use tokio::{io::AsyncWriteExt as _, sync::oneshot};

use super::{Config, Event, SinkConfig};

pub use file::File;
pub(super) use file::numbered;
pub use webhook::Webhook;

/// Events that are written at once.
pub(super) const MOST_AT_ONCE: usize = 500;

/// How often a batch is tried before its events are lost, where they may be.
const TRIES: u32 = 4;

/// Between two tries, doubled from try to try.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is queued.
#[derive(Debug)]
pub(super) enum Item {
    Event(Box<Event>),
    /// Told when everything before it is with the sink.
    Flush(oneshot::Sender<()>),
}

/// Why events can't go where they should.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file, or one that it is rotated to.
    #[error("audit.file = {path:?} can't be written")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard output.
    #[error("standard output can't be written")]
    Stdout(#[source] io::Error),
    /// A file that the configuration names.
    #[error("{key} = {path:?} can't be read")]
    Read {
        /// The key in the configuration.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The webhook's client can't be made.
    #[error("audit.webhook_certificate_authority can't be used")]
    Client(#[source] reqwest::Error),
    /// The webhook did not answer.
    #[error("audit.webhook_url did not answer")]
    Unreachable(#[source] reqwest::Error),
    /// The webhook refused.
    #[error("audit.webhook_url answered {0}")]
    Refused(reqwest::StatusCode),
    /// An event is no JSON; no input makes one.
    #[error("an event can't be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// Where events go.
#[derive(Debug)]
pub(super) enum Sink {
    None,
    Stdout,
    File(File),
    Webhook(Webhook),
}

impl Sink {
    pub(super) async fn open(config: &Config) -> Result<Self, SinkError> {
        Ok(match &config.sink {
            SinkConfig::None => Self::None,
            SinkConfig::Stdout => Self::Stdout,
            SinkConfig::File {
                path,
                max_bytes,
                max_files,
            } => Self::File(File::open(path.clone(), *max_bytes, *max_files).await?),
            SinkConfig::Webhook {
                url,
                certificate_authority,
                token_file,
            } => Self::Webhook(
                Webhook::new(
                    url.clone(),
                    certificate_authority.as_deref(),
                    token_file.clone(),
                )
                .await?,
            ),
        })
    }

    /// Takes a batch, and says whether it did. `keep`: tries for ever.
    pub(super) async fn take(&mut self, events: &[Event], keep: bool) -> bool {
        if events.is_empty() {
            return true;
        }
        let (mut tries, mut wait) = (0, FIRST_WAIT);
        loop {
            tries += 1;
            let Err(error) = self.write(events).await else {
                return true;
            };
            tracing::error!(
                error = &error as &dyn std::error::Error,
                events = events.len(),
                tries,
                "audit events can't be written"
            );
            if !keep && tries >= TRIES {
                return false;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn write(&mut self, events: &[Event]) -> Result<(), SinkError> {
        match self {
            Self::None => Ok(()),
            Self::Stdout => {
                let mut stdout = tokio::io::stdout();
                let written = async {
                    stdout.write_all(&lines(events)?).await?;
                    stdout.flush().await
                };
                written.await.map_err(SinkError::Stdout)
            }
            Self::File(file) => file.write(&lines(events)?).await,
            Self::Webhook(webhook) => webhook.post(events).await,
        }
    }
}

/// JSON lines.
fn lines(events: &[Event]) -> Result<Vec<u8>, serde_json::Error> {
    let mut lines = Vec::new();
    for event in events {
        serde_json::to_writer(&mut lines, event)?;
        lines.push(b'\n');
    }
    Ok(lines)
}
