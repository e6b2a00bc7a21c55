//! Looks for events in the files of the log, the latest first.
//!
//! Only what is in the files is found: with another sink, there is nothing. A search reads so many bytes backwards and
//! no more, and says so when there was more to read.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::{Audit, Event, SinkConfig, event::annotation, sink, time};

/// How much one search reads, in bytes.
const MOST_READ: u64 = 256 * 1024 * 1024;

/// The longest line that is looked at, in bytes; none that was written is longer.
const MAX_LINE: usize = 1024 * 1024;

/// What is read at once, in bytes.
const CHUNK: u64 = 256 * 1024;

/// What is looked for; `None` and empty: anything.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Events of this project; `None`: those of none, and of all.
    pub project: Option<String>,
    /// A membership's resource name.
    pub membership: String,
    /// A user name or a principal.
    pub user: String,
    /// A request's id.
    pub id: String,
    /// Not before this time, in Unix seconds.
    pub since: u64,
    /// How many.
    pub limit: usize,
}

/// What was found, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Events.
    pub events: Vec<Event>,
    /// Whether older ones were not looked at.
    pub incomplete: bool,
}

/// Why nothing can be found.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Events are not written to files.
    #[error(
        "this gateway's audit log goes to {0}; look for events there, or set audit.sink = \"file\""
    )]
    NoFile(&'static str),
    /// A file can't be read.
    #[error("the audit log can't be read")]
    Read(#[source] io::Error),
}

/// Looks for events; blocks for as long as files are read.
///
/// # Errors
/// See [`SearchError`].
pub fn search(audit: &Audit, query: &Query) -> Result<Found, SearchError> {
    match &audit.config().sink {
        SinkConfig::File {
            path, max_files, ..
        } => files(path, *max_files, query, MOST_READ).map_err(SearchError::Read),
        SinkConfig::None => Err(SearchError::NoFile("nowhere")),
        SinkConfig::Stdout => Err(SearchError::NoFile("its standard output")),
        SinkConfig::Webhook { .. } => Err(SearchError::NoFile("a webhook")),
    }
}

fn files(path: &Path, max_files: u32, query: &Query, mut most: u64) -> io::Result<Found> {
    let since = time::format(query.since.saturating_mul(1_000_000));
    let mut found = Found::default();
    // All are opened before any is read: a rotation meanwhile changes names, not files.
    let mut files = Vec::new();
    for number in 0..max_files.max(1) {
        match File::open(sink::numbered(path, number)) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    for file in files {
        let mut lines = Backwards::new(file)?;
        while let Some(line) = lines.next()? {
            most = most.saturating_sub(u64::try_from(line.len()).unwrap_or(u64::MAX));
            // What isn't an event was not written by this program, or only half of it.
            let event: Option<Event> = serde_json::from_slice(&line).ok();
            if let Some(event) = event {
                if event.stage_timestamp < since {
                    return Ok(found);
                }
                if found.events.len() >= query.limit {
                    found.incomplete = true;
                    return Ok(found);
                }
                if query.means(&event) {
                    found.events.push(event);
                }
            }
            if most == 0 {
                found.incomplete = true;
                return Ok(found);
            }
        }
    }
    Ok(found)
}

impl Query {
    fn means(&self, event: &Event) -> bool {
        let is = |asked: &str, value: &str| asked.is_empty() || asked == value;
        self.project
            .as_deref()
            .is_none_or(|project| event.project() == project)
            && is(&self.membership, event.annotation(annotation::MEMBERSHIP))
            && is(&self.id, &event.audit_id)
            && (is(&self.user, &event.user.username)
                || is(&self.user, event.annotation(annotation::PRINCIPAL))
                || event
                    .annotation(annotation::DELEGATES)
                    .split(' ')
                    .any(|delegate| delegate == self.user))
    }
}

/// Lines of a file, the last first.
struct Backwards {
    file: File,
    /// What is before this was not read yet.
    at: u64,
    /// What was read and is not handed on: its end is the end of a line.
    rest: Vec<u8>,
}

impl Backwards {
    fn new(mut file: File) -> io::Result<Self> {
        let at = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            at,
            rest: Vec::new(),
        })
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
            }
            if let Some(newline) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.rest.split_off(newline + 1)));
            }
            if self.at == 0 {
                let line = std::mem::take(&mut self.rest);
                return Ok((!line.is_empty()).then_some(line));
            }
            if self.rest.len() > MAX_LINE {
                // No line of ours: what follows the newline before it still is.
                self.rest.clear();
            }
            let from = self.at.saturating_sub(CHUNK);
            let mut chunk = vec![0; usize::try_from(self.at - from).unwrap_or_default()];
            self.file.seek(SeekFrom::Start(from))?;
            self.file.read_exact(&mut chunk)?;
            chunk.append(&mut self.rest);
            self.rest = chunk;
            self.at = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backwards(text: &[u8]) -> Vec<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, text).unwrap();
        let mut lines = Backwards::new(File::open(path).unwrap()).unwrap();
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn lines_come_the_last_first() {
        assert!(backwards(b"").is_empty());
        assert_eq!(backwards(b"a\nb\nc\n"), [b"c", b"b", b"a"]);
        assert_eq!(backwards(b"a\nhalf"), [&b"half"[..], b"a"]);
        let long: Vec<u8> = (0..10_000_u32)
            .flat_map(|number| format!("{number}{}\n", "x".repeat(100)).into_bytes())
            .collect();
        let read = backwards(&long);
        assert_eq!(read.len(), 10_000);
        assert!(read[0].starts_with(b"9999x") && read[9_999].starts_with(b"0x"));
    }
}
