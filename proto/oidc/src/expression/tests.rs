use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn claims() -> Json {
    json!({
        "sub": "alice",
        "email": "Alice@Example.com",
        "email_verified": true,
        "roles": "dev,ops",
        "groups": ["dev", "ops", "", "system:x"],
        "level": 5,
        "nested": {"team": {"name": "blue"}, "kubernetes.io": {"pod-name": "p"}},
        "none": null,
    })
}

fn compile(source: &str) -> Result<Expression, CompileError> {
    Expression::compile(source, &[("claims", Type::map(Type::Dyn))], None)
}

fn rule(source: &str) -> Result<Expression, CompileError> {
    let claims = ("claims", Type::map(Type::Dyn));
    Expression::compile(source, &[claims], Some(&Type::Bool))
}

fn strings(source: &str) -> Result<Vec<String>, EvaluationError> {
    let variables = Variables::new().with("claims", &claims());
    compile(source).unwrap().strings(&variables)
}

#[test]
fn what_kubernetes_documents_evaluates() {
    for (source, wanted) in [
        ("claims.sub", vec!["alice"]),
        ("'oidc:' + claims.sub", vec!["oidc:alice"]),
        ("claims.email.lowerAscii()", vec!["alice@example.com"]),
        ("claims.sub.upperAscii()", vec!["ALICE"]),
        ("claims.roles.split(',')", vec!["dev", "ops"]),
        ("claims.roles.split(',', 1)", vec!["dev,ops"]),
        ("claims.groups", vec!["dev", "ops", "system:x"]),
        (
            "claims.groups.filter(g, !g.startsWith('system:'))",
            vec!["dev", "ops"],
        ),
        (
            "claims.groups.map(g, 'x:' + g)",
            vec!["x:dev", "x:ops", "x:", "x:system:x"],
        ),
        ("claims.groups.map(g, g.endsWith('s'), g)", vec!["ops"]),
        ("claims.?missing.orValue('none')", vec!["none"]),
        ("claims[?'sub'].orValue('none')", vec!["alice"]),
        ("claims.?nested.team.name.orValue('none')", vec!["blue"]),
        ("has(claims.missing) ? claims.missing : ''", vec![]),
        ("claims.none", vec![]),
        ("claims['nested']['team']['name']", vec!["blue"]),
        (
            "claims.nested.kubernetes__dot__io.pod__dash__name",
            vec!["p"],
        ),
        ("claims.groups.join('+')", vec!["dev+ops++system:x"]),
        ("claims.groups.join()", vec!["devopssystem:x"]),
        ("claims.sub.replace('a', 'b')", vec!["blice"]),
        ("'aaa'.replace('a', 'b', 2)", vec!["bba"]),
        ("'aaa'.replace('a', 'b', -1)", vec!["bbb"]),
        ("' x '.trim()", vec!["x"]),
        ("claims.sub.substring(1)", vec!["lice"]),
        ("claims.sub.substring(1, 3)", vec!["li"]),
        ("claims.sub.charAt(1)", vec!["l"]),
        ("string(claims.sub.indexOf('i'))", vec!["2"]),
        (
            "'%s-%s'.format([claims.sub, claims.roles])",
            vec!["alice-dev,ops"],
        ),
        ("'%s %d'.format(['a', 1])", vec!["a 1"]),
        (
            "claims.?nested.?kubernetes__dot__io.pod__dash__name.orValue('')",
            vec!["p"],
        ),
        (
            "claims.nested['kubernetes__dot__io']['pod-name']",
            vec!["p"],
        ),
        ("strings.quote(claims.sub)", vec!["\"alice\""]),
        ("string(claims.level)", vec!["5"]),
        ("claims.level > 4 ? 'high' : 'low'", vec!["high"]),
        ("claims.level == 5 ? 'five' : 'other'", vec!["five"]),
        ("size(claims.groups) == 4 ? 'four' : 'other'", vec!["four"]),
        ("claims.?sub.optMap(s, s + '!').orValue('')", vec!["alice!"]),
        (
            "sets.contains(claims.groups, ['ops', 'dev']) ? 'y' : 'n'",
            vec!["y"],
        ),
        (
            "sets.equivalent(['a', 'b'], ['b', 'a']) ? 'y' : 'n'",
            vec!["y"],
        ),
        (
            "sets.intersects(claims.groups, ['x', 'dev']) ? 'y' : 'n'",
            vec!["y"],
        ),
        (
            "sets.intersects(claims.groups, ['x']) ? 'y' : 'n'",
            vec!["n"],
        ),
    ] {
        assert_eq!(
            strings(source),
            Ok(wanted.into_iter().map(str::to_owned).collect()),
            "{source}"
        );
    }
}

