//! Reading, locking and replacing the user's kubeconfig files.
//!
//! Every file is read before any is written, so that one that doesn't parse stops everything with nothing
//! changed. The locks are kubectl's own (`FILE.lock`, there while the file is being changed), so that kubectl
//! and this program don't undo each other's changes. A file whose content would not change is not written.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Document, Entry,
    document::{InvalidDocument, Kind},
    sources::Sources,
};
use crate::{
    atomic::{self, WriteError},
    bounded,
};

/// A kubeconfig that was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// It doesn't parse.
    #[error("{path}: {1}; nothing was changed: correct the file, or name another with --kubeconfig FILE", path = .0.display())]
    Invalid(PathBuf, InvalidDocument),
    /// It is there but can't be read.
    #[error("cannot read {}; nothing was changed", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A directory, a device or a pipe.
    #[error("{} is not a file that can be changed; name one with --kubeconfig FILE", .0.display())]
    NotAFile(PathBuf),
    /// A lock file can't be made.
    #[error("cannot lock {}", .0.display())]
    Lock(PathBuf, #[source] io::Error),
    /// A lock file has been there for too long.
    #[error("{path} is there for {1} seconds and more: another program is changing the kubeconfig, or was killed while it did; if none runs, delete that file and try again", path = .0.display())]
    Locked(PathBuf, u64),
    /// An entry of the same name belongs to somebody else.
    #[error("{} has a {} named {name:?} that is not Towline's; it was left alone: choose another name with --context-name", file.display(), kind.word())]
    Foreign {
        /// In this file.
        file: PathBuf,
        /// Of this kind.
        kind: Kind,
        /// By this name.
        name: String,
    },
    /// See [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The files that were written.
    pub written: Vec<PathBuf>,
    /// The current context from now on.
    pub current_context: Option<String>,
}

/// Puts entries into the user's kubeconfig, and makes `current` the current context.
///
/// # Errors
/// See [`MergeError`].
pub async fn merge(
    sources: &Sources,
    entries: &[Entry],
    current: Option<&str>,
) -> Result<Merged, MergeError> {
    for file in sources.files() {
        // A device would be replaced by a file, and a pipe has an end of its own.
        if fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(MergeError::NotAFile(file.clone()));
        }
    }
    let _locks = lock_all(sources).await?;
    let mut before: BTreeMap<&Path, Document> = BTreeMap::new();
    for file in sources.files() {
        if let Some(document) = read(file)? {
            before.insert(file, document);
        }
    }
    let default_file = sources.default_file();
    let mut after = before.clone();
    for entry in entries {
        for kind in Kind::ALL {
            // The first file that has the entry is the one that counts.
            let holder = sources.files().iter().map(PathBuf::as_path).find(|file| {
                before
                    .get(file)
                    .is_some_and(|document| document.has(kind, &entry.name))
            });
            if let Some((file, document)) = holder.and_then(|file| before.get_key_value(file))
                && !document.is_ours(kind, &entry.name)
            {
                return Err(MergeError::Foreign {
                    file: file.to_path_buf(),
                    kind,
                    name: entry.name.clone(),
                });
            }
            after
                .entry(holder.unwrap_or(default_file))
                .or_default()
                .put(kind, entry);
        }
    }
    let merged_current = |documents: &BTreeMap<&Path, Document>| {
        sources.files().iter().find_map(|file| {
            documents
                .get(file.as_path())?
                .current_context()
                .map(str::to_owned)
        })
    };
    if let Some(current) = current
        && merged_current(&after).as_deref() != Some(current)
    {
        after
            .entry(default_file)
            .or_default()
            .set_current_context(current);
    }
    let current_context = merged_current(&after);

    let mut written = Vec::new();
    for (file, document) in after {
        if before.get(file) != Some(&document) {
            let text = document
                .render()
                .map_err(|e| MergeError::Invalid(file.to_owned(), e))?;
            atomic::write(file, text.as_bytes())?;
            written.push(file.to_owned());
        }
    }
    Ok(Merged {
        written,
        current_context,
    })
}

fn read(file: &Path) -> Result<Option<Document>, MergeError> {
    match bounded::read_to_string(file) {
        Ok(text) => Document::parse(&text)
            .map(Some)
            .map_err(|e| MergeError::Invalid(file.to_owned(), e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(MergeError::Read(file.to_owned(), e)),
    }
}

/// A lock as kubectl makes it; gone when dropped.
#[derive(Debug)]
struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        // Nobody is left to be told.
        drop(fs::remove_file(&self.0));
    }
}

/// Locks every file, in kubectl's order so that no two wait for each other.
async fn lock_all(sources: &Sources) -> Result<Vec<Lock>, MergeError> {
    let mut files: Vec<&Path> = sources.files().iter().map(PathBuf::as_path).collect();
    files.sort_unstable();
    let mut locks = Vec::new();
    for file in files {
        match lock(file).await {
            Ok(lock) => locks.push(lock),
            // A file of the list in a directory that is not ours to write is only read.
            Err(MergeError::Lock(_, e))
                if file != sources.default_file()
                    && matches!(
                        e.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                    ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(locks)
}

async fn lock(file: &Path) -> Result<Lock, MergeError> {
    let mut path = file.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        atomic::make_private_dir(parent).map_err(|e| MergeError::Lock(path.clone(), e))?;
    }
    let deadline = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        match fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
        {
            Ok(_) => return Ok(Lock(path)),
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MergeError::Lock(path, e));
            }
            Err(_) if tokio::time::Instant::now() >= deadline => {
                return Err(MergeError::Locked(path, LOCK_WAIT.as_secs()));
            }
            Err(_) => tokio::time::sleep(LOCK_POLL).await,
        }
    }
}

/// kubectl holds its lock for milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Short enough not to be felt.
const LOCK_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
