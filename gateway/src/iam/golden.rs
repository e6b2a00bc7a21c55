//! Principals × permissions × resources, as a file: what a change of the policy's code changes shows in its diff.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use super::{
    Attributes, Binding, CompiledPolicy, Condition, CustomRole, CustomRoles, Permission,
    Permissions, Policy, PolicySet, Resource, Role, RoleName,
};
use crate::{authn::Identity, target::RequestInfo};

const GOLDEN: &str = include_str!("../../tests/golden/policy.txt");

const PROJECT: &str = "projects/p";
const PROD: &str = "projects/p/locations/global/memberships/prod";
const DEV: &str = "projects/p/locations/global/memberships/dev";
const ACCOUNT: &str = "projects/p/serviceAccounts/ci";
const POOL: &str = "projects/p/locations/global/workloadIdentityPools/ci";
const OTHER: &str = "projects/q";

/// 2026-01-02T03:04:05Z.
const NOW: u64 = 1_767_323_045;

fn bind(role: &str, member: &str) -> Binding {
    Binding::new(
        role.parse::<RoleName>().unwrap(),
        vec![member.parse().unwrap()],
    )
}

fn when(role: &str, member: &str, expression: &str) -> Binding {
    Binding {
        condition: Some(Condition {
            expression: expression.to_owned(),
            ..Condition::default()
        }),
        ..bind(role, member)
    }
}

/// A holder of each role in the project, `user:ROLE`, and all else that can make a difference.
fn policies() -> Vec<(Resource, Vec<Binding>)> {
    let mut project: Vec<Binding> = Role::ALL
        .into_iter()
        .map(|role| bind(role.name(), &format!("user:{role}")))
        .collect();
    project.extend([
        bind("projects/p/roles/execOnly", "user:custom"),
        bind("gatewayReader", "group:ops"),
        bind(
            "gatewayReader",
            &format!("principalSet://{POOL}/attribute.repo/org/app"),
        ),
        when(
            "gatewayAdmin",
            "user:dev-only",
            "resource.labels.env == 'dev'",
        ),
        when(
            "gatewayAdmin",
            "user:until-2026",
            "request.time < timestamp('2026-01-01T00:00:00Z')",
        ),
        when(
            "gatewayAdmin",
            "user:since-2026",
            "request.time >= timestamp('2026-01-01T00:00:00Z')",
        ),
        when(
            "gatewayEditor",
            "user:reads",
            "request.verb in ['get', 'list', 'watch']",
        ),
    ]);
    vec![
        (PROJECT.parse().unwrap(), project),
        (
            PROD.parse().unwrap(),
            vec![
                bind("gatewayAdmin", "user:prod-only"),
                bind("gatewayReader", "serviceAccount:ci@p"),
            ],
        ),
        (
            ACCOUNT.parse().unwrap(),
            vec![
                bind("serviceAccountTokenCreator", "user:acts"),
                bind("workloadIdentityUser", &format!("principalSet://{POOL}/*")),
            ],
        ),
        (
            OTHER.parse().unwrap(),
            vec![
                bind("owner", "user:of-q"),
                bind("owner", "serviceAccount:ci@p"),
            ],
        ),
    ]
}

fn callers() -> Vec<(String, Identity)> {
    let mut callers: Vec<(String, Identity)> = Role::ALL
        .into_iter()
        .map(|role| role.to_string())
        .chain(
            [
                "custom",
                "dev-only",
                "until-2026",
                "since-2026",
                "reads",
                "prod-only",
                "acts",
                "of-q",
                "nobody",
            ]
            .map(str::to_owned),
        )
        .map(|name| (format!("user:{name}"), Identity::user(name, Vec::new())))
        .collect();
    callers.push((
        "user:nobody in group:ops".to_owned(),
        Identity::user("nobody".into(), vec!["ops".into()]),
    ));
    callers.push((
        "serviceAccount:ci@p".to_owned(),
        Identity {
            principal: "serviceAccount:ci@p".parse().unwrap(),
            ..Identity::user(String::new(), Vec::new())
        },
    ));
    for repo in ["org/app", "org/other"] {
        callers.push((
            format!("workload of {repo}"),
            Identity {
                principal: format!("principal://{POOL}/subject/{repo}")
                    .parse()
                    .unwrap(),
                attributes: BTreeMap::from([("repo".into(), repo.into())]),
                ..Identity::user(String::new(), Vec::new())
            },
        ));
    }
    callers
}

