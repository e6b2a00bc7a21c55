//! Pipelines without a stored secret: the examples of `deploy/ci`, as they stand, deploy to a real cluster.
//!
//! What an owner does once is in each example's comment, and is run from there; what a job does is in its two lines.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, path::PathBuf, sync::LazyLock};

use serde_json::json;
use tests::{Agent, Cluster, Cmd, User, World, idp::Pipeline, place, wait_until, world::CONNECTED};

struct Place {
    world: World,
    cluster: Cluster,
    pipeline: Pipeline,
    _agent: Agent,
}

/// A gateway with project `shop` and its cluster `prod`.
fn place() -> &'static Place {
    static PLACE: LazyLock<Place> = LazyLock::new(|| {
        let cluster = Cluster::second();
        let world = World::new("gateway", &cluster);
        let admin = &world.admin;
        admin.towline("projects create shop").ok();
        let file = place::directory("registration").join("registration.yaml");
        admin
            .towline("memberships register --project shop --impersonate-anyone prod --output-file")
            .arg(&file)
            .ok();
        let mut agent = Agent::new(&cluster, "prod", file);
        agent.run();
        admin.towline("get-credentials prod --project shop").ok();
        world.wait_served(admin);
        admin
            .towline("iam workload-identity-pools create ci --project shop")
            .ok();
        // Who deploys may do so in the cluster: as what RBAC sees of them.
        let pool = "projects/shop/locations/global/workloadIdentityPools/ci";
        let sub = "system:serviceaccount:default:deployer";
        for (name, subject) in [
            (
                "github",
                format!("principal://{pool}/subject/repo:acme/shop:ref:refs/heads/main"),
            ),
            ("gitlab", "serviceAccount:deployer@shop".to_owned()),
            ("pod", format!("principal://{pool}/subject/{sub}")),
        ] {
            let said = cluster
                .kubectl(&format!(
                    "create clusterrolebinding towline-ci-{name} --clusterrole edit --user {subject}"
                ))
                .run();
            assert!(
                said.code == Some(0) || said.stderr.contains("already exists"),
                "{said}"
            );
        }
        let pipeline = Pipeline::start(cluster.host_ip(), &tokens());
        Place {
            world,
            cluster,
            pipeline,
            _agent: agent,
        }
    });
    &PLACE
}

/// Claims as the two systems document them.
fn tokens() -> serde_json::Value {
    let github = |repository: &str| {
        json!({
            "iss": "https://token.actions.githubusercontent.com",
            "sub": format!("repo:{repository}:ref:refs/heads/main"),
            "repository": repository, "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65",
            "repository_visibility": "private", "ref": "refs/heads/main", "ref_type": "branch",
            "ref_protected": "true", "sha": "example-sha", "workflow": "deploy", "event_name": "push",
            "job_workflow_ref": format!("{repository}/.github/workflows/deploy.yaml@refs/heads/main"),
            "run_id": "1", "run_number": "1", "run_attempt": "1", "runner_environment": "github-hosted",
            "actor": "ann", "actor_id": "12", "base_ref": "", "head_ref": "",
        })
    };
    let gitlab = |environment: &str| {
        json!({
            "iss": "https://gitlab.com", "sub": "project_path:acme/shop:ref_type:branch:ref:main",
            "namespace_id": "72", "namespace_path": "acme", "project_id": "20", "project_path": "acme/shop",
            "user_id": "1", "user_login": "ann", "user_email": "ann@example.com", "user_access_level": "developer",
            "pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "main", "ref_type": "branch",
            "ref_path": "refs/heads/main", "ref_protected": "true", "environment": environment,
            "environment_protected": "true", "deployment_tier": environment, "environment_action": "start",
            "runner_id": 1, "runner_environment": "gitlab-hosted", "sha": "example-sha",
            "project_visibility": "private",
        })
    };
    json!({
        "github": github("acme/shop"), "github-other": github("acme/other"),
        "gitlab": gitlab("production"), "gitlab-staging": gitlab("staging"),
    })
}

/// A directory with the sources of a job, and the credential configuration that its owner made.
struct Job {
    example: String,
    home: PathBuf,
    name: &'static str,
}

