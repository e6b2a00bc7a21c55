//! End-to-end mode: agents that let callers prove who they are, with a real identity provider and a real cluster.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, sync::LazyLock, time::Duration};

use serde_json::{Value, json};
use tests::{Agent, Cluster, Gateway, Keycloak, User, World, idp, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that two agents serve: `sealed` believes Keycloak alone, `open` takes the gateway's service accounts too.
struct Place {
    world: World,
    keycloak: Keycloak,
    _agents: [Agent; 2],
}

fn place() -> &'static Place {
    static PLACE: LazyLock<Place> = LazyLock::new(|| {
        let cluster = Cluster::second();
        let keycloak = Keycloak::start(cluster.host_ip(), 120);
        let mut gateway = Gateway::init("gateway", &cluster);
        let corp = idp::entry(
            &keycloak.issuer,
            &keycloak.authority_pem(),
            "preferred_username",
            "",
        );
        let put = |name: &str, issuers: &[Value]| {
            let file = gateway.state.join(name);
            fs::write(&file, idp::authentication(issuers)).unwrap();
            file
        };
        let file = put("authentication.yaml", std::slice::from_ref(&corp));
        let own = json!({
            "issuer": {"url": format!("{}/oauth2", gateway.url), "audiences": ["any"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": "gateway:"}},
        });
        let sealed = put("sealed.yaml", std::slice::from_ref(&corp));
        let open = put("open.yaml", &[corp, own]);
        gateway.configure(&format!(
            "authentication_config = {file:?}\n{}",
            idp::login("corp", &keycloak.issuer)
        ));
        gateway.run();
        let world = World::of(gateway);
        let agents = [("sealed", sealed), ("open", open)].map(|(name, file)| {
            let agent = Agent::new(&cluster, name, world.register(name));
            let mut agent = agent.env("TOWLINE_END_TO_END", file.to_str().unwrap());
            agent.run();
            agent
        });
        let bind = |member: &str| {
            world
                .admin
                .towline("projects add-iam-policy-binding demo --role gatewayEditor --member")
                .arg(member)
                .ok();
        };
        world
            .admin
            .towline("service-accounts create robot --project demo")
            .ok();
        bind("group:developers");
        bind("serviceAccount:robot@demo");
        for (kind, name) in [
            ("group", "developers"),
            ("user", "serviceAccount:robot@demo"),
        ] {
            let binding = format!("towline-it-e2e-{kind}");
            let said = cluster
                .kubectl(&format!(
                    "create clusterrolebinding {binding} --clusterrole edit --{kind} {name}"
                ))
                .run();
            assert!(
                said.code == Some(0) || said.stderr.contains("already exists"),
                "{said}"
            );
        }
        Place {
            world,
            keycloak,
            _agents: agents,
        }
    });
    &PLACE
}

/// Somebody whom Keycloak knows, signed in.
fn signed_in(name: &str) -> User {
    let Place {
        world, keycloak, ..
    } = place();
    keycloak.user(name, &["developers"]);
    let user = User::new(&world.gateway, name);
    sign_in(&user, name);
    user
}

fn sign_in(user: &User, name: &str) {
    let browser = place().keycloak.browser();
    idp::in_browser(user, "corp", &browser, name, &Keycloak::password(name));
}

fn get_credentials(user: &User, membership: &str, end_to_end: bool) {
    let mut command = user
        .towline("get-credentials --project demo")
        .arg(membership);
    if end_to_end {
        command = command.arg("--end-to-end");
    }
    command.ok();
}

/// Waits for the agent to be connected: only then the refusals are its own.
fn connected(user: &User) {
    wait_until("an agent answers", PATIENCE, || {
        let said = user.kubectl("get configmaps --request-timeout 10s").run();
        !said.stderr.contains("no active connections")
    });
}

/// As if all were over that came of a sign-in, but for the sign-in itself.
fn let_it_end(user: &User) {
    let path = user.tokens();
    let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    kept["accessTokens"] = json!({});
    kept["signIn"]["expires"] = json!(0);
    fs::write(&path, kept.to_string()).unwrap();
}

#[test]
fn who_proves_it_gets_in_and_who_does_not_is_told_how() {
    let eve = signed_in("eve");
    get_credentials(&eve, "sealed", true);
    connected(&eve);
    let me = eve.kubectl("auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "eve", "{me}");
    let groups = info["groups"].as_array().unwrap();
    assert!(groups.contains(&json!("developers")), "{me}");
    eve.kubectl("create configmap of-eve --from-literal a=b")
        .ok();
    eve.kubectl("delete configmap of-eve").ok();
    // The sign-in goes on, and the provider signs no nonce a second time.
    let_it_end(&eve);
    eve.kubectl("get configmaps").ok();

    get_credentials(&eve, "sealed", false);
    let said = eve.kubectl("get configmaps").fails();
    assert!(
        said.contains("has no proof of it")
            && said.contains("towline get-credentials sealed --end-to-end")
            && said.contains("(towline: agent, request "),
        "{said}"
    );
}

#[test]
fn a_gateways_own_users_are_nobody_there() {
    let admin = &place().world.admin;
    get_credentials(admin, "sealed", false);
    connected(admin);
    let said = admin.kubectl("get configmaps").fails();
    assert!(said.contains("has no proof of it"), "{said}");
    get_credentials(admin, "sealed", true);
    let said = admin.kubectl("get configmaps").fails();
    assert!(said.contains("signed in at the gateway itself"), "{said}");
}

#[test]
fn service_accounts_get_in_where_the_owner_lists_the_gateway() {
    let rob = signed_in("rob");
    place()
        .world
        .admin
        .towline("service-accounts add-iam-policy-binding robot --project demo")
        .args([
            "--member",
            "user:rob",
            "--role",
            "serviceAccountTokenCreator",
        ])
        .ok();
    let robot = |membership: &str| {
        rob.towline("get-credentials --project demo --end-to-end")
            .args(["--impersonate-service-account", "robot@demo", membership])
            .ok();
        connected(&rob);
    };
    robot("sealed");
    let said = rob.kubectl("get configmaps").fails();
    assert!(
        said.contains("takes no service accounts or workloads of the gateway"),
        "{said}"
    );
    robot("open");
    let me = rob.kubectl("auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "serviceAccount:robot@demo", "{me}");
    rob.kubectl("get configmaps").ok();
    // People it names no more than the other one.
    get_credentials(&rob, "open", false);
    let said = rob.kubectl("get configmaps").fails();
    assert!(said.contains("has no proof of it"), "{said}");
    get_credentials(&rob, "open", true);
    rob.kubectl("get configmaps").ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_of_no_use_elsewhere() {
    let (mallory, open, sealed) = tokio::task::spawn_blocking(|| {
        let mallory = signed_in("mallory");
        let token_for = |membership: &str| {
            get_credentials(&mallory, membership, true);
            connected(&mallory);
            mallory.token()
        };
        let sealed = token_for("sealed");
        let open = token_for("open");
        (mallory, open, sealed)
    })
    .await
    .unwrap();
    let parts = |token: &str| token.split('~').map(str::to_owned).collect::<Vec<String>>();
    let [open_access, id_token, key, stated_to_open] = &parts(&open)[..] else {
        panic!("four parts")
    };
    let [_, _, _, stated_to_sealed] = &parts(&sealed)[..] else {
        panic!("four parts")
    };
    let api = tokio::task::spawn_blocking({
        let mallory = mallory.clone();
        move || mallory.api()
    })
    .await
    .unwrap();
    // What the agent of `sealed` saw, shown to that of `open`.
    let mixed = format!("{open_access}~{id_token}~{key}~{stated_to_sealed}");
    let answer = api.with_token(Some(&mixed)).get("/version").await;
    let said = answer.refusal(403, "Forbidden");
    assert!(said.contains("the statement is for"), "{said}");
    let right = format!("{open_access}~{id_token}~{key}~{stated_to_open}");
    let answer = api.with_token(Some(&right)).get("/version").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // As a sign-in at the gateway: alone, and with the statement to the cluster.
    let gateway = api.with_prefix("").with_token(None);
    let possession = format!("{key}~{stated_to_open}");
    for (possession, words) in [
        (None, "no possession of that key"),
        (Some(possession), "the statement is for"),
    ] {
        let mut form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange\
             &subject_token_type=urn:ietf:params:oauth:token-type:id_token&subject_token={id_token}"
        );
        if let Some(possession) = possession {
            form.push_str(&format!("&possession={possession}"));
        }
        let request = gateway
            .request("POST", "/oauth2/token")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(tests::http::full(form))
            .unwrap();
        let answer = gateway.send(request).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    // And as the bearer token itself.
    let answer = api.with_token(Some(id_token)).get("/version").await;
    answer.refusal(401, "Unauthorized");
}

#[test]
fn other_groups_than_the_provider_signed_are_refused() {
    let gus = signed_in("gus");
    get_credentials(&gus, "sealed", true);
    connected(&gus);
    gus.kubectl("get configmaps").ok();
    place().keycloak.add_to_group("gus", "on-call");
    // The gateway learns of it with the next ID token; the cluster knows the first one.
    let_it_end(&gus);
    let said = gus.kubectl("get configmaps").fails();
    assert!(
        said.contains("only by the gateway: on-call") && said.contains("towline login"),
        "{said}"
    );
    sign_in(&gus, "gus");
    gus.kubectl("get configmaps").ok();
}

#[test]
fn a_sign_in_on_another_device_will_do() {
    let Place {
        world, keycloak, ..
    } = place();
    keycloak.user("dev", &["developers"]);
    let dev = User::new(&world.gateway, "dev");
    let browser = keycloak.browser();
    idp::on_device(&dev, "corp", &browser, "dev", &Keycloak::password("dev"));
    get_credentials(&dev, "sealed", true);
    connected(&dev);
    // Keycloak signs the nonce in this flow too.
    dev.kubectl("get configmaps").ok();
}
