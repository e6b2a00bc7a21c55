//! The type check of cel-go, as far as an expression over claims needs it.
//!
//! The interpreter has none: there a misspelt function is found when the first token comes, and a
//! rule that gives a string is neither true nor false.

use std::collections::BTreeMap;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};

use super::functions::{FUNCTIONS, NAMESPACES};
use super::{CompileError, Type};

/// The names of types, which are values too: `type(claims.x) == string`.
const TYPE_NAMES: [&str; 11] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "optional_type",
];

/// The variables that an expression sees, innermost last.
struct Scope<'a> {
    variables: Vec<(&'a str, Type)>,
}

/// The type of an expression.
pub(super) fn infer(
    expression: &IdedExpr,
    variables: &[(&'static str, Type)],
) -> Result<Type, CompileError> {
    let mut scope = Scope {
        variables: variables.to_vec(),
    };
    scope.infer(expression)
}

/// How deep an expression nests.
pub(super) fn depth(expression: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expression, 1)];
    while let Some((expression, depth)) = open.pop() {
        deepest = deepest.max(depth);
        children(expression, &mut |child| open.push((child, depth + 1)));
    }
    deepest
}

/// Visits an expression and everything in it.
pub(super) fn walk(expression: &IdedExpr, visit: &mut dyn FnMut(&IdedExpr)) {
    let mut open = vec![expression];
    while let Some(expression) = open.pop() {
        visit(expression);
        children(expression, &mut |child| open.push(child));
    }
}

fn children<'e>(expression: &'e IdedExpr, visit: &mut dyn FnMut(&'e IdedExpr)) {
    match &expression.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| visit(target));
            call.args.iter().for_each(visit);
        }
        Expr::Comprehension(comprehension) => {
            visit(&comprehension.iter_range);
            visit(&comprehension.accu_init);
            visit(&comprehension.loop_cond);
            visit(&comprehension.loop_step);
            visit(&comprehension.result);
        }
        Expr::List(list) => list.elements.iter().for_each(visit),
        Expr::Map(map) => map.entries.iter().for_each(|entry| {
            if let EntryExpr::MapEntry(entry) = &entry.expr {
                visit(&entry.key);
                visit(&entry.value);
            }
        }),
        Expr::Select(select) => visit(&select.operand),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) => {}
    }
}

fn error<T>(text: impl Into<String>) -> Result<T, CompileError> {
    Err(CompileError::Type(text.into()))
}

