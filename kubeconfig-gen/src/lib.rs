//! Towline's command line: sign in, register clusters, write kubeconfigs, and hand kubectl its tokens.
//!
//! ```text
//! main → commands → api ─┬→ tokens    one file per gateway, one refresh at a time
//!                        └→ oauth     authorization code with PKCE, refresh, revocation
//!        credential ─────┘            the exec plugin, on the same tokens
//!        commands → kubeconfig        entries, and merging them into the user's files
//! ```
//!
//! The gateway decides everything; what is here asks it, and keeps the user's own files whole.

pub mod api;
pub mod atomic;
pub mod bounded;
pub mod browser;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod credential;
pub mod gateway_url;
pub mod http;
pub mod kubeconfig;
pub mod manifest;
pub mod nearest;
pub mod oauth;
pub mod output;
pub mod progress;
pub mod settings;
pub mod table;
pub mod tokens;
pub mod trust;
