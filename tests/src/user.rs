//! A person with a home directory, who uses the real command line and kubectl.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    command::Cmd,
    gateway::{Gateway, secret_file},
    http::Api,
    place,
};

/// Which kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubectl {
    /// The one that the cluster is built from.
    Current,
    /// 1.31, the first with WebSockets as the default.
    V1_31,
    /// 1.29, which has WebSockets behind a variable.
    V1_29,
}

/// Which protocol kubectl upgrades to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `v5.channel.k8s.io`, and SPDY in a WebSocket for port-forward.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// A signed-in user; the files are of this user alone.
#[derive(Debug, Clone)]
pub struct User {
    /// The name at the gateway, and in the cluster.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Kubeconfig file.
    pub kubeconfig: PathBuf,
    url: String,
    certificate_authority: PathBuf,
}

impl User {
    /// Somebody who has not signed in.
    #[track_caller]
    pub fn new(gateway: &Gateway, name: &str) -> Self {
        let home = place::directory(&format!("home-{name}"));
        Self {
            name: name.to_owned(),
            kubeconfig: home.join("kubeconfig"),
            home,
            url: gateway.url.clone(),
            certificate_authority: gateway.certificate_authority.clone(),
        }
    }

    /// Signs in for the first time, with a one-time code.
    #[track_caller]
    pub fn sign_in(gateway: &Gateway, name: &str, one_time_code: &str) -> Self {
        let user = Self::new(gateway, name);
        user.login()
            .arg("--one-time-code")
            .arg(one_time_code)
            .arg("--new-password-file")
            .arg(user.password())
            .ok();
        user
    }

    fn password(&self) -> PathBuf {
        secret_file(
            &self.home,
            "password",
            &format!("correct horse {} staple\n", self.name),
        )
    }

    /// `towline login`, with all but the credential.
    pub fn login(&self) -> Cmd {
        self.login_at_provider().args(["--username", &self.name])
    }

    /// `towline login` with whom the gateway names.
    pub fn login_at_provider(&self) -> Cmd {
        self.towline("login")
            .arg(&self.url)
            .arg("--certificate-authority")
            .arg(&self.certificate_authority)
    }

    /// The file with what is kept of the sign-in.
    pub fn tokens(&self) -> PathBuf {
        let name = self.url.trim_start_matches("https://").replace(':', "_");
        self.home.join(format!("towline/tokens/{name}.json"))
    }

    /// Signs in with the password.
    #[track_caller]
    pub fn sign_in_again(&self) {
        self.login()
            .arg("--password-file")
            .arg(self.password())
            .ok();
    }

    /// The command line as this user.
    pub fn towline(&self, words: &str) -> Cmd {
        self.at_home(Cmd::new(place::program("towline")))
            .words(words)
    }

    /// A command in this user's environment: home, kubeconfig, and `towline` on the path.
    pub fn at_home(&self, command: Cmd) -> Cmd {
        let own = place::program("towline");
        let directory = own.parent().expect("a program lies in a directory");
        let path = format!(
            "{}:{}:{}",
            directory.display(),
            place::cache().join("bin").display(),
            place::variable("PATH").unwrap_or_default()
        );
        command
            .env("HOME", &self.home)
            .env("TOWLINE_CONFIG_DIR", self.home.join("towline"))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", path)
    }

    /// Fetches a kubeconfig for a membership; it becomes the current one.
    #[track_caller]
    pub fn get_credentials(&self, membership: &str) {
        self.towline("get-credentials")
            .arg(membership)
            .args(["--project", "demo"])
            .ok();
    }

    /// The current kubectl; words as on a command line.
    pub fn kubectl(&self, words: &str) -> Cmd {
        self.kubectl_of(Kubectl::Current, Protocol::WebSocket, words)
    }

    /// One kubectl of several, with one of its protocols.
    pub fn kubectl_of(&self, kubectl: Kubectl, protocol: Protocol, words: &str) -> Cmd {
        let name = match kubectl {
            Kubectl::Current => "kubectl",
            Kubectl::V1_31 => "kubectl-1.31",
            Kubectl::V1_29 => "kubectl-1.29",
        };
        let websockets = match protocol {
            Protocol::WebSocket => "true",
            Protocol::Spdy => "false",
        };
        self.at_home(Cmd::new(place::cached(name)))
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .words(words)
            .limit(Duration::from_secs(60))
    }

    /// What the kubeconfig's current context says.
    #[track_caller]
    pub fn kubeconfig_now(&self) -> serde_json::Value {
        self.kubectl("config view --raw --minify -o json").json()
    }

    /// A token as kubectl gets one: from the kubeconfig's exec plugin.
    #[track_caller]
    pub fn token(&self) -> String {
        let config = self.kubeconfig_now();
        let exec = &config["users"][0]["user"]["exec"];
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut command = self.at_home(Cmd::new(text(&exec["command"])));
        for word in exec["args"].as_array().into_iter().flatten() {
            command = command.arg(text(word));
        }
        for variable in exec["env"].as_array().into_iter().flatten() {
            command = command.env(text(&variable["name"]), text(&variable["value"]));
        }
        let cluster = &config["clusters"][0]["cluster"];
        let asked = serde_json::json!({
            "apiVersion": exec["apiVersion"], "kind": "ExecCredential",
            "spec": {"interactive": false, "cluster": {"server": cluster["server"]}},
        });
        let answer = command
            .env("KUBERNETES_EXEC_INFO", asked.to_string())
            .json();
        text(&answer["status"]["token"])
    }

    /// Plain HTTPS to the current membership, as this user.
    #[track_caller]
    pub fn api(&self) -> Api {
        let config = self.kubeconfig_now();
        let server = config["clusters"][0]["cluster"]["server"]
            .as_str()
            .expect("a kubeconfig has a server");
        Api::new(server, &self.certificate_authority, Some(self.token()))
    }

    /// Another kubeconfig file of the same user, for a second membership.
    #[must_use]
    pub fn with_kubeconfig(&self, path: &Path) -> Self {
        Self {
            kubeconfig: path.to_owned(),
            ..self.clone()
        }
    }
}
