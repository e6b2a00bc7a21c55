//! CEL (<https://github.com/google/cel-spec>) as Kubernetes uses it: checked before it is taken,
//! bounded when it runs.
//!
//! Threat: expressions come from project owners, and run over claims that a stranger's issuer
//! chose. A comprehension within a comprehension over a token's longest list, or a `replace` of
//! nothing by everything, could hold a worker for minutes or take all memory.
//! Decision: an expression is type-checked like in cel-go, so that a misspelt name or a rule that
//! isn't a boolean is refused when it is configured; and every value that a function or a loop
//! step consumes is paid for from a budget (as in Kubernetes, a million units). An evaluation that
//! spends it is an error, whatever `||` would make of it.
//! Consequence: some of Kubernetes' own libraries (`url`, `ip`, `cidr`, `quantity`, `semver`,
//! regex `find`, `lists`) are unknown functions here; `claims` of many thousand entries cannot be
//! compared with each other.

mod budget;
mod check;
mod functions;
mod types;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{Expr, LiteralValue, operators};
use cel::objects::Key;
use cel::{Context, Env, IdedExpr, Value};
use serde_json::Value as Json;

use crate::shape;

pub use types::Type;

/// The longest expression, in bytes.
const MAX_EXPRESSION: usize = 4096;

/// How deep an expression may nest: what the interpreter recurses into on a worker's stack.
const MAX_DEPTH: usize = 48;

/// Why an expression is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Longer than 4 KiB.
    #[error("{0} bytes are more than {MAX_EXPRESSION} allowed")]
    TooLong(usize),
    /// Nested deeper than 48 levels.
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No CEL.
    #[error("syntax error: {0}")]
    Syntax(String),
    /// An unknown name, or types that don't fit.
    #[error("{0}")]
    Type(String),
    /// It gives another type than is wanted.
    #[error("must evaluate to {wanted}, not {found}")]
    Output {
        /// The type that is wanted.
        wanted: Type,
        /// The type that it has.
        found: Type,
    },
}

/// Why an evaluation gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// A missing key, a type that doesn't fit, a division by zero.
    #[error("{0}")]
    Failed(String),
    /// The budget is spent.
    #[error("it takes too long for this token")]
    Budget,
    /// The result has another type than is wanted.
    #[error("the result is not {0}")]
    Output(&'static str),
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    source: String,
    written: IdedExpr,
    bounded: IdedExpr,
    variables: Vec<&'static str>,
}

