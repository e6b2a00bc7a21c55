//! Workload identity: an assertion of a CI system or a cluster becomes attributes, and a condition
//! says whether it may come in at all.
//!
//! The words are those of workload identity federation elsewhere: a provider maps `attribute.X` to
//! a CEL expression over `assertion`, and its condition sees `assertion` and `attribute`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::configuration::{FieldError, Invalid};
use crate::expression::{CompileError, Expression, Type, Variables};
use crate::issuer::Claims;
use crate::token::Refused;

/// How many attributes a provider may map.
const MAX_ATTRIBUTES: usize = 50;

/// How long a value may be, in bytes.
const MAX_VALUE: usize = 1024;

/// What an attribute may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A string.
    One(String),
    /// A list of strings.
    Many(Vec<String>),
}

impl Attribute {
    /// The single string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::One(value) => Some(value),
            Self::Many(_) => None,
        }
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::One(value) => Value::String(value.clone()),
            Self::Many(values) => values.iter().cloned().map(Value::String).collect(),
        }
    }
}

/// How claims become attributes.
#[derive(Clone, Debug)]
pub struct Mapping(Vec<(String, Expression)>);

impl Mapping {
    /// Compiles an expression over `assertion` for every attribute. The names are the caller's.
    ///
    /// # Errors
    /// [`Invalid`] naming the attributes whose expressions don't compile.
    pub fn compile<'a>(
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Invalid> {
        let (mut compiled, mut errors) = (Vec::new(), Vec::new());
        for (name, source) in attributes {
            match Expression::compile(source, &[("assertion", Type::map(Type::Dyn))], None) {
                Ok(expression) => compiled.push((name.to_owned(), expression)),
                Err(error) => errors.push(FieldError::new(name, format!("{source:?}: {error}"))),
            }
        }
        if compiled.len() > MAX_ATTRIBUTES {
            errors.push(FieldError::new(
                "(mapping)",
                format!("more than {MAX_ATTRIBUTES} attributes"),
            ));
        }
        if errors.is_empty() {
            Ok(Self(compiled))
        } else {
            Err(Invalid(errors))
        }
    }

    /// The attributes of a token. One that is null, `""` or `[]` is left out.
    ///
    /// # Errors
    /// [`Refused`] when an expression fails, gives neither a string nor a list of strings, or a
    /// value is longer than 1 KiB.
    pub fn map(&self, claims: &Claims) -> Result<BTreeMap<String, Attribute>, Refused> {
        let variables = assertion(claims);
        let mut attributes = BTreeMap::new();
        for (name, expression) in &self.0 {
            let (single, mut values) =
                expression
                    .string_or_strings(&variables)
                    .map_err(|error| Refused::Evaluation {
                        expression: expression.source().to_owned(),
                        error,
                    })?;
            if values.iter().any(|value| value.len() > MAX_VALUE) {
                return Err(Refused::Mapping {
                    what: name.clone(),
                    problem: format!("a value is longer than {MAX_VALUE} bytes"),
                });
            }
            let attribute = match (single, values.pop()) {
                (_, None) => continue,
                (true, Some(value)) => Attribute::One(value),
                (false, Some(last)) => {
                    values.push(last);
                    Attribute::Many(values)
                }
            };
            attributes.insert(name.clone(), attribute);
        }
        Ok(attributes)
    }
}

/// Whether a token may come in.
#[derive(Clone, Debug)]
pub struct Condition(Expression);

impl Condition {
    /// Compiles an expression over `assertion` and `attribute` that must be a boolean.
    ///
    /// # Errors
    /// [`CompileError`].
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        let variables = [
            ("assertion", Type::map(Type::Dyn)),
            ("attribute", Type::map(Type::Dyn)),
        ];
        Expression::compile(source, &variables, Some(&Type::Bool)).map(Self)
    }

    /// What was written.
    #[must_use]
    pub fn source(&self) -> &str {
        self.0.source()
    }

    /// Nothing when the condition holds. A name `attribute.X` in `attributes` is `attribute.X` in
    /// the expression; names without a dot are `attribute.NAME` too.
    ///
    /// # Errors
    /// [`Refused::Rule`] when it does not hold, [`Refused::Evaluation`] when it fails.
    pub fn check(
        &self,
        claims: &Claims,
        attributes: &BTreeMap<String, Attribute>,
    ) -> Result<(), Refused> {
        let named: Map<String, Value> = attributes
            .iter()
            .map(|(name, value)| {
                let name = name.strip_prefix("attribute.").unwrap_or(name);
                (name.to_owned(), value.to_json())
            })
            .collect();
        let variables = assertion(claims).with("attribute", &Value::Object(named));
        match self.0.boolean(&variables) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refused::Rule {
                message: format!("the condition is not met: {}", self.source()),
                expression: self.source().to_owned(),
            }),
            Err(error) => Err(Refused::Evaluation {
                expression: self.source().to_owned(),
                error,
            }),
        }
    }
}

fn assertion(claims: &Claims) -> Variables {
    Variables::new().with_object("assertion", &claims.values)
}

#[cfg(test)]
mod tests;
