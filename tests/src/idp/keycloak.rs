//! Keycloak, with a realm, its users and groups, and a client that is a program on people's machines.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{Browser, built};
use crate::{
    certificate::Certificate, command::Cmd, gateway::free_port, program::Program, wait::wait_until,
};

/// The realm.
pub const REALM: &str = "corp";

/// The client that `towline` is.
pub const CLIENT: &str = "towline";

/// A Keycloak that runs; dropping it ends it.
#[derive(Debug)]
pub struct Keycloak {
    /// The realm's issuer.
    pub issuer: String,
    /// The certificate that signs its own.
    pub authority: PathBuf,
    base: String,
    program: Program,
}

impl Keycloak {
    /// Starts one where `ip` reaches it, with the realm [`REALM`], whose ID tokens live `seconds`.
    #[track_caller]
    pub fn start(ip: &str, seconds: u32) -> Self {
        let tls = Certificate::new("keycloak", ip);
        let port = free_port();
        let base = format!("https://{ip}:{port}");
        let program = Cmd::new(built("keycloak").join("bin/kc.sh"))
            .words("start --optimized --cache=local --log-level=warn --http-host=0.0.0.0")
            .args([
                &format!("--https-port={port}"),
                &format!("--hostname={base}"),
            ])
            .arg(format!(
                "--https-certificate-file={}",
                tls.certificate.display()
            ))
            .arg(format!(
                "--https-certificate-key-file={}",
                tls.key.display()
            ))
            .env("KC_BOOTSTRAP_ADMIN_USERNAME", ADMIN)
            .env("KC_BOOTSTRAP_ADMIN_PASSWORD", ADMIN)
            .env("JAVA_OPTS_APPEND", "-Xmx400m -XX:TieredStopAtLevel=1")
            .start("keycloak");
        let keycloak = Self {
            issuer: format!("{base}/realms/{REALM}"),
            authority: tls.authority,
            base,
            program,
        };
        keycloak.wait_up();
        keycloak.make_realm(seconds);
        keycloak
    }

    fn wait_up(&self) {
        let url = format!("{}/realms/master", self.base);
        let what = format!(
            "Keycloak answers (see {})",
            self.program.out_file().display()
        );
        wait_until(&what, UP, || {
            self.curl().arg("--fail").arg(&url).run().code == Some(0)
        });
    }

    fn make_realm(&self, seconds: u32) {
        self.admin(
            "POST",
            "",
            &json!({
                "realm": REALM,
                "enabled": true,
                "accessTokenLifespan": seconds,
                // A refresh token that is used twice ends the sign-in.
                "revokeRefreshToken": true,
                "refreshTokenMaxReuse": 0,
                "oauth2DevicePollingInterval": 1,
                "groups": [{"name": "developers"}, {"name": "on-call"}],
            }),
        );
        self.admin(
            "POST",
            "/corp/client-scopes",
            &json!({
                "name": "groups",
                "protocol": "openid-connect",
                "attributes": {"include.in.token.scope": "true"},
                "protocolMappers": [{
                    "name": "groups",
                    "protocol": "openid-connect",
                    "protocolMapper": "oidc-group-membership-mapper",
                    "config": {
                        "claim.name": "groups",
                        "full.path": "false",
                        "id.token.claim": "true",
                    },
                }],
            }),
        );
        self.admin(
            "POST",
            "/corp/clients",
            &json!({
                "clientId": CLIENT,
                "publicClient": true,
                "standardFlowEnabled": true,
                "directAccessGrantsEnabled": false,
                // Any port of it, as RFC 8252 has it.
                "redirectUris": ["http://127.0.0.1/callback"],
                "defaultClientScopes": ["basic", "profile", "email"],
                "optionalClientScopes": ["groups", "offline_access"],
                "attributes": {
                    "oauth2.device.authorization.grant.enabled": "true",
                    "pkce.code.challenge.method": "S256",
                },
            }),
        );
    }

    /// Makes a user, whose password is [`password`](Self::password); of groups `developers` and `on-call`.
    #[track_caller]
    pub fn user(&self, name: &str, groups: &[&str]) {
        let groups: Vec<String> = groups.iter().map(|group| format!("/{group}")).collect();
        self.admin(
            "POST",
            "/corp/users",
            &json!({
                "username": name,
                "email": format!("{name}@example.com"),
                "emailVerified": true,
                "firstName": name,
                "lastName": "Tester",
                "enabled": true,
                "groups": groups,
                "credentials": [{"type": "password", "value": Self::password(name)}],
            }),
        );
    }

