use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    iam::{Condition, CustomRoles, Permissions, Policy, Role, RoleName},
    target::RequestInfo,
};

const POOL: &str = "projects/p/locations/global/workloadIdentityPools/ci";

fn binding(role: &str, members: &[&str], condition: Option<&str>) -> Binding {
    Binding {
        role: role.parse().unwrap(),
        members: members
            .iter()
            .map(|member| member.parse().unwrap())
            .collect(),
        condition: condition.map(|expression| Condition {
            expression: expression.to_owned(),
            ..Condition::default()
        }),
    }
}

fn compile(resource: &str, bindings: Vec<Binding>) -> Arc<CompiledPolicy> {
    let policy = Policy {
        etag: String::new(),
        bindings,
    };
    let own = (
        "projects/p/roles/own".parse().unwrap(),
        Permissions::of(&[Permission::Stream]),
    );
    let roles = CustomRoles::from([own]);
    Arc::new(CompiledPolicy::new(
        resource.parse().unwrap(),
        policy,
        &roles,
    ))
}

fn alice() -> Identity {
    Identity::user("alice".into(), vec!["ops".into()])
}

fn decide(set: &PolicySet, caller: &Identity, permission: Permission) -> Decision {
    let resource = "projects/p/locations/global/memberships/edge"
        .parse()
        .unwrap();
    set.decide(
        caller,
        permission,
        &Attributes {
            resource: &resource,
            labels: &BTreeMap::new(),
            request: &RequestInfo::default(),
            now: 1_000,
        },
    )
}

#[test]
fn nobody_holds_anything_by_default() {
    for set in [
        PolicySet::default(),
        PolicySet::new(vec![compile("projects/p", Vec::new())]),
    ] {
        for permission in Permission::ALL {
            assert!(!decide(&set, &alice(), *permission).allowed());
        }
    }
}

#[test]
fn levels_add_and_the_decision_says_which() {
    let edge = "projects/p/locations/global/memberships/edge";
    let set = PolicySet::new(vec![
        compile(
            "projects/p",
            vec![binding("gatewayReader", &["group:ops"], None)],
        ),
        compile(
            edge,
            vec![binding("projects/p/roles/own", &["user:alice"], None)],
        ),
    ]);
    let get = decide(&set, &alice(), Permission::Get);
    assert_eq!(get.by().unwrap().resource().to_string(), "projects/p");
    let stream = decide(&set, &alice(), Permission::Stream);
    assert_eq!(stream.by().unwrap().resource().to_string(), edge);
    let role = &stream.by().unwrap().binding().unwrap().role;
    assert_eq!(role.to_string(), "projects/p/roles/own");
    assert!(!decide(&set, &alice(), Permission::Post).allowed());
    let bob = Identity::user("bob".into(), Vec::new());
    assert!(!decide(&set, &bob, Permission::Get).allowed());
}

#[test]
fn what_is_not_understood_gives_nothing() {
    for wrong in [
        binding("projects/p/roles/gone", &["user:alice"], None),
        binding("owner", &["user:alice"], Some("no.such.variable")),
        binding("owner", &["user:alice"], Some("((")),
        binding(
            "owner",
            &["user:alice"],
            Some("resource.labels.env != 'prod'"),
        ),
        binding("owner", &["user:alice"], Some("false")),
        binding("owner", &["user:Alice", "group:alice", "user:ops"], None),
    ] {
        let set = PolicySet::new(vec![compile("projects/p", vec![wrong.clone()])]);
        for permission in Permission::ALL {
            assert!(!decide(&set, &alice(), *permission).allowed(), "{wrong:?}");
        }
    }
}

