use serde_json::json;

use super::*;
use crate::testing::at;

/// What GitHub Actions puts into its tokens.
fn github(more: Value) -> Claims {
    let mut values = json!({
        "sub": "repo:octo/shop:ref:refs/heads/main",
        "repository": "octo/shop",
        "repository_owner": "octo",
        "ref": "refs/heads/main",
        "environment": "prod",
        "groups": ["a", "", "b"],
        "run_attempt": "1",
    });
    values
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let Value::Object(values) = values else {
        unreachable!()
    };
    Claims {
        values,
        issuer: "https://token.actions.githubusercontent.com".into(),
        expires: at(0),
        issued: None,
    }
}

#[test]
fn claims_become_attributes() {
    let mapping = Mapping::compile([
        ("subject", "assertion.sub"),
        ("attribute.repository", "assertion.repository"),
        (
            "attribute.tier",
            "assertion.ref == 'refs/heads/main' ? 'production' : 'review'",
        ),
        ("attribute.missing", "assertion.?missing.orValue('')"),
        ("groups", "assertion.groups"),
        ("attribute.one", "[assertion.repository_owner]"),
    ])
    .unwrap();
    let attributes = mapping.map(&github(json!({}))).unwrap();
    assert_eq!(
        attributes["subject"].as_str(),
        Some("repo:octo/shop:ref:refs/heads/main")
    );
    assert_eq!(attributes["attribute.tier"].as_str(), Some("production"));
    assert_eq!(attributes["groups"].values(), ["a", "b"]);
    assert_eq!(
        attributes["attribute.one"],
        Attribute::Many(vec!["octo".into()])
    );
    assert!(!attributes.contains_key("attribute.missing"));
}

#[test]
fn a_condition_holds_or_says_why_not() {
    let condition = Condition::compile(
        "assertion.repository == 'octo/shop' && attribute.tier == 'production' && attribute.?subject.orValue('') != ''",
    )
    .unwrap();
    let attributes = BTreeMap::from([
        (
            "attribute.tier".to_owned(),
            Attribute::One("production".into()),
        ),
        ("subject".to_owned(), Attribute::One("x".into())),
    ]);
    condition.check(&github(json!({})), &attributes).unwrap();
    let other = github(json!({"repository": "octo/evil"}));
    let refused = condition
        .check(&other, &attributes)
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with(
            "token is refused by a rule: the condition is not met: assertion.repository"
        ),
        "{refused}"
    );
    // What is missing is no yes.
    let tier = Condition::compile("attribute.tier != 'review'").unwrap();
    let refused = tier
        .check(&github(json!({})), &BTreeMap::new())
        .unwrap_err();
    assert!(matches!(refused, Refused::Evaluation { .. }), "{refused}");
    let or = Condition::compile("attribute.admin == 'yes' || assertion.sub == 'me'").unwrap();
    let refused = or.check(&github(json!({})), &BTreeMap::new()).unwrap_err();
    assert!(matches!(refused, Refused::Evaluation { .. }), "{refused}");
}

#[test]
fn wrong_expressions_are_named() {
    let error = Mapping::compile([("subject", "assertion.sub"), ("attribute.x", "claims.sub")])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("attribute.x: "), "{error}");
    Condition::compile("assertion.sub").unwrap_err();
    Condition::compile("request.path == ''").unwrap_err();
    let numbers = Mapping::compile([("n", "assertion.n")]).unwrap();
    numbers.map(&github(json!({"n": 5}))).unwrap_err();
    numbers.map(&github(json!({"n": ["a", 5]}))).unwrap_err();
    numbers
        .map(&github(json!({"n": "x".repeat(1025)})))
        .unwrap_err();
}
