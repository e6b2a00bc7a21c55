//! A kube-apiserver of the test's own, beside the clusters: with flags that these don't have.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::json;

use crate::{
    Cluster, Cmd, Program,
    certificate::Certificate,
    gateway::free_port,
    http::{Answer, Api, full},
    place,
    wait::wait_for,
};

/// How long it may take to start, and to take a changed file.
const BOUND: Duration = Duration::from_secs(90);

/// The kernel counts what watches files by user. As root the API server would share that number with all clusters, and
/// look at its file once a minute when nothing is left of it.
const OWN_USER: &str = "setpriv --reuid 64321 --regid 64321 --clear-groups --inh-caps=+dac_override \
                        --ambient-caps=+dac_override";

/// What it says when it has looked at a changed file, and whether it took it.
const VERDICTS: [(&str, bool); 4] = [
    ("reloaded authentication config", true),
    ("failed to load authentication config", false),
    ("failed to validate authentication config", false),
    ("failed to update authentication config", false),
];

/// An API server that reads `--authentication-config`; everybody who signs in may do everything.
#[derive(Debug)]
pub struct ApiServer {
    program: Program,
    _etcd: Program,
    api: Api,
    file: PathBuf,
    seen: usize,
}

impl ApiServer {
    /// Starts one with a first configuration, which it must take.
    ///
    /// # Panics
    /// It doesn't listen.
    pub fn start(name: &str, cluster: &Cluster, tls: &Certificate, configuration: &str) -> Self {
        let directory = place::directory(name);
        let bin = PathBuf::from(cluster.setting("KUBE_BIN"));
        let [store, peers, port] = [free_port(), free_port(), free_port()];
        let etcd = Cmd::new(bin.join("etcd"))
            .args(["--data-dir".into(), directory.join("etcd")])
            .words("--unsafe-no-fsync --log-level warn")
            .words(&format!(
                "--listen-client-urls http://127.0.0.1:{store} --advertise-client-urls http://127.0.0.1:{store}"
            ))
            .words(&format!(
                "--listen-peer-urls http://127.0.0.1:{peers} --initial-advertise-peer-urls http://127.0.0.1:{peers} \
                 --initial-cluster default=http://127.0.0.1:{peers}"
            ))
            .start(&format!("{name}-etcd"));
        let file = directory.join("authentication.yaml");
        fs::write(&file, configuration).expect("a file can be written");
        let (certificate, key) = (tls.certificate.display(), tls.key.display());
        let program = Cmd::new(bin.join("kube-apiserver"))
            .words(&format!("--etcd-servers http://127.0.0.1:{store} --secure-port {port}"))
            .words("--bind-address 127.0.0.1 --advertise-address 127.0.0.1 --endpoint-reconciler-type none")
            .words("--service-cluster-ip-range 10.255.0.0/24 --authorization-mode AlwaysAllow")
            .words(&format!("--tls-cert-file {certificate} --tls-private-key-file {key}"))
            .words(&format!("--service-account-key-file {certificate} --service-account-signing-key-file {key}"))
            .words("--service-account-issuer https://kubernetes.default.svc.cluster.local")
            .words(&format!("--authentication-config {}", file.display()))
            .words("--v 2")
            .under(OWN_USER.split_whitespace())
            .start(name);
        let server = Self {
            program,
            _etcd: etcd,
            api: Api::new(&format!("https://127.0.0.1:{port}"), &tls.authority, None),
            file,
            seen: 0,
        };
        let up = || {
            server
                .program
                .err()
                .contains("Serving securely")
                .then_some(())
        };
        wait_for("an API server that serves", BOUND, up);
        server
    }

    /// Gives it another configuration; says whether it took it, and the line that it wrote about it.
    ///
    /// # Panics
    /// It says nothing about it.
    pub fn configure(&mut self, configuration: &str) -> (bool, String) {
        // In one step: a half-written file would be a verdict of its own.
        let next = self.file.with_extension("next");
        fs::write(&next, configuration).expect("a file can be written");
        fs::rename(&next, &self.file).expect("a file can be renamed");
        let seen = self.seen;
        let verdicts = wait_for("the API server's word on its configuration", BOUND, || {
            let log = self.program.err();
            let verdicts: Vec<_> = log
                .lines()
                .filter_map(|line| {
                    let (_, taken) = VERDICTS.iter().find(|(words, _)| line.contains(words))?;
                    Some((*taken, line.to_owned()))
                })
                .collect();
            (verdicts.len() > seen).then_some(verdicts)
        });
        self.seen = verdicts.len();
        verdicts.into_iter().nth(seen).expect("there is one more")
    }

    /// Who a token is, as `kubectl auth whoami` asks.
    ///
    /// # Panics
    /// It doesn't answer.
    pub async fn self_subject_review(&self, token: &str) -> Answer {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let api = self.api.with_token(Some(token));
        let request = api
            .request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .body(full(review.to_string()))
            .expect("a request");
        api.send(request).await
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        self.program.err()
    }
}