/// The values of an expression's variables.
#[derive(Clone, Debug, Default)]
pub struct Variables(Vec<(&'static str, Value)>);

impl Variables {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// With an object, such as a token's claims.
    #[must_use]
    pub fn with_object(
        mut self,
        name: &'static str,
        values: &serde_json::Map<String, Json>,
    ) -> Self {
        self.0.push((name, from_object(values)));
        self
    }

    /// With one more. Numbers become doubles, as they do in Kubernetes.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &Json) -> Self {
        self.0.push((name, from_json(value)));
        self
    }
}

/// The standard functions and Kubernetes' libraries, without what [`functions`] replaces.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(functions::environment()));

impl Expression {
    /// Parses and checks an expression over the named variables. With `wanted`, its type must be
    /// that one and not merely `dyn`.
    ///
    /// # Errors
    /// [`CompileError`].
    pub fn compile(
        source: &str,
        variables: &[(&'static str, Type)],
        wanted: Option<&Type>,
    ) -> Result<Self, CompileError> {
        if source.len() > MAX_EXPRESSION {
            return Err(CompileError::TooLong(source.len()));
        }
        let written = parse(source)?;
        let found = check::infer(&written, variables)?;
        if let Some(wanted) = wanted
            && found != *wanted
        {
            return Err(CompileError::Output {
                wanted: wanted.clone(),
                found,
            });
        }
        let variables: Vec<_> = variables.iter().map(|(name, _)| *name).collect();
        Ok(Self {
            source: source.to_owned(),
            bounded: budget::bounded(written.clone()),
            written,
            variables,
        })
    }

    /// What was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Evaluates a rule.
    ///
    /// # Errors
    /// [`EvaluationError`], also when the result is no boolean.
    pub fn boolean(&self, variables: &Variables) -> Result<bool, EvaluationError> {
        match self.evaluate(variables)? {
            Value::Bool(value) => Ok(value),
            _ => Err(EvaluationError::Output("a boolean")),
        }
    }

    /// Evaluates a mapping to one string.
    ///
    /// # Errors
    /// [`EvaluationError`], also when the result is no string.
    pub fn string(&self, variables: &Variables) -> Result<String, EvaluationError> {
        match self.evaluate(variables)? {
            Value::String(value) => Ok((*value).clone()),
            _ => Err(EvaluationError::Output("a string")),
        }
    }

    /// Evaluates a mapping to strings: a string, a list of strings or null; empty strings are left
    /// out.
    ///
    /// # Errors
    /// [`EvaluationError`], also when the result is something else.
    pub fn strings(&self, variables: &Variables) -> Result<Vec<String>, EvaluationError> {
        self.string_or_strings(variables)
            .map(|(_, strings)| strings)
    }

    /// As [`Expression::strings`], and whether it was a single string.
    pub(crate) fn string_or_strings(
        &self,
        variables: &Variables,
    ) -> Result<(bool, Vec<String>), EvaluationError> {
        const NEITHER: EvaluationError = EvaluationError::Output("a string or a list of strings");
        let (single, values) = match self.evaluate(variables)? {
            Value::Null => (true, Vec::new()),
            Value::String(value) => (true, vec![Value::String(value)]),
            Value::List(values) => (false, values.to_vec()),
            _ => return Err(NEITHER),
        };
        let mut strings = Vec::with_capacity(values.len());
        for value in values {
            match value {
                Value::String(value) if value.is_empty() => {}
                Value::String(value) => strings.push((*value).clone()),
                _ => return Err(NEITHER),
            }
        }
        Ok((single, strings))
    }

    fn evaluate(&self, variables: &Variables) -> Result<Value, EvaluationError> {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        for (name, value) in &variables.0 {
            if self.variables.contains(name) {
                context.add_variable_from_value(*name, value.clone());
            }
        }
        // The interpreter is bounded, but it isn't ours: a panic in it refuses one token.
        let result = budget::spend(|| {
            catch_unwind(AssertUnwindSafe(|| Value::resolve(&self.bounded, &context)))
        })
        .ok_or(EvaluationError::Budget)?;
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(EvaluationError::Failed(cut(&error.to_string()))),
            Err(_) => Err(EvaluationError::Failed("internal error".to_owned())),
        }
    }

    /// Whether the expression selects `variable.field`, as kube-apiserver looks for it: also with
    /// `has()` and `.?`, but not with an index.
    #[must_use]
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        let mut found = false;
        check::walk(&self.written, &mut |expression| {
            found |= match &expression.expr {
                Expr::Select(select) => {
                    is_ident(&select.operand, variable) && select.field == field
                }
                Expr::Call(call) if call.func_name == operators::OPT_SELECT => {
                    matches!(call.args.as_slice(), [operand, name]
                        if is_ident(operand, variable) && string_of(name) == Some(field))
                }
                _ => false,
            };
        });
        found
    }

    /// What every result begins with, when that is plain to see: `'a:' + claims.sub`, the element
    /// of a `map`, both branches of a conditional.
    #[must_use]
    pub fn literal_prefix(&self) -> Option<&str> {
        string_prefix(&self.written)
            .or_else(|| element_prefix(&self.written))
            .filter(|prefix| !prefix.is_empty())
    }
}

fn parse(source: &str) -> Result<IdedExpr, CompileError> {
    // A stack that is used up can't be caught.
    shape::check(source).map_err(|error| CompileError::Syntax(error.to_string()))?;
    let parsed = shape::parse(|| {
        ENVIRONMENT.parser().parse(source).map_err(|errors| {
            let reasons: Vec<_> = errors.errors.iter().map(|error| &*error.msg).collect();
            cut(&reasons.join("; "))
        })
    });
    let expression = match parsed {
        Ok(Some(Ok(expression))) => expression,
        Ok(Some(Err(reasons))) => return Err(CompileError::Syntax(reasons)),
        Ok(None) => return Err(CompileError::Syntax("internal error".to_owned())),
        Err(error) => return Err(CompileError::Syntax(error.to_string())),
    };
    if check::depth(&expression) > MAX_DEPTH {
        return Err(CompileError::TooDeep);
    }
    Ok(expression)
}

/// The prefix of an expression that is plainly a string.
fn string_prefix(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        Expr::Call(call) if call.func_name == operators::ADD => string_prefix(call.args.first()?),
        Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
            common(call.args.iter().skip(1), string_prefix)
        }
        _ => None,
    }
}

/// The prefix that all elements of an expression have that is plainly a list.
fn element_prefix(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::List(list) => common(list.elements.iter(), string_prefix),
        Expr::Call(call) if call.func_name == operators::ADD => {
            common(call.args.iter(), element_prefix)
        }
        Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
            common(call.args.iter().skip(1), element_prefix)
        }
        // The step of `map`: `@result + [element]`, with a test `test ? … : @result`.
        Expr::Comprehension(map) => {
            let step = match &map.loop_step.expr {
                Expr::Call(call) if call.func_name == operators::CONDITIONAL => call.args.get(1)?,
                _ => &map.loop_step,
            };
            match &step.expr {
                Expr::Call(call) if call.func_name == operators::ADD => {
                    match call.args.as_slice() {
                        [result, list] if is_ident(result, &map.accu_var) => element_prefix(list),
                        _ => None,
                    }
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The prefix that all have, if they all have the same; `''` names nobody and may stand beside.
fn common<'e>(
    expressions: impl Iterator<Item = &'e IdedExpr>,
    prefix_of: fn(&'e IdedExpr) -> Option<&'e str>,
) -> Option<&'e str> {
    let mut all = None;
    for expression in expressions.filter(|expression| string_of(expression) != Some("")) {
        let prefix = prefix_of(expression)?;
        if all.is_some_and(|known| known != prefix) {
            return None;
        }
        all = Some(prefix);
    }
    all
}

fn is_ident(expression: &IdedExpr, name: &str) -> bool {
    matches!(&expression.expr, Expr::Ident(ident) if ident == name)
}

fn string_of(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// The interpreter shows whole values in its errors; a token's claims are not for logs.
fn cut(text: &str) -> String {
    const MOST: usize = 200;
    let mut cut: String = text.chars().take(MOST).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Value::String(Arc::new(text.clone())),
        Json::Array(values) => Value::List(Arc::new(values.iter().map(from_json).collect())),
        Json::Object(values) => from_object(values),
    }
}

fn from_object(values: &serde_json::Map<String, Json>) -> Value {
    let map: std::collections::HashMap<Key, Value> = values
        .iter()
        .map(|(name, value)| (Key::String(Arc::new(name.clone())), from_json(value)))
        .collect();
    Value::Map(cel::objects::Map { map: Arc::new(map) })
}

#[cfg(test)]
mod tests;
