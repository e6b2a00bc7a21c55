//! Files whose bytes are looked at again elsewhere.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use crate::command::Cmd;

/// Makes a file of bytes that don't repeat within what any buffer holds.
///
/// # Panics
/// It can't be written.
#[track_caller]
pub fn random_file(path: &Path, size: u64) {
    let mut source = File::open("/dev/urandom")
        .expect("there is randomness")
        .take(size);
    let mut file = File::create(path).expect("the file can be made");
    let written = io::copy(&mut source, &mut file).expect("the file can be written");
    assert_eq!(written, size);
}

/// A file's SHA-256, as `sha256sum` writes it.
///
/// # Panics
/// It can't be read.
#[track_caller]
pub fn checksum(path: &Path) -> String {
    let limit = Duration::from_secs(120);
    let said = Cmd::new("sha256sum").arg(path).limit(limit).ok();
    said.split_whitespace()
        .next()
        .expect("a checksum")
        .to_owned()
}
