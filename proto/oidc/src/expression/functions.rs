//! Which functions there are: their types for the check, and their code for the interpreter.

use std::sync::LazyLock;

use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, LIST_TYPE, STRING_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{DeclarationError, Env, ExecutionError, extensions};

use super::Type;
use super::budget::{self, CHARGE, CHARGE_REGEX};

/// Names before a dot that are no variables but part of a function's name.
pub(super) const NAMESPACES: [&str; 3] = ["optional", "sets", "strings"];

/// Member functions whose result may be much larger than what they take, and what is called
/// instead.
pub(super) const BOUNDED: [(&str, &str); 2] = [("replace", "@replace"), ("join", "@join")];

/// The functions of cel-go's standard library, `ext.Strings` version 2, `ext.Sets` and optional
/// types; operators have their names of the syntax tree. `A` and `B` are any type.
pub(super) const SIGNATURES: &[&str] = &[
    "!_(bool) bool",
    "-_(int) int",
    "-_(double) double",
    "_==_(A, A) bool",
    "_!=_(A, A) bool",
    "_+_(int, int) int",
    "_+_(uint, uint) uint",
    "_+_(double, double) double",
    "_+_(string, string) string",
    "_+_(bytes, bytes) bytes",
    "_+_(list(A), list(A)) list(A)",
    "_+_(duration, duration) duration",
    "_+_(timestamp, duration) timestamp",
    "_+_(duration, timestamp) timestamp",
    "_-_(int, int) int",
    "_-_(uint, uint) uint",
    "_-_(double, double) double",
    "_-_(duration, duration) duration",
    "_-_(timestamp, timestamp) duration",
    "_-_(timestamp, duration) timestamp",
    "_*_(int, int) int",
    "_*_(uint, uint) uint",
    "_*_(double, double) double",
    "_/_(int, int) int",
    "_/_(uint, uint) uint",
    "_/_(double, double) double",
    "_%_(int, int) int",
    "_%_(uint, uint) uint",
    "@in(A, list(A)) bool",
    "@in(A, map(A, B)) bool",
    "_[_](list(A), int) A",
    "_[_](map(A, B), A) B",
    "_[_](optional(list(A)), int) optional(A)",
    "_[_](optional(map(A, B)), A) optional(B)",
    "_[?_](list(A), int) optional(A)",
    "_[?_](map(A, B), A) optional(B)",
    "_[?_](optional(list(A)), int) optional(A)",
    "_[?_](optional(map(A, B)), A) optional(B)",
    "size(string) int",
    "size(bytes) int",
    "size(list(A)) int",
    "size(map(A, B)) int",
    "string.size() int",
    "bytes.size() int",
    "list(A).size() int",
    "map(A, B).size() int",
    "string.contains(string) bool",
    "string.startsWith(string) bool",
    "string.endsWith(string) bool",
    "string.matches(string) bool",
    "matches(string, string) bool",
    "string.charAt(int) string",
    "string.indexOf(string) int",
    "string.indexOf(string, int) int",
    "string.lastIndexOf(string) int",
    "string.lastIndexOf(string, int) int",
    "list(string).join() string",
    "list(string).join(string) string",
    "string.lowerAscii() string",
    "string.upperAscii() string",
    "string.trim() string",
    "string.replace(string, string) string",
    "string.replace(string, string, int) string",
    "string.split(string) list(string)",
    "string.split(string, int) list(string)",
    "string.substring(int) string",
    "string.substring(int, int) string",
    "string.format(list(dyn)) string",
    "strings.quote(string) string",
    "sets.contains(list(A), list(A)) bool",
    "sets.equivalent(list(A), list(A)) bool",
    "sets.intersects(list(A), list(A)) bool",
    "bool(bool) bool",
    "bool(string) bool",
    "bytes(bytes) bytes",
    "bytes(string) bytes",
    "double(double) double",
    "double(int) double",
    "double(uint) double",
    "double(string) double",
    "int(int) int",
    "int(uint) int",
    "int(double) int",
    "int(string) int",
    "int(timestamp) int",
    "uint(uint) uint",
    "uint(int) uint",
    "uint(double) uint",
    "uint(string) uint",
    "string(string) string",
    "string(bool) string",
    "string(int) string",
    "string(uint) string",
    "string(double) string",
    "string(bytes) string",
    "string(timestamp) string",
    "string(duration) string",
    "timestamp(string) timestamp",
    "timestamp(timestamp) timestamp",
    "timestamp(int) timestamp",
    "duration(string) duration",
    "duration(duration) duration",
    "dyn(A) dyn",
    "type(A) type",
    "timestamp.getFullYear() int",
    "timestamp.getMonth() int",
    "timestamp.getDate() int",
    "timestamp.getDayOfMonth() int",
    "timestamp.getDayOfWeek() int",
    "timestamp.getDayOfYear() int",
    "timestamp.getHours() int",
    "timestamp.getMinutes() int",
    "timestamp.getSeconds() int",
    "timestamp.getMilliseconds() int",
    "duration.getHours() int",
    "duration.getMinutes() int",
    "duration.getSeconds() int",
    "duration.getMilliseconds() int",
    "optional.none() optional(never)",
    "optional.of(A) optional(A)",
    "optional.ofNonZeroValue(A) optional(A)",
    "optional(A).hasValue() bool",
    "optional(A).value() A",
    "optional(A).or(optional(A)) optional(A)",
    "optional(A).orValue(A) A",
];

