//! What is measured, running: an origin, and what is between it and the client.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::HeaderValue;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    certificates,
    load::SMALL,
    process::{self, Process, command, free_port, listening},
    route::{Between, Route, read},
};

/// How long a tunnel may take until requests pass.
const CONNECTED: Duration = Duration::from_secs(30);

/// Where the programs are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The directory with towline, towline-gateway and towline-agent.
    #[arg(long, value_name = "DIR")]
    pub(crate) towline: PathBuf,
    /// The directory with konnectivity's server and agent, as `server` and `agent`.
    #[arg(long, value_name = "DIR")]
    pub(crate) konnectivity: Option<PathBuf>,
}

/// What all ways have in common: an origin, certificates, and a gateway with a membership.
pub(crate) struct Scene {
    programs: Programs,
    pub(crate) directory: PathBuf,
    origin: SocketAddr,
    _origin: Process,
    inner: Arc<ClientConfig>,
    gateway: Gateway,
    registered: bool,
}

/// A gateway's state directory.
pub(crate) struct Gateway {
    pub(crate) state: PathBuf,
    pub(crate) port: u16,
    /// The file with the authority of its certificate.
    pub(crate) authority: PathBuf,
    one_time_code: String,
}

/// One way, ready to be measured.
pub(crate) struct Leg {
    pub(crate) route: Route,
    /// The end that the client talks to, and the other.
    pub(crate) ends: Option<(Process, Process)>,
}

