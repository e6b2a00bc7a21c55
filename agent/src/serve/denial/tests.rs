use k8s_openapi::api::authorization::v1::ResourceRule;

use super::*;
use crate::{body::text, guard::impersonation_of};

const DENIED: &str = r#"{"kind":"Status","message":"users \"alice\" is forbidden: User \"system:serviceaccount:towline:agent\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope","code":403}"#;

fn forbidden(body: impl Into<String>) -> Response<Boxed> {
    let body = body.into();
    Response::builder()
        .status(403)
        .header("content-length", body.len())
        .body(text(body))
        .unwrap()
}

async fn said(body: &str, user: &str, role: &Role) -> String {
    let caller = impersonation_of(user);
    let denied = inspect(forbidden(body), &caller, role).await;
    denied
        .err()
        .map_or_else(String::new, |missing| missing.to_string())
}

fn rule(verb: &str, group: &str, resource: &str, name: &str) -> ResourceRule {
    ResourceRule {
        api_groups: Some(vec![group.into()]),
        resources: Some(vec![resource.into()]),
        resource_names: Some(vec![name.into()]),
        verbs: vec![verb.into()],
    }
}

#[tokio::test]
async fn the_missing_rule_is_named() {
    let role = Role::default();
    assert_eq!(
        said(DENIED, "alice", &role).await,
        "agent is not authorized to impersonate user \"alice\"; in the cluster, the ClusterRole gateway-impersonate \
         lacks {apiGroups: [\"\"], resources: [\"users\"], verbs: [\"impersonate\"], resourceNames: [\"alice\"]}; run: \
         towline memberships generate-gateway-rbac m --users alice --apply"
    );
    for (body, rule) in [
        (
            "userextras.authentication.k8s.io \"v\" is forbidden: User \"a\" cannot impersonate resource \
             \"userextras/k\" in API group \"authentication.k8s.io\" at the cluster scope",
            "{apiGroups: [\"authentication.k8s.io\"], resources: [\"userextras/k\"], verbs: [\"impersonate\"], \
             resourceNames: [\"v\"]}; run: towline memberships generate-gateway-rbac m --users 'al ice' --extra k=v",
        ),
        (
            "serviceaccounts \"robot\" is forbidden: User \"a\" cannot impersonate resource \"serviceaccounts\" in API \
             group \"\" in the namespace \"ci\"",
            "the Role in ci gateway-impersonate lacks {apiGroups: [\"\"], resources: [\"serviceaccounts\"], verbs: \
             [\"impersonate\"], resourceNames: [\"robot\"]}",
        ),
        (
            // Its name is a whole JSON object.
            "userextras.authentication.k8s.io \"{\\\\\\\"username\\\\\\\":\\\\\\\"x\\\\\\\"}\" is forbidden: User \"a\" cannot \
             impersonate resource \"userextras/towline.dev/original-user\" in API group \"authentication.k8s.io\" at",
            "resources: [\"userextras/towline.dev/original-user\"], verbs: [\"impersonate\"]}; run",
        ),
    ] {
        let said = said(body, "al ice", &role).await;
        assert!(said.contains(rule), "{said}");
    }
}

/// Before it says what it tried last, an API server with constrained impersonation says what it tried first.
#[tokio::test]
async fn of_two_ways_the_one_that_was_meant_is_named() {
    let on = "pods is forbidden: User \"a\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" in \
              the namespace \"x\"";
    let path = "forbidden: User \"a\" cannot impersonate-on:user-info:get path \"/version\"";
    let plain = Role::of(&[rule("impersonate", "", "users", "alice")]);
    for body in [on, path] {
        let said = said(body, "bob", &plain).await;
        assert!(
            said.contains("lacks {apiGroups: [\"\"], resources: [\"users\"], verbs: [\"impersonate\"], resourceNames: [\"bob\"]}"),
            "{said}"
        );
    }
    let people = "authentication.k8s.io";
    let constrained = Role::of(&[rule("impersonate:user-info", people, "users", "bob")]);
    for (body, lacks) in [
        (
            on,
            "lacks {apiGroups: [\"\"], resources: [\"pods\"], verbs: [\"impersonate-on:user-info:list\"]}",
        ),
        (
            path,
            "lacks {nonResourceURLs: [\"/version\"], verbs: [\"impersonate-on:user-info:get\"]}",
        ),
        (
            "groups.authentication.k8s.io \"dev\" is forbidden: User \"a\" cannot impersonate:user-info resource \
             \"groups\" in API group \"authentication.k8s.io\" at the cluster scope",
            "lacks {apiGroups: [\"authentication.k8s.io\"], resources: [\"groups\"], verbs: \
             [\"impersonate:user-info\"], resourceNames: [\"dev\"]}",
        ),
    ] {
        let said = said(body, "bob", &constrained).await;
        assert!(said.contains(lacks), "{said}");
    }
}

#[tokio::test]
async fn every_other_403_passes() {
    let (alice, role) = (impersonation_of("alice"), Role::default());
    for body in [
        r#"{"kind":"Status","message":"pods is forbidden: User \"alice\" cannot list resource \"pods\""}"#,
        // The caller's own, at an API server behind this one.
        r#"{"message":"users \"bob\" is forbidden: User \"alice\" cannot impersonate resource \"users\""}"#,
        "",
    ] {
        let passed = inspect(forbidden(body), &alice, &role).await.unwrap();
        assert_eq!(passed.into_body().collect().await.unwrap().to_bytes(), body);
    }
    // A body without a length, or a long one, isn't waited for.
    let mut endless = forbidden(DENIED);
    endless.headers_mut().remove("content-length");
    inspect(endless, &alice, &role).await.unwrap();
}
