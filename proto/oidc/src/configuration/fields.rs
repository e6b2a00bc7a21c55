//! Reading a document field by field, with the path of whatever is wrong.
//!
//! As in Kubernetes' strict decoding: `null` is an absent field, a number is no string, a field
//! that is left over when all are read is unknown.

use serde_json::{Map, Value};

use super::FieldError;

/// One object of the document, its path, and where errors are collected.
pub(super) struct Fields<'e> {
    path: String,
    values: Map<String, Value>,
    known: Vec<&'static str>,
    errors: &'e mut Vec<FieldError>,
}

impl<'e> Fields<'e> {
    /// The document itself.
    pub(super) fn root(document: Value, errors: &'e mut Vec<FieldError>) -> Self {
        Self::new(String::new(), document, errors)
    }

    fn new(path: String, value: Value, errors: &'e mut Vec<FieldError>) -> Self {
        let values = match value {
            Value::Object(values) => values,
            other => {
                let shown = if path.is_empty() { "(document)" } else { &path };
                errors.push(FieldError::new(
                    shown,
                    format!("{} is not an object", kind(&other)),
                ));
                Map::new()
            }
        };
        Self {
            path,
            values,
            known: Vec::new(),
            errors,
        }
    }

    /// Takes a field out; `null` is absent.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// A string, empty when absent.
    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.optional_text(name).unwrap_or_default()
    }

    /// A string or nothing.
    pub(super) fn optional_text(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(name, format!("{} is not a string", kind(&other)));
                None
            }
        }
    }

    /// A list of strings, empty when absent.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for (index, value) in self.values_of(name).into_iter().enumerate() {
            match value {
                Value::String(text) => texts.push(text),
                other => self.refuse(
                    &format!("{name}[{index}]"),
                    format!("{} is not a string", kind(&other)),
                ),
            }
        }
        texts
    }

    /// An object below; absent is the same as empty.
    pub(super) fn object<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Fields<'_>) -> T,
    ) -> T {
        let value = self.take(name).unwrap_or_else(|| Value::Object(Map::new()));
        read(Fields::new(self.path_of(name), value, self.errors))
    }

    /// A list of objects, empty when absent.
    pub(super) fn list<T>(&mut self, name: &'static str, read: fn(Fields<'_>) -> T) -> Vec<T> {
        let values = self.values_of(name);
        let path = self.path_of(name);
        values
            .into_iter()
            .enumerate()
            .map(|(index, value)| read(Fields::new(format!("{path}[{index}]"), value, self.errors)))
            .collect()
    }

    fn values_of(&mut self, name: &'static str) -> Vec<Value> {
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.refuse(name, format!("{} is not a list", kind(&other)));
                Vec::new()
            }
        }
    }

    /// Says what is wrong with a field of this object.
    pub(super) fn refuse(&mut self, name: &str, reason: impl Into<String>) {
        let path = self.path_of(name);
        self.errors.push(FieldError::new(path, reason));
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(mut self) {
        let known = self.known.join(", ");
        for name in std::mem::take(&mut self.values).keys() {
            self.refuse(name, format!("unknown field; there are {known}"));
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
