//! What an evaluation may cost.
//!
//! The interpreter has no limit of its own, so the expression gets one: everything that a function
//! or an operator consumes, every element that a loop appends and every turn of a loop goes
//! through `@charge`, which pays with the value's size. Functions whose result may be much larger
//! than what they consume have bounded ones in their place (see [`super::functions`]).

use std::cell::Cell;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, LiteralValue, operators,
};
use cel::common::value::{CowVal, Val};
use cel::{ExecutionError, IdedExpr};

use super::functions::{BOUNDED, NAMESPACES};

/// What one evaluation may cost; kube-apiserver's limit has the same number of its own units.
const BUDGET: u64 = 1_000_000;

/// Pays for a value.
pub(super) const CHARGE: &str = "@charge";

/// Pays for a value, and for compiling a regular expression.
pub(super) const CHARGE_REGEX: &str = "@charge_regex";

/// What compiling a regular expression costs more.
const REGEX: u64 = 2_000;

thread_local! {
    /// What is left of the evaluation that this thread is at; `None` when it is spent.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs an evaluation with a whole budget; nothing when it was spent.
pub(super) fn spend<T>(evaluate: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(BUDGET));
    let result = evaluate();
    LEFT.take().map(|_| result)
}

/// Takes from the budget.
pub(super) fn pay(cost: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get().and_then(|left| left.checked_sub(cost));
    LEFT.set(left);
    match left {
        Some(_) => Ok(()),
        None => Err(ExecutionError::function_error(CHARGE, "budget spent")),
    }
}

/// `@charge(value)`: the value itself, paid for.
pub(super) fn charge<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    charge_with(0, arguments)
}

/// `@charge_regex(value)`.
pub(super) fn charge_regex<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    charge_with(REGEX, arguments)
}

fn charge_with<'b, 'v>(
    more: u64,
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let found = arguments.len();
    let Some(value) = arguments.into_iter().next() else {
        return Err(ExecutionError::invalid_argument_count(1, found));
    };
    pay(more)?;
    pay_for(value.as_ref())?;
    Ok(value)
}

/// Pays for a value and everything in it.
pub(super) fn pay_for(value: &dyn Val) -> Result<(), ExecutionError> {
    pay(1)?;
    if let Some(text) = value.downcast_ref::<cel::common::types::CelString<'_>>() {
        return pay(text.inner().len() as u64 / 8);
    }
    let Some(values) = value.as_iterable() else {
        return Ok(());
    };
    let is_map = matches!(value.get_type().kind(), cel::common::types::Kind::Map);
    let mut values = values.iter();
    while let Some(element) = values.next() {
        pay_for(element)?;
        if is_map && let Some(map) = value.as_indexer() {
            pay_for(map.get(element)?.as_ref())?;
        }
    }
    Ok(())
}

/// The expression with everything paid for.
pub(super) fn bounded(expression: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = expression;
    let expr = match expr {
        Expr::Call(call) => Expr::Call(bounded_call(call)),
        Expr::Comprehension(comprehension) => {
            Expr::Comprehension(Box::new(bounded_comprehension(*comprehension)))
        }
        Expr::List(mut list) => {
            list.elements = list.elements.into_iter().map(bounded).collect();
            Expr::List(list)
        }
        Expr::Map(mut map) => {
            map.entries = map.entries.into_iter().map(bounded_entry).collect();
            Expr::Map(map)
        }
        Expr::Select(mut select) => {
            select.operand = Box::new(bounded(*select.operand));
            if let Some(field) = unescape(&select.field) {
                select.field = field;
            }
            Expr::Select(select)
        }
        other => other,
    };
    IdedExpr { id, expr }
}

fn bounded_call(call: CallExpr) -> CallExpr {
    let CallExpr {
        func_name,
        target,
        args,
    } = call;
    let args = match func_name.as_str() {
        operators::INDEX | operators::OPT_INDEX | operators::OPT_SELECT => {
            args.into_iter().map(unescaped_name).collect()
        }
        _ => args,
    };
    // These only choose, and the interpreter looks at the form of their operands.
    let free = matches!(
        func_name.as_str(),
        operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::NOT_STRICTLY_FALSE
            | operators::INDEX
            | operators::OPT_INDEX
            | operators::OPT_SELECT
    );
    let charge = if func_name == "matches" {
        CHARGE_REGEX
    } else {
        CHARGE
    };
    let args = args.into_iter().map(|argument| {
        if free {
            bounded(argument)
        } else {
            paid(charge, argument)
        }
    });
    let args = args.collect();
    let target = target.map(|target| {
        let namespace =
            matches!(&target.expr, Expr::Ident(name) if NAMESPACES.contains(&name.as_str()));
        Box::new(if namespace {
            *target
        } else {
            paid(CHARGE, *target)
        })
    });
    let func_name = match BOUNDED.iter().find(|(name, _)| *name == func_name) {
        Some((_, bounded)) if target.is_some() => (*bounded).to_owned(),
        _ => func_name,
    };
    CallExpr {
        func_name,
        target,
        args,
    }
}

