//! Pipelines without stored secrets: a service account's own token of a real cluster, exchanged or as it is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use serde_json::{Value, json};
use tests::{Agent, Cluster, Cmd, World, place, wait_until, world::CONNECTED};

const POOL: &str = "projects/demo/locations/global/workloadIdentityPools/ci";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

const MAPPING: &str = "subject=assertion.sub,\
    groups=[\"namespace:\" + assertion['kubernetes.io'].namespace],\
    attribute.serviceaccount=assertion['kubernetes.io'].serviceaccount.name";
const CONDITION: &str = "assertion['kubernetes.io'].namespace == 'ci'";

/// A gateway that believes a cluster's service accounts: those of namespace `ci`.
struct Ci {
    world: World,
    cluster: Cluster,
    audience: String,
    _agent: Agent,
}

fn ci() -> &'static Ci {
    static CI: LazyLock<Ci> = LazyLock::new(|| {
        let cluster = Cluster::second();
        let world = World::new("federation", &cluster);
        let agent = world.join(&cluster, "it");
        for command in [
            "create namespace ci",
            "-n ci create serviceaccount deployer",
            "-n ci create serviceaccount argocd",
            "-n default create serviceaccount deployer",
        ] {
            let said = cluster.kubectl(command).run();
            assert!(
                said.code == Some(0) || said.stderr.contains("already exists"),
                "{said}"
            );
        }
        let ci = Ci {
            audience: format!(
                "//{}:{}/{POOL}/providers/cluster",
                world.gateway.ip, world.gateway.port
            ),
            world,
            cluster,
            _agent: agent,
        };
        let discovery = ci
            .cluster
            .kubectl("get --raw /.well-known/openid-configuration")
            .json();
        let keys = place::directory("federation-keys").join("jwks.json");
        fs::write(&keys, ci.cluster.kubectl("get --raw /openid/v1/jwks").ok()).unwrap();
        let towline = |words: &str| ci.world.admin.towline(words).args(["--project", "demo"]);
        towline("iam workload-identity-pools create ci").ok();
        towline("iam workload-identity-pools providers create-oidc cluster --pool ci")
            .args(["--issuer-uri", discovery["issuer"].as_str().unwrap()])
            .arg("--jwks-file")
            .arg(&keys)
            .args(["--attribute-mapping", MAPPING])
            .args(["--attribute-condition", CONDITION])
            .arg("--allow-direct-bearer")
            .ok();
        towline("service-accounts create deployer").ok();
        ci
    });
    &CI
}

impl Ci {
    fn curl(&self, path: &str) -> Cmd {
        Cmd::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(&self.world.gateway.certificate_authority)
            .arg(format!("{}{path}", self.world.gateway.url))
    }

    fn bind(&self, role: &str, member: &str) {
        self.world
            .admin
            .towline("projects add-iam-policy-binding demo")
            .args(["--member", member, "--role", role])
            .ok();
    }

    /// A token as the kubelet projects it into a pod.
    fn projected(&self, namespace: &str, account: &str, audience: &str) -> String {
        let command = format!("-n {namespace} create token {account} --duration 10m --audience");
        let token = self.cluster.kubectl(&command).arg(audience).ok();
        token.trim().to_owned()
    }

    fn exchange(&self, token: &str, fields: &[(&str, &str)]) -> Value {
        let mut curl = self.curl("/oauth2/token");
        for (name, value) in [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("subject_token_type", JWT),
            ("subject_token", token),
            ("audience", &self.audience),
        ]
        .iter()
        .chain(fields)
        {
            curl = curl.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        curl.json()
    }

    fn server(&self) -> String {
        format!(
            "{}/v1/projects/demo/locations/global/memberships/it",
            self.world.gateway.url
        )
    }

    /// A kubeconfig as programs have it that know nothing of this gateway.
    fn kubeconfig(&self, name: &str, user: Value) -> PathBuf {
        let file = place::directory(&format!("federation-{name}")).join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {
                "server": self.server(),
                "certificate-authority": self.world.gateway.certificate_authority,
            }}],
            "users": [{"name": "job", "user": user}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "job"}}],
        });
        fs::write(&file, config.to_string()).unwrap();
        file
    }

    fn kubectl(&self, kubeconfig: &Path, words: &str) -> Cmd {
        Cmd::new(place::cached("kubectl"))
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", kubeconfig.parent().unwrap())
            .words(words)
    }

    fn rbac(&self, name: &str, subject: &[&str]) {
        let command = format!("create clusterrolebinding towline-it-{name} --clusterrole edit");
        let said = self.cluster.kubectl(&command).args(subject).run();
        assert!(
            said.code == Some(0) || said.stderr.contains("already exists"),
            "{said}"
        );
    }
}

