//! A gateway with its administrator; and the world that the tests of one topic share.

use std::{
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
    time::Duration,
};

use serde_json::json;

use crate::{
    agent::Agent,
    cluster::Cluster,
    front::{Front, Kind, gateway_behind},
    gateway::Gateway,
    place,
    user::User,
    wait::wait_until,
};

/// How long a new agent may take until requests pass.
pub const CONNECTED: Duration = Duration::from_secs(20);

/// A gateway and `admin`, who owns project `demo`.
#[derive(Debug)]
pub struct World {
    /// The gateway.
    pub gateway: Gateway,
    /// Its first user.
    pub admin: User,
}

impl World {
    /// Starts a gateway and signs `admin` in.
    #[track_caller]
    pub fn new(name: &str, cluster: &Cluster) -> Self {
        Self::of(Gateway::start(name, cluster))
    }

    /// Signs `admin` in at a gateway that runs.
    #[track_caller]
    pub fn of(gateway: Gateway) -> Self {
        let admin = User::sign_in(&gateway, "admin", &gateway.one_time_code);
        Self { gateway, admin }
    }

    /// Registers a membership; the file is what its agent is given.
    #[track_caller]
    pub fn register(&self, membership: &str) -> PathBuf {
        let file =
            place::directory(&format!("registration-{membership}")).join("registration.yaml");
        self.admin
            .towline("memberships register --project demo --impersonate-anyone")
            .arg(membership)
            .arg("--output-file")
            .arg(&file)
            .ok();
        file
    }

    /// Registers a membership and runs its agent; `admin`'s kubeconfig gets a context for it.
    #[track_caller]
    pub fn join(&self, cluster: &Cluster, membership: &str) -> Agent {
        let mut agent = Agent::new(cluster, membership, self.register(membership));
        agent.run();
        self.admin.get_credentials(membership);
        self.grant(cluster, &self.admin.name, "cluster-admin");
        self.wait_served(&self.admin);
        agent
    }

    /// A namespace of this run with the pod [`POD`] in it, which becomes `admin`'s.
    #[track_caller]
    pub fn namespace(&self, cluster: &Cluster) -> String {
        let namespace = new_namespace(cluster);
        cluster
            .kubectl(&format!(
                "-n {namespace} run {POD} --image {BUSYBOX} --image-pull-policy Never"
            ))
            .args(["--restart", "Never", "--overrides"])
            .arg(r#"{"spec":{"terminationGracePeriodSeconds":0}}"#)
            .args([
                "--",
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
            ])
            .ok();
        cluster
            .kubectl(&format!(
                "-n {namespace} wait --for condition=Ready pod/{POD} --timeout 60s"
            ))
            .ok();
        self.admin
            .kubectl("config set-context --current --namespace")
            .arg(&namespace)
            .ok();
        namespace
    }

    /// Waits until a user's current membership answers.
    #[track_caller]
    pub fn wait_served(&self, user: &User) {
        wait_until("the membership answers", CONNECTED, || {
            user.kubectl("get --raw /version --request-timeout 10s")
                .run()
                .code
                == Some(0)
        });
    }

    /// A new user with a role on the project, signed in.
    #[track_caller]
    pub fn user(&self, name: &str, role: &str) -> User {
        let made = self.admin.towline("users create -o json").arg(name).json();
        let code = made["oneTimeCode"]
            .as_str()
            .unwrap_or_else(|| panic!("no one-time code: {made}"));
        self.admin
            .towline("projects add-iam-policy-binding demo")
            .args(["--member", &format!("user:{name}"), "--role", role])
            .ok();
        User::sign_in(&self.gateway, name, code)
    }

    /// RBAC in the cluster for a user that the gateway knows.
    #[track_caller]
    pub fn grant(&self, cluster: &Cluster, user: &str, cluster_role: &str) {
        let binding = format!("towline-it-{user}-{cluster_role}");
        let command = format!(
            "create clusterrolebinding {binding} --clusterrole {cluster_role} --user {user}"
        );
        let said = cluster.kubectl(&command).run();
        assert!(
            said.code == Some(0) || said.stderr.contains("already exists"),
            "{said}"
        );
        // The API server's authorizer reads it from a watch, some milliseconds later.
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": { "user": user, "resourceAttributes": { "verb": "get", "resource": "pods", "namespace": "default" } },
        });
        wait_until("RBAC knows the binding", CONNECTED, || {
            let said = cluster
                .kubectl("create -o json -f -")
                .input(review.to_string())
                .json();
            said["status"]["allowed"] == true
        });
    }
}