    /// Puts a user into a group.
    #[track_caller]
    pub fn add_to_group(&self, name: &str, group: &str) {
        let user = self.id_of(&format!("users?exact=true&username={name}"));
        let group = self.id_of(&format!("groups?exact=true&search={group}"));
        self.admin(
            "PUT",
            &format!("/corp/users/{user}/groups/{group}"),
            &json!({}),
        );
    }

    #[track_caller]
    fn id_of(&self, what: &str) -> String {
        let found = self.ask("GET", &format!("/corp/{what}"), &Value::Null);
        let id = found[0]["id"].as_str();
        id.unwrap_or_else(|| panic!("there is no {what}: {found}"))
            .to_owned()
    }

    /// A user's password.
    pub fn password(name: &str) -> String {
        format!("correct horse {name}")
    }

    /// Puts a new signing key before the old ones, and takes the old ones away when `only`.
    #[track_caller]
    pub fn rotate_keys(&self, only: bool) {
        let realm = self.ask("GET", "/corp", &Value::Null)["id"].clone();
        let keys = format!("/corp/components?type={KEYS}");
        let old = self.ask("GET", &keys, &Value::Null);
        self.admin(
            "POST",
            "/corp/components",
            &json!({
                "name": format!("rsa-{}", free_port()),
                "providerId": "rsa-generated",
                "providerType": KEYS,
                "parentId": realm,
                "config": {"priority": ["1000"], "enabled": ["true"], "active": ["true"]},
            }),
        );
        let old = old.as_array().into_iter().flatten();
        for key in old.filter(|key| only && key["providerId"] == "rsa-generated") {
            let id = key["id"].as_str().unwrap_or_default();
            self.admin("DELETE", &format!("/corp/components/{id}"), &Value::Null);
        }
    }

    /// How many sign-ins of a user there are that outlive the browser's session.
    #[track_caller]
    pub fn offline_sign_ins(&self, name: &str) -> usize {
        let user = self.id_of(&format!("users?exact=true&username={name}"));
        let client = self.id_of(&format!("clients?clientId={CLIENT}"));
        let sessions = self.ask(
            "GET",
            &format!("/corp/users/{user}/offline-sessions/{client}"),
            &Value::Null,
        );
        sessions.as_array().map_or(0, Vec::len)
    }

    /// A browser that believes its certificate.
    pub fn browser(&self) -> Browser {
        Browser::new(&self.authority)
    }

    /// Its certificate authority, in PEM.
    pub fn authority_pem(&self) -> String {
        fs::read_to_string(&self.authority).expect("a file that was written")
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.program.kill();
    }

    fn admin(&self, method: &str, path: &str, body: &Value) {
        self.ask(method, path, body);
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        // Its own tokens live for a minute: one for each call.
        let token = self
            .curl()
            .arg(format!(
                "{}/realms/master/protocol/openid-connect/token",
                self.base
            ))
            .words("--fail -d grant_type=password -d client_id=admin-cli")
            .args([
                "-d",
                &format!("username={ADMIN}"),
                "-d",
                &format!("password={ADMIN}"),
            ])
            .json();
        let token = token["access_token"].as_str().expect("an access token");
        let mut command = self
            .curl()
            .args(["--fail-with-body", "-X", method])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("{}/admin/realms{path}", self.base));
        if !body.is_null() {
            command = command
                .args([
                    "-H",
                    "Content-Type: application/json",
                    "--data-binary",
                    "@-",
                ])
                .input(body.to_string());
        }
        serde_json::from_str(&command.ok()).unwrap_or(Value::Null)
    }

    fn curl(&self) -> Cmd {
        Cmd::new("curl")
            .words("--silent --show-error --max-time 20 --cacert")
            .arg(&self.authority)
    }
}

const ADMIN: &str = "admin-of-the-tests";

const KEYS: &str = "org.keycloak.keys.KeyProvider";

/// Half a minute on a machine of one's own, and several where everything else is built beside it.
const UP: Duration = Duration::from_secs(300);
