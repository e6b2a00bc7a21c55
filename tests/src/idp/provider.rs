//! oidc-provider, which rotates refresh tokens, always says who redirects (RFC 9207), and asks for consent.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::json;

use super::{Browser, built};
use crate::{certificate::Certificate, command::Cmd, gateway::free_port, place, program::Program};

/// An oidc-provider that runs; dropping it ends it.
#[derive(Debug)]
pub struct Provider {
    /// Its issuer.
    pub issuer: String,
    /// The certificate that signs its own.
    pub authority: PathBuf,
    program: Program,
}

impl Provider {
    /// Starts one where `ip` reaches it, whose ID tokens live `seconds`, with users and their claims.
    #[track_caller]
    pub fn start(ip: &str, seconds: u32, users: &serde_json::Value) -> Self {
        let tls = Certificate::new("provider", ip);
        let port = free_port();
        let issuer = format!("https://{ip}:{port}");
        let settings = place::directory("provider").join("settings.json");
        let text = json!({
            "issuer": issuer,
            "port": port,
            "certificate": tls.certificate,
            "key": tls.key,
            "idTokenSeconds": seconds,
            "users": users,
        });
        fs::write(&settings, text.to_string()).expect("a file can be written");
        let mut program = Cmd::new("node")
            .arg(built("provider").join("server.mjs"))
            .arg(settings)
            .start("provider");
        program.line("its issuer", Duration::from_secs(30), |line| {
            line.starts_with("listening: ")
        });
        Self {
            issuer,
            authority: tls.authority,
            program,
        }
    }

    /// A browser that believes its certificate.
    pub fn browser(&self) -> Browser {
        Browser::new(&self.authority)
    }

    /// Its certificate authority, in PEM.
    pub fn authority_pem(&self) -> String {
        fs::read_to_string(&self.authority).expect("a file that was written")
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.program.kill();
    }
}
