//! Which kubeconfig files there are, and which one a change goes to: client-go's own rules.
//!
//! An explicit file stands alone. Else `KUBECONFIG` is a list: an entry that is in one of its files is changed
//! there (the first that has it counts), and what is new, the current context included, goes to the first file
//! that exists, or to the last when none does. Else it is `~/.kube/config`.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The files that make up the user's kubeconfig, in the order in which they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources(Vec<PathBuf>);

/// Neither a file, nor a list, nor a home.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no home directory is known; name a file with --kubeconfig FILE")]
pub struct NoKubeconfig;

impl Sources {
    /// `explicit`, else the `KUBECONFIG` list, else `~/.kube/config`.
    ///
    /// # Errors
    /// None of the three.
    pub fn find(
        explicit: Option<&Path>,
        list: Option<&OsStr>,
        home: Option<&Path>,
    ) -> Result<Self, NoKubeconfig> {
        if let Some(file) = explicit.filter(|file| !file.as_os_str().is_empty()) {
            return Ok(Self(vec![file.to_owned()]));
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for file in list.map(std::env::split_paths).into_iter().flatten() {
            if !file.as_os_str().is_empty() && !files.contains(&file) {
                files.push(file);
            }
        }
        if files.is_empty() {
            let home = home
                .filter(|home| !home.as_os_str().is_empty())
                .ok_or(NoKubeconfig)?;
            files.push(home.join(".kube").join("config"));
        }
        Ok(Self(files))
    }

    /// All of them.
    pub fn files(&self) -> &[PathBuf] {
        &self.0
    }

    /// Where new things go.
    pub fn default_file(&self) -> &Path {
        let first = self.0.iter().find(|file| file.exists());
        first
            .or_else(|| self.0.last())
            .map_or_else(|| Path::new(""), PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_explicit_stands_alone() {
        let sources = Sources::find(Some(Path::new("x")), Some(OsStr::new("a:b")), None).unwrap();
        assert_eq!(sources.files(), [Path::new("x")]);
    }

    #[test]
    fn a_list_is_without_doubles_and_holes() {
        let list = std::env::join_paths(["a", "", "b", "a"]).unwrap();
        let sources = Sources::find(None, Some(&list), Some(Path::new("/home"))).unwrap();
        assert_eq!(sources.files(), [Path::new("a"), Path::new("b")]);
        let sources = Sources::find(None, Some(OsStr::new("")), Some(Path::new("/home"))).unwrap();
        assert_eq!(sources.files(), [Path::new("/home/.kube/config")]);
        assert_eq!(Sources::find(None, None, None), Err(NoKubeconfig));
    }

    #[test]
    fn new_things_go_to_the_first_that_exists_else_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let list = std::env::join_paths([&a, &b, &c]).unwrap();
        let sources = Sources::find(None, Some(&list), None).unwrap();
        assert_eq!(sources.default_file(), c);
        std::fs::write(&b, "").unwrap();
        assert_eq!(sources.default_file(), b);
    }
}
