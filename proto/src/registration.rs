//! The file that a new agent is given: where to dial, whom to believe, and a token that works once.

use serde::{Deserialize, Serialize};

use crate::{jws::PublicKey, names::Membership};

/// Contents of a registration file, which is YAML.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registration {
    /// The gateway's public address, `https://HOST[:PORT]`.
    pub gateway: String,
    /// PEM certificates that the gateway's certificate is checked against; the system's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<String>,
    /// The gateway's root public key, which the agent pins.
    pub root_key: PublicKey,
    /// Which membership the agent is to be.
    pub membership: Membership,
    /// The one-time token; an agent that has a key doesn't need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// When the token ends (RFC 3339), for people to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration")
            .field("gateway", &self.gateway)
            .field("membership", &self.membership)
            .field("root_key", &self.root_key)
            .finish_non_exhaustive()
    }
}