#[test]
fn a_binding_that_always_holds_is_preferred_and_time_is_told() {
    let timed = binding(
        "gatewayAdmin",
        &["user:alice"],
        Some("request.time < timestamp('2026-01-01T00:00:00Z')"),
    );
    let named = binding(
        "gatewayAdmin",
        &["group:ops"],
        Some("resource.membership == 'edge'"),
    );
    let always = binding("gatewayReader", &["user:alice"], None);
    let of = |bindings: &[&Binding]| {
        let bindings = bindings.iter().map(|binding| (*binding).clone()).collect();
        PolicySet::new(vec![compile("projects/p", bindings)])
    };
    let found = |set: PolicySet, permission| {
        let decision = decide(&set, &alice(), permission);
        (decision.allowed(), decision.conditional(), decision.timed())
    };
    assert_eq!(found(of(&[&timed]), Permission::Get), (true, true, true));
    assert_eq!(
        found(of(&[&timed, &named]), Permission::Get),
        (true, true, false)
    );
    assert_eq!(
        found(of(&[&timed, &named, &always]), Permission::Get),
        (true, false, false)
    );
    assert_eq!(
        found(of(&[&timed, &always]), Permission::Stream),
        (true, true, true)
    );
    let considered = of(&[&timed, &named, &always]).consider(
        &alice(),
        Permission::Get,
        &Attributes {
            resource: &"projects/p".parse().unwrap(),
            labels: &BTreeMap::new(),
            request: &RequestInfo::default(),
            now: 2_000_000_000,
        },
    );
    let told: Vec<_> = considered
        .iter()
        .map(|one| (one.gives(), one.member.as_ref().unwrap().to_string()))
        .collect();
    assert_eq!(
        told,
        [
            (true, "user:alice".to_owned()),
            (false, "user:alice".to_owned()),
            (false, "group:ops".to_owned()),
        ]
    );
}

/// Everybody that tests are about, with the members that could mean them.
fn callers() -> Vec<Identity> {
    let workload = |subject: &str, groups: &[&str], attributes: &[(&str, &str)]| Identity {
        principal: format!("principal://{POOL}/subject/{subject}")
            .parse()
            .unwrap(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        attributes: attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Identity::user(subject.to_owned(), Vec::new())
    };
    vec![
        alice(),
        Identity::user(
            "bob".into(),
            vec![format!("principalSet://{POOL}/*"), "dev".into()],
        ),
        Identity {
            principal: "serviceAccount:ci@p".parse().unwrap(),
            groups: vec!["ops".into()],
            ..Identity::user("serviceAccount:ci@p".into(), Vec::new())
        },
        workload(
            "job",
            &[&format!("principalSet://{POOL}/group/ops"), "ops"],
            &[("repo", "org/app")],
        ),
        workload(
            "ops",
            &[
                &format!("principalSet://{POOL}/attribute.repo/x"),
                "group:ops",
            ],
            &[("repo", "x/y")],
        ),
        workload(
            "alice",
            &["principalSet://projects/q/locations/global/workloadIdentityPools/ci/group/ops"],
            &[],
        ),
    ]
}

fn members() -> Vec<String> {
    let other = POOL.replace("/p/", "/q/");
    [
        "user:alice",
        "user:bob",
        "user:job",
        "group:ops",
        "group:dev",
        "serviceAccount:ci@p",
        "serviceAccount:ci@q",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([POOL, &other].into_iter().flat_map(|pool| {
        [
            format!("principal://{pool}/subject/job"),
            format!("principal://{pool}/subject/alice"),
            format!("principalSet://{pool}/*"),
            format!("principalSet://{pool}/group/ops"),
            format!("principalSet://{pool}/attribute.repo/org/app"),
            format!("principalSet://{pool}/attribute.repo/x"),
            format!("principalSet://{pool}/attribute.repo/x/y"),
        ]
    }))
    .collect()
}

proptest! {
    /// The index finds what going through all bindings finds, for every kind of member.
    #[test]
    fn the_index_finds_what_the_bindings_say(
        bindings in prop::collection::vec(
            (prop::sample::select(Role::ALL.to_vec()), prop::collection::vec(prop::sample::select(members()), 1..4)),
            0..12,
        ),
    ) {
        let bindings: Vec<Binding> = bindings
            .into_iter()
            .map(|(role, members)| {
                let members = members.iter().map(|member| member.parse().unwrap()).collect();
                Binding::new(role, members)
            })
            .collect();
        let set = PolicySet::new(vec![compile("projects/p", bindings.clone())]);
        for caller in callers() {
            for permission in Permission::ALL {
                let plain = bindings.iter().any(|binding| {
                    let RoleName::Predefined(role) = &binding.role else { return false };
                    role.permits(*permission) && binding.members.iter().any(|member| caller.is(member))
                });
                let decision = decide(&set, &caller, *permission);
                prop_assert_eq!(decision.allowed(), plain, "{} {}", caller.principal, permission);
                if let Some(by) = decision.by() {
                    let binding = by.binding().unwrap();
                    prop_assert!(binding.members.iter().any(|member| caller.is(member)));
                }
            }
        }
    }
}
