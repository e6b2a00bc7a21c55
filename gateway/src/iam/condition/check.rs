//! What a condition may say.

use std::collections::BTreeMap;

use cel::{
    common::ast::{
        CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
    },
    parser::Expression,
};

use super::{Attributes, Variables};
use crate::{iam::Resource, nearest::nearest, target::RequestInfo};

/// Variables and their fields.
const VARIABLES: [(&str, &[&str]); 2] = [
    (
        "request",
        &[
            "path",
            "verb",
            "apiGroup",
            "apiVersion",
            "resource",
            "subresource",
            "namespace",
            "name",
            TIME,
        ],
    ),
    (
        "resource",
        &[
            "name",
            "type",
            "project",
            "location",
            "membership",
            "labels",
        ],
    ),
];

const TIME: &str = "time";

/// How deep an expression may be: the interpreter goes down its stack for each level, up to 40 KiB in a debug build.
const MAX_DEPTH: usize = 16;

/// The longest regular expression, in bytes, and the largest program that it may become.
const MAX_PATTERN: usize = 128;
const MAX_PATTERN_PROGRAM: usize = 64 * 1024;

/// Functions whose answer is a bool.
const PREDICATES: [&str; 16] = [
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    operators::IN,
    operators::NOT_STRICTLY_FALSE,
    "startsWith",
    "endsWith",
    "contains",
    "matches",
    "bool",
];

/// Functions whose answer is something else.
const FUNCTIONS: [&str; 26] = [
    operators::CONDITIONAL,
    operators::INDEX,
    operators::ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
    "size",
    "string",
    "int",
    "uint",
    "double",
    "duration",
    "timestamp",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "type",
];

/// Whether the condition's value changes with time, or what is wrong with it.
pub(super) fn check(expression: &Expression) -> Result<bool, String> {
    let mut walk = Walk::default();
    walk.visit(expression)?;
    if !walk.is_bool(expression) {
        return Err("its value is not a bool; compare it with something".to_owned());
    }
    try_out(expression)?;
    Ok(walk.timed)
}

#[derive(Default)]
struct Walk<'e> {
    timed: bool,
    depth: usize,
    /// What an enclosing comprehension names.
    bound: Vec<&'e str>,
}