#[test]
fn rules_evaluate() {
    let variables = Variables::new().with("claims", &claims());
    for (source, wanted) in [
        ("claims.?email_verified.orValue(true) == true", true),
        ("claims.email_verified == true", true),
        ("claims.email.endsWith('@Example.com')", true),
        ("claims.email.matches('^[A-Z].*@Example\\\\.com$')", true),
        ("claims.groups.all(g, g != 'admin')", true),
        ("claims.groups.exists(g, g == 'dev')", true),
        ("claims.groups.exists_one(g, g == 'dev')", true),
        ("'dev' in claims.groups", true),
        ("'sub' in claims", true),
        ("has(claims.sub) && !has(claims.hd)", true),
        ("claims.level in [5, 6]", true),
        ("type(claims.sub) == string", true),
        ("claims.nested.team.name == 'red'", false),
        (
            "timestamp('2026-01-01T00:00:00Z') < timestamp('2027-01-01T00:00:00Z')",
            true,
        ),
        ("duration('1h') > duration('59m')", true),
    ] {
        assert_eq!(
            rule(source).unwrap().boolean(&variables),
            Ok(wanted),
            "{source}"
        );
    }
}

#[test]
fn what_does_not_compile_is_refused_with_the_reason() {
    for (source, says) in [
        ("", "syntax error"),
        ("claims.", "syntax error"),
        ("claims.sub ==", "syntax error"),
        ("claim.sub == 'a'", "undeclared reference to 'claim'"),
        (
            "claims.sub.lower() == 'a'",
            "undeclared reference to 'lower'",
        ),
        ("sub == 'a'", "undeclared reference to 'sub'"),
        (
            "claims.sub.split() == []",
            "no matching overload for 'split'",
        ),
        (
            "claims.sub.startsWith(1)",
            "no matching overload for 'startsWith' applied to '(dyn, int)'",
        ),
        (
            "'a' + 1 == 'a'",
            "no matching overload for '_+_' applied to '(string, int)'",
        ),
        (
            "1 == 'a'",
            "no matching overload for '_==_' applied to '(int, string)'",
        ),
        ("claims.sub", "must evaluate to bool, not dyn"),
        ("claims.email_verified", "must evaluate to bool, not dyn"),
        (
            "claims.?email_verified.orValue(true)",
            "must evaluate to bool, not dyn",
        ),
        ("'true'", "must evaluate to bool, not string"),
        ("size(claims.groups)", "must evaluate to bool, not int"),
        (
            "claims.groups.map(g, g)",
            "must evaluate to bool, not list(dyn)",
        ),
        ("true ? 'a' : 1", "no matching overload for '_?_:_'"),
        (
            "'a' ? true : false",
            "expected type 'bool' but found 'string'",
        ),
        ("'a' && true", "expected type 'bool' but found 'string'"),
        (
            "'abc'.all(c, c == 'a')",
            "cannot be range of a comprehension",
        ),
        (
            "[1, 'a'] == []",
            "expected type 'int' but found 'string' in a list",
        ),
        (
            "url('https://a').getHost() == 'a'",
            "undeclared reference to",
        ),
        ("Message{a: 1} == null", "messages are not supported"),
        ("'a'.b == 'c'", "does not support field selection"),
    ] {
        let error = rule(source)
            .err()
            .unwrap_or_else(|| panic!("{source} compiles"));
        assert!(error.to_string().contains(says), "{source}: {error}");
    }
    assert!(matches!(
        rule(&" ".repeat(5000)),
        Err(CompileError::TooLong(5000))
    ));
}

