//! Tokens of foreign issuers.
