use proptest::prelude::*;

use super::*;
use crate::kubeconfig::{Credential, exec_args};

pub(crate) fn entry(name: &str) -> Entry {
    let membership = format!("projects/p/locations/global/memberships/{name}")
        .parse()
        .unwrap();
    Entry {
        name: format!("towline_gw_p_global_{name}"),
        server: format!("https://gw/v1/{membership}"),
        certificate_authority: Some("PEM\n".to_owned()),
        credential: Credential::Exec(exec_args(
            "https://gw",
            &membership,
            None,
            None,
            None,
            false,
        )),
    }
}

fn put_all(document: &mut Document, entry: &Entry) {
    for kind in Kind::ALL {
        document.put(kind, entry);
    }
}

#[test]
fn a_token_file_takes_the_place_of_the_plugin_and_back() {
    let mut document = Document::default();
    let plugin = entry("m");
    let file = Entry {
        credential: Credential::TokenFile("/run/token".into()),
        ..plugin.clone()
    };
    for written in [&plugin, &file, &plugin] {
        put_all(&mut document, written);
        assert!(document.is_ours(Kind::User, &plugin.name));
        let user = document.body(Kind::User, &plugin.name).unwrap();
        let keys: Vec<&String> = user.as_object().unwrap().keys().collect();
        let only = match &written.credential {
            Credential::Exec(_) => "exec",
            Credential::TokenFile(_) => "tokenFile",
        };
        assert_eq!(keys, [only]);
    }
    // Somebody else's, under the same name.
    let text = format!(
        "users: [{{name: {}, user: {{tokenFile: /x}}}}]",
        plugin.name
    );
    assert!(
        !Document::parse(&text)
            .unwrap()
            .is_ours(Kind::User, &plugin.name)
    );
}

#[test]
fn a_service_account_is_part_of_the_plugins_arguments() {
    let membership = "projects/p/locations/global/memberships/m".parse().unwrap();
    let act_as = "deployer@p".parse().unwrap();
    let args = exec_args("https://gw", &membership, None, Some(&act_as), None, false);
    assert_eq!(args[5..], ["--impersonate-service-account", "deployer@p"]);
}

#[test]
fn golden() {
    let mut document = Document::default();
    put_all(&mut document, &entry("m"));
    document.set_current_context("towline_gw_p_global_m");
    let expected = r#"apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority-data: UEVNCg==
    server: https://gw/v1/projects/p/locations/global/memberships/m
  name: towline_gw_p_global_m
contexts:
- context:
    cluster: towline_gw_p_global_m
    user: towline_gw_p_global_m
  name: towline_gw_p_global_m
current-context: towline_gw_p_global_m
users:
- name: towline_gw_p_global_m
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1
      args:
      - credential
      - --gateway
      - https://gw
      - --membership
      - projects/p/locations/global/memberships/m
      command: towline
      env: null
      installHint: "The `towline` command signs kubectl in at Towline gateways, and was not found.\nPut it on your PATH (ask whoever runs the gateway where to get it), then try again."
      interactiveMode: IfAvailable
      provideClusterInfo: false
"#;
    assert_eq!(document.render().unwrap(), expected);
}

#[test]
fn what_a_user_added_to_our_entries_stays_and_what_would_win_over_ours_goes() {
    let mut document = Document::default();
    let ours = entry("m");
    put_all(&mut document, &ours);
    let pristine = document.clone();
    let text = document.render().unwrap();
    let text = text
        .replace(
            "    server: ",
            "    proxy-url: http://proxy\n    insecure-skip-tls-verify: true\n    server: ",
        )
        .replace("    cluster: t", "    namespace: mine\n    cluster: t")
        .replace(
            "      env: null",
            "      env:\n      - name: HTTPS_PROXY\n        value: \"1\"",
        )
        .replace(
            "  user:\n    exec",
            "  user:\n    token: stale\n    as: bob\n    exec",
        );
    let mut document = Document::parse(&text).unwrap();
    put_all(&mut document, &ours);
    let rendered = document.render().unwrap();
    for kept in [
        "proxy-url: http://proxy",
        "namespace: mine",
        "HTTPS_PROXY",
        "as: bob",
    ] {
        assert!(rendered.contains(kept), "{kept} in\n{rendered}");
    }
    for gone in ["insecure-skip-tls-verify", "stale"] {
        assert!(!rendered.contains(gone), "{gone} in\n{rendered}");
    }
    // A second time changes nothing.
    let again = document.clone();
    put_all(&mut document, &ours);
    assert_eq!(document, again);
    let mut document = pristine.clone();
    put_all(&mut document, &ours);
    assert_eq!(document, pristine);
}

