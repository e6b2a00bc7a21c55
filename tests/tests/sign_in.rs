//! People sign in with real identity providers, and reach a real cluster as whom those say they are.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::{fs, sync::LazyLock, time::Duration};

use serde_json::{Value, json};
use tests::{Agent, Cluster, Gateway, Keycloak, Program, Provider, User, World, idp};

const PATIENCE: Duration = Duration::from_secs(30);

/// Long enough for a command; what has to end is made to.
const ID_TOKEN_SECONDS: u32 = 120;

/// A gateway that takes Keycloak's people as they are, and the partners' with a prefix.
struct Place {
    world: World,
    keycloak: Keycloak,
    partners: Provider,
    _agent: Agent,
}

fn place() -> &'static Place {
    static PLACE: LazyLock<Place> = LazyLock::new(|| {
        let cluster = Cluster::second();
        let ip = cluster.host_ip();
        let keycloak = Keycloak::start(ip, ID_TOKEN_SECONDS);
        let users = json!({"pat": {"groups": ["developers"], "email": "pat@partner.example"}});
        let partners = Provider::start(ip, ID_TOKEN_SECONDS, &users);
        let mut gateway = Gateway::init("gateway", &cluster);
        let file = gateway.state.join("authentication.yaml");
        let issuers = [
            idp::entry(
                &keycloak.issuer,
                &keycloak.authority_pem(),
                "preferred_username",
                "",
            ),
            idp::entry(
                &partners.issuer,
                &partners.authority_pem(),
                "sub",
                "partner:",
            ),
        ];
        fs::write(&file, idp::authentication(&issuers)).unwrap();
        gateway.configure(&format!(
            "authentication_config = {file:?}\n{}{}",
            idp::login("corp", &keycloak.issuer),
            idp::login("partners", &partners.issuer)
        ));
        gateway.run();
        let world = World::of(gateway);
        let agent = world.join(&cluster, "prod");
        for (group, role) in [("developers", "edit"), ("partner:developers", "view")] {
            world
                .admin
                .towline("projects add-iam-policy-binding demo --role gatewayEditor --member")
                .arg(format!("group:{group}"))
                .ok();
            let name = format!("towline-it-{}", group.replace(':', "-"));
            let said = cluster
                .kubectl(&format!(
                    "create clusterrolebinding {name} --clusterrole {role}"
                ))
                .args(["--group", group])
                .run();
            assert!(
                said.code == Some(0) || said.stderr.contains("already exists"),
                "{said}"
            );
        }
        Place {
            world,
            keycloak,
            partners,
            _agent: agent,
        }
    });
    &PLACE
}

/// Somebody whom Keycloak knows, signed in, with a kubeconfig.
fn signed_in(name: &str, groups: &[&str]) -> User {
    let place = place();
    place.keycloak.user(name, groups);
    let user = User::new(&place.world.gateway, name);
    let browser = place.keycloak.browser();
    idp::in_browser(&user, "corp", &browser, name, &Keycloak::password(name));
    user.get_credentials("prod");
    user
}

/// What is kept of a sign-in, changed.
fn meddle(user: &User, change: impl FnOnce(&mut Value)) {
    let path = user.tokens();
    let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut kept);
    fs::write(&path, kept.to_string()).unwrap();
}

/// As if the time of the ID token and of all that came of it were over.
fn let_it_end(user: &User) {
    meddle(user, |kept| {
        kept["accessTokens"] = json!({});
        kept["signIn"]["expires"] = json!(0);
    });
}