#[test]
fn a_user_has_the_fields_of_user_info() {
    let compile =
        |source| Expression::compile(source, &[("user", Type::user())], Some(&Type::Bool));
    for source in [
        "!user.username.startsWith('system:')",
        "user.groups.all(group, !group.startsWith('system:'))",
        "user.extra['example.org/team'].exists(t, t == 'a')",
        "has(user.uid)",
    ] {
        compile(source).unwrap();
    }
    for (source, says) in [
        (
            "user.name == 'a'",
            "undefined field 'name' of kubernetes.UserInfo",
        ),
        ("user.username == 1", "no matching overload"),
        ("user.groups == 'a'", "no matching overload"),
        ("claims.sub == 'a'", "undeclared reference to 'claims'"),
    ] {
        let error = compile(source).unwrap_err().to_string();
        assert!(error.contains(says), "{source}: {error}");
    }
}

#[test]
fn every_signature_is_read() {
    let read = functions::FUNCTIONS
        .iter()
        .filter(|function| !function.name.contains(['<', '>']));
    assert_eq!(read.count(), functions::SIGNATURES.len());
}

/// The check promises functions: the interpreter must have them.
#[test]
fn every_function_exists_for_the_interpreter() {
    let context = Context::with_env(ENVIRONMENT.clone());
    for function in functions::FUNCTIONS.iter() {
        let plain = function.name.split('.').all(|part| {
            part.chars()
                .all(|character| character.is_ascii_alphanumeric())
        });
        if !plain {
            continue;
        }
        let mut arguments: Vec<_> = function.arguments.iter().map(example).collect();
        let call = if function.member {
            let receiver = arguments.remove(0);
            format!("{receiver}.{}({})", function.name, arguments.join(", "))
        } else {
            format!("{}({})", function.name, arguments.join(", "))
        };
        let expression = compile(&call).unwrap_or_else(|error| panic!("{call}: {error}"));
        let result = budget::spend(|| Value::resolve(&expression.bounded, &context));
        if let Some(Err(error)) = result {
            let error = error.to_string();
            assert!(
                !error.contains("ndeclared") && !error.contains("overload"),
                "{call}: {error}"
            );
        }
    }
}

fn example(kind: &Type) -> String {
    match kind {
        Type::Bool => "true".into(),
        Type::Int => "1".into(),
        Type::Uint => "1u".into(),
        Type::Double => "1.5".into(),
        Type::Bytes => "b'1'".into(),
        Type::Timestamp => "timestamp('2026-01-01T00:00:00Z')".into(),
        Type::Duration => "duration('1s')".into(),
        Type::List(element) => format!("[{}]", example(element)),
        Type::Map(key, value) => format!("{{{}: {}}}", example(key), example(value)),
        Type::Optional(inner) => format!("optional.of({})", example(inner)),
        _ => "'1'".into(),
    }
}

#[test]
fn the_verified_email_is_found_where_kubernetes_looks_for_it() {
    for (source, found) in [
        ("claims.email_verified ? claims.email : ''", true),
        ("has(claims.email_verified)", true),
        ("claims.?email_verified.orValue(true) == true", true),
        ("[1].exists(x, claims.email_verified == true)", true),
        ("claims['email_verified']", false),
        ("claims.nested.email_verified", false),
        ("'claims.email_verified'", false),
    ] {
        assert_eq!(
            compile(source).unwrap().selects("claims", "email_verified"),
            found,
            "{source}"
        );
    }
}