#[test]
fn what_is_no_kubeconfig_is_refused_with_the_line() {
    let error = Document::parse("apiVersion: v1\nclusters: [\nusers: }")
        .unwrap_err()
        .to_string();
    assert!(error.contains("line "), "{error}");
    for (text, word) in [
        ("- a", "not a kubeconfig"),
        ("kind: Pod", "kind"),
        ("clusters: {}", "clusters"),
        ("users:\n- user: {}", "users"),
        ("a: 1\na: 2\n", "a"),
    ] {
        let error = Document::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    for empty in ["", "\n", "# nothing\n", "---\n"] {
        assert_eq!(
            Document::parse(empty).unwrap(),
            Document::default(),
            "{empty:?}"
        );
    }
}

#[test]
fn entries_of_others_are_told_apart() {
    let ours = entry("m");
    let mut document = Document::default();
    put_all(&mut document, &ours);
    for kind in Kind::ALL {
        assert!(document.is_ours(kind, &ours.name));
        assert!(!document.is_ours(kind, "other"));
    }
    let foreign = Document::parse(
        "clusters:\n- name: x\n  cluster: {server: 'https://10.0.0.1:6443'}\n\
         users:\n- name: x\n  user: {exec: {command: other, args: [credential]}}\n\
         contexts:\n- name: x\n  context: {cluster: x, user: y}\n",
    )
    .unwrap();
    for kind in Kind::ALL {
        assert!(
            foreign.has(kind, "x") && !foreign.is_ours(kind, "x"),
            "{kind:?}"
        );
    }
}

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[ -~]{0,20}".prop_map(Value::from),
        // Lines, tabs, what YAML 1.1 takes for something else, and what is beyond ASCII.
        prop_oneof![
            "yes",
            "no",
            "on",
            "~",
            "null",
            "0o17",
            "0x1f",
            "1e3",
            "1_000",
            "12:30:00",
            "2001-01-01",
            "=",
            "<<"
        ]
        .prop_map(Value::from),
        "[\\PC\n\t]{0,30}".prop_map(Value::from),
    ]
}

fn any_tree() -> impl Strategy<Value = Value> {
    any_scalar().prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-zA-Z0-9 ./:_-]{1,12}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_foreign_survives(
        extra in prop::collection::vec(("x-[a-z]{1,8}", any_tree()), 0..4),
        foreign in prop::collection::vec(("[a-zA-Z0-9@./_-]{1,16}", any_tree()), 0..4),
        current in "[a-z]{0,6}",
    ) {
        let named = |kind: Kind| -> Value {
            foreign.iter().map(|(name, body)| json!({"name": name, kind.word(): body, "x": body})).collect()
        };
        let mut map: Map<String, Value> = extra.clone().into_iter().collect();
        for kind in Kind::ALL {
            map.insert(kind.list().to_owned(), named(kind));
        }
        map.insert("current-context".to_owned(), current.clone().into());
        let before = Document(map);
        // Also through the text, twice.
        let mut after = Document::parse(&before.render().unwrap()).unwrap();
        prop_assert_eq!(&after, &before);
        put_all(&mut after, &entry("m"));
        let mut after = Document::parse(&after.render().unwrap()).unwrap();
        for kind in Kind::ALL {
            let list = after.0.get_mut(kind.list()).unwrap().as_array_mut().unwrap();
            let ours = list.pop().unwrap();
            prop_assert_eq!(&ours["name"], "towline_gw_p_global_m");
        }
        prop_assert_eq!(&after, &before);
        let keys = |document: &Document| document.0.keys().cloned().collect::<Vec<_>>();
        prop_assert_eq!(keys(&after), keys(&before));
    }
}
