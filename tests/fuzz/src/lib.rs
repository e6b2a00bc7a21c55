//! What must hold for whatever comes from outside, as functions of bytes.
//!
//! `tests/replay.rs` runs each over its corpus and over inputs made from it, in every test run; `run.sh` runs them
//! under libFuzzer for as long as one likes, and keeps what it finds. A property that fails panics.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a property that fails is told by a panic"
)]

mod documents;
mod guard;
mod head;
mod policy;
mod request;
mod session;
mod sign_in;
mod statements;
mod tokens;

pub mod mutate;

/// A property.
pub type Property = fn(&[u8]);

/// Every property, by the name of its corpus.
pub const TARGETS: &[(&str, Property)] = &[
    ("request", request::target),
    ("membership", request::membership),
    ("forwarded", request::forwarded),
    ("bearer", request::bearer),
    ("nested", request::nested),
    ("websocket", request::websocket),
    ("session", session::frames),
    ("statement", statements::statement),
    ("handshake", statements::handshake),
    ("proof", statements::proof),
    ("mac", statements::mac),
    ("replay", statements::replay),
    ("guard", guard::admit),
    ("token", tokens::token),
    ("authentication", tokens::configuration),
    ("expression", tokens::expression),
    ("iam-names", policy::names),
    ("condition", policy::condition),
    ("sign-in", sign_in::form),
    ("json", documents::json),
    ("kubeconfig", documents::kubeconfig),
    ("registration", documents::registration),
];