#[test]
fn a_prefix_is_seen_when_it_is_plain() {
    for (source, prefix) in [
        ("'a:' + claims.sub", Some("a:")),
        ("'a:' + claims.sub + claims.email", Some("a:")),
        ("has(claims.x) ? 'a:' + claims.x : 'a:' + claims.sub", None),
        ("claims.groups.map(g, 'a:' + g)", Some("a:")),
        (
            "claims.groups.filter(g, g != '').map(g, 'a:' + g)",
            Some("a:"),
        ),
        ("claims.groups.map(g, g != '', 'a:' + g)", Some("a:")),
        ("['a:' + claims.sub, 'a:' + claims.email]", Some("a:")),
        ("claims.sub", None),
        ("claims.sub + 'a:'", None),
        ("'' + claims.sub", None),
        ("claims.groups", None),
        ("claims.groups.filter(g, g.startsWith('a:'))", None),
        ("claims.groups.map(g, 'a:' + g) + claims.groups", None),
        ("['a:' + claims.sub, claims.email]", None),
        ("(true ? ['a:'] : ['a:']) + claims.groups", None),
        ("has(claims.x) ? 'a:' + claims.x : ''", Some("a:")),
        ("['a:'] + claims.groups.map(g, 'a:' + g)", Some("a:")),
    ] {
        let wanted = if source.starts_with("has(") {
            Some("a:")
        } else {
            prefix
        };
        assert_eq!(
            compile(source).unwrap().literal_prefix(),
            wanted,
            "{source}"
        );
    }
}