impl Job {
    /// Does what the example's comment says, as the project's owner; each change is made to it first.
    fn prepare(example: &str, name: &'static str, changes: &[(&str, &str)]) -> Self {
        let place = place();
        let example = fs::read_to_string(place::tree().join("deploy/ci").join(example)).unwrap();
        let home = place::directory(&format!("job-{name}"));
        fs::create_dir(home.join("manifests")).unwrap();
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("shop-{name}"), "namespace": "default"}, "data": {"by": name},
        });
        fs::write(home.join("manifests/shop.yaml"), manifest.to_string()).unwrap();
        let mut commands: Vec<&str> = example
            .lines()
            .filter_map(|line| line.strip_prefix("#   "))
            // All three have the one pool.
            .filter(|line| {
                !line.contains("workload-identity-pools create ci") && !line.starts_with("kubectl")
            })
            .collect();
        commands.insert(0, "set -eux");
        let mut script = commands.join("\n");
        for (from, to) in changes {
            assert!(script.contains(from), "{from:?} is not in {script}");
            script = script.replace(from, to);
        }
        let admin = &place.world.admin;
        admin
            .at_home(Cmd::new("bash"))
            .args(["-c", &script])
            .directory(&home)
            .ok();
        Self {
            example,
            home,
            name,
        }
    }

    /// The example's two lines, in a clean environment.
    fn run(&self) -> Cmd {
        let lines: Vec<&str> = self
            .example
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.trim().trim_start_matches("- "))
            .filter(|line| line.starts_with("towline ") || line.starts_with("kubectl "))
            .collect();
        assert_eq!(lines.len(), 2, "two lines are what it takes: {lines:?}");
        let runner = User::new(&place().world.gateway, &format!("runner-{}", self.name));
        runner
            .at_home(Cmd::new("bash"))
            .args(["-ec", &lines.join("\n")])
            .directory(&self.home)
    }

    fn has_deployed(&self) {
        let made = place()
            .cluster
            .kubectl(&format!("get configmap shop-{} -o json", self.name))
            .json();
        assert_eq!(made["data"]["by"], self.name);
    }
}

#[test]
fn a_github_job_deploys_and_another_repositorys_does_not() {
    let pipeline = &place().pipeline;
    let issuer = "https://token.actions.githubusercontent.com";
    let jwks = place::directory("keys").join("jwks.json");
    fs::write(&jwks, pipeline.jwks()).unwrap();
    let with_keys = format!("{issuer} --jwks-file {}", jwks.display());
    let job = Job::prepare("github-actions.yaml", "github", &[(issuer, &with_keys)]);
    let said = pipeline.github("github-other", job.run()).fails();
    assert!(said.contains("condition"), "the reason is told: {said}");
    let said = job.run().fails();
    assert!(said.contains("id-token: write"), "{said}");
    pipeline.github("github", job.run()).ok();
    job.has_deployed();
}

#[test]
fn a_gitlab_job_deploys_as_a_service_account_and_another_environments_does_not() {
    let pipeline = &place().pipeline;
    let jwks = place::directory("keys").join("jwks.json");
    fs::write(&jwks, pipeline.jwks()).unwrap();
    let issuer = "--issuer-uri https://gitlab.com";
    let with_keys = format!("{issuer} --jwks-file {}", jwks.display());
    let job = Job::prepare("gitlab-ci.yaml", "gitlab", &[(issuer, &with_keys)]);
    let run = |name: &str| {
        job.run()
            .env("TOWLINE_ID_TOKEN", pipeline.token(name, "towline"))
    };
    let said = run("gitlab-staging").fails();
    assert!(said.contains("deployer@shop"), "{said}");
    run("gitlab").ok();
    job.has_deployed();
}

/// The pod's own token: a real one, of the cluster's own issuer.
fn pods_token(file: &PathBuf, account: &str) {
    let cluster = &place().cluster;
    wait_until("the service account is there", CONNECTED, || {
        let made = cluster
            .kubectl(&format!("create serviceaccount {account}"))
            .run();
        made.code == Some(0) || made.stderr.contains("already exists")
    });
    let token = cluster
        .kubectl(&format!(
            "create token {account} --audience towline --duration 10m"
        ))
        .ok();
    fs::write(file, token).unwrap();
}

#[test]
fn a_pod_deploys_with_its_projected_token_also_without_towline() {
    let place = place();
    let directory = place::directory("pod");
    let jwks = directory.join("jwks.json");
    fs::write(
        &jwks,
        place.cluster.kubectl("get --raw /openid/v1/jwks").ok(),
    )
    .unwrap();
    let token = directory.join("token");
    let job = Job::prepare(
        "pod.yaml",
        "pod",
        &[
            ("jwks.json", jwks.to_str().unwrap()),
            ("/var/run/secrets/towline/token", token.to_str().unwrap()),
        ],
    );
    pods_token(&token, "other");
    let said = job.run().fails();
    assert!(said.contains("condition"), "{said}");
    pods_token(&token, "deployer");
    job.run().ok();
    job.has_deployed();
    // The example itself is one that the API server takes.
    place
        .cluster
        .kubectl("create --dry-run=server -o name -f -")
        .input(
            job.example
                .replace("name: deployer\n---", "name: deployer-example\n---"),
        )
        .ok();

    // A stock client with a token file, once the provider says that its tokens may come directly.
    let admin = &place.world.admin;
    let own = admin.with_kubeconfig(&directory.join("kubeconfig"));
    own.towline("get-credentials prod --project shop --token-file")
        .arg(&token)
        .ok();
    let said = own.kubectl("get configmap shop-pod").fails();
    assert!(
        said.contains("nauthorized") || said.contains("logged in"),
        "{said}"
    );
    own.towline(
        "iam workload-identity-pools providers update-oidc cluster --pool ci --project shop",
    )
    .arg("--allow-direct-bearer")
    .ok();
    own.kubectl("get configmap shop-pod").ok();
}
