//! Claims become a user: kube-apiserver's `jwtAuthenticator`, step by step.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Authenticated;
use crate::configuration::{
    ClaimValidationRule, Invalid, JwtAuthenticator, PrefixedClaimOrExpression, compile,
};
use crate::expression::{EvaluationError, Expression, Type, Variables};
use crate::issuer::Claims;
use crate::token::Refused;

/// Where Kubernetes keeps the name of the credential itself.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// How one issuer's claims are read.
#[derive(Debug)]
pub(super) struct Mappings {
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Expression)>,
    required: Vec<(String, String)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
}

/// A claim with a prefix, or an expression.
#[derive(Debug)]
enum Source {
    Claim { name: String, prefix: String },
    Expression(Expression),
}

/// An expression that must be true.
#[derive(Debug)]
struct Rule {
    expression: Expression,
    message: String,
}

impl Mappings {
    pub(super) fn new(path: &str, entry: &JwtAuthenticator) -> Result<Self, Invalid> {
        let mappings = &entry.claim_mappings;
        let field = |name: &str| format!("{path}.claimMappings.{name}");
        let username = source(&field("username"), &mappings.username)?
            .ok_or_else(|| Invalid::one(field("username"), "claim or expression is required"))?;
        let uid = PrefixedClaimOrExpression {
            claim: mappings.uid.claim.clone(),
            prefix: None,
            expression: mappings.uid.expression.clone(),
        };
        let mut extra = Vec::with_capacity(mappings.extra.len());
        for mapping in &mappings.extra {
            let expression = compiled(&field("extra"), &mapping.value_expression, "claims", None)?;
            extra.push((mapping.key.clone(), expression));
        }
        let rules = |rules: &mut dyn Iterator<Item = (&str, &str)>, variable| {
            rules
                .map(|(source, message)| {
                    Ok(Rule {
                        expression: compiled(path, source, variable, Some(&Type::Bool))?,
                        message: message.to_owned(),
                    })
                })
                .collect::<Result<Vec<_>, Invalid>>()
        };
        let has_expression = |rule: &&ClaimValidationRule| !rule.expression.is_empty();
        let claim_rules = entry.claim_validation_rules.iter();
        let user_rules = entry.user_validation_rules.iter();
        Ok(Self {
            username,
            groups: source(&field("groups"), &mappings.groups)?,
            uid: source(&field("uid"), &uid)?,
            extra,
            required: claim_rules
                .clone()
                .filter(|rule| !rule.claim.is_empty())
                .map(|rule| (rule.claim.clone(), rule.required_value.clone()))
                .collect(),
            claim_rules: rules(
                &mut claim_rules
                    .filter(has_expression)
                    .map(|rule| (&*rule.expression, &*rule.message)),
                "claims",
            )?,
            user_rules: rules(
                &mut user_rules.map(|rule| (&*rule.expression, &*rule.message)),
                "user",
            )?,
        })
    }

    /// The user of verified claims.
    pub(super) fn apply(&self, claims: &Claims) -> Result<Authenticated, Refused> {
        let values = &claims.values;
        let variables = Variables::new().with_object("claims", values);
        let user = Authenticated {
            username: self.username(values, &variables)?,
            groups: self.groups(values, &variables)?,
            uid: self.uid(values, &variables)?,
            extra: self.extra(claims, &variables)?,
            issuer: claims.issuer.clone(),
            claims: values.clone(),
            expires: claims.expires,
        };
        for (claim, wanted) in &self.required {
            required(values, claim, wanted)?;
        }
        check(&self.claim_rules, &variables)?;
        if !self.user_rules.is_empty() {
            let info = json!({
                "username": user.username,
                "uid": user.uid,
                "groups": user.groups,
                "extra": user.extra,
            });
            check(&self.user_rules, &Variables::new().with("user", &info))?;
        }
        Ok(user)
    }

    fn username(&self, values: &Map<String, Value>, vars: &Variables) -> Result<String, Refused> {
        let (name, prefix) = match &self.username {
            Source::Expression(expression) => {
                let name = expression.string(vars).map_err(failed(expression))?;
                (name, "")
            }
            Source::Claim { name, prefix } => {
                let username = text(values, name).map_err(|problem| no("username", problem))?;
                if name == "email" {
                    verified(values)?;
                }
                (username, prefix.as_str())
            }
        };
        if name.is_empty() {
            return Err(no("username", "it is empty".to_owned()));
        }
        Ok(format!("{prefix}{name}"))
    }

