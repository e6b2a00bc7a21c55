//! Whom the agent impersonates on a real cluster: nobody but those whom its role names, and for whom RBAC lets a caller
//! be somebody else. What kubectl prints is what is looked at.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{path::PathBuf, sync::LazyLock, time::Duration};

use serde_json::{Value, json};
use tests::{
    Agent, Cluster, Cmd, User, World, place,
    user::{Kubectl, Protocol},
    wait_until,
    world::{BUSYBOX, POD, new_namespace},
};

const PATIENCE: Duration = Duration::from_secs(40);

/// A cluster with an agent that may impersonate nobody until somebody says so.
struct Site {
    cluster: Cluster,
    membership: String,
    /// Where the agent's service account is.
    agent_namespace: String,
    _agent: Agent,
}

struct Shared {
    world: World,
    main: Site,
    /// With a pod in it.
    namespace: String,
}

fn shared() -> &'static Shared {
    static SHARED: LazyLock<Shared> = LazyLock::new(|| {
        let cluster = Cluster::with_node();
        let world = World::new("impersonation", &cluster);
        let namespace = new_namespace(&cluster);
        clean(&cluster);
        let main = Site::join(&world, &cluster, "imp");
        cluster
            .kubectl(&format!(
                "-n {namespace} run {POD} --image {BUSYBOX} --image-pull-policy Never --restart Never -- sleep 100000"
            ))
            .ok();
        cluster
            .kubectl(&format!(
                "-n {namespace} wait --for condition=Ready pod/{POD} --timeout 60s"
            ))
            .ok();
        Shared {
            world,
            main,
            namespace,
        }
    });
    &SHARED
}

impl Site {
    /// Registers the cluster and runs an agent with the rights of a new service account, which has none.
    fn join(world: &World, cluster: &Cluster, membership: &str) -> Self {
        let agent_namespace = format!("towline-{membership}");
        let kubectl = |words: String| cluster.kubectl(&words).run();
        kubectl(format!("create namespace {agent_namespace}"));
        kubectl(format!(
            "create serviceaccount towline-agent -n {agent_namespace}"
        ));
        // As in the agent's own manifest: it tells which cluster this is.
        for words in [
            "create clusterrole towline-it-which-cluster --verb get --resource namespaces --resource-name kube-system"
                .to_owned(),
            format!(
                "create clusterrolebinding towline-it-which-cluster-{membership} --clusterrole towline-it-which-cluster \
                 --serviceaccount {agent_namespace}:towline-agent"
            ),
        ] {
            kubectl(words);
        }
        let registration = world.register(membership);
        let kubeconfig = kubeconfig_of(cluster, &agent_namespace);
        let mut agent = Agent::new(cluster, membership, registration).kubeconfig(kubeconfig);
        agent.run();
        let list = || {
            world
                .admin
                .towline("memberships list --project demo -o json")
                .json()
        };
        wait_until("the agent is connected", PATIENCE, || {
            list()
                .as_array()
                .into_iter()
                .flatten()
                .any(|found| found["name"] == membership && found["state"] == "CONNECTED")
        });
        Self {
            cluster: cluster.clone(),
            membership: membership.to_owned(),
            agent_namespace,
            _agent: agent,
        }
    }

    /// `towline memberships generate-gateway-rbac`, where the API server can be reached, as its administrator.
    fn rbac(&self, world: &World, words: &str) -> Cmd {
        let command = world
            .admin
            .towline("memberships generate-gateway-rbac --project demo")
            .arg(&self.membership)
            .args(["--agent-namespace", &self.agent_namespace])
            .words(words);
        self.cluster.inside(command)
    }

    /// Applies or revokes.
    fn change(&self, world: &World, words: &str) -> String {
        self.rbac(world, words)
            .arg("--kubeconfig")
            .arg(self.cluster.admin_kubeconfig())
            .ok()
    }

