//! All tests of the path of a request once more, with two replicas on one PostgreSQL: callers come to one of them, and
//! agents' sessions are held by the other.

#[path = "path.rs"]
mod all;

use all::{BASE, get, status_object, text};

/// Whether callers come to one replica and agents to another.
pub(crate) const ELSEWHERE: bool = true;
