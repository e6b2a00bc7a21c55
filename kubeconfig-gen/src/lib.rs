//! Towline's command line: sign in, register clusters, write kubeconfigs, and hand kubectl its tokens.
//!
//! ```text
//! main → commands → api ─┬→ tokens    one file per gateway, one renewal at a time
//!        credential ─────┘  │         the exec plugin, on the same tokens
//!                           ▼
//!                        sign_in ─┬→ oauth     the gateway's own sign-in, and exchanging other issuers' tokens
//!                                 ├→ provider  an identity provider's: code with PKCE, device flow, renewal
//!                                 └→ workload  where a pipeline's own token is
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
pub mod proof;
pub mod provider;
pub mod rbac;
pub mod service_account;
pub mod settings;
pub mod sign_in;
pub mod table;
pub mod tokens;
pub mod trust;
pub mod workload;