fn kept(user: &User, pointer: &str) -> String {
    let text = fs::read(user.tokens()).unwrap();
    let kept: Value = serde_json::from_slice(&text).unwrap();
    kept.pointer(pointer).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn groups_reach_rbac() {
    let ann = signed_in("ann", &["developers"]);
    let me = ann.kubectl("auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "ann", "{me}");
    assert!(
        info["groups"]
            .as_array()
            .unwrap()
            .contains(&json!("developers")),
        "{me}"
    );
    ann.kubectl("create configmap of-ann --from-literal a=b")
        .ok();
    ann.kubectl("delete configmap of-ann").ok();
    // Who is in no group that has a role gets nowhere.
    let eve = User::new(&place().world.gateway, "eve");
    place().keycloak.user("eve", &["on-call"]);
    let browser = place().keycloak.browser();
    idp::in_browser(&eve, "corp", &browser, "eve", &Keycloak::password("eve"));
    let said = eve.towline("get-credentials prod --project demo").fails();
    assert!(said.contains("user \"eve\" lacks permission"), "{said}");
}

#[test]
fn a_second_providers_people_are_others() {
    let place = place();
    let pat = User::new(&place.world.gateway, "pat");
    let browser = place.partners.browser();
    idp::in_browser(&pat, "partners", &browser, "pat", "any");
    pat.get_credentials("prod");
    let me = pat.kubectl("auth whoami -o json").json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "partner:pat", "{me}");
    // `view` is what their developers have, and not `edit`.
    pat.kubectl("get pods -n default").ok();
    let said = pat.kubectl("create configmap of-pat -n default").fails();
    assert!(said.contains("orbidden"), "{said}");
    // It rotates refresh tokens: eight at once use one.
    let before = kept(&pat, "/signIn/refresh_token");
    let_it_end(&pat);
    let mut all: Vec<Program> = (0..8)
        .map(|n| {
            pat.kubectl("get pods -n default")
                .start(&format!("pat-{n}"))
        })
        .collect();
    for kubectl in &mut all {
        assert!(kubectl.wait(PATIENCE).success(), "{}", kubectl.err());
    }
    assert_ne!(kept(&pat, "/signIn/refresh_token"), before);
    let_it_end(&pat);
    pat.kubectl("get pods -n default").ok();
}

#[test]
fn another_device_signs_in() {
    let place = place();
    place.keycloak.user("dee", &["developers"]);
    let dee = User::new(&place.world.gateway, "dee");
    let browser = place.keycloak.browser();
    idp::on_device(&dee, "corp", &browser, "dee", &Keycloak::password("dee"));
    dee.get_credentials("prod");
    dee.kubectl("get configmaps").ok();
}

#[test]
fn new_keys_are_not_noticed() {
    let kim = signed_in("kim", &["developers"]);
    kim.kubectl("get configmaps").ok();
    let old = kept(&kim, "/signIn/id_token");
    place().keycloak.rotate_keys(true);
    let_it_end(&kim);
    kim.kubectl("get configmaps").ok();
    assert_ne!(kept(&kim, "/signIn/id_token"), old);
    // One that was signed with a key which is there no more is renewed by itself.
    meddle(&kim, |kept| {
        kept["accessTokens"] = json!({});
        kept["signIn"]["id_token"] = json!(old);
        kept["signIn"]["expires"] = json!(u32::MAX);
    });
    kim.kubectl("get configmaps").ok();
}

#[test]
fn signing_out_ends_it_at_the_provider() {
    let keycloak = &place().keycloak;
    let lou = signed_in("lou", &["developers"]);
    lou.kubectl("get configmaps").ok();
    let refresh_token = kept(&lou, "/signIn/refresh_token");
    let all = fs::read(lou.tokens()).unwrap();
    lou.towline("logout").ok();
    let said = lou.kubectl("get configmaps").fails();
    assert!(said.contains("run: towline login"), "{said}");
    // Who copied the file before has nothing of it.
    fs::write(lou.tokens(), all).unwrap();
    let_it_end(&lou);
    assert_eq!(kept(&lou, "/signIn/refresh_token"), refresh_token);
    let said = lou.kubectl("get configmaps").fails();
    assert!(said.contains("run: towline login"), "{said}");
    assert_eq!(keycloak.offline_sign_ins("lou"), 0);
}

#[test]
fn which_provider_is_asked_for() {
    let user = User::new(&place().world.gateway, "undecided");
    let said = user.login_at_provider().fails();
    assert!(
        said.contains("corp, partners; give --issuer NAME"),
        "{said}"
    );
}
