//! Reading files that a user names, without believing that they end.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The text of a file, or of a pipe; refused when it is longer than any that makes sense.
///
/// # Errors
/// It can't be read, is no UTF-8, or is too long.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    text(File::open(path)?)
}

/// As [`read_to_string`], of what is open already.
///
/// # Errors
/// As there.
pub fn text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other(format!(
            "it is longer than {LONGEST} bytes"
        )));
    }
    Ok(text)
}

/// Far beyond any kubeconfig: thousands of clusters with certificates.
const LONGEST: u64 = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        assert!(
            text(io::repeat(b' '))
                .unwrap_err()
                .to_string()
                .contains("longer than")
        );
        assert!(text(io::repeat(0xff)).is_err());
        assert_eq!(text(&b"x"[..]).unwrap(), "x");
    }
}