/// Types that are ordered, each with itself; numbers also with each other.
const ORDERED: [Type; 8] = [
    Type::Bool,
    Type::Int,
    Type::Uint,
    Type::Double,
    Type::String,
    Type::Bytes,
    Type::Timestamp,
    Type::Duration,
];

/// One overload.
pub(super) struct Signature {
    /// The name, with its namespace.
    pub(super) name: String,
    /// Whether the first argument stands before the dot.
    pub(super) member: bool,
    /// The arguments.
    pub(super) arguments: Vec<Type>,
    /// The result.
    pub(super) result: Type,
}

/// All overloads.
pub(super) static FUNCTIONS: LazyLock<Vec<Signature>> = LazyLock::new(|| {
    let mut functions: Vec<_> = SIGNATURES
        .iter()
        .filter_map(|text| signature(text))
        .collect();
    for name in ["_<_", "_<=_", "_>_", "_>=_"] {
        for left in ORDERED {
            for right in ORDERED {
                let number = |kind: &Type| matches!(kind, Type::Int | Type::Uint | Type::Double);
                if left == right || (number(&left) && number(&right)) {
                    functions.push(Signature {
                        name: name.to_owned(),
                        member: false,
                        arguments: vec![left.clone(), right],
                        result: Type::Bool,
                    });
                }
            }
        }
    }
    functions
});

/// Reads `receiver.name(argument, …) result`.
fn signature(text: &str) -> Option<Signature> {
    let (head, result) = text.rsplit_once(") ")?;
    // The parenthesis of the arguments is the one that `head` leaves open.
    let mut depth = 0_usize;
    let open = head.char_indices().rev().find(|(_, character)| {
        match character {
            ')' => depth += 1,
            '(' if depth == 0 => return true,
            '(' => depth -= 1,
            _ => {}
        }
        false
    })?;
    let (name, arguments) = (head.get(..open.0)?, head.get(open.0 + 1..)?);
    let mut types = Vec::new();
    for argument in split(arguments) {
        types.push(kind(argument)?);
    }
    let (name, member) = match name.rsplit_once('.') {
        Some((namespace, _)) if NAMESPACES.contains(&namespace) => (name, false),
        Some((receiver, name)) if !receiver.starts_with('_') => {
            types.insert(0, kind(receiver)?);
            (name, true)
        }
        _ => (name, false),
    };
    Some(Signature {
        name: name.to_owned(),
        member,
        arguments: types,
        result: kind(result)?,
    })
}

/// Splits at the commas that are in no parenthesis.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn kind(text: &str) -> Option<Type> {
    if let Some((outer, inner)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let mut inner = split(inner).map(kind);
        let first = Box::new(inner.next()??);
        return Some(match outer {
            "list" => Type::List(first),
            "optional" => Type::Optional(first),
            "map" => Type::Map(first, Box::new(inner.next()??)),
            _ => return None,
        });
    }
    Some(match text {
        "A" => Type::Param('A'),
        "B" => Type::Param('B'),
        "dyn" => Type::Dyn,
        "never" => Type::Never,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        _ => return None,
    })
}

/// The interpreter's functions.
pub(super) fn environment() -> Env {
    let mut env = Env::stdlib();
    // Declaring fails for a name that is there twice only; a test calls every function.
    if let Err(error) = declare(&mut env) {
        tracing::error!(%error, "CEL functions are missing");
    }
    env
}

