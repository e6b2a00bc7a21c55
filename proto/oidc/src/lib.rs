//! Tokens of foreign issuers: who made them, for whom, and whom they name.
//!
//! A gateway that lets a company's own provider say who signs in, and an agent that verifies the
//! same for itself in end-to-end mode, must read a JSON Web Token exactly alike. This crate is
//! that reading, in the format that cluster owners know: Kubernetes' `AuthenticationConfiguration`
//! (KEP-3331).
//!
//! ```text
//! token ─▶ Token: three parts, bounded, no doubled names ─▶ Issuer: key, signature, audience, times
//!       ─▶ Authenticator: claim rules, mapping in CEL, user rules ─▶ Authenticated
//!       ─▶ Mapping and Condition (workload identity)
//! ```
//!
//! - [`AuthenticationConfiguration`] reads and validates the file; [`Authenticator`] runs it.
//! - [`Issuer`] is one level lower: one issuer's keys, and [`Claims`] that are verified.
//! - [`Mapping`] and [`Condition`] turn an assertion into attributes and a decision.
//! - [`Expression`] is CEL with a type check beforehand and a budget at run time.
//!
//! Time is an argument everywhere: nothing here reads the system clock.
//!
//! Threat: the token, the documents at the issuer's URLs and, in part, the expressions come from
//! others. Decision: every size, depth, count and wait has a bound, and a check that cannot be
//! made refuses. Consequence: a few things that kube-apiserver takes are refused here (doubled
//! names, an `iat` in the future, an empty user name, distributed claims). Two that it refuses at
//! run time are taken: a mapping that is a bare `split()`, and `'name' in claims`. A loop over
//! `claims` itself sees names, as CEL has it; in kube-apiserver 1.36 it sees values.

#![forbid(unsafe_code)]

mod authenticator;
mod configuration;
mod expression;
mod issuer;
mod keys;
pub mod shape;
#[cfg(test)]
mod testing;
mod token;
mod workload;

pub use authenticator::{Authenticated, Authenticator};
pub use configuration::{
    AuthenticationConfiguration, ClaimMappings, ClaimOrExpression, ClaimValidationRule,
    ExtraMapping, FieldError, Invalid, IssuerFields, JwtAuthenticator, PrefixedClaimOrExpression,
    Rules, UserValidationRule,
};
pub use expression::{CompileError, EvaluationError, Expression, Type, Variables};
pub use issuer::{Claims, Issuer, IssuerConfiguration};
pub use token::{Refused, unverified_issuer};
pub use workload::{Attribute, Condition, Mapping};