    fn groups(
        &self,
        values: &Map<String, Value>,
        vars: &Variables,
    ) -> Result<Vec<String>, Refused> {
        let (name, prefix) = match &self.groups {
            None => return Ok(Vec::new()),
            Some(Source::Expression(expression)) => {
                return expression.strings(vars).map_err(failed(expression));
            }
            Some(Source::Claim { name, prefix }) => (name, prefix),
        };
        let wrong = || {
            no(
                "groups",
                format!("the claim {name} is neither a string nor a list of strings"),
            )
        };
        match values.get(name) {
            None => {
                distributed(values, name)?;
                Ok(Vec::new())
            }
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(group)) => Ok(vec![format!("{prefix}{group}")]),
            Some(Value::Array(groups)) => groups
                .iter()
                .map(|group| Ok(format!("{prefix}{}", group.as_str().ok_or_else(wrong)?)))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn uid(&self, values: &Map<String, Value>, vars: &Variables) -> Result<String, Refused> {
        match &self.uid {
            None => Ok(String::new()),
            Some(Source::Expression(expression)) => {
                expression.string(vars).map_err(failed(expression))
            }
            Some(Source::Claim { name, .. }) => {
                text(values, name).map_err(|problem| no("uid", problem))
            }
        }
    }

    fn extra(
        &self,
        claims: &Claims,
        vars: &Variables,
    ) -> Result<BTreeMap<String, Vec<String>>, Refused> {
        let mut extra = BTreeMap::new();
        if let Some(id) = claims.token_id() {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = expression.strings(vars).map_err(failed(expression))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }
}

fn source(path: &str, mapping: &PrefixedClaimOrExpression) -> Result<Option<Source>, Invalid> {
    if !mapping.expression.is_empty() {
        let expression = compiled(path, &mapping.expression, "claims", None)?;
        return Ok(Some(Source::Expression(expression)));
    }
    Ok((!mapping.claim.is_empty()).then(|| Source::Claim {
        name: mapping.claim.clone(),
        prefix: mapping.prefix.clone().unwrap_or_default(),
    }))
}

fn compiled(
    path: &str,
    source: &str,
    variable: &'static str,
    wanted: Option<&Type>,
) -> Result<Expression, Invalid> {
    compile(source, variable, wanted).map_err(|error| Invalid::one(path, error.to_string()))
}

/// A claim that is a string; `null` is an empty one, as in Go.
fn text(values: &Map<String, Value>, name: &str) -> Result<String, String> {
    match values.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) => Ok(String::new()),
        Some(_) => Err(format!("the claim {name} is not a string")),
        None => Err(format!("there is no claim {name}")),
    }
}

/// An address that the issuer says is not the user's own names nobody.
fn verified(values: &Map<String, Value>) -> Result<(), Refused> {
    match values.get("email_verified") {
        None | Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false) | Value::Null) => {
            Err(no("username", "the email is not verified".to_owned()))
        }
        Some(_) => Err(no(
            "username",
            "the claim email_verified is not a boolean".to_owned(),
        )),
    }
}

/// Groups that are somewhere else (OpenID Connect Core 1.0 §5.6.2) are not fetched: the address is
/// the token's own.
fn distributed(values: &Map<String, Value>, name: &str) -> Result<(), Refused> {
    let elsewhere = values
        .get("_claim_names")
        .is_some_and(|names| names.get(name).is_some());
    if elsewhere {
        return Err(no(
            "groups",
            format!("the claim {name} is distributed (too many groups for the token?)"),
        ));
    }
    Ok(())
}

fn required(values: &Map<String, Value>, claim: &str, wanted: &str) -> Result<(), Refused> {
    let problem = match text(values, claim) {
        Ok(found) if found == wanted => return Ok(()),
        Ok(found) => format!("it is {}, not {wanted:?}", crate::token::quoted(&found)),
        Err(problem) => problem,
    };
    Err(Refused::RequiredClaim {
        claim: claim.to_owned(),
        problem,
    })
}

fn check(rules: &[Rule], variables: &Variables) -> Result<(), Refused> {
    for rule in rules {
        let holds = rule
            .expression
            .boolean(variables)
            .map_err(failed(&rule.expression))?;
        if !holds {
            return Err(Refused::Rule {
                message: rule.message.clone(),
                expression: rule.expression.source().to_owned(),
            });
        }
    }
    Ok(())
}

fn no(what: &str, problem: String) -> Refused {
    Refused::Mapping {
        what: what.to_owned(),
        problem,
    }
}

fn failed(expression: &Expression) -> impl FnOnce(EvaluationError) -> Refused + use<> {
    let expression = expression.source().to_owned();
    move |error| Refused::Evaluation { expression, error }
}
