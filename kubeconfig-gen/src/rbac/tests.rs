use std::collections::HashSet;

use super::*;

fn policy<'a>(names: &'a [Name], role: Option<&'a RoleRef>) -> Policy<'a> {
    Policy {
        membership: "prod",
        agent_namespace: "towline",
        names,
        role,
        constrained: None,
    }
}

fn alice() -> Name {
    Name::User("alice@example.com".into())
}

fn view() -> RoleRef {
    RoleRef::Cluster {
        name: "view".into(),
        namespace: None,
    }
}

fn identity(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!(
        "{} {} {}",
        object["kind"], metadata["namespace"], metadata["name"]
    )
}

#[test]
fn a_user_gets_through_and_may_view() {
    let (names, role) = ([alice()], view());
    let mut objects = policy(&names, Some(&role)).objects();
    // What tells who is behind a request goes with every user, whatever it says.
    for key in TOLD {
        let (role, _) = (objects.remove(0), objects.remove(0));
        assert_eq!(
            role["rules"],
            json!([{"apiGroups": ["authentication.k8s.io"], "resources": [format!("userextras/{key}")], "verbs": ["impersonate"]}])
        );
    }
    let kinds: Vec<&str> = objects
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    assert_eq!(
        kinds,
        ["ClusterRole", "ClusterRoleBinding", "ClusterRoleBinding"]
    );
    assert_eq!(
        objects[0]["rules"],
        json!([{"apiGroups": [""], "resources": ["users"], "resourceNames": ["alice@example.com"], "verbs": ["impersonate"]}])
    );
    let name = objects[0]["metadata"]["name"].as_str().unwrap();
    assert!(
        name.starts_with("gateway-impersonate-user-alice-example-com-"),
        "{name}"
    );
    assert_eq!(objects[1]["roleRef"]["name"], name);
    assert_eq!(
        objects[1]["subjects"],
        json!([{"kind": "ServiceAccount", "name": "towline-agent", "namespace": "towline"}])
    );
    assert_eq!(
        objects[2]["subjects"],
        json!([{"apiGroup": RBAC, "kind": "User", "name": "alice@example.com"}])
    );
    assert_eq!(objects[2]["roleRef"]["name"], "view");
}

/// Objects that share a name say the same: applying both orders ends alike.
#[test]
fn no_run_replaces_what_another_wrote() {
    let names = [
        alice(),
        Name::User("alice-example.com".into()),
        Name::Group("alice@example.com".into()),
        Name::Uid("1".into()),
        Name::Extra {
            key: "k".into(),
            value: None,
        },
        Name::Extra {
            key: "k".into(),
            value: Some("1".into()),
        },
        Name::ServiceAccount {
            namespace: "a".into(),
            name: "b".into(),
        },
        Name::ServiceAccount {
            namespace: "b".into(),
            name: "b".into(),
        },
        Name::Anyone,
    ];
    let edit = RoleRef::Cluster {
        name: "edit".into(),
        namespace: None,
    };
    let here = RoleRef::Cluster {
        name: "view".into(),
        namespace: Some("ns".into()),
    };
    let own = RoleRef::Namespaced {
        name: "view".into(),
        namespace: "ns".into(),
    };
    let (few, all) = (["get".to_owned()], VERBS.map(str::to_owned));
    let mut seen = std::collections::HashMap::new();
    for name in &names {
        for role in [None, Some(&view()), Some(&edit), Some(&here), Some(&own)] {
            for constrained in [None, Some(&few[..]), Some(&all[..])] {
                for agent_namespace in ["towline", "other"] {
                    let names = std::slice::from_ref(name);
                    let policy = Policy {
                        agent_namespace,
                        constrained,
                        ..policy(names, role)
                    };
                    for object in policy.objects() {
                        let before = seen.insert(identity(&object), object.clone());
                        assert!(before.is_none_or(|before| before == object), "{object}");
                    }
                }
            }
        }
    }
}

#[test]
fn revoking_selects_a_names_own_objects() {
    let names = [alice(), Name::Group("dev".into())];
    let role = view();
    let policy = policy(&names, Some(&role));
    let labels = |name: &Name| -> HashSet<String> {
        let selector = policy.selector(name);
        let (_, hash) = selector.rsplit_once('=').unwrap();
        let objects = policy.objects().into_iter();
        objects
            .filter(|object| object["metadata"]["labels"][PRINCIPAL] == hash)
            .map(|object| identity(&object))
            .collect()
    };
    let (user, group) = (labels(&names[0]), labels(&names[1]));
    assert_eq!((user.len(), group.len()), (3, 3));
    assert!(user.is_disjoint(&group));
    let (kind, _, object) = policy.binding(&names[0], &role).unwrap();
    assert!(
        user.contains(&format!("{:?} null {object:?}", kind)),
        "{user:?}"
    );
}

#[test]
fn constrained_rules_leave_the_wide_verb_out() {
    let names = [alice(), Name::Group("dev".into())];
    let verbs = ["get".to_owned(), "list".to_owned()];
    let objects = Policy {
        constrained: Some(&verbs),
        ..policy(&names, None)
    }
    .objects();
    let text = serde_json::to_string(&objects).unwrap();
    assert!(!text.contains("\"impersonate\""), "{text}");
    assert!(!text.contains("impersonate-on:user-info:delete"), "{text}");
    assert_eq!(
        objects[0]["rules"][0],
        json!({
            "apiGroups": ["*"],
            "resources": ["*"],
            "verbs": ["impersonate-on:user-info:get", "impersonate-on:user-info:list"],
        })
    );
    assert_eq!(
        objects[0]["rules"][3]["verbs"],
        json!([
            "impersonate-on:user-info:get",
            "impersonate-on:user-info:head",
            "impersonate-on:user-info:options"
        ])
    );
}

#[test]
fn a_service_account_is_named_in_its_namespace_alone() {
    let names = [Name::ServiceAccount {
        namespace: "ci".into(),
        name: "robot".into(),
    }];
    for object in policy(&names, None).objects() {
        assert_eq!(object["metadata"]["namespace"], "ci", "{object}");
    }
}
