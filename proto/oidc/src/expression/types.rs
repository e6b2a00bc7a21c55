//! The types of CEL, as far as claims and users have them.

use std::fmt;

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Known only when it runs.
    Dyn,
    /// `google.protobuf.Any`, as Kubernetes declares claims: like `dyn`, but no range of a loop.
    Any,
    /// The element of an empty list: fits everything.
    Never,
    /// `null`.
    Null,
    /// `bool`.
    Bool,
    /// `int`.
    Int,
    /// `uint`.
    Uint,
    /// `double`.
    Double,
    /// `string`.
    String,
    /// `bytes`.
    Bytes,
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.Duration`.
    Duration,
    /// The type of types.
    Type,
    /// `list(…)`.
    List(Box<Self>),
    /// `map(…, …)`.
    Map(Box<Self>, Box<Self>),
    /// `optional_type(…)`.
    Optional(Box<Self>),
    /// An object with known fields.
    Object(&'static str, Vec<(&'static str, Self)>),
    /// A type parameter of a function.
    Param(char),
}

impl Type {
    /// `map(string, value)`.
    #[must_use]
    pub fn map(value: Self) -> Self {
        Self::Map(Box::new(Self::String), Box::new(value))
    }

    /// `list(element)`.
    #[must_use]
    pub fn list(element: Self) -> Self {
        Self::List(Box::new(element))
    }

    /// Kubernetes' `UserInfo`.
    #[must_use]
    pub fn user() -> Self {
        Self::Object(
            "kubernetes.UserInfo",
            vec![
                ("username", Self::String),
                ("uid", Self::String),
                ("groups", Self::list(Self::String)),
                ("extra", Self::map(Self::list(Self::String))),
            ],
        )
    }

    /// The type that both are, if there is one: `dyn` with anything is `dyn`.
    pub(super) fn join(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Never, any) | (any, Self::Never) => any.clone(),
            (open @ (Self::Any | Self::Dyn), _) | (_, open @ (Self::Any | Self::Dyn)) => {
                open.clone()
            }
            (Self::List(a), Self::List(b)) => Self::list(a.join(b)?),
            (Self::Optional(a), Self::Optional(b)) => Self::Optional(Box::new(a.join(b)?)),
            (Self::Map(ka, va), Self::Map(kb, vb)) => {
                Self::Map(Box::new(ka.join(kb)?), Box::new(va.join(vb)?))
            }
            (Self::Null, nullable) | (nullable, Self::Null) if nullable.takes_null() => {
                nullable.clone()
            }
            (a, b) if a == b => a.clone(),
            _ => return None,
        })
    }

    const fn takes_null(&self) -> bool {
        matches!(
            self,
            Self::Timestamp | Self::Duration | Self::Object(..) | Self::Optional(_)
        )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn | Self::Never => f.write_str("dyn"),
            Self::Any => f.write_str("any"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::Type => f.write_str("type"),
            Self::List(element) => write!(f, "list({element})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional({inner})"),
            Self::Object(name, _) => f.write_str(name),
            Self::Param(name) => write!(f, "{name}"),
        }
    }
}
