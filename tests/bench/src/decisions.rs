//! What a decision of IAM costs with a policy as large as one gets.

use std::{collections::BTreeMap, hint::black_box, sync::Arc};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use towline_gateway::{
    authn::Identity,
    iam::{
        Attributes, Binding, CompiledPolicy, Condition, CustomRoles, Permission, Policy, PolicySet,
        Resource, Role,
    },
    target::RequestInfo,
};

/// Microseconds each, but for `compile`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Decisions {
    /// Bindings in the policy.
    pub(crate) bindings: usize,
    /// A user whom one of the bindings names.
    pub(crate) by_user: f64,
    /// A user in a hundred groups, of which the last has a binding.
    pub(crate) by_group: f64,
    /// A user whom no binding means.
    pub(crate) refused: f64,
    /// A user with a binding under a condition.
    pub(crate) by_condition: f64,
    /// The policy is read from the store and made ready, once after each change: milliseconds.
    pub(crate) compile_millis: f64,
}

/// Means over `rounds`.
pub(crate) fn cost(bindings: usize, rounds: u32) -> anyhow::Result<Decisions> {
    let project: Resource = "projects/demo".parse()?;
    let resource: Resource = "projects/demo/locations/global/memberships/prod".parse()?;
    let mut policy = Policy::default();
    for n in 0..bindings {
        let member = if n % 2 == 0 {
            format!("user:user-{n}@example.com")
        } else {
            format!("group:team-{n}")
        };
        let binding = Binding::new(Role::GatewayEditor, vec![member.parse()?]);
        policy.bindings.push(binding);
    }
    let conditional = Binding {
        condition: Some(Condition {
            title: "prod".to_owned(),
            description: String::new(),
            expression: "resource.labels.env == 'prod' && request.path.startsWith('/api/')"
                .to_owned(),
        }),
        ..Binding::new(Role::GatewayEditor, vec!["user:carol".parse()?])
    };
    policy.bindings.push(conditional);
    policy
        .check(&project)
        .context("the policy is a valid one")?;
    let begun = Instant::now();
    let compiled = CompiledPolicy::new(project, policy, &CustomRoles::new());
    let compile_millis = begun.elapsed().as_secs_f64() * 1e3;
    let set = PolicySet::new(vec![Arc::new(compiled)]);

    let request = RequestInfo {
        path: "/api/v1/namespaces/default/pods".to_owned(),
        verb: "list".to_owned(),
        ..RequestInfo::default()
    };
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    let mean = |caller: &Identity, allowed: bool| -> anyhow::Result<f64> {
        let begun = Instant::now();
        for _ in 0..rounds {
            let attributes = Attributes {
                resource: &resource,
                labels: &labels,
                request: &request,
                now: 1_800_000_000,
            };
            let decision = set.decide(black_box(caller), Permission::Post, &attributes);
            anyhow::ensure!(decision.allowed() == allowed, "another decision than meant");
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
    };
    let last = bindings.saturating_sub(bindings % 2) - 1;
    let mut groups: Vec<String> = (0..99).map(|n| format!("other-{n}")).collect();
    groups.push(format!("team-{last}"));
    Ok(Decisions {
        bindings: bindings + 1,
        by_user: mean(
            &Identity::user(format!("user-{}@example.com", last - 1), Vec::new()),
            true,
        )?,
        by_group: mean(&Identity::user("bob".to_owned(), groups), true)?,
        refused: mean(
            &Identity::user("mallory".to_owned(), vec!["none".to_owned()]),
            false,
        )?,
        by_condition: mean(&Identity::user("carol".to_owned(), Vec::new()), true)?,
        compile_millis,
    })
}
