//! Towline's end in the cluster.
//!
//! An agent dials out to a gateway and serves HTTP/2 on the connection it made. What it serves is the cluster's
//! API server, and only in somebody else's name: there is no way to send a request of a session upstream that
//! doesn't impersonate a caller whom the gateway named under its key ([`guard`]).
//!
//! The modules, in the order a stream meets them:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | flags and the registration file become a [`config::Config`] |
//! | [`cluster`] | the agent's own questions to its cluster, and where its key may be kept |
//! | [`enrol`] | the agent's key, and the token that makes it known |
//! | [`dial`] | out to the gateway: proxies, TLS, the two carriers |
//! | [`open`] | the handshake of a session |
//! | [`app`] | puts it together |
//! | [`sessions`] | keeps sessions up, to two replicas where there are several, and drains at the end |
//! | [`serve`] | one request: verify, impersonate, upstream |
//! | [`guard`] | who is calling, or a refusal |
//! | [`role`] | which of a caller's groups the agent may name |
//! | [`upstream`] | to the API server: pools, upgrades, credentials that rotate |
//! | [`state`], [`health`] | liveness, readiness, gauges |

pub mod app;
pub mod backoff;
pub mod body;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod dial;
pub mod enrol;
mod facts;
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
pub mod health;
pub mod open;
pub mod role;
pub mod serve;
pub mod sessions;
pub mod state;
pub mod tcp;
pub mod upstream;