impl<'a> Scope<'a> {
    fn infer(&mut self, expression: &'a IdedExpr) -> Result<Type, CompileError> {
        match &expression.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
                LiteralValue::UInt(_) => Type::Uint,
            }),
            Expr::Ident(name) => self.variable(name),
            Expr::Select(select) => {
                let operand = self.infer(&select.operand)?;
                let field = self.field(&operand, &select.field)?;
                Ok(if select.test { Type::Bool } else { field })
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let mut element = Type::Never;
                for (index, value) in list.elements.iter().enumerate() {
                    let mut kind = self.infer(value)?;
                    if list.optional_indices.contains(&index) {
                        kind = opened(kind)?;
                    }
                    element = element.join(&kind).ok_or_else(|| {
                        CompileError::Type(format!(
                            "expected type '{element}' but found '{kind}' in a list"
                        ))
                    })?;
                }
                Ok(Type::list(element))
            }
            Expr::Map(map) => {
                let (mut key, mut value) = (Type::Never, Type::Never);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return error("messages are not supported");
                    };
                    let found = (self.infer(&entry.key)?, self.infer(&entry.value)?);
                    let found_value = if entry.optional {
                        opened(found.1)?
                    } else {
                        found.1
                    };
                    let (Some(joined_key), Some(joined_value)) =
                        (key.join(&found.0), value.join(&found_value))
                    else {
                        return error("the entries of a map have different types");
                    };
                    (key, value) = (joined_key, joined_value);
                }
                Ok(Type::Map(Box::new(key), Box::new(value)))
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(message) => error(format!(
                "messages are not supported: {:?}",
                message.type_name
            )),
            Expr::Unspecified => error("an empty expression"),
        }
    }

    fn variable(&self, name: &str) -> Result<Type, CompileError> {
        let found = self
            .variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name);
        match found {
            Some((_, kind)) => Ok(kind.clone()),
            None if TYPE_NAMES.contains(&name) => Ok(Type::Type),
            None => error(format!("undeclared reference to '{name}'")),
        }
    }

    fn field(&self, operand: &Type, field: &str) -> Result<Type, CompileError> {
        match operand {
            Type::Dyn | Type::Any | Type::Never => Ok(Type::Dyn),
            Type::Map(_, value) => Ok((**value).clone()),
            Type::Optional(inner) => Ok(Type::Optional(Box::new(self.field(inner, field)?))),
            Type::Object(name, fields) => match fields.iter().find(|(known, _)| *known == field) {
                Some((_, kind)) => Ok(kind.clone()),
                None => error(format!("undefined field '{field}' of {name}")),
            },
            other => error(format!("type '{other}' does not support field selection")),
        }
    }

    fn call(&mut self, call: &'a CallExpr) -> Result<Type, CompileError> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::CONDITIONAL, [test, yes, no]) => {
                self.boolean(test)?;
                let (yes, no) = (self.infer(yes)?, self.infer(no)?);
                return yes
                    .join(&no)
                    .map_or_else(|| mismatch("_?_:_", &[Type::Bool, yes, no]), Ok);
            }
            (operators::LOGICAL_AND | operators::LOGICAL_OR, arguments) => {
                for argument in arguments {
                    self.boolean(argument)?;
                }
                return Ok(Type::Bool);
            }
            (operators::NOT_STRICTLY_FALSE, [argument]) => {
                self.boolean(argument)?;
                return Ok(Type::Bool);
            }
            (operators::OPT_SELECT, [operand, field]) => {
                let operand = self.infer(operand)?;
                let found = self.field(&operand, super::string_of(field).unwrap_or_default())?;
                return Ok(match found {
                    Type::Optional(_) => found,
                    found => Type::Optional(Box::new(found)),
                });
            }
            _ => {}
        }
        let (full_name, member) = match &call.target {
            None => (name.to_owned(), None),
            Some(target) => match &target.expr {
                Expr::Ident(namespace)
                    if NAMESPACES.contains(&namespace.as_str())
                        && !self.variables.iter().any(|(known, _)| known == namespace) =>
                {
                    (format!("{namespace}.{name}"), None)
                }
                _ => (name.to_owned(), Some(target)),
            },
        };
        let mut arguments = Vec::new();
        if let Some(target) = member {
            arguments.push(self.infer(target)?);
        }
        for argument in &call.args {
            // What is formatted need not be of one type.
            if let (Expr::List(list), "format") = (&argument.expr, name) {
                for element in &list.elements {
                    self.infer(element)?;
                }
                arguments.push(Type::list(Type::Dyn));
            } else {
                arguments.push(self.infer(argument)?);
            }
        }
        overload(&full_name, member.is_some(), &arguments)
    }

    fn boolean(&mut self, expression: &'a IdedExpr) -> Result<(), CompileError> {
        match self.infer(expression)? {
            Type::Bool | Type::Dyn | Type::Any | Type::Never => Ok(()),
            other => error(format!("expected type 'bool' but found '{other}'")),
        }
    }

    fn comprehension(
        &mut self,
        comprehension: &'a ComprehensionExpr,
    ) -> Result<Type, CompileError> {
        let range = self.infer(&comprehension.iter_range)?;
        let (first, second) = match range {
            Type::List(element) if comprehension.iter_var2.is_some() => (Type::Int, *element),
            Type::List(element) => ((*element).clone(), *element),
            Type::Map(key, value) => (*key, *value),
            Type::Dyn | Type::Never => (Type::Dyn, Type::Dyn),
            Type::Any => {
                return error(
                    "expression of type 'any' cannot be range of a comprehension; \
                     write dyn(…) around it, as in dyn(claims.groups).map(…)",
                );
            }
            other => {
                return error(format!(
                    "expression of type '{other}' cannot be range of a comprehension"
                ));
            }
        };
        // The element of an empty list, as `optMap` has it, is nobody's.
        let first = if first == Type::Never {
            Type::Dyn
        } else {
            first
        };
        let accumulator = self.infer(&comprehension.accu_init)?;
        let outer = self.variables.len();
        self.variables
            .push((&comprehension.accu_var, accumulator.clone()));
        let accumulator_at = outer;
        self.variables.push((&comprehension.iter_var, first));
        if let Some(name) = &comprehension.iter_var2 {
            self.variables.push((name, second));
        }
        self.boolean(&comprehension.loop_cond)?;
        let step = self.infer(&comprehension.loop_step)?;
        let Some(joined) = accumulator.join(&step) else {
            return error(format!("expected type '{accumulator}' but found '{step}'"));
        };
        self.variables.truncate(accumulator_at);
        self.variables.push((&comprehension.accu_var, joined));
        let result = self.infer(&comprehension.result);
        self.variables.truncate(outer);
        result
    }
}