impl Scene {
    pub(crate) async fn set(programs: Programs, directory: &Path) -> anyhow::Result<Self> {
        certificates::make(directory)?;
        let own = std::env::current_exe()?;
        let (process, line) =
            Process::start_and_read(command(&own, &["origin", "--directory"]).arg(directory))
                .await?;
        let origin: SocketAddr = line
            .parse()
            .with_context(|| format!("the origin says {line:?}"))?;
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "origin",
            "clusters": [{"name": "origin", "cluster": {
                "server": format!("https://{origin}"),
                "certificate-authority": directory.join("ca.crt"),
            }}],
            "users": [{"name": "agent", "user": {"token": "agent"}}],
            "contexts": [{"name": "origin", "context": {"cluster": "origin", "user": "agent"}}],
        });
        fs::write(directory.join("kubeconfig"), kubeconfig.to_string())?;
        let inner = certificates::client(&directory.join("ca.crt"), None)?;
        let gateway = Gateway::init(&programs, directory).await?;
        Ok(Self {
            programs,
            directory: directory.to_owned(),
            origin,
            _origin: process,
            inner: Arc::new(inner),
            gateway,
            registered: false,
        })
    }

    /// Brings up what is between, whose far end dials `through` in place of the near one.
    pub(crate) async fn leg(
        &mut self,
        between: Between,
        relay: impl AsyncFnOnce(SocketAddr) -> anyhow::Result<Option<u16>>,
    ) -> anyhow::Result<Leg> {
        let leg = match between {
            Between::Direct => Leg {
                route: self.route(between, self.origin, Arc::clone(&self.inner)),
                ends: None,
            },
            Between::Towline => self.towline(relay).await?,
            Between::KonnectivityGrpc => self.konnectivity(between, "grpc", relay).await?,
            Between::KonnectivityConnect => {
                self.konnectivity(between, "http-connect", relay).await?
            }
        };
        leg.wait().await?;
        Ok(leg)
    }

    /// Whether there are programs for it.
    pub(crate) const fn has(&self, between: Between) -> bool {
        match between {
            Between::Direct | Between::Towline => true,
            Between::KonnectivityGrpc | Between::KonnectivityConnect => {
                self.programs.konnectivity.is_some()
            }
        }
    }

    fn route(&self, between: Between, dial: SocketAddr, tls: Arc<ClientConfig>) -> Route {
        Route {
            between,
            dial,
            origin: self.origin,
            tls,
            inner: Arc::clone(&self.inner),
            prefix: String::new(),
            authorization: HeaderValue::from_static("Bearer client"),
        }
    }

    async fn towline(
        &mut self,
        relay: impl AsyncFnOnce(SocketAddr) -> anyhow::Result<Option<u16>>,
    ) -> anyhow::Result<Leg> {
        let Gateway {
            port,
            authority,
            one_time_code,
            ..
        } = &self.gateway;
        let near = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let gateway = Process::start(
            command(
                &self.programs.towline.join("towline-gateway"),
                &["run", "--config"],
            )
            .arg(self.gateway.config())
            .env("TOWLINE_LOG", "warn"),
            &self.directory.join("gateway.log"),
        )?;
        listening(*port).await?;
        let registration = self.directory.join("registration.yaml");
        if !self.registered {
            let password = self.directory.join("password");
            fs::write(&password, "correct horse battery staple")?;
            process::run(
                self.towline_command(&["login", &format!("https://{near}"), "--username", "admin"])
                    .arg("--certificate-authority")
                    .arg(authority)
                    .args(["--one-time-code", one_time_code, "--new-password-file"])
                    .arg(&password),
            )
            .await?;
            for quota in ["requests_per_minute", "active_streams", "watches"] {
                for holder in [None, Some("--default")] {
                    process::run(
                        self.towline_command(&["quotas", "set", quota, "--project", "demo"])
                            .args(holder)
                            .args(["--limit", "10000000"]),
                    )
                    .await?;
                }
            }
            process::run(
                self.towline_command(&["memberships", "register", "bench", "--project", "demo"])
                    .args(["--impersonate-anyone", "--output-file"])
                    .arg(&registration),
            )
            .await?;
            self.registered = true;
        }
        let mut text = fs::read_to_string(&registration)?;
        if let Some(other) = relay(near).await? {
            text = text.replace(
                &format!("https://{near}"),
                &format!("https://127.0.0.1:{other}"),
            );
        }
        let through = self.directory.join("registration-through.yaml");
        fs::write(&through, text)?;
        let agent = Process::start(
            command(
                &self.programs.towline.join("towline-agent"),
                &["run", "--registration"],
            )
            .arg(&through)
            .arg("--key-file")
            .arg(self.directory.join("agent.key"))
            .arg("--kubeconfig")
            .arg(self.directory.join("kubeconfig"))
            .env("TOWLINE_LOG", "warn"),
            &self.directory.join("agent.log"),
        )?;
        let membership = "projects/demo/locations/global/memberships/bench";
        let credential = process::run(
            self.towline_command(&["credential", "--gateway", &format!("https://{near}")])
                .args(["--membership", membership])
                .env(
                    "KUBERNETES_EXEC_INFO",
                    serde_json::json!({
                        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                        "spec": {"interactive": false, "cluster": {"server": format!("https://{near}/v1/{membership}")}},
                    })
                    .to_string(),
                ),
        )
        .await?;
        let credential: Value = serde_json::from_str(&credential)?;
        let token = credential
            .pointer("/status/token")
            .and_then(Value::as_str)
            .context("no token")?;
        let tls = certificates::client(authority, None)?;
        let mut route = self.route(Between::Towline, near, Arc::new(tls));
        route.prefix = format!("/v1/{membership}");
        route.authorization = HeaderValue::from_str(&format!("Bearer {token}"))?;
        Ok(Leg {
            route,
            ends: Some((gateway, agent)),
        })
    }

    fn towline_command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.programs.towline.join("towline"), arguments);
        command
            .env("TOWLINE_CONFIG_DIR", self.directory.join("config"))
            .env_remove("TOWLINE_GATEWAY");
        command
    }

    async fn konnectivity(
        &self,
        between: Between,
        mode: &str,
        relay: impl AsyncFnOnce(SocketAddr) -> anyhow::Result<Option<u16>>,
    ) -> anyhow::Result<Leg> {
        let Some(programs) = &self.programs.konnectivity else {
            bail!("no --konnectivity");
        };
        let file = |name: &str| self.directory.join(name).display().to_string();
        let ports: Vec<u16> = (0..6).map(|_| free_port()).collect::<Result<_, _>>()?;
        let [front, back, admin, health, agent_admin, agent_health] = ports.as_slice() else {
            bail!("six ports");
        };
        let mut server = Command::new(programs.join("server"));
        for (flag, value) in [
            ("mode", mode.to_owned()),
            ("server-port", front.to_string()),
            ("server-bind-address", "127.0.0.1".to_owned()),
            ("server-ca-cert", file("ca.crt")),
            ("server-cert", file("server.crt")),
            ("server-key", file("server.key")),
            ("agent-port", back.to_string()),
            ("agent-bind-address", "127.0.0.1".to_owned()),
            ("cluster-ca-cert", file("ca.crt")),
            ("cluster-cert", file("server.crt")),
            ("cluster-key", file("server.key")),
            ("admin-port", admin.to_string()),
            ("admin-bind-address", "127.0.0.1".to_owned()),
            ("health-port", health.to_string()),
            ("health-bind-address", "127.0.0.1".to_owned()),
        ] {
            server.arg(format!("--{flag}={value}"));
        }
        let server = Process::start(&mut server, &self.directory.join("konnectivity-server.log"))?;
        listening(*front).await?;
        listening(*back).await?;
        let near = SocketAddr::from((Ipv4Addr::LOCALHOST, *back));
        let back = relay(near).await?.unwrap_or(*back);
        let mut agent = Command::new(programs.join("agent"));
        for (flag, value) in [
            ("ca-cert", file("ca.crt")),
            ("agent-cert", file("client.crt")),
            ("agent-key", file("client.key")),
            ("proxy-server-host", "127.0.0.1".to_owned()),
            ("proxy-server-port", back.to_string()),
            ("admin-server-port", agent_admin.to_string()),
            ("admin-bind-address", "127.0.0.1".to_owned()),
            ("health-server-port", agent_health.to_string()),
            ("health-server-host", "127.0.0.1".to_owned()),
        ] {
            agent.arg(format!("--{flag}={value}"));
        }
        let agent = Process::start(&mut agent, &self.directory.join("konnectivity-agent.log"))?;
        let tls = certificates::client(&self.directory.join("ca.crt"), Some(&self.directory))?;
        let front = SocketAddr::from((Ipv4Addr::LOCALHOST, *front));
        Ok(Leg {
            route: self.route(between, front, Arc::new(tls)),
            ends: Some((server, agent)),
        })
    }
}

