//! What the command line remembers between calls: which gateways there are, and which one is meant.
//!
//! ```text
//! config.yaml              which gateway is the current one
//! gateways/NAME.yaml       a gateway's address, CA, last user and default project
//! tokens/NAME.json, .lock  see `tokens`
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use towline_proto::names::Project;

use crate::{
    atomic::{self, WriteError},
    bounded,
    gateway_url::GatewayUrl,
    sign_in::SignIn,
    tokens::Tokens,
    workload::Workload,
};

/// The directory with the command line's own files.
#[derive(Debug, Clone)]
pub struct ConfigDir {
    root: PathBuf,
    /// Named on the command line or in the environment, so that a kubeconfig must name it too.
    given: bool,
}

/// Settings of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Its address, `https://HOST[:PORT]`.
    pub gateway: String,
    /// PEM certificates that its certificate is checked against; the system's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
    /// Who signed in last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The project that is meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// The service account to act as when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate_service_account: Option<String>,
    /// The issuer that was signed in with last, of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Root {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
}

/// Settings that can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Neither given nor derivable.
    #[error(
        "no home directory is known; set TOWLINE_CONFIG_DIR to a directory for towline's files"
    )]
    NoHome,
    /// The file is there but can't be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Not what the file should hold; the text has line and column.
    #[error("{path}: {1}; correct the file, or delete it and run: towline login", path = .0.display())]
    Parse(PathBuf, String),
    /// See [`WriteError`].
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Can't be said in YAML.
    #[error("cannot write {path} as YAML: {1}", path = .0.display())]
    Render(PathBuf, String),
}

impl Gateway {
    /// One that nothing is known of but its address.
    pub fn new(url: &GatewayUrl) -> Self {
        Self {
            gateway: url.to_string(),
            certificate_authority: None,
            username: None,
            project: None,
            impersonate_service_account: None,
            issuer: None,
        }
    }
}

impl ConfigDir {
    /// `given`, else `towline` under the XDG directory, else `~/.config/towline`.
    ///
    /// # Errors
    /// Nothing given and no home directory.
    pub fn find(
        given: Option<PathBuf>,
        xdg_config_home: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        if let Some(root) = given.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Self {
                root: std::path::absolute(&root).unwrap_or(root),
                given: true,
            });
        }
        // The XDG specification: a relative path is to be ignored.
        let config = match xdg_config_home.filter(|path| path.is_absolute()) {
            Some(path) => path,
            None => std::env::home_dir()
                .filter(|home| !home.as_os_str().is_empty())
                .ok_or(SettingsError::NoHome)?
                .join(".config"),
        };
        Ok(Self {
            root: config.join("towline"),
            given: false,
        })
    }

    /// The directory, if it isn't the one that would be found by itself.
    pub fn when_given(&self) -> Option<&Path> {
        self.given.then_some(self.root.as_path())
    }

    /// The tokens of a gateway: of the sign-in that is kept, or of a workload that was given with the command, if
    /// that is for this gateway.
    pub fn tokens(&self, gateway: &GatewayUrl, given: Option<&Workload>) -> Tokens {
        let own = given.filter(|workload| workload.gateway.parse().ok().as_ref() == Some(gateway));
        let (name, tokens) = (gateway.name(), self.root.join("tokens"));
        match own {
            None => Tokens::at(tokens.join(format!("{name}.json"))),
            Some(workload) => {
                let path = tokens.join(format!("{name}.{}.json", workload.digest()));
                Tokens::of(SignIn::Workload(Box::new(workload.clone())), path)
            }
        }
    }

    /// The name of the current gateway.
    ///
    /// # Errors
    /// The file is there but no good.
    pub fn current(&self) -> Result<Option<String>, SettingsError> {
        Ok(read::<Root>(&self.root.join("config.yaml"))?
            .unwrap_or_default()
            .gateway)
    }

    /// Makes a gateway the current one, or none.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn set_current(&self, name: Option<String>) -> Result<(), SettingsError> {
        write(&self.root.join("config.yaml"), &Root { gateway: name })
    }

    /// A gateway's settings, by its name.
    ///
    /// # Errors
    /// The file is there but no good.
    pub fn gateway(&self, name: &str) -> Result<Option<Gateway>, SettingsError> {
        read(&self.gateway_path(name))
    }

    /// Keeps a gateway's settings.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn set_gateway(&self, name: &str, gateway: &Gateway) -> Result<(), SettingsError> {
        write(&self.gateway_path(name), gateway)
    }

    /// Names of all gateways that there are settings of, sorted.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn gateways(&self) -> Result<Vec<String>, SettingsError> {
        let dir = self.root.join("gateways");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(SettingsError::Read(dir, e)),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                Some(
                    entry
                        .ok()?
                        .file_name()
                        .to_str()?
                        .strip_suffix(".yaml")?
                        .to_owned(),
                )
            })
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        Ok(names)
    }

    fn gateway_path(&self, name: &str) -> PathBuf {
        self.root.join("gateways").join(format!("{name}.yaml"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SettingsError> {
    match bounded::read_to_string(path) {
        Ok(text) => serde_saphyr::from_str(&text)
            .map(Some)
            .map_err(|e| SettingsError::Parse(path.to_owned(), e.without_snippet().to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(SettingsError::Read(path.to_owned(), e)),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), SettingsError> {
    let text = serde_saphyr::to_string(value)
        .map_err(|e| SettingsError::Render(path.to_owned(), e.to_string()))?;
    Ok(atomic::write(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, ConfigDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ConfigDir::find(Some(temp.path().to_owned()), None).unwrap();
        (temp, dir)
    }

    #[test]
    fn settings_round_trip() {
        let (_temp, dir) = dir();
        assert_eq!(dir.current().unwrap(), None);
        assert!(dir.gateways().unwrap().is_empty());
        let gateway = Gateway {
            gateway: "https://gw".into(),
            certificate_authority: Some(
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
            ),
            username: Some("alice".into()),
            project: Some("p".parse().unwrap()),
            impersonate_service_account: Some("deployer@p".into()),
            issuer: None,
        };
        dir.set_gateway("gw", &gateway).unwrap();
        dir.set_current(Some("gw".into())).unwrap();
        assert_eq!(dir.current().unwrap().as_deref(), Some("gw"));
        assert_eq!(dir.gateway("gw").unwrap(), Some(gateway));
        assert_eq!(dir.gateways().unwrap(), ["gw"]);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let (temp, dir) = dir();
        fs::create_dir(temp.path().join("gateways")).unwrap();
        fs::write(
            temp.path().join("gateways/gw.yaml"),
            "gateway: https://gw\ngatway: x\n",
        )
        .unwrap();
        let error = dir.gateway("gw").unwrap_err().to_string();
        assert!(
            error.contains("gatway") && error.contains("line 2"),
            "{error}"
        );
        assert!(error.contains("gateways/gw.yaml"), "{error}");
    }

    #[test]
    fn the_xdg_directory_counts_only_when_absolute() {
        let dir = ConfigDir::find(None, Some("/x".into())).unwrap();
        assert_eq!(dir.root, Path::new("/x/towline"));
        assert_eq!(dir.when_given(), None);
        let dir = ConfigDir::find(None, Some("x".into()));
        assert!(dir.is_err() || dir.unwrap().root.ends_with(".config/towline"));
    }
}
