//! Files that are replaced whole or not at all.
//!
//! A crash, a full disk or a second writer leaves either the old content or the new one: the content goes to a
//! temporary file beside the target, is flushed to the disk, and takes the target's name. Links are followed,
//! so that a kubeconfig kept elsewhere stays there.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

/// A file that could not be written; what was there before still is.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Replaces the file at `path`. A new file is for its owner only; an existing one keeps its mode and owner.
///
/// # Errors
/// The directory can't be made or written to, or the disk is full.
pub fn write(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let error = |source| WriteError {
        path: path.to_owned(),
        source,
    };
    let target = follow_links(path).map_err(error)?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_private_dir(parent).map_err(error)?;

    // Made with mode 0600.
    let mut file = tempfile::Builder::new()
        .prefix(".towline-")
        .tempfile_in(parent)
        .map_err(error)?;
    file.write_all(content).map_err(error)?;
    if let Ok(existing) = fs::metadata(&target) {
        if !existing.is_file() {
            return Err(error(io::Error::other("it is not a file")));
        }
        keep_owner_and_mode(file.path(), &existing).map_err(error)?;
    }
    file.as_file().sync_all().map_err(error)?;
    file.persist(&target).map_err(|e| error(e.error))?;
    // Not every file system can; the file itself is safe by now.
    drop(sync_dir(parent));
    Ok(())
}

/// Makes a directory, and those above it, for its owner only; leaves an existing one as it is.
///
/// # Errors
/// As of the operating system.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Where a write to `path` ends up; the last link's target need not exist.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or_else(|| Path::new("")).join(to),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(unix)]
fn keep_owner_and_mode(file: &Path, existing: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(file)?;
    if (made.uid(), made.gid()) != (existing.uid(), existing.gid()) {
        std::os::unix::fs::chown(file, Some(existing.uid()), Some(existing.gid()))?;
    }
    fs::set_permissions(file, existing.permissions())
}

#[cfg(not(unix))]
fn keep_owner_and_mode(_: &Path, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

/// As many as Linux follows.
const MAX_LINKS: usize = 40;

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_new_file_is_its_owners_and_an_old_one_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file");
        write(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left behind"
        );
    }

    #[test]
    fn links_are_followed_also_to_what_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        symlink("real", &link).unwrap();
        write(&link, b"x").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"x");
    }
}