impl Leg {
    /// Waits until requests pass.
    async fn wait(&self) -> anyhow::Result<()> {
        let until = Instant::now() + CONNECTED;
        loop {
            let answered = async {
                let mut client = self.route.client().await?;
                read(client.send(self.route.get(SMALL)?).await?).await
            };
            match answered.await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Processor time of both ends so far, in seconds.
    pub(crate) fn seconds(&self) -> (f64, f64) {
        self.ends
            .as_ref()
            .map_or((0.0, 0.0), |(near, far)| (near.seconds(), far.seconds()))
    }

    /// Resident memory of both ends, in KiB.
    pub(crate) fn resident(&self) -> (u64, u64) {
        self.ends
            .as_ref()
            .map_or((0, 0), |(near, far)| (near.resident(), far.resident()))
    }

    /// Ends what is between.
    pub(crate) async fn end(self) {
        if let Some((near, far)) = self.ends {
            far.end().await;
            near.end().await;
        }
    }
}

impl Gateway {
    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.state.join("gateway.toml")
    }

    /// Makes one that doesn't run yet.
    pub(crate) async fn init(programs: &Programs, directory: &Path) -> anyhow::Result<Self> {
        let state = directory.join("gateway");
        let port = free_port()?;
        let said = process::run(
            command(
                &programs.towline.join("towline-gateway"),
                &["init", "--state-dir"],
            )
            .arg(&state)
            .args([
                "--host",
                "127.0.0.1",
                "--listen",
                &format!("127.0.0.1:{port}"),
            ])
            .args(["--project", "demo", "--admin", "admin", "--print", "json"]),
        )
        .await?;
        let made: Value = serde_json::from_str(&said)?;
        let text = |key: &str| {
            let value = made.get(key).and_then(Value::as_str);
            value
                .map(str::to_owned)
                .with_context(|| format!("no {key}"))
        };
        Ok(Self {
            state,
            port,
            authority: text("certificateAuthority")?.into(),
            one_time_code: text("oneTimeCode")?,
        })
    }
}