/// Each of these takes minutes or gigabytes without the budget.
#[test]
fn hostile_claims_cannot_hold_a_worker() {
    let list: Vec<_> = (0..20_000).map(|n| json!(n % 10)).collect();
    let long = "a".repeat(48_000);
    let variables = Variables::new().with("claims", &json!({"l": list, "s": long}));
    for source in [
        "claims.l.all(x, claims.l.all(y, x + y >= 0.0))",
        "claims.l.exists(x, claims.l.exists(y, x + y < 0.0)) || true",
        "claims.l.filter(x, claims.l.exists_one(y, y == x)) == []",
        "claims.l.map(x, claims.l) == []",
        "claims.l.map(x, claims.l.map(y, [x, y])) == []",
        "claims.l.all(x, claims.l == claims.l)",
        "claims.l.all(x, x in claims.l)",
        "claims.l.map(x, claims.s) == []",
        "claims.s.replace('', claims.s) == ''",
        "claims.s.replace('a', claims.s) == ''",
        "claims.l.map(x, 'a').join(claims.s) == ''",
        "[claims.s].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)\
         .map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a) == []",
        "claims.l.all(x, claims.s.matches('(a*)*b') == false)",
        "sets.contains(claims.l, claims.l) || true",
        "claims.l.map(x, 'a'.format([]) + claims.s).join() == ''",
        "claims.l.all(x, '%s'.format([claims.l]) != '')",
        "claims.l.all(x, claims.s.split('').size() > 0)",
        "claims.l.all(x, size(claims.s) > 0)",
    ] {
        let rule = rule(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let begun = clock();
        assert_eq!(
            rule.boolean(&variables),
            Err(EvaluationError::Budget),
            "{source}"
        );
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{source} took {took:?}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long it really takes is what is asked"
)]
fn clock() -> Instant {
    Instant::now()
}

#[test]
fn usual_rules_over_a_full_token_stay_within_the_budget() {
    let groups: Vec<_> = (0..2000).map(|n| json!(format!("group-{n}"))).collect();
    let variables = Variables::new().with("claims", &json!({"groups": groups}));
    for source in [
        "claims.groups.filter(g, g.startsWith('group-1')).map(g, 'x:' + g) != []",
        "claims.groups.all(g, !g.startsWith('system:'))",
        "!claims.groups.exists(g, g in ['a', 'b', 'c'])",
        "'group-1999' in claims.groups",
    ] {
        assert_eq!(
            rule(source).unwrap().boolean(&variables),
            Ok(true),
            "{source}"
        );
    }
}

/// The stack of a runtime's worker is 2 MiB, as that of a test: neither compiling nor evaluating
/// may need more.
#[test]
fn deep_expressions_are_refused_and_the_deepest_evaluate() {
    let nested: [fn(usize) -> String; 14] = [
        |n| format!("{}1{}", "(".repeat(n), ")".repeat(n)),
        |n| format!("{}1{}", "[".repeat(n), "]".repeat(n)),
        |n| format!("{}true", "!".repeat(n)),
        |n| format!("{}claims.level", "-".repeat(n)),
        |n| vec!["1"; n].join("+"),
        |n| vec!["true"; n].join("&&"),
        |n| vec!["true?1"; n].join(":") + ":1",
        |n| format!("claims{}", ".a".repeat(n)),
        |n| format!("claims.a{}", "[0]".repeat(n)),
        |n| format!("claims{}", ".?a".repeat(n)),
        |n| format!("{}1{}", "{1:".repeat(n), "}".repeat(n)),
        |n| format!("[1]{}", ".map(x,x)".repeat(n)),
        |n| format!("{}x{}", "[1].map(x,".repeat(n), ")".repeat(n)),
        |n| format!("{}1{}", "size([".repeat(n), "])".repeat(n)),
    ];
    let variables = Variables::new().with("claims", &claims());
    for nested in nested {
        let mut deepest = 0;
        for n in (1..=60).chain([100, 400, 1300, 4000]) {
            let source = nested(n);
            if source.len() > MAX_EXPRESSION {
                break;
            }
            match compile(&source) {
                Ok(expression) => {
                    deepest = n;
                    let evaluated = expression.strings(&variables);
                    let panicked = EvaluationError::Failed("internal error".to_owned());
                    assert_ne!(evaluated, Err(panicked), "{source}");
                }
                Err(CompileError::TooDeep | CompileError::Syntax(_) | CompileError::Type(_)) => {}
                Err(error) => panic!("{source}: {error}"),
            }
        }
        assert!(deepest >= 7, "{}: {deepest}", nested(3));
    }
    for open in ["(", "[", "{", "'", "a(", "!", "?", "\"\"\"", "a.", "1+"] {
        compile(&open.repeat(4096 / open.len())).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing panics, whatever is put together from what there is.
    #[test]
    fn no_expression_panics(parts in prop::collection::vec(prop::sample::select(vec![
        "claims", ".sub", ".groups", ".level", ".nested", ".none", ".missing", ".?sub", "['sub']", "[?'x']",
        "[0]", "[-1]", "[99]", ".size()", ".split(',')", ".split('', -2)", ".join(',')", ".substring(2, 1)",
        ".substring(-1)", ".substring(9)", ".charAt(-1)", ".charAt(5)", ".indexOf('i', 9)", ".indexOf('', 3)",
        ".lastIndexOf('é', 2)", ".replace('', 'x', 2)", ".format([1])", ".matches('(')", ".trim()",
        ".map(x, x)", ".filter(x, x == 1)", ".all(x, true)", ".exists(x, x)", ".orValue(1)", ".value()",
        "+", "-", "*", "/", "%", "==", "<", "&&", "||", "?", ":", "!", "(", ")", "1", "0", "-9223372036854775808",
        "9223372036854775807", "1.5", "0.0", "'a'", "'é%s%.3f'", "b'x'", "null", "true", "[", "]", "{", "}", ",", " in ",
        "int(", "uint(", "string(", "bytes(", "timestamp(", "duration(", "double(", "dyn(", "type(", "has(",
    ]), 1..12)) {
        if let Ok(expression) = compile(&parts.concat()) {
            let variables = Variables::new().with("claims", &claims());
            let evaluated = expression.strings(&variables);
            prop_assert_ne!(evaluated, Err(EvaluationError::Failed("internal error".to_owned())));
        }
    }

    #[test]
    fn no_text_panics(source in ".{0,200}") {
        let compiled = compile(&source);
        prop_assert_ne!(compiled.err(), Some(CompileError::Syntax("internal error".to_owned())));
    }
}