fn config_map(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"}, "data": {"by": "a pipeline"},
    })
    .to_string()
}

#[test]
fn a_pods_token_is_exchanged_and_deploys() {
    let ci = ci();
    let member = format!("principalSet://{POOL}/attribute.serviceaccount/deployer");
    ci.bind("gatewayEditor", &member);
    let group = format!("principalSet://{POOL}/group/namespace:ci");
    ci.rbac("federated", &["--group", &group]);
    let projected = ci.projected("ci", "deployer", &ci.audience);
    let server = ci.server();
    let answer = ci.exchange(&projected, &[("resource", &server)]);
    let token = answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"));
    let kubeconfig = ci.kubeconfig("exchanged", json!({"token": token}));
    wait_until("RBAC knows the group", CONNECTED, || {
        let apply = ci.kubectl(&kubeconfig, "apply -f -");
        apply.input(config_map("exchanged")).run().code == Some(0)
    });
    let me = ci.kubectl(&kubeconfig, "auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(
        info["username"],
        format!("principal://{POOL}/subject/system:serviceaccount:ci:deployer")
    );
    assert_eq!(info["groups"], json!([group, "system:authenticated"]));

    // Acting as a service account, which the cluster and its audit log see, with who acts.
    ci.bind("workloadIdentityUser", &member);
    ci.bind("gatewayEditor", "serviceAccount:deployer@demo");
    let answer = ci.exchange(
        &projected,
        &[("impersonate_service_account", "deployer@demo")],
    );
    let token = answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"));
    let kubeconfig = ci.kubeconfig("acting", json!({"token": token}));
    let me = ci.kubectl(&kubeconfig, "auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "serviceAccount:deployer@demo");
    assert_eq!(
        info["extra"]["towline.dev/delegates"],
        json!([format!(
            "principal://{POOL}/subject/system:serviceaccount:ci:deployer"
        )])
    );
}

#[test]
fn another_namespaces_token_is_refused_with_the_reason() {
    let ci = ci();
    for (namespace, audience, reason) in [
        (
            "default",
            ci.audience.as_str(),
            &*format!("the condition is not met: {CONDITION}"),
        ),
        ("ci", "https://kubernetes.default.svc", "wrong audience"),
    ] {
        let token = ci.projected(namespace, "deployer", audience);
        let answer = ci.exchange(&token, &[]);
        assert_eq!(answer["error"], "invalid_grant", "{answer}");
        let description = answer["error_description"].as_str().unwrap();
        assert!(description.contains(reason), "{description}");
        // Nor as it is.
        let kubeconfig = ci.kubeconfig("refused", json!({"token": token}));
        let said = ci
            .kubectl(&kubeconfig, "get --raw /api/v1/namespaces/default/pods")
            .fails();
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_stock_client_sends_the_token_file_as_it_is() {
    let ci = ci();
    let member = format!("principalSet://{POOL}/attribute.serviceaccount/argocd");
    ci.bind("gatewayEditor", &member);
    let subject = format!("principal://{POOL}/subject/system:serviceaccount:ci:argocd");
    ci.rbac("argocd", &["--user", &subject]);
    let file = place::directory("federation-token").join("token");
    let kubeconfig = ci.kubeconfig("direct", json!({"tokenFile": file}));
    // As the kubelet does it: another token in the same file.
    for round in 0..2 {
        fs::write(&file, ci.projected("ci", "argocd", &ci.audience)).unwrap();
        wait_until("RBAC knows the subject", CONNECTED, || {
            let apply = ci.kubectl(&kubeconfig, "apply -f -");
            apply
                .input(config_map(&format!("direct-{round}")))
                .run()
                .code
                == Some(0)
        });
    }
    let answer = Cmd::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--cacert"])
        .arg(&ci.world.gateway.certificate_authority)
        .arg("--header")
        .arg(format!(
            "authorization: Bearer {}",
            fs::read_to_string(&file).unwrap()
        ))
        .arg(format!(
            "{}/api/v1/namespaces/default/configmaps/direct-1",
            ci.server()
        ))
        .json();
    assert_eq!(answer["data"]["by"], "a pipeline");
}
