//! The byte stream that HTTP/2 runs on, and how it outlives what carries it.
//!
//! A *session* is one agent's authenticated stream of bytes to one gateway; a *connection* carries it, and may die and
//! be replaced. Whatever is above knows sessions only: while there is no connection, reads wait, and writes until the
//! bound of the replay buffer is reached.
//!
//! [`reliable`] is the stream's bookkeeping, without I/O; [`Session`] runs it over a connection inside the task that
//! reads and writes, so that bytes change neither tasks nor, on their way in, buffers. A [`Handle`] gives a session
//! another connection:
//!
//! ```text
//! agent                                               gateway
//! phase is Down; fence(n) -> position a
//!        ---- hello: resume session, n, a, MAC ---->
//!                                                     fence(n) -> position g   (the old connection is gone now)
//!        <--------- 101, proof: g, MAC -------------
//! attach(n, connection, g)                            attach(n, connection, a)
//! ```
//!
//! The generation `n` only grows; so of two connections that come at the same time the newer is kept.

pub mod reliable;
mod segments;

#[cfg(feature = "tokio")]
mod carried;

#[cfg(feature = "tokio")]
pub use carried::{Connection, Handle, Notice, Phase, ResumeError, Session};
