//! What Towline's gateway, agent and command line must agree on.
//!
//! | module | what it fixes |
//! | --- | --- |
//! | [`names`] | project, location, membership |
//! | [`endpoint`] | the public URL of a membership |
//! | [`api`] | the management API |
//! | [`registration`] | the file that a new agent is given |
//! | [`jws`], [`keys`] | statements, and which keys may sign them |
//! | [`handshake`] | how a session begins |
//! | [`assertion`] | who is calling, on every request |
//! | [`end_to_end`] | who is calling, by their own word |
//! | [`wire`] | the headers of a request in the tunnel |
//! | [`session`] | the byte stream under all of it, which outlives its connections |
//! | `websocket`, `tunnel`, `body`, `upgraded` | the wire itself (feature `tokio`) |
//!
//! There is no clock here, no socket and no Kubernetes client: time is an argument, and without feature `tokio`
//! this crate does no I/O at all.

pub mod api;
pub mod assertion;
pub mod end_to_end;
pub mod endpoint;
pub mod handshake;
pub mod jws;
pub mod keys;
pub mod names;
pub mod registration;
pub mod session;
pub mod wire;

#[cfg(feature = "tokio")]
pub mod body;
#[cfg(feature = "tokio")]
pub mod tunnel;
#[cfg(feature = "tokio")]
pub mod upgraded;
#[cfg(feature = "tokio")]
pub mod websocket;
