//! A whole agent's way of a request, between a gateway and an API server that the tests play.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod apiserver;
mod dialing;
mod gateway;
mod hostile;
mod impersonation;
mod replicas;
mod requests;
mod upgrades;

use std::{future::Future, time::Duration};

/// Waits for a condition, for ten seconds at most.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
