//! Conditions of bindings, in CEL: when a binding holds.
//!
//! Threat: a condition that gives more than its author meant, or that takes the gateway's time.
//! Decision: what a condition may say is checked when it is set: it is a bool, it names only variables that there
//! are, and its cost is bounded by its length (no comprehension in another, regular expressions are literals whose
//! size is bounded). Whatever fails when it is evaluated gives nothing.
//! Consequence: CEL is not type-checked here as a whole; what slips through is an error later, and so a refusal.

mod check;

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use cel::{Context, Env, Program, Value, objects::Key};
use chrono::DateTime;
use towline_oidc::shape;

use super::resource::Resource;
use crate::target::RequestInfo;

/// The longest expression, in bytes.
pub const MAX_EXPRESSION: usize = 2_048;

/// When a binding holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Condition {
    /// For people; names the condition in explanations.
    pub title: String,
    /// For people.
    pub description: String,
    /// CEL, a bool.
    pub expression: String,
}

/// Why a condition isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCondition {
    /// Longer than [`MAX_EXPRESSION`].
    #[error("the condition is {0} bytes long; {MAX_EXPRESSION} may be")]
    TooLong(usize),
    /// No CEL.
    #[error("the condition is no CEL expression: {0}")]
    Syntax(String),
    /// CEL, but not what a condition may say.
    #[error("the condition is refused: {0}")]
    Refused(String),
}

/// What a condition is evaluated on.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// What is acted on.
    pub resource: &'a Resource,
    /// The membership's labels; none of anything else.
    pub labels: &'a BTreeMap<String, String>,
    /// What is done, as the API server reads it.
    pub request: &'a RequestInfo,
    /// Unix seconds.
    pub now: u64,
}

/// A condition ready to be evaluated.
#[derive(Debug)]
pub(super) struct Compiled {
    program: Program,
    timed: bool,
}

impl Compiled {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// See [`InvalidCondition`].
    pub(super) fn new(expression: &str) -> Result<Self, InvalidCondition> {
        if expression.len() > MAX_EXPRESSION {
            return Err(InvalidCondition::TooLong(expression.len()));
        }
        // The parser's own bound comes after its stack's end.
        shape::check(expression).map_err(|error| InvalidCondition::Syntax(error.to_string()))?;
        let parsed = shape::parse(|| {
            ENV.compile(expression)
                .map_err(|errors| first_line(&errors.to_string()))
        });
        let program = match parsed {
            Ok(Some(program)) => program.map_err(InvalidCondition::Syntax)?,
            Ok(None) => {
                return Err(InvalidCondition::Syntax(
                    "the parser failed on it".to_owned(),
                ));
            }
            Err(error) => return Err(InvalidCondition::Syntax(error.to_string())),
        };
        let timed = check::check(program.expression()).map_err(InvalidCondition::Refused)?;
        Ok(Self { program, timed })
    }

    /// Whether its value changes with time alone.
    pub(super) const fn timed(&self) -> bool {
        self.timed
    }

    /// Its value.
    ///
    /// # Errors
    /// It can't be evaluated on this request: a label that isn't there, say.
    pub(super) fn holds(&self, variables: &Variables) -> Result<bool, String> {
        let value = catch_unwind(AssertUnwindSafe(|| self.program.execute(&variables.0)));
        match value {
            Ok(Ok(Value::Bool(value))) => Ok(value),
            Ok(Ok(other)) => Err(format!("it is {}, not a bool", other.type_of())),
            Ok(Err(error)) => Err(first_line(&error.to_string())),
            Err(_) => Err("the interpreter failed on it".to_owned()),
        }
    }
}

/// What conditions see of one request.
pub(super) struct Variables(Context<'static, 'static>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Variables")
    }
}

impl Variables {
    /// Of these attributes.
    pub(super) fn new(attributes: &Attributes<'_>) -> Self {
        let Attributes {
            resource,
            labels,
            request,
            now,
        } = attributes;
        let seconds = i64::try_from(*now).unwrap_or(i64::MAX);
        let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        let text = |text: &str| Value::String(Arc::new(text.to_owned()));
        let map = |pairs: Vec<(&'static str, Value)>| {
            let pairs: HashMap<Key, Value> = pairs
                .into_iter()
                .map(|(name, value)| (Key::from(name), value))
                .collect();
            Value::from(pairs)
        };
        let labels: HashMap<Key, Value> = labels
            .iter()
            .map(|(name, value)| (Key::from(name.as_str()), text(value)))
            .collect();
        let (kind, membership, location) = match resource {
            Resource::Project(_) => ("project", "", ""),
            Resource::Membership(membership) => (
                "membership",
                membership.id.as_str(),
                membership.location.as_str(),
            ),
            Resource::ServiceAccount(_) => ("serviceAccount", "", "global"),
            Resource::Pool(_) => ("workloadIdentityPool", "", "global"),
        };
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.add_variable_from_value(
            "request",
            map(vec![
                ("path", text(&request.path)),
                ("verb", text(&request.verb)),
                ("apiGroup", text(&request.api_group)),
                ("apiVersion", text(&request.api_version)),
                ("resource", text(&request.resource)),
                ("subresource", text(&request.subresource)),
                ("namespace", text(&request.namespace)),
                ("name", text(&request.name)),
                ("time", Value::Timestamp(time.fixed_offset())),
            ]),
        );
        context.add_variable_from_value(
            "resource",
            map(vec![
                ("name", text(&resource.to_string())),
                ("type", text(kind)),
                ("project", text(resource.project().as_str())),
                ("location", text(location)),
                ("membership", text(membership)),
                ("labels", Value::from(labels)),
            ]),
        );
        Self(context)
    }
}

/// CEL's standard functions and macros, and nothing else.
static ENV: LazyLock<Arc<Env>> =
    LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(false)));

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