fn render() -> String {
    let own = CustomRole {
        project: "p".parse().unwrap(),
        id: "execOnly".into(),
    };
    let roles = CustomRoles::from([(own, Permissions::of(&[Permission::Get, Permission::Stream]))]);
    let compiled: Vec<Arc<CompiledPolicy>> = policies()
        .into_iter()
        .map(|(resource, bindings)| {
            let policy = Policy {
                etag: String::new(),
                bindings,
            };
            policy.check(&resource).unwrap();
            Arc::new(CompiledPolicy::new(resource, policy, &roles))
        })
        .collect();
    let mut text = String::from(
        "# Who may what: made by the test `iam::golden`, from the policies that stand there.\n\
         # A request is a GET, but where the permission says otherwise.\n",
    );
    for name in [PROJECT, PROD, DEV, ACCOUNT, POOL, OTHER] {
        let resource: Resource = name.parse().unwrap();
        let project = Resource::Project(resource.project().clone());
        let set = PolicySet::new(
            compiled
                .iter()
                .filter(|policy| *policy.resource() == resource || *policy.resource() == project)
                .cloned()
                .collect(),
        );
        let labels = match name {
            PROD => BTreeMap::from([("env".to_owned(), "prod".to_owned())]),
            DEV => BTreeMap::from([("env".to_owned(), "dev".to_owned())]),
            _ => BTreeMap::new(),
        };
        writeln!(text, "\n## {name}").unwrap();
        for permission in Permission::ALL {
            let request = RequestInfo {
                verb: permission.verb().to_owned(),
                ..RequestInfo::default()
            };
            let attributes = Attributes {
                resource: &resource,
                labels: &labels,
                request: &request,
                now: NOW,
            };
            let who: Vec<String> = callers()
                .into_iter()
                .filter(|(_, caller)| set.decide(caller, *permission, &attributes).allowed())
                .map(|(name, _)| name)
                .collect();
            writeln!(text, "{permission}: {}", who.join(", ")).unwrap();
        }
    }
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

#[test]
fn who_may_what_is_as_in_the_file() {
    let rendered = render();
    for (at, (now, then)) in rendered.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(
            now,
            then,
            "line {} of gateway/tests/golden/policy.txt; where the change is meant: \
             cargo test -p towline-gateway --lib iam::golden -- --ignored",
            at + 1
        );
    }
    assert_eq!(rendered.lines().count(), GOLDEN.lines().count());
}

/// Of the file itself: what is missing there nobody looks at.
#[test]
fn every_role_and_permission_is_in_the_file() {
    let sections: Vec<&str> = GOLDEN.split("\n## ").skip(1).collect();
    assert_eq!(sections.len(), 6);
    for permission in Permission::ALL {
        let begins = format!("\n{permission}:");
        for section in &sections {
            assert!(section.contains(&begins), "{permission} is missing");
        }
        let held = GOLDEN.lines().any(|line| {
            line.strip_prefix(&format!("{permission}: "))
                .is_some_and(|who| who.contains("user:"))
        });
        assert!(held, "nobody in the file holds {permission}");
    }
    for role in Role::ALL {
        assert!(
            GOLDEN.contains(&format!("user:{role}")),
            "{role} is missing"
        );
        for permission in Permission::ALL {
            let line = format!("\n{permission}:");
            let project = sections[0].split(&line).nth(1).unwrap_or_default();
            let who = project.lines().next().unwrap_or_default();
            let named = who
                .split(", ")
                .any(|one| one.trim() == format!("user:{role}"));
            assert_eq!(named, role.permits(*permission), "{role} {permission}");
        }
    }
}

/// Writes the file anew.
#[test]
#[ignore = "it changes the tree"]
fn write_the_file() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/policy.txt");
    std::fs::write(file, render()).unwrap();
}
