//! How deep an expression can be, told from its text.
//!
//! Threat: CEL's parser goes down its own stack for every bracket before it counts any, and a stack that is used up
//! ends the whole process; an expression comes from whoever may set a condition.
//! Decision: brackets, conditionals and operators are counted in the text, before anything parses it, and what passes
//! is parsed on a stack of its own that is large enough for it in any build. Strings in forms that could hide a
//! bracket from a counter (raw, triple) are refused.
//! Consequence: some expressions that CEL takes are refused; nobody writes them.

use std::{io, thread};

/// The stack to parse on, in bytes: a debug build needs about 130 KiB for a bracket and 20 KiB for an operator.
const STACK: usize = 16 * 1024 * 1024;

/// Brackets and conditionals in one another.
const MAX_NESTING: usize = 16;

/// Operators in all: each may make the tree one level deeper.
const MAX_OPERATORS: usize = 200;

/// Why an expression isn't parsed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooComplex {
    /// Too many brackets in one another.
    #[error("brackets and conditionals stand more than {MAX_NESTING} deep in one another")]
    Nesting,
    /// Too long a chain of operators.
    #[error("it has more than {MAX_OPERATORS} operators")]
    Operators,
    /// A string that a counter could misread.
    #[error("strings are written in '…' or \"…\", neither raw nor in three quotes")]
    String,
}

/// Whether an expression may be parsed.
///
/// # Errors
/// See [`TooComplex`].
pub fn check(source: &str) -> Result<(), TooComplex> {
    let (mut nesting, mut conditionals, mut operators) = (0_usize, 0_usize, 0_usize);
    let mut before = ' ';
    let mut characters = source.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            quote @ ('\'' | '"') => {
                if matches!(before, 'r' | 'R') {
                    return Err(TooComplex::String);
                }
                let mut length = 0_usize;
                while let Some(inside) = characters.next() {
                    if inside == quote {
                        break;
                    }
                    length += 1;
                    if inside == '\\' {
                        characters.next();
                    }
                }
                if length == 0 && characters.peek() == Some(&quote) {
                    return Err(TooComplex::String);
                }
            }
            // A comment ends with its line, and may have quotes of its own.
            '/' if characters.peek() == Some(&'/') => {
                characters.by_ref().find(|inside| *inside == '\n');
            }
            '(' | '[' | '{' => nesting += 1,
            ')' | ']' | '}' => nesting = nesting.saturating_sub(1),
            '?' => conditionals += 1,
            '!' | '-' | '+' | '*' | '/' | '%' | '<' | '>' | '=' | '&' | '|' | '.' => {
                operators += 1;
            }
            _ => {}
        }
        if nesting + conditionals > MAX_NESTING {
            return Err(TooComplex::Nesting);
        }
        if operators > MAX_OPERATORS {
            return Err(TooComplex::Operators);
        }
        before = character;
    }
    Ok(())
}

/// Parses what [`check`] let through, on a stack that is large enough; `None` where the parser panicked.
///
/// # Errors
/// There is no thread to be had.
pub fn parse<T: Send>(parse: impl FnOnce() -> T + Send) -> io::Result<Option<T>> {
    thread::scope(|scope| {
        let parser = thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, parse)?;
        Ok(parser.join().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_passes() {
        for source in [
            "request.path.startsWith('/api/v1/namespaces/') && !(request.verb in ['list', 'watch'])",
            "claims.groups.map(g, 'oidc:' + g) // (((((((((((((((((((((((((((((((",
            "'((((((((((((((((((((((((((((((((((((((((((' == \"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[\"",
            "'' == \"\"",
            "a == '' || b == ''",
        ] {
            assert_eq!(check(source), Ok(()), "{source}");
        }
    }

    #[test]
    fn what_would_use_up_the_stack_is_refused() {
        for (source, refused) in [
            ("(".repeat(17), TooComplex::Nesting),
            ("[{(".repeat(9), TooComplex::Nesting),
            ("a?".repeat(17), TooComplex::Nesting),
            ("!".repeat(201), TooComplex::Operators),
            ("1+".repeat(201), TooComplex::Operators),
            (
                format!("{}{}", r"r'\' + '", "(".repeat(500)),
                TooComplex::String,
            ),
            (format!("'''{}'''", "(".repeat(500)), TooComplex::String),
            (format!("'\\'' + {}", "(".repeat(500)), TooComplex::Nesting),
            (format!("// it's\n{}", "(".repeat(500)), TooComplex::Nesting),
        ] {
            assert_eq!(check(&source), Err(refused), "{source}");
        }
    }
}
