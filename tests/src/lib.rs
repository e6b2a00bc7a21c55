//! The harness of the tests on the real cluster.
//!
//! Starts the programs as users do (binaries, flags, files), on free ports, with every log in one directory
//! that a failure names. Clusters come from `tests/cluster` under names of the tests' own and are kept
//! between runs; everything else ends with the test, by its own process id and its group's.
//!
//! A step of a test that fails panics with all that was said: callers get values, not results.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness: a step that fails is a test that fails"
)]

pub mod agent;
pub mod apiserver;
pub mod balancer;
pub mod certificate;
pub mod cluster;
pub mod command;
pub mod file;
pub mod front;
pub mod gateway;
mod group;
pub mod http;
pub mod idp;
pub mod issuer;
pub mod load;
pub mod place;
pub mod program;
pub mod pty;
pub mod replicas;
pub mod user;
pub mod wait;
pub mod world;

pub use agent::Agent;
pub use cluster::Cluster;
pub use command::{Cmd, Output};
pub use gateway::Gateway;
pub use idp::{Keycloak, Provider};
pub use program::Program;
pub use replicas::Replicas;
pub use user::User;
pub use wait::{Stopwatch, wait_for, wait_until};
pub use world::{Shared, World, shared};
