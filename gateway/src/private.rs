//! Files that only the gateway's user reads, replaced whole.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Makes a directory of mode 0700, and those above it.
///
/// # Errors
/// As the system says.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes an empty file of mode 0600, unless there is one.
///
/// # Errors
/// As the system says.
pub(crate) fn make_file(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// Replaces a file: written beside it with mode 0600, synced, renamed. A reader sees the old or the new.
///
/// # Errors
/// As the system says; the old file is then still there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let result = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if result.is_err() {
        // It may not be there at all.
        drop(fs::remove_file(&beside));
    }
    result?;
    // Without this the rename itself may be lost with the power.
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Left by a run that died: its mode can't be trusted.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}
