//! Kubeconfig entries for memberships, and merging them into the files that the user has.
//!
//! [`Entry`] and [`Document`] are pure; [`sources`] finds the files as kubectl does, and [`files`] locks, reads
//! and replaces them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use towline_proto::names::Membership;

use crate::service_account::ActAs;

pub mod document;
pub mod files;
pub mod sources;
pub mod template;

pub use document::Document;

/// One membership's cluster, user and context, which all go by one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name of all three.
    pub name: String,
    /// What `server:` says.
    pub server: String,
    /// What the server's certificate is checked against, in PEM; the system's own when absent.
    pub certificate_authority: Option<String>,
    /// Who the user is.
    pub credential: Credential,
}

/// Where kubectl has a token from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The exec plugin, with these arguments.
    Exec(Vec<String>),
    /// A file that somebody else keeps up to date: for programs on machines without `towline`.
    TokenFile(PathBuf),
}

/// The program that kubectl asks for credentials.
pub const EXEC_COMMAND: &str = "towline";

/// What kubectl says when it can't find the program.
const INSTALL_HINT: &str = "The `towline` command signs kubectl in at Towline gateways, and was not found.\n\
Put it on your PATH (ask whoever runs the gateway where to get it), then try again.";

/// Arguments with which kubectl asks for a membership's credentials.
pub fn exec_args(
    gateway: &str,
    membership: &Membership,
    config_dir: Option<&Path>,
    act_as: Option<&ActAs>,
    credentials: Option<&Path>,
    end_to_end: bool,
) -> Vec<String> {
    let mut args = vec![
        "credential".to_owned(),
        "--gateway".to_owned(),
        gateway.to_owned(),
        "--membership".to_owned(),
        membership.to_string(),
    ];
    if let Some(dir) = config_dir {
        args.extend(["--config-dir".to_owned(), dir.display().to_string()]);
    }
    if let Some(act_as) = act_as {
        args.extend([
            "--impersonate-service-account".to_owned(),
            act_as.to_string(),
        ]);
    }
    if let Some(file) = credentials {
        args.extend(["--credentials".to_owned(), file.display().to_string()]);
    }
    if end_to_end {
        args.push("--end-to-end".to_owned());
    }
    args
}

impl Entry {
    /// The cluster's fields that are ours to set.
    fn cluster(&self) -> Map<String, Value> {
        use base64::Engine as _;
        let mut fields = Map::new();
        if let Some(pem) = &self.certificate_authority {
            let data = base64::engine::general_purpose::STANDARD.encode(pem);
            fields.insert("certificate-authority-data".to_owned(), data.into());
        }
        fields.insert("server".to_owned(), self.server.as_str().into());
        fields
    }

    /// The user's fields that are ours to set.
    fn user(&self) -> Map<String, Value> {
        let args = match &self.credential {
            Credential::Exec(args) => args,
            Credential::TokenFile(path) => {
                return Map::from_iter([("tokenFile".to_owned(), json!(path))]);
            }
        };
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "args": args,
            "command": EXEC_COMMAND,
            "env": null,
            "installHint": INSTALL_HINT,
            "interactiveMode": "IfAvailable",
            "provideClusterInfo": false,
        });
        Map::from_iter([("exec".to_owned(), exec)])
    }

    /// The context's fields that are ours to set.
    fn context(&self) -> Map<String, Value> {
        Map::from_iter([
            ("cluster".to_owned(), self.name.as_str().into()),
            ("user".to_owned(), self.name.as_str().into()),
        ])
    }
}
