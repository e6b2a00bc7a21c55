//! A file of JSON lines: `audit.jsonl`, and `audit.jsonl.1` and so on for what was written before.

use std::path::{Path, PathBuf};

use tokio::{
    fs::{self, OpenOptions},
    io::AsyncWriteExt as _,
};

use super::SinkError;

/// The file that is written, of a mode that its owner alone reads.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    file: fs::File,
    size: u64,
}

impl File {
    /// Opens it, and goes on where it ended.
    ///
    /// # Errors
    /// [`SinkError::File`].
    pub async fn open(path: PathBuf, max_bytes: u64, max_files: u32) -> Result<Self, SinkError> {
        let (file, size) = open(&path).await?;
        let mut opened = Self {
            path,
            max_bytes,
            max_files,
            file,
            size,
        };
        opened.end_broken_line().await?;
        Ok(opened)
    }

    /// Writes lines, in a new file where the one there is has grown too large.
    ///
    /// # Errors
    /// [`SinkError::File`]; part of the lines may have been written.
    pub async fn write(&mut self, lines: &[u8]) -> Result<(), SinkError> {
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.max_bytes {
            self.rotate().await?;
        }
        let written = async {
            self.file.write_all(lines).await?;
            self.file.flush().await
        };
        if let Err(source) = written.await {
            // What part of it is there is cut off, so that no line is half of one.
            drop(self.file.set_len(self.size).await);
            return Err(SinkError::File {
                path: self.path.clone(),
                source,
            });
        }
        self.size = self.size.saturating_add(length);
        Ok(())
    }

    async fn rotate(&mut self) -> Result<(), SinkError> {
        let failed = |path: PathBuf| move |source| SinkError::File { path, source };
        for number in (1..self.max_files.max(1)).rev() {
            let from = numbered(&self.path, number - 1);
            let to = numbered(&self.path, number);
            match fs::rename(&from, &to).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(to)(error));
                }
                _ => {}
            }
        }
        if self.max_files <= 1 {
            fs::remove_file(&self.path)
                .await
                .map_err(failed(self.path.clone()))?;
        }
        (self.file, self.size) = open(&self.path).await?;
        Ok(())
    }

    /// A process that died in the middle of a line left one that would swallow the next.
    async fn end_broken_line(&mut self) -> Result<(), SinkError> {
        use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
        if self.size == 0 {
            return Ok(());
        }
        let mut last = [b'\n'];
        let read = async {
            let mut file = fs::File::open(&self.path).await?;
            file.seek(std::io::SeekFrom::End(-1)).await?;
            file.read_exact(&mut last).await
        };
        read.await.map_err(|source| SinkError::File {
            path: self.path.clone(),
            source,
        })?;
        if last == [b'\n'] {
            Ok(())
        } else {
            self.write(b"\n").await
        }
    }
}

async fn open(path: &Path) -> Result<(fs::File, u64), SinkError> {
    let opened = async {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .await?;
        let size = file.metadata().await?.len();
        Ok((file, size))
    };
    opened.await.map_err(|source| SinkError::File {
        path: path.to_owned(),
        source,
    })
}

/// The file that is written is 0, the one before it 1.
pub(in crate::audit) fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn files_are_rotated_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let mut file = File::open(path.clone(), 100, 3).await.unwrap();
        for number in 0..10 {
            let line = format!("{number}{}\n", "x".repeat(58));
            file.write(line.as_bytes()).await.unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
        for (number, first) in [(0, '9'), (1, '8'), (2, '7')] {
            let text = std::fs::read_to_string(numbered(&path, number)).unwrap();
            assert!(text.starts_with(first), "{text}");
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn it_goes_on_where_a_process_that_died_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        std::fs::write(&path, "{}\n{\"half").unwrap();
        let mut file = File::open(path.clone(), 1_000, 3).await.unwrap();
        file.write(b"{}\n").await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{}\n{\"half\n{}\n");
    }
}
