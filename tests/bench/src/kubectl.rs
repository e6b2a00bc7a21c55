//! kubectl as a person uses it, with one kubeconfig.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::{Instant, timeout},
};

/// kubectl with a kubeconfig.
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(crate) const fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig }
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .kill_on_drop(true);
        command
    }

    /// Its standard output; it has to succeed.
    pub(crate) async fn output(&self, words: &[impl AsRef<OsStr>]) -> anyhow::Result<String> {
        let output = self
            .command(words)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await?;
        if !output.status.success() {
            let words: Vec<_> = words
                .iter()
                .map(|word| word.as_ref().to_string_lossy())
                .collect();
            bail!("kubectl {} failed: {}", words.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// How long a command takes.
    pub(crate) async fn time(&self, words: &[impl AsRef<OsStr>]) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.output(words).await?;
        Ok(began.elapsed())
    }

    /// Round trips of a line through `cat` in a pod.
    pub(crate) async fn echo(
        &self,
        namespace: &str,
        pod: &str,
        rounds: usize,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut child = self
            .command(&["exec", "-i", "-n", namespace, pod, "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("exec has an input")?;
        let mut lines = BufReader::new(child.stdout.take().context("exec has an output")?).lines();
        let mut took = Vec::with_capacity(rounds);
        // The first one waits for the connection and the process.
        for round in 0..=rounds {
            let began = Instant::now();
            input.write_all(format!("{round}\n").as_bytes()).await?;
            let line = timeout(Duration::from_secs(20), lines.next_line())
                .await
                .context("no echo within 20 s")??;
            if line.as_deref() != Some(round.to_string().as_str()) {
                bail!("sent {round}, got {line:?}");
            }
            if round > 0 {
                took.push(began.elapsed());
            }
        }
        drop(input);
        child.wait().await?;
        Ok(took)
    }
}