/// The value in an optional: `[?x]`.
fn opened(kind: Type) -> Result<Type, CompileError> {
    match kind {
        Type::Optional(inner) => Ok(*inner),
        Type::Dyn | Type::Any => Ok(Type::Dyn),
        other => error(format!("expected an optional but found '{other}'")),
    }
}

/// The result of the overloads that fit; `dyn` when they differ.
fn overload(name: &str, member: bool, arguments: &[Type]) -> Result<Type, CompileError> {
    let named = || {
        FUNCTIONS
            .iter()
            .filter(move |signature| signature.name == name)
    };
    if named().next().is_none() {
        return error(format!("undeclared reference to '{name}'"));
    }
    let mut result: Option<Type> = None;
    for signature in named() {
        if signature.member != member || signature.arguments.len() != arguments.len() {
            continue;
        }
        let mut bound = BTreeMap::new();
        let fits = signature
            .arguments
            .iter()
            .zip(arguments)
            .all(|(parameter, argument)| assign(parameter, argument, &mut bound));
        if !fits {
            continue;
        }
        let found = substitute(&signature.result, &bound);
        result = Some(match result {
            Some(result) if result != found => Type::Dyn,
            _ => found,
        });
    }
    match result {
        Some(result) => Ok(result),
        None => mismatch(name, arguments),
    }
}

fn mismatch(name: &str, arguments: &[Type]) -> Result<Type, CompileError> {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    error(format!(
        "found no matching overload for '{name}' applied to '({})'",
        arguments.join(", ")
    ))
}

/// Whether an argument fits a parameter; binds what the parameter leaves open.
fn assign(parameter: &Type, argument: &Type, bound: &mut BTreeMap<char, Type>) -> bool {
    match (parameter, argument) {
        (Type::Param(name), _) => {
            let joined = match bound.get(name) {
                None => Some(argument.clone()),
                Some(known) => known.join(argument),
            };
            match joined {
                Some(joined) => {
                    bound.insert(*name, joined);
                    true
                }
                None => false,
            }
        }
        (_, Type::Dyn | Type::Any | Type::Never) | (Type::Dyn, _) => {
            open(parameter, bound);
            true
        }
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
            assign(a, b, bound)
        }
        (Type::Map(ka, va), Type::Map(kb, vb)) => assign(ka, kb, bound) && assign(va, vb, bound),
        (parameter, argument) => parameter == argument,
    }
}

/// Everything that a parameter leaves open is `dyn` when the argument is.
fn open(parameter: &Type, bound: &mut BTreeMap<char, Type>) {
    match parameter {
        Type::Param(name) => {
            bound.insert(*name, Type::Dyn);
        }
        Type::List(inner) | Type::Optional(inner) => open(inner, bound),
        Type::Map(key, value) => {
            open(key, bound);
            open(value, bound);
        }
        _ => {}
    }
}

fn substitute(kind: &Type, bound: &BTreeMap<char, Type>) -> Type {
    match kind {
        Type::Param(name) => bound.get(name).cloned().unwrap_or(Type::Dyn),
        Type::List(inner) => Type::list(substitute(inner, bound)),
        Type::Optional(inner) => Type::Optional(Box::new(substitute(inner, bound))),
        Type::Map(key, value) => Type::Map(
            Box::new(substitute(key, bound)),
            Box::new(substitute(value, bound)),
        ),
        other => other.clone(),
    }
}