/// What the tests of one binary share: `admin` with the cluster that has a node.
#[derive(Debug)]
pub struct Shared {
    /// The gateway and its administrator.
    pub world: World,
    /// The cluster with a node.
    pub cluster: Cluster,
    /// Its agent.
    pub agent: Mutex<Agent>,
    /// A namespace of this run, with the pod [`POD`] in it.
    pub namespace: String,
    /// What terminates TLS in front of the gateway: nothing, or what `TOWLINE_TEST_FRONT` names (nginx, haproxy).
    pub front: Option<Front>,
}

/// A pod that sleeps, with busybox's programs.
pub const POD: &str = "box";

/// The image of [`POD`].
pub const BUSYBOX: &str = "busybox:latest";

/// Kubernetes' own test server.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// The shared world; made by whichever test comes first.
#[track_caller]
pub fn shared() -> &'static Shared {
    static SHARED: LazyLock<Shared> = LazyLock::new(|| {
        let cluster = Cluster::with_node();
        let (gateway, front) = match place::variable("TOWLINE_TEST_FRONT").as_deref() {
            None => (Gateway::start("gateway", &cluster), None),
            Some(name) => {
                let kind = Kind::named(name);
                let (gateway, front) = gateway_behind(kind, "gateway", &cluster, |text| text);
                (gateway, Some(front))
            }
        };
        let world = World::of(gateway);
        let agent = world.join(&cluster, "it");
        let namespace = world.namespace(&cluster);
        Shared {
            world,
            cluster,
            agent: Mutex::new(agent),
            namespace,
            front,
        }
    });
    &SHARED
}

/// Makes a namespace for this run; those that earlier runs left are deleted.
#[track_caller]
pub fn new_namespace(cluster: &Cluster) -> String {
    let label = "towline.test/run";
    for old in cluster
        .kubectl(&format!("get namespace -l {label} -o name"))
        .ok()
        .lines()
    {
        // namespace/it-PID-NUMBER
        let runs = old
            .split('-')
            .nth(1)
            .is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !runs {
            cluster
                .kubectl(&format!("delete {old} --wait=false --ignore-not-found"))
                .ok();
        }
    }
    let name = format!("it-{}-{}", std::process::id(), crate::gateway::free_port());
    cluster.kubectl(&format!("create namespace {name}")).ok();
    cluster
        .kubectl(&format!("label namespace {name} {label}=yes"))
        .ok();
    wait_until(
        "the namespace's service account is there",
        Duration::from_secs(20),
        || {
            cluster
                .kubectl(&format!("-n {name} get serviceaccount default"))
                .run()
                .code
                == Some(0)
        },
    );
    name
}

impl Shared {
    /// kubectl through the gateway as `admin`, in the run's namespace.
    pub fn kubectl(&self, words: &str) -> crate::Cmd {
        self.world.admin.kubectl(words)
    }
}

/// The image of `tests/clients/server`, which says what reached it; made and loaded when it isn't there.
#[track_caller]
fn server_image(cluster: &Cluster) -> &'static str {
    const NAME: &str = "towline.test/server:it";
    let long = Duration::from_secs(300);
    let directory = place::directory("server-image");
    let program = directory.join("server");
    crate::Cmd::new("go")
        .words("build -trimpath -buildvcs=false -o")
        .arg(&program)
        .arg(".")
        .directory(place::tree().join("tests/clients/server"))
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .limit(long)
        .ok();
    let image = directory.join("image.tar");
    crate::Cmd::new(place::cached("mkimage"))
        .args(["--name", NAME, "--entrypoint", "/server", "--file"])
        .arg(format!("{}=/server:0755", program.display()))
        .arg("--output")
        .arg(&image)
        .limit(long)
        .ok();
    cluster.load(&image);
    NAME
}

/// Runs the pod and service `server` in a namespace: `tests/clients/server`, HTTPS on port 443, an echo on 7000.
#[track_caller]
pub fn run_server(cluster: &Cluster, namespace: &str) {
    let image = server_image(cluster);
    let kubectl = |words: &str| cluster.kubectl(&format!("-n {namespace} {words}"));
    kubectl(&format!(
        "run server --image {image} --image-pull-policy Never --restart Never"
    ))
    .args([
        "--overrides",
        r#"{"spec":{"terminationGracePeriodSeconds":0}}"#,
        "--",
        ":8443",
    ])
    .ok();
    kubectl("expose pod server --port 443 --target-port 8443").ok();
    kubectl("wait --for condition=Ready pod/server --timeout 30s").ok();
    let path = format!("/api/v1/namespaces/{namespace}/services/https:server:443/proxy/echo/");
    wait_until("the server answers", CONNECTED, || {
        cluster.kubectl("get --raw").arg(&path).run().code == Some(0)
    });
}

impl Shared {
    /// See [`run_server`]; once for all tests of a binary.
    #[track_caller]
    pub fn server(&self) {
        static MADE: std::sync::Once = std::sync::Once::new();
        MADE.call_once(|| run_server(&self.cluster, &self.namespace));
    }
}
