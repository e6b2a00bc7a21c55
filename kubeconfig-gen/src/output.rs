//! What goes to standard output and standard error.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use prost_reflect::ReflectMessage;
use serde_json::Value;
use towline_proto::api::to_json;

use crate::{cli::Format, table::Table};

/// Where results and remarks go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Option<Format>,
}

/// Nothing more can be printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Standard output is closed, or its disk is full.
    #[error("cannot write to standard output")]
    Write(#[from] io::Error),
    /// A message that JSON or YAML can't say.
    #[error("the answer can't be written as {0}: {1}")]
    Render(&'static str, String),
}

impl Output {
    /// In this format.
    pub const fn new(format: Option<Format>) -> Self {
        Self { format }
    }

    /// What was asked for.
    pub const fn format(self) -> Option<Format> {
        self.format
    }

    /// Whether the wide columns are wanted.
    pub fn is_wide(self) -> bool {
        self.format == Some(Format::Wide)
    }

    /// Whether people read it, and not a program.
    pub const fn is_for_people(self) -> bool {
        matches!(self.format, None | Some(Format::Wide))
    }

    /// Prints a result as it is.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn text(self, text: &str) -> Result<(), OutputError> {
        let mut out = io::stdout().lock();
        out.write_all(printable(text).as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints what was found: a table, or the messages as a list.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn list<M: ReflectMessage>(
        self,
        messages: &[M],
        name: impl Fn(&M) -> String,
        table: impl FnOnce() -> Table,
    ) -> Result<(), OutputError> {
        match self.format {
            None | Some(Format::Wide) => self.text(&table().render()),
            Some(Format::Name) => self.text(
                &messages
                    .iter()
                    .map(|message| name(message) + "\n")
                    .collect::<String>(),
            ),
            Some(Format::Json | Format::Yaml) => {
                let values: Result<Vec<Value>, OutputError> = messages.iter().map(value).collect();
                self.value(&Value::Array(values?))
            }
        }
    }

    /// Prints one thing: `text` for people, or the message.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn one<M: ReflectMessage>(
        self,
        message: &M,
        name: &str,
        text: impl FnOnce() -> String,
    ) -> Result<(), OutputError> {
        match self.format {
            None | Some(Format::Wide) => self.text(&text()),
            Some(Format::Name) => self.text(&format!("{name}\n")),
            Some(Format::Json | Format::Yaml) => self.value(&value(message)?),
        }
    }

    /// Prints a tree as JSON, or as YAML where that is wanted.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub fn value(self, value: &Value) -> Result<(), OutputError> {
        let text = if self.format == Some(Format::Yaml) {
            serde_saphyr::to_string(value)
                .map_err(|e| OutputError::Render("YAML", e.to_string()))?
        } else {
            serde_json::to_string_pretty(value)
                .map_err(|e| OutputError::Render("JSON", e.to_string()))?
                + "\n"
        };
        self.text(&text)
    }
}

fn value<M: ReflectMessage>(message: &M) -> Result<Value, OutputError> {
    to_json(message)
        .and_then(|json| serde_json::from_str(&json))
        .map_err(|e| OutputError::Render("JSON", e.to_string()))
}

/// Says something to whoever runs the program, beside the result.
#[expect(clippy::print_stderr, reason = "this is the place for it")]
pub fn remark(text: &str) {
    eprintln!("{}", printable(text));
}

/// Without what would have a terminal do something: much of what is printed was said by somebody else, an agent or a
/// gateway that nobody trusts yet.
fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(acts) {
        Cow::Owned(text.replace(acts, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Whether somebody watches standard error.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_moves_a_cursor() {
        assert_eq!(printable("a\tb\nc"), "a\tb\nc");
        assert_eq!(
            printable("v1\u{1b}]0;owned\u{7}\r\u{9b}2J"),
            "v1\u{fffd}]0;owned\u{fffd}\u{fffd}\u{fffd}2J"
        );
    }
}
