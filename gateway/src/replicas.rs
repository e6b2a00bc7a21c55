//! The running copies of the gateway that share one database: which this one is, and how many there are.

pub mod identity;

use std::sync::atomic::{AtomicUsize, Ordering};

use towline_proto::handshake::{NoRandomness, random_id};

/// What this replica knows of itself and the others.
#[derive(Debug)]
pub struct Replicas {
    id: String,
    live: AtomicUsize,
}

impl Replicas {
    /// A replica that is alone until it hears of others.
    ///
    /// # Errors
    /// The system gave no random bytes.
    pub fn new() -> Result<Self, NoRandomness> {
        Ok(Self {
            id: random_id()?,
            live: AtomicUsize::new(1),
        })
    }

    /// This replica: another with every start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How many live, this one included.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}
