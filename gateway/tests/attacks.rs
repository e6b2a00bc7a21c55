//! Attacks on a whole gateway over real sockets, each of which has to fail.
//!
//! Every test asserts the refusal and that nothing came to the agent. `tests/ATTACKS.md` says for each attack which
//! check stops it, and how the test looked when that check was taken out.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    reason = "a test says what went wrong by panicking; a double is what it answers"
)]

#[path = "path/double.rs"]
#[allow(dead_code, reason = "shared with path.rs, which uses the rest")]
mod double;
#[path = "path/world.rs"]
#[allow(dead_code, reason = "shared with path.rs, which uses the rest")]
mod world;

mod attacks {
    pub(crate) mod ground;
    pub(crate) mod raw;
    pub(crate) mod raw2;

    mod floods;
    mod headers;
    mod login;
    mod management;
    mod paths;
    mod smuggling;
    mod tokens;
}

/// Attacks are made on one replica.
pub(crate) const ELSEWHERE: bool = false;
