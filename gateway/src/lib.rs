//! Towline's hosted end.
//!
//! # The life of a request
//!
//! [`server`] accepts a connection and hands over one request; [`request::serve`] takes it through the stages,
//! each of which uses up what the one before it gave:
//!
//! | stage | from | to |
//! | --- | --- | --- |
//! | [`target`] | head | what is asked for, and the permission that it needs |
//! | [`authn`] | bearer token | who calls, at which membership |
//! | [`authz`] | caller, target | a permit, which ends when its reason does |
//! | [`quota`] | permit | a lease on what the request may use |
//! | [`assert`](mod@assert) | lease, head, body | the only thing that a tunnel takes |
//! | [`tunnels`] | membership | a session of the cluster's agent |
//! | [`forward`] | the agent's answer | the caller's |
//!
//! [`error`] is the one table from a refusal to what the caller is told, [`live`] knows the streams in flight, [`audit`]
//! writes down what was done and how it ended.
//!
//! The other doors of the same port: [`agents`] (sessions), [`login`] (the embedded issuer), [`api`] (management).
//! Underneath: [`iam`] (values), [`store`], [`keys`], [`clock`]. Around: [`config`], [`init`], [`app`], [`drain`](mod@drain), [`handed`], [`tls`],
//! [`authority`], [`admin`].

pub mod admin;
pub mod agents;
pub mod api;
pub mod app;
pub mod assert;
pub mod audit;
pub mod authn;
pub mod authority;
pub mod authz;
pub mod clock;
pub mod config;
pub mod drain;
pub mod error;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod handed;
pub mod iam;
pub mod init;
pub mod keys;
pub mod live;
pub mod login;
pub mod quota;
pub mod replicas;
pub mod request;
pub mod route;
pub mod server;
pub mod slow;
pub mod store;
pub mod target;
pub mod tls;
pub mod tunnels;

mod explain;
mod nearest;
mod private;