    /// A user of the gateway with a kubeconfig for the cluster.
    fn user(&self, world: &World, name: &str) -> User {
        let user = world.user(name, "gatewayAdmin");
        user.get_credentials(&self.membership);
        user
    }
}

/// Deletes what an earlier run left.
fn clean(cluster: &Cluster) {
    for kinds in ["clusterrolebindings,clusterroles", "rolebindings,roles -A"] {
        let labelled = "app.kubernetes.io/managed-by=towline";
        cluster
            .kubectl(&format!("delete {kinds} -l {labelled}"))
            .ok();
    }
}

/// A kubeconfig with the token of the agent's service account.
fn kubeconfig_of(cluster: &Cluster, namespace: &str) -> PathBuf {
    let token = cluster
        .kubectl(&format!(
            "create token towline-agent -n {namespace} --duration 8h"
        ))
        .ok();
    let kubeconfig = place::directory(&format!("agent-of-{namespace}")).join("kubeconfig");
    let config = |words: &str| {
        Cmd::new(place::cached("kubectl"))
            .env("KUBECONFIG", &kubeconfig)
            .words(words)
            .ok()
    };
    let (url, ca) = (cluster.setting("APISERVER_URL"), cluster.setting("CA_CERT"));
    config(&format!(
        "config set-cluster c --server {url} --certificate-authority {ca}"
    ));
    config(&format!(
        "config set-credentials u --token {}",
        token.trim()
    ));
    config("config set-context c --cluster c --user u");
    config("config use-context c");
    kubeconfig
}

/// Waits until a command of kubectl's does what it should.
#[track_caller]
fn wait_ok(user: &User, words: &str) {
    wait_until(words, PATIENCE, || {
        user.kubectl(words).run().code == Some(0)
    });
}

/// Waits until a command is refused with these words, and gives what kubectl printed.
#[track_caller]
fn wait_refused(user: &User, words: &str, with: &str) -> String {
    let mut said = String::new();
    wait_until(&format!("{words}: {with}"), PATIENCE, || {
        let output = user.kubectl(words).run();
        said.clone_from(&output.stderr);
        output.code != Some(0) && said.contains(with)
    });
    said
}

/// What kubectl prints where it execs, over both protocols.
fn exec_refusals(user: &User, words: &str) -> [String; 2] {
    let namespace = &shared().namespace;
    [Protocol::WebSocket, Protocol::Spdy].map(|protocol| {
        let words = format!("exec -n {namespace} {POD} {words} -- id");
        user.kubectl_of(Kubectl::Current, protocol, &words).fails()
    })
}

fn who(user: &User, words: &str) -> Value {
    let review = user.kubectl("auth whoami -o json").words(words).json();
    review["status"]["userInfo"].clone()
}

fn create(cluster: &Cluster, object: &Value) {
    cluster.kubectl("apply -f -").input(object.to_string()).ok();
}

/// A ClusterRole with one rule for each resource, bound to a user.
fn may_impersonate(cluster: &Cluster, user: &str, rules: &Value) {
    let name = format!("towline-it-{user}-impersonates");
    create(
        cluster,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "towline"}}, "rules": rules,
        }),
    );
    create(
        cluster,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "towline"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }),
    );
}

