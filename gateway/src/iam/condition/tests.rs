use std::collections::BTreeMap;

use http::Method;

use super::*;

fn value(expression: &str, request: &str, labels: &[(&str, &str)]) -> Result<bool, String> {
    let (method, url) = request.split_once(' ').unwrap();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let labels: BTreeMap<String, String> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let attributes = Attributes {
        resource: &"projects/p/locations/eu/memberships/edge".parse().unwrap(),
        labels: &labels,
        request: &RequestInfo::parse(&method.parse::<Method>().unwrap(), path, query),
        // 2026-01-02T03:04:05Z, a Friday.
        now: 1_767_323_045,
    };
    let condition =
        Compiled::new(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    condition.holds(&Variables::new(&attributes))
}

#[test]
fn a_condition_sees_what_the_api_server_sees() {
    let get = "GET /api/v1/namespaces/dev-a/pods/web/log?follow=1";
    for (expression, request, expected) in [
        (
            "request.path == '/api/v1/namespaces/dev-a/pods/web/log'",
            get,
            true,
        ),
        (
            "request.path.startsWith('/api/v1/namespaces/dev-')",
            get,
            true,
        ),
        (
            "request.verb == 'get' && request.subresource == 'log'",
            get,
            true,
        ),
        (
            "request.verb in ['list', 'watch']",
            "GET /api/v1/pods",
            true,
        ),
        (
            "request.verb in ['list', 'watch']",
            "GET /api/v1/pods?watch=1",
            true,
        ),
        ("request.verb in ['list', 'watch']", get, false),
        (
            "request.resource != 'secrets'",
            "GET /api/v1/namespaces/x/secrets",
            false,
        ),
        (
            "request.resource != 'secrets'",
            "GET /api/v1/%6eamespaces/x/secret%73",
            false,
        ),
        (
            "request.apiGroup == 'apps' && request.apiVersion == 'v1'",
            "PATCH /apis/apps/v1/namespaces/x/deployments/d",
            true,
        ),
        ("request.namespace.matches('^dev-[a-z]+$')", get, true),
        ("request.name == 'web'", get, true),
        (
            "resource.membership == 'edge' && resource.project == 'p' && resource.location == 'eu'",
            get,
            true,
        ),
        (
            "resource.type == 'membership' && resource.name.endsWith('/memberships/edge')",
            get,
            true,
        ),
        ("resource.labels.env == 'prod'", get, true),
        ("resource.labels['env'] == 'prod'", get, true),
        ("has(resource.labels.team)", get, false),
        ("'team' in resource.labels", get, false),
        (
            "['a', 'prod'].exists(env, env == resource.labels.env)",
            get,
            true,
        ),
        ("resource.labels.all(key, key == 'env')", get, true),
        (
            "request.time < timestamp('2026-06-01T00:00:00Z')",
            get,
            true,
        ),
        (
            "request.time.getHours('UTC') >= 3 && request.time.getDayOfWeek() == 5",
            get,
            true,
        ),
        (
            "request.time - timestamp('2026-01-01T00:00:00Z') < duration('1h')",
            get,
            false,
        ),
        ("request.verb == 'get' ? true : false", get, true),
        ("true", get, true),
    ] {
        assert_eq!(
            value(expression, request, &[("env", "prod")]),
            Ok(expected),
            "{expression}"
        );
    }
}

#[test]
fn what_cannot_be_evaluated_is_no_value() {
    let get = "GET /api/v1/pods";
    assert!(value("resource.labels.env != 'prod'", get, &[]).is_err());
    assert!(value("!(resource.labels.env == 'prod')", get, &[]).is_err());
    assert!(value("1 / size(request.name) == 1", get, &[]).is_err());
    // What decides before the error is a value.
    assert_eq!(
        value("false && resource.labels.env == 'x'", get, &[]),
        Ok(false)
    );
}

#[test]
fn what_a_condition_may_not_say_is_refused_with_what_it_may() {
    let long = format!("request.path == '{}'", "x".repeat(MAX_EXPRESSION));
    let chain = format!("1 {} == 1", "+ 1".repeat(300));
    let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
    for (expression, says) in [
        ("", "no CEL expression"),
        ("request.path ==", "no CEL expression"),
        ("request.path", "not a bool"),
        ("'a' + 'b'", "not a bool"),
        ("1", "not a bool"),
        ("request", "request.path"),
        ("request['path'] == 'x'", "request.path"),
        ("request == resource", "request.path"),
        ("request.pathh == 'x'", "did you mean request.path?"),
        ("request.user == 'x'", "there is no request.user"),
        ("principal == 'x'", "there is no variable \"principal\""),
        ("user.name == 'x'", "there is no variable \"user\""),
        ("request.path.startWith('/x')", "did you mean startsWith?"),
        ("request.path.matches(request.name)", "as it stands"),
        ("request.path.matches('(')", "matches()"),
        ("request.path.matches('(a{1000}){1000}')", "size limit"),
        (
            "request.path.matches('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')",
            "128 may be",
        ),
        ("request.path > 1", "overload"),
        ("request.time == 'x' || request.time < 1", "overload"),
        ("request.path.startsWith(1)", "overload"),
        (
            "[1, 2].all(a, [1, 2].all(b, a == b))",
            "don't stand in one another",
        ),
        ("Foo{a: 1} == 1", ""),
        (&long, "2048 may be"),
        (&deep, "deep in one another"),
        (&chain, "operators"),
        ("r'a' == 'a'", "neither raw"),
    ] {
        let error = Compiled::new(expression).map(drop).expect_err(expression);
        assert!(error.to_string().contains(says), "{expression}: {error}");
    }
}

/// What passes is parsed and evaluated on a worker's stack, in the build with the largest frames.
#[test]
fn the_deepest_condition_that_may_be_is_no_danger() {
    let deep = format!("{}true{}", "(".repeat(16), ")".repeat(16));
    let chain = format!("1 {} > 1", "+1".repeat(13));
    let choice = format!("{}true", "false?false:".repeat(14));
    let any = vec!["request.verb == 'get'"; 40].join(" || ");
    for expression in [deep, chain, choice, any] {
        assert_eq!(value(&expression, "GET /", &[]), Ok(true), "{expression}");
    }
    let long = format!("1 {} > 1", "+1".repeat(190));
    let error = Compiled::new(&long).map(drop).unwrap_err();
    assert!(error.to_string().contains("16 deep"), "{error}");
}

#[test]
fn only_the_time_makes_a_condition_change_by_itself() {
    for (expression, timed) in [
        ("request.time < timestamp('2026-06-01T00:00:00Z')", true),
        ("resource.labels.time == 'request.time'", false),
        ("['a'].exists(a, request.time.getHours() == 1)", true),
        ("request.path == '/'", false),
    ] {
        assert_eq!(
            Compiled::new(expression).unwrap().timed(),
            timed,
            "{expression}"
        );
    }
}
