//! IAM: names in policies, and conditions in CEL over what a request asks for.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, sync::Arc};

use towline_gateway::{
    authn::Identity,
    iam::{
        Attributes, Binding, CompiledPolicy, Condition, CustomRoles, Member, Permission, Policy,
        PolicySet, Principal, Resource, Role, RoleName,
    },
    target::Target,
};

use crate::{head, tokens::in_a_worker};

/// What is a name says itself again, so that no two texts name one thing.
pub(crate) fn names(data: &[u8]) {
    fn again<T: FromStr + Display>(text: &str) {
        if let Ok(name) = text.parse::<T>() {
            assert_eq!(name.to_string(), text);
        }
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    again::<Member>(text);
    again::<Principal>(text);
    again::<Resource>(text);
    again::<RoleName>(text);
    if let Ok(principal) = text.parse::<Principal>() {
        assert_eq!(text.parse::<Member>(), Ok(Member::Principal(principal)));
    }
}

/// The first line is an expression, the rest a request. It ends; it gives the same each time, and nothing to who isn't
/// bound; and a policy that is refused gives nothing to anybody.
pub(crate) fn condition(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (expression, request) = text
        .split_once('\n')
        .unwrap_or((text, "GET /api/v1/namespaces/n/pods"));
    let Some(Ok(target)) = head::parse(request.as_bytes()).map(|head| Target::parse(&head)) else {
        return;
    };
    let resource: Resource = "projects/p/locations/global/memberships/m".parse().unwrap();
    let condition = Condition {
        expression: expression.to_owned(),
        ..Condition::default()
    };
    let policy = Policy {
        bindings: vec![Binding {
            condition: Some(condition),
            ..Binding::new(Role::GatewayAdmin, vec!["user:alice".parse().unwrap()])
        }],
        ..Policy::default()
    };
    in_a_worker(|| {
        let taken = policy.check(&resource).is_ok();
        let set = PolicySet::new(vec![Arc::new(CompiledPolicy::new(
            resource.clone(),
            policy,
            &CustomRoles::default(),
        ))]);
        let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
        let attributes = Attributes {
            resource: &resource,
            labels: &labels,
            request: &target.info,
            now: 1_800_000_000,
        };
        let gives = |name: &str, permission| {
            let caller = Identity::user(name.to_owned(), Vec::new());
            set.decide(&caller, permission, &attributes).allowed()
        };
        let given = gives("alice", Permission::Get);
        assert!(taken || !given, "{expression:?} was refused and gives");
        assert_eq!(gives("alice", Permission::Get), given);
        assert!(
            !gives("bob", Permission::Get),
            "{expression:?} gives to somebody else"
        );
    });
}