#[test]
fn nobody_is_impersonated_unless_named() {
    let Shared {
        world,
        main,
        namespace,
    } = shared();
    let nemo = main.user(world, "nemo");
    let get = nemo.kubectl(&format!("get pods -n {namespace}")).fails();
    for said in exec_refusals(&nemo, "").into_iter().chain([get]) {
        for words in [
            r#"Error from server (Forbidden): "#,
            r#"agent is not authorized to impersonate user "nemo"; in the cluster, the ClusterRole gateway-impersonate lacks {apiGroups: [""], resources: ["users"], verbs: ["impersonate"], resourceNames: ["nemo"]}"#,
            "run: towline memberships generate-gateway-rbac imp --users nemo --apply",
            "(towline: agent, request ",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}

#[test]
fn who_is_named_gets_through_with_the_groups_that_are_named() {
    let Shared {
        world,
        main,
        namespace,
    } = shared();
    let ada = main.user(world, "ada");
    world.admin.towline("users add-group ada dev hidden").ok();
    let said = main.change(
        world,
        "--users ada --groups dev --role clusterrole/view --apply",
    );
    assert!(said.contains("serverside-applied"), "{said}");
    wait_ok(&ada, &format!("get pods -n {namespace}"));
    wait_until("the agent knows its role", PATIENCE, || {
        who(&ada, "") == json!({"username": "ada", "groups": ["dev", "system:authenticated"]})
    });
    // What she may do there is RBAC's to say, in its own words.
    let said = ada.kubectl(&format!("get secrets -n {namespace}")).fails();
    assert!(
        said.contains(r#"User "ada" cannot list resource "secrets""#),
        "{said}"
    );
    for said in exec_refusals(&ada, "") {
        assert!(
            said.contains(r#"User "ada" cannot create resource "pods/exec""#)
                || said.contains(r#"User "ada" cannot get resource "pods/exec""#),
            "{said}"
        );
    }
    // A second run adds: the first one's names still hold.
    let bea = main.user(world, "bea");
    main.change(
        world,
        &format!("--users bea --role clusterrole/edit --namespace {namespace} --apply"),
    );
    wait_ok(&bea, &format!("get secrets -n {namespace}"));
    bea.kubectl("get pods -n kube-system").fails();
    ada.kubectl(&format!("get pods -n {namespace}")).ok();
}

#[test]
fn somebody_else_is_who_rbac_lets_the_caller_be() {
    let Shared {
        world,
        main,
        namespace,
    } = shared();
    let eve = main.user(world, "eve");
    main.change(world, "--users eve --role clusterrole/view --apply");
    wait_ok(&eve, &format!("get pods -n {namespace}"));

    // RBAC doesn't let her.
    let words = format!("get pods -n {namespace} --as bob");
    let get = eve.kubectl(&words).fails();
    for said in exec_refusals(&eve, "--as bob").into_iter().chain([get]) {
        for words in [
            r#"user "eve" may not impersonate user "bob" in this cluster (RBAC): "#,
            r#"{apiGroups: [""], resources: ["users"], verbs: ["impersonate"], resourceNames: ["bob"]}"#,
            "(towline: RBAC, request ",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    // RBAC lets her, and not the agent.
    let authentication = "authentication.k8s.io";
    may_impersonate(
        &main.cluster,
        "eve",
        &json!([
            {"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]},
            {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["ops"], "verbs": ["impersonate"]},
            {"apiGroups": [authentication], "resources": ["uids"], "resourceNames": ["7"], "verbs": ["impersonate"]},
            {"apiGroups": [authentication], "resources": ["userextras/scopes"], "resourceNames": ["read"], "verbs": ["impersonate"]},
        ]),
    );
    let said = wait_refused(
        &eve,
        &words,
        r#"agent is not authorized to impersonate user "bob""#,
    );
    assert!(
        said.contains("generate-gateway-rbac imp --users bob --apply"),
        "{said}"
    );

    // Both.
    main.change(
        world,
        &format!("--users bob --groups ops --uids 7 --extra scopes=read --role role/{namespace}/debug --apply"),
    );
    create(
        &main.cluster,
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "debug", "namespace": namespace},
            "rules": [{"apiGroups": [""], "resources": ["pods", "pods/exec"], "verbs": ["get", "list", "create"]}],
        }),
    );
    wait_ok(&eve, &words);
    let bob = who(
        &eve,
        "--as bob --as-group ops --as-uid 7 --as-user-extra scopes=read",
    );
    let original = bob["extra"]["towline.dev/original-user"][0]
        .as_str()
        .unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(original).unwrap(),
        json!({"username": "eve"})
    );
    assert_eq!(
        bob,
        json!({
            "username": "bob", "uid": "7", "groups": ["ops", "system:authenticated"],
            "extra": {"scopes": ["read"], "towline.dev/original-user": [original]},
        })
    );
    for protocol in [Protocol::WebSocket, Protocol::Spdy] {
        let words = format!("exec -n {namespace} {POD} --as bob -- id");
        let said = eve.kubectl_of(Kubectl::Current, protocol, &words).ok();
        assert!(said.contains("uid=0"), "{said}");
    }
    // She may not exec as herself: that was bob's right.
    exec_refusals(&eve, "");

    // Each name is asked for.
    for (words, what) in [
        ("--as bob --as-group dba", r#"group "dba""#),
        ("--as bob --as-uid 8", r#"UID "8""#),
        (
            "--as bob --as-user-extra scopes=write",
            r#"with extra "scopes" = "write""#,
        ),
        ("--as carol", r#"user "carol""#),
        (
            "--as system:serviceaccount:default:default",
            r#"service account "default/default""#,
        ),
    ] {
        let said = eve
            .kubectl(&format!("get pods -n {namespace} {words}"))
            .fails();
        let expected = format!(r#"user "eve" may not impersonate {what} in this cluster (RBAC)"#);
        assert!(said.contains(&expected), "{words}: {said}");
    }
    for key in ["original-user", "delegates"] {
        let forged = format!("--as bob --as-user-extra towline.dev/{key}=x");
        let said = eve.kubectl(&format!("get pods {forged}")).fails();
        assert!(said.contains("is Towline's own to set"), "{said}");
    }
}

#[test]
fn the_clusters_own_are_nobodys_to_be_but_for_service_accounts() {
    let Shared {
        world,
        main,
        namespace,
    } = shared();
    // Who may do everything may not do this.
    let root = main.user(world, "root");
    main.change(
        world,
        &format!(
            "--users root --role clusterrole/cluster-admin --cluster-service-accounts {namespace}/default --apply"
        ),
    );
    wait_ok(&root, &format!("get secrets -n {namespace}"));
    for words in [
        "--as system:admin",
        "--as system:anonymous",
        "--as system:kube-controller-manager",
        "--as system:node:somewhere",
        "--as system:serviceaccount:kube-system:default",
        "--as system:serviceaccount:default",
        "--as root --as-group system:masters",
        "--as root --as-group system:nodes",
        "--as root --as-group system:serviceaccounts:kube-system",
    ] {
        let get = root.kubectl(&format!("get pods {words}")).fails();
        for said in exec_refusals(&root, words).into_iter().chain([get]) {
            assert!(
                said.contains("is the cluster's own and is not impersonated"),
                "{words}: {said}"
            );
        }
    }
    let account = format!("system:serviceaccount:{namespace}:default");
    let whoami = || root.kubectl("auth whoami -o json").args(["--as", &account]);
    wait_until("it is the service account", PATIENCE, || {
        whoami().run().code == Some(0)
    });
    let info = whoami().json()["status"]["userInfo"].clone();
    assert_eq!(info["username"], account);
    assert_eq!(
        info["groups"],
        json!([
            "system:serviceaccounts",
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated"
        ])
    );
}

#[test]
fn what_was_applied_can_be_revoked() {
    let Shared {
        world,
        main,
        namespace,
    } = shared();
    let rob = main.user(world, "rob");
    let sam = main.user(world, "sam");
    main.change(world, "--users rob,sam --role clusterrole/view --apply");
    let get = format!("get pods -n {namespace}");
    wait_ok(&rob, &get);
    wait_ok(&sam, &get);
    main.change(
        world,
        "--users rob --role clusterrole/view --revoke --dry-run",
    );
    rob.kubectl(&get).ok();
    main.change(world, "--users rob --role clusterrole/view --revoke --yes");
    wait_refused(&rob, &get, r#"User "rob" cannot list resource "pods""#);
    main.change(world, "--users rob --revoke --yes");
    wait_refused(
        &rob,
        &get,
        r#"agent is not authorized to impersonate user "rob""#,
    );
    sam.kubectl(&get).ok();
    let left = main
        .cluster
        .kubectl("get clusterroles,clusterrolebindings -o name")
        .ok();
    assert!(!left.contains("-rob-"), "{left}");

    // Not without a yes, and not at another cluster.
    let said = main
        .rbac(world, "--users sam --revoke --kubeconfig")
        .arg(main.cluster.admin_kubeconfig())
        .fails();
    assert!(said.contains("--yes"), "{said}");
    let second = Cluster::second();
    let elsewhere = world
        .admin
        .towline(
            "memberships generate-gateway-rbac --project demo imp --users sam --apply --kubeconfig",
        )
        .arg(second.admin_kubeconfig());
    let said = second.inside(elsewhere).fails();
    assert!(said.contains("leads to another cluster"), "{said}");
}

#[test]
fn the_rules_can_be_written_to_a_file() {
    let Shared { world, main, .. } = shared();
    let said = main
        .rbac(world, "--users zoe --groups dev --role clusterrole/view")
        .ok();
    let dry = main
        .cluster
        .kubectl("apply --server-side --dry-run=server -f -");
    let checked = dry.input(said).ok();
    assert_eq!(checked.lines().count(), 12, "{checked}");
    for (words, because) in [
        ("--users system:admin", "belongs to Kubernetes itself"),
        ("--groups system:masters", "belongs to Kubernetes itself"),
        ("", "nobody is named"),
    ] {
        let said = main.rbac(world, words).fails();
        assert!(said.contains(because), "{words}: {said}");
    }
}

/// KEP-5284: API servers from 1.36 on take it, and may have it off.
#[test]
fn constrained_impersonation_holds_where_there_is_some_and_plain_where_there_is_none() {
    let Shared { world, main, .. } = shared();
    let on = Site::join(world, &main.cluster, "constrained");
    let off = Cluster::up_with(
        &format!("{}-plain", main.cluster.name),
        false,
        "--feature-gates ConstrainedImpersonation=false",
    );
    clean(&off);
    let off = Site::join(world, &off, "plain");
    let con = world.user("con", "gatewayAdmin");
    for site in [&on, &off] {
        site.change(
            world,
            "--users con --constrained --verbs get,list,watch --role clusterrole/edit --apply",
        );
    }
    let at = |site: &Site| {
        let user = con.with_kubeconfig(
            &place::directory(&format!("con-{}", site.membership)).join("kubeconfig"),
        );
        user.get_credentials(&site.membership);
        user
    };
    let (con_on, con_off) = (at(&on), at(&off));

    // It reads and doesn't write, whatever RBAC lets `con` do.
    wait_ok(&con_on, "get configmaps -n default");
    assert_eq!(who(&con_on, "")["username"], "con");
    con_on.kubectl("get --raw /version").ok();
    let said = con_on.kubectl("create configmap no -n default").fails();
    assert!(
        said.contains(r#"agent is not authorized to impersonate user "con""#)
            && said.contains(r#"{apiGroups: [""], resources: ["configmaps"], verbs: ["impersonate-on:user-info:create"]}"#),
        "{said}"
    );

    // An API server without it wants the plain rule, and says so.
    let said = con_off.kubectl("get configmaps -n default").fails();
    assert!(
        said.contains(r#"lacks {apiGroups: [""], resources: ["users"], verbs: ["impersonate"], resourceNames: ["con"]}"#),
        "{said}"
    );
    off.change(world, "--users con --apply");
    wait_ok(&con_off, "get configmaps -n default");
    con_off
        .kubectl("create configmap yes -n default --dry-run=server")
        .ok();
}