fn declare(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_extension(extensions::strings)?;
    env.add_overload(CHARGE, CHARGE, vec![DYN_TYPE], budget::charge)?;
    env.add_overload(
        CHARGE_REGEX,
        CHARGE_REGEX,
        vec![DYN_TYPE],
        budget::charge_regex,
    )?;
    let lists = || vec![LIST_TYPE, LIST_TYPE];
    env.add_overload("sets.contains", "sets.contains", lists(), sets_contains)?;
    env.add_overload(
        "sets.equivalent",
        "sets.equivalent",
        lists(),
        sets_equivalent,
    )?;
    env.add_overload(
        "sets.intersects",
        "sets.intersects",
        lists(),
        sets_intersects,
    )?;
    for arguments in [
        vec![STRING_TYPE, STRING_TYPE],
        vec![STRING_TYPE, STRING_TYPE, INT_TYPE],
    ] {
        let id = format!("@replace {}", arguments.len());
        env.add_member_overload("@replace", &id, STRING_TYPE, arguments, replace)?;
    }
    for arguments in [vec![], vec![STRING_TYPE]] {
        let id = format!("@join {}", arguments.len());
        env.add_member_overload("@join", &id, LIST_TYPE, arguments, join)?;
    }
    Ok(())
}

/// `text.replace(from, to[, count])`, whose result is paid for before it is made.
fn replace<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let (text, from, to) = (
        string(&arguments, 0)?,
        string(&arguments, 1)?,
        string(&arguments, 2)?,
    );
    let limit = match arguments
        .get(3)
        .and_then(|count| count.downcast_ref::<CelInt>())
    {
        Some(count) => usize::try_from(*count.inner()).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let count = text.matches(from).take(limit).count();
    budget::pay(cost(count, to))?;
    Ok(CowVal::owned(CelString::from(
        text.replacen(from, to, limit),
    )))
}

/// `list.join([separator])`, whose result is paid for before it is made.
fn join<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let separator = if arguments.len() > 1 {
        string(&arguments, 1)?
    } else {
        ""
    };
    let mut parts = Vec::new();
    each(arguments.first(), &mut |part| {
        let part = part.downcast_ref::<CelString<'_>>();
        parts.push(
            part.ok_or_else(|| mismatch("a list of strings"))?
                .inner()
                .to_owned(),
        );
        Ok(())
    })?;
    budget::pay(cost(parts.len(), separator))?;
    Ok(CowVal::owned(CelString::from(parts.join(separator))))
}

/// What so many copies cost, as [`budget::pay_for`] counts strings.
fn cost(count: usize, text: &str) -> u64 {
    let bytes = count.saturating_mul(text.len());
    u64::try_from(bytes / 8).unwrap_or(u64::MAX)
}

fn sets_contains<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    contains_all(arguments.first(), arguments.get(1)).map(boolean)
}

fn sets_equivalent<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let (a, b) = (arguments.first(), arguments.get(1));
    Ok(boolean(contains_all(a, b)? && contains_all(b, a)?))
}

fn sets_intersects<'b, 'v>(
    arguments: Vec<CowVal<'b, 'v>>,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let mut found = false;
    each(arguments.get(1), &mut |element| {
        found = found || has(arguments.first(), element)?;
        Ok(())
    })?;
    Ok(boolean(found))
}

fn contains_all(
    list: Option<&CowVal<'_, '_>>,
    elements: Option<&CowVal<'_, '_>>,
) -> Result<bool, ExecutionError> {
    let mut all = true;
    each(elements, &mut |element| {
        all = all && has(list, element)?;
        Ok(())
    })?;
    Ok(all)
}

fn has(list: Option<&CowVal<'_, '_>>, wanted: &dyn Val) -> Result<bool, ExecutionError> {
    let mut found = false;
    each(list, &mut |element| {
        budget::pay(1)?;
        found = found || element.equals(wanted);
        Ok(())
    })?;
    Ok(found)
}

fn each(
    list: Option<&CowVal<'_, '_>>,
    visit: &mut dyn FnMut(&dyn Val) -> Result<(), ExecutionError>,
) -> Result<(), ExecutionError> {
    let list = list.and_then(|list| list.as_iterable());
    let mut elements = list.ok_or_else(|| mismatch("a list"))?.iter();
    while let Some(element) = elements.next() {
        visit(element)?;
    }
    Ok(())
}

fn string<'a>(arguments: &'a [CowVal<'_, '_>], index: usize) -> Result<&'a str, ExecutionError> {
    arguments
        .get(index)
        .and_then(|argument| argument.downcast_ref::<CelString<'_>>())
        .map(|text| text.inner())
        .ok_or_else(|| mismatch("a string"))
}

fn boolean<'b, 'v>(value: bool) -> CowVal<'b, 'v> {
    CowVal::owned(CelBool::from(value))
}

fn mismatch(wanted: &str) -> ExecutionError {
    ExecutionError::UnexpectedType {
        got: "another type".to_owned(),
        want: wanted.to_owned(),
    }
}
