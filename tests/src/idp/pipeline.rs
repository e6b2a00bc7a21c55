//! CI systems' tokens, in their own shape but signed with a key of the tests'.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::built;
use crate::{certificate::Certificate, command::Cmd, gateway::free_port, place, program::Program};

/// What gives a job its token; dropping it ends it.
#[derive(Debug)]
pub struct Pipeline {
    /// The certificate that signs its own.
    pub authority: PathBuf,
    base: String,
    _program: Program,
}

impl Pipeline {
    /// Starts one where `ip` reaches it; `tokens` has claims by name.
    #[track_caller]
    pub fn start(ip: &str, tokens: &Value) -> Self {
        let tls = Certificate::new("pipeline", ip);
        let port = free_port();
        let settings = place::directory("pipeline").join("settings.json");
        let text = json!({
            "port": port, "certificate": tls.certificate, "key": tls.key, "bearer": BEARER, "tokens": tokens,
        });
        fs::write(&settings, text.to_string()).expect("a file can be written");
        let mut program = Cmd::new("node")
            .arg(built("provider").join("pipeline.mjs"))
            .arg(settings)
            .start("pipeline");
        program.line("that it listens", Duration::from_secs(30), |line| {
            line == "listening"
        });
        Self {
            authority: tls.authority,
            base: format!("https://{ip}:{port}"),
            _program: program,
        }
    }

    /// Its keys, as a JWK set.
    #[track_caller]
    pub fn jwks(&self) -> String {
        self.ask("/jwks")
    }

    /// A token as GitLab puts it into a job's variable.
    #[track_caller]
    pub fn token(&self, name: &str, audience: &str) -> String {
        self.ask(&format!("/raw/{name}?audience={audience}"))
    }

    /// What GitHub puts into a job's environment.
    #[must_use]
    pub fn github(&self, name: &str, job: Cmd) -> Cmd {
        job.env(
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            format!("{}/token/{name}?api-version=2.0", self.base),
        )
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", BEARER)
        .env("SSL_CERT_FILE", &self.authority)
    }

    #[track_caller]
    fn ask(&self, path: &str) -> String {
        Cmd::new("curl")
            .words("--silent --show-error --fail --max-time 20 --cacert")
            .arg(&self.authority)
            .arg(format!("{}{path}", self.base))
            .ok()
    }
}

const BEARER: &str = "of-this-job-alone";