impl<'e> Walk<'e> {
    fn visit(&mut self, expression: &'e IdedExpr) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!(
                "its operators stand more than {MAX_DEPTH} deep in one another"
            ));
        }
        self.visit_one(expression)?;
        self.depth -= 1;
        Ok(())
    }

    fn visit_one(&mut self, expression: &'e IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Ident(name) if self.bound.contains(&name.as_str()) => Ok(()),
            Expr::Ident(name) => Err(match fields(name) {
                Some(fields) => format!("{name} has fields: write {}", written(name, fields)),
                None => format!("there is no variable {name:?}; there are request and resource"),
            }),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.elements.iter().try_for_each(|each| self.visit(each)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key)?;
                    self.visit(&entry.value)
                }
                EntryExpr::StructField(field) => self.visit(&field.value),
            }),
            Expr::Comprehension(each) => self.comprehension(each),
            Expr::Struct(made) => Err(format!("there is no type {:?}", made.type_name)),
        }
    }

    fn select(&mut self, select: &'e SelectExpr) -> Result<(), String> {
        match &select.operand.expr {
            Expr::Ident(name) if !self.bound.contains(&name.as_str()) => {
                let Some(fields) = fields(name) else {
                    return Err(format!(
                        "there is no variable {name:?}; there are request and resource"
                    ));
                };
                if !fields.contains(&select.field.as_str()) {
                    let near = nearest(&select.field, fields.iter().copied());
                    let near = near.first().map_or_else(
                        || format!("there are {}", written(name, fields)),
                        |near| format!("did you mean {name}.{near}?"),
                    );
                    return Err(format!("there is no {name}.{}; {near}", select.field));
                }
                self.timed |= name == "request" && select.field == TIME;
                Ok(())
            }
            _ => self.visit(&select.operand),
        }
    }

    fn call(&mut self, call: &'e CallExpr) -> Result<(), String> {
        let name = call.func_name.as_str();
        if !PREDICATES.contains(&name) && !FUNCTIONS.contains(&name) {
            let near = nearest(name, PREDICATES.into_iter().chain(FUNCTIONS));
            let near = near
                .first()
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            return Err(format!("there is no function {name:?}{near}"));
        }
        if name == "matches" {
            self.pattern(call)?;
        }
        call.target
            .iter()
            .try_for_each(|target| self.visit(target))?;
        call.args.iter().try_for_each(|each| self.visit(each))
    }

    /// A regular expression is compiled whenever it is used, so it has to be small.
    fn pattern(&self, call: &CallExpr) -> Result<(), String> {
        let Some(Expr::Literal(LiteralValue::String(pattern))) =
            call.args.last().map(|last| &last.expr)
        else {
            return Err("the pattern of matches() has to be a string as it stands".to_owned());
        };
        let pattern = pattern.inner();
        if pattern.len() > MAX_PATTERN {
            return Err(format!(
                "the pattern of matches() is {} bytes long; {MAX_PATTERN} may be",
                pattern.len()
            ));
        }
        regex::RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_PROGRAM)
            .build()
            .map(drop)
            .map_err(|error| {
                let line = error.to_string().replace('\n', " ");
                format!("the pattern {pattern:?} of matches(): {line}")
            })
    }

    fn comprehension(&mut self, each: &'e ComprehensionExpr) -> Result<(), String> {
        if !self.bound.is_empty() {
            return Err("all, exists, map and filter don't stand in one another".to_owned());
        }
        self.visit(&each.iter_range)?;
        self.bound.push(&each.iter_var);
        self.bound.extend(each.iter_var2.as_deref());
        self.bound.push(&each.accu_var);
        for part in [
            &each.accu_init,
            &each.loop_cond,
            &each.loop_step,
            &each.result,
        ] {
            self.visit(part)?;
        }
        self.bound.clear();
        Ok(())
    }

    fn is_bool(&self, expression: &IdedExpr) -> bool {
        match &expression.expr {
            Expr::Literal(LiteralValue::Boolean(_)) => true,
            Expr::Select(select) => select.test,
            Expr::Call(call) if call.func_name == operators::CONDITIONAL => {
                call.args.iter().all(|each| self.is_bool(each))
            }
            Expr::Call(call) => PREDICATES.contains(&call.func_name.as_str()),
            // all, exists and exists_one begin with a bool or a number, and end with a comparison or the bool.
            Expr::Comprehension(each) => {
                self.is_bool(&each.accu_init) || self.is_bool(&each.result)
            }
            _ => false,
        }
    }
}

/// Operators between kinds that don't go together show on any request.
fn try_out(expression: &Expression) -> Result<(), String> {
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    for resource in ["projects/p", "projects/p/locations/global/memberships/m"] {
        let Ok(resource) = resource.parse::<Resource>() else {
            continue;
        };
        let attributes = Attributes {
            resource: &resource,
            labels: &labels,
            request: &RequestInfo::default(),
            now: 1_800_000_000,
        };
        let Variables(context) = Variables::new(&attributes);
        let Err(error) = context.resolve(expression) else {
            continue;
        };
        use cel::ExecutionError::{
            InvalidArgumentCount, MissingArgumentOrTarget, NoSuchOverload, NotSupportedAsMethod,
            UndeclaredReference, UnexpectedType, UnsupportedTargetType, ValuesNotComparable,
        };
        // Others depend on the request: a label that isn't there, a division by zero.
        if matches!(
            error,
            InvalidArgumentCount { .. }
                | MissingArgumentOrTarget
                | NoSuchOverload(_)
                | NotSupportedAsMethod { .. }
                | UndeclaredReference(_)
                | UnexpectedType { .. }
                | UnsupportedTargetType { .. }
                | ValuesNotComparable(..)
        ) {
            return Err(super::first_line(&error.to_string()));
        }
    }
    Ok(())
}

fn fields(variable: &str) -> Option<&'static [&'static str]> {
    VARIABLES
        .into_iter()
        .find(|(name, _)| *name == variable)
        .map(|(_, fields)| fields)
}

fn written(name: &str, fields: &[&str]) -> String {
    let all: Vec<String> = fields
        .iter()
        .map(|field| format!("{name}.{field}"))
        .collect();
    all.join(", ")
}
