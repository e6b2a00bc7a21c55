//! What the guard lets through, for the properties in `tests/fuzz`. No interface of this package.

use http::HeaderMap;

use crate::guard::Impersonation;

/// All the headers that go upstream, but for the agent's own.
pub fn headers(impersonation: &Impersonation) -> HeaderMap {
    impersonation.headers()
}