/// An operand that is paid for when it is used.
fn paid(charge: &str, operand: IdedExpr) -> IdedExpr {
    match operand.expr {
        // The accumulator of a loop, which the interpreter wants to see as it is.
        Expr::Ident(ref name) if name.starts_with('@') => operand,
        Expr::List(mut list) => {
            let elements = list.elements.into_iter();
            list.elements = elements
                .map(|element| charged(charge, bounded(element)))
                .collect();
            IdedExpr {
                id: operand.id,
                expr: Expr::List(list),
            }
        }
        _ => charged(charge, bounded(operand)),
    }
}

fn charged(charge: &str, operand: IdedExpr) -> IdedExpr {
    IdedExpr {
        id: operand.id,
        expr: Expr::Call(CallExpr {
            func_name: charge.to_owned(),
            target: None,
            args: vec![operand],
        }),
    }
}

/// Every turn is paid for: by its condition where the loop has one, otherwise by its step.
fn bounded_comprehension(comprehension: ComprehensionExpr) -> ComprehensionExpr {
    let ComprehensionExpr {
        iter_range,
        iter_var,
        iter_var2,
        accu_var,
        accu_init,
        loop_cond,
        loop_step,
        result,
    } = comprehension;
    let literal = matches!(loop_cond.expr, Expr::Literal(_));
    let mut loop_step = bounded(loop_step);
    let loop_cond = if literal {
        if let Expr::Call(call) = &mut loop_step.expr
            && call.func_name == operators::CONDITIONAL
            && let Some(test) = call.args.first_mut()
        {
            *test = charged(CHARGE, std::mem::take(test));
        }
        loop_cond
    } else {
        charged(CHARGE, bounded(loop_cond))
    };
    ComprehensionExpr {
        iter_range: bounded(iter_range),
        iter_var,
        iter_var2,
        accu_var,
        accu_init: bounded(accu_init),
        loop_cond,
        loop_step,
        result: bounded(result),
    }
}

fn bounded_entry(entry: IdedEntryExpr) -> IdedEntryExpr {
    let IdedEntryExpr { id, expr } = entry;
    let expr = match expr {
        EntryExpr::MapEntry(mut entry) => {
            entry.key = bounded(entry.key);
            entry.value = bounded(entry.value);
            EntryExpr::MapEntry(entry)
        }
        EntryExpr::StructField(mut field) => {
            field.value = bounded(field.value);
            EntryExpr::StructField(field)
        }
    };
    IdedEntryExpr { id, expr }
}

/// A name that is written as a string, `claims.?a__dot__b` included.
fn unescaped_name(mut name: IdedExpr) -> IdedExpr {
    if let Expr::Literal(LiteralValue::String(text)) = &mut name.expr
        && let Some(field) = unescape(text.inner())
    {
        *text = field.into();
    }
    name
}

/// Kubernetes' way to write names that are no CEL identifiers: `kubernetes__dot__io`. Nothing when
/// there is nothing to replace.
fn unescape(name: &str) -> Option<String> {
    const ESCAPES: [(&str, &str); 4] = [
        ("__underscores__", "__"),
        ("__dot__", "."),
        ("__dash__", "-"),
        ("__slash__", "/"),
    ];
    if !name.contains("__") {
        return None;
    }
    let mut rest = name;
    let mut unescaped = String::with_capacity(name.len());
    while let Some(first) = rest.chars().next() {
        match ESCAPES.iter().find(|(escape, _)| rest.starts_with(escape)) {
            Some((escape, character)) => {
                unescaped.push_str(character);
                rest = rest.strip_prefix(escape).unwrap_or_default();
            }
            None => {
                unescaped.push(first);
                rest = rest.strip_prefix(first).unwrap_or_default();
            }
        }
    }
    let keyword = unescaped
        .strip_prefix("__")
        .and_then(|inner| inner.strip_suffix("__"))
        .filter(|inner| ["in", "as", "if", "for", "var", "namespace", "package"].contains(inner));
    match keyword {
        Some(keyword) => Some(keyword.to_owned()),
        None => (unescaped != name).then_some(unescaped),
    }
}
