//! The real clusters of `tests/cluster`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{Cmd, text_of},
    place,
};

/// A cluster that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    settings: BTreeMap<String, String>,
}

impl Cluster {
    /// The tests' cluster with a node: `it`, or `TOWLINE_TEST_CLUSTER`.
    pub fn with_node() -> Self {
        Self::up(
            &place::variable("TOWLINE_TEST_CLUSTER").unwrap_or_else(|| "it".to_owned()),
            true,
        )
    }

    /// The tests' second cluster, without a node: the first one's name with a 2, for runs beside each other.
    pub fn second() -> Self {
        Self::up(
            &place::variable("TOWLINE_TEST_CLUSTER")
                .map_or_else(|| "it2".to_owned(), |name| name + "2"),
            false,
        )
    }

    /// Brings it up if it isn't, whole.
    ///
    /// # Panics
    /// It can't be brought up: this tier fails without a cluster, it doesn't skip.
    pub fn up(name: &str, node: bool) -> Self {
        Self::up_with(name, node, "")
    }

    /// The same, where its API server has more flags: the name says which.
    ///
    /// # Panics
    /// As [`up`](Self::up).
    pub fn up_with(name: &str, node: bool, flags: &str) -> Self {
        static UP: LazyLock<Mutex<BTreeMap<String, Cluster>>> = LazyLock::new(Mutex::default);
        let mut up = UP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cluster) = up.get(name) {
            return cluster.clone();
        }
        let command = Self::command()
            .args(["up", name])
            .env("TOWLINE_APISERVER_FLAGS", flags)
            .limit(Duration::from_secs(1200));
        if node { command.arg("--node") } else { command }.ok();
        Self::command().args(["link", name, "restore"]).ok();
        let directory = PathBuf::from(Self::command().args(["dir", name]).ok().trim());
        let settings = text_of(&directory.join("env"))
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let cluster = Self {
            name: name.to_owned(),
            settings,
        };
        up.insert(name.to_owned(), cluster.clone());
        cluster
    }

    /// Kills its API server.
    ///
    /// # Panics
    /// It doesn't run.
    #[track_caller]
    pub fn kill_api_server(&self) {
        let file = Path::new(self.setting("PID_DIR")).join("kube-apiserver");
        let text = text_of(&file);
        let pid = text
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        let pid = pid
            .and_then(Pid::from_raw)
            .expect("the API server's number");
        kill_process(pid, Signal::KILL).expect("the API server runs");
    }

    /// Starts again what of it doesn't run.
    #[track_caller]
    pub fn repair(&self) {
        let command = Self::command().args(["up", &self.name]);
        let node = self.setting("WITH_NODE") == "yes";
        let limit = Duration::from_secs(180);
        if node { command.arg("--node") } else { command }
            .limit(limit)
            .ok();
    }

    fn command() -> Cmd {
        Cmd::new(place::tree().join("tests/cluster/cluster"))
    }

    /// A value of its `env` file.
    ///
    /// # Panics
    /// There is none of that name.
    pub fn setting(&self, name: &str) -> &str {
        self.settings
            .get(name)
            .unwrap_or_else(|| panic!("{}'s env has no {name}", self.name))
    }

    /// Where a gateway listens so that agents of every cluster can dial it.
    pub fn host_ip(&self) -> &str {
        self.setting("HOST_IP")
    }

    /// The administrator's kubeconfig; good inside only.
    pub fn admin_kubeconfig(&self) -> &Path {
        Path::new(self.setting("ADMIN_KUBECONFIG"))
    }

    /// Its audit log: one JSON event a line.
    pub fn audit_log(&self) -> &Path {
        Path::new(self.setting("AUDIT_LOG"))
    }

    /// `command` in the cluster's network.
    #[must_use]
    pub fn inside(&self, command: Cmd) -> Cmd {
        command.under([
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.setting("NETNS")),
            "--".to_owned(),
        ])
    }

    /// kubectl as the administrator, from inside, straight to the API server.
    pub fn kubectl(&self, words: &str) -> Cmd {
        let kubectl = Path::new(self.setting("KUBE_BIN")).join("kubectl");
        self.inside(
            Cmd::new(kubectl)
                .env("KUBECONFIG", self.admin_kubeconfig())
                .words(words),
        )
    }

    /// A fault on its link; `restore` undoes all.
    #[track_caller]
    pub fn link(&self, fault: &str) -> String {
        Self::command().args(["link", &self.name]).words(fault).ok()
    }

    /// Puts images on its node.
    #[track_caller]
    pub fn load(&self, image: &Path) {
        Self::command()
            .args(["load", &self.name])
            .arg(image)
            .limit(Duration::from_secs(120))
            .ok();
    }

    /// What identifies it: the UID of its `kube-system` namespace.
    #[track_caller]
    pub fn uid(&self) -> String {
        self.kubectl("get namespace kube-system -o jsonpath={.metadata.uid}")
            .ok()
    }
}
