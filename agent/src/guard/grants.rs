//! Grants that were verified: a signature check costs more than all else that is done to a small request.
//!
//! Keyed by the exact statement, so a hit is as good as the check; only time passes, and that is checked anew.

use std::{collections::HashMap, sync::Arc};

use towline_proto::assertion::Grant;

/// How many are kept.
const ENTRIES: usize = 1024;

/// How many bytes of statements are kept.
const BYTES: usize = 4 * 1024 * 1024;

/// Verified grants of one session.
#[derive(Debug, Default)]
pub(super) struct Grants {
    known: HashMap<String, Arc<Grant>>,
    bytes: usize,
}

impl Grants {
    pub(super) fn get(&self, statement: &str) -> Option<Arc<Grant>> {
        self.known.get(statement).map(Arc::clone)
    }

    /// Keeps a grant that was verified at `now`.
    pub(super) fn insert(&mut self, statement: &str, grant: Arc<Grant>, now: u64) {
        if self.full(statement) {
            self.known.retain(|_, known| known.check_time(now).is_ok());
            self.bytes = self.known.keys().map(String::len).sum();
        }
        if self.full(statement) {
            self.known.clear();
            self.bytes = 0;
        }
        if self.known.insert(statement.to_owned(), grant).is_none() {
            self.bytes += statement.len();
        }
    }

    fn full(&self, statement: &str) -> bool {
        self.known.len() >= ENTRIES || self.bytes + statement.len() > BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(iat: u64) -> Arc<Grant> {
        Arc::new(Grant {
            membership: "projects/p/locations/global/memberships/m".parse().unwrap(),
            session: "s".into(),
            principal: "user:a".into(),
            user: "a".into(),
            uid: None,
            groups: vec![],
            extra: std::collections::BTreeMap::new(),
            iat,
            exp: iat + 60,
        })
    }

    #[test]
    fn bounded_by_number_and_bytes() {
        let mut grants = Grants::default();
        for n in 0..3 * ENTRIES {
            grants.insert(&n.to_string(), grant(1000), 1000);
            assert!(grants.known.len() <= ENTRIES);
        }
        for n in 0..20 {
            grants.insert(&n.to_string().repeat(BYTES / 8), grant(1000), 1000);
            assert!(grants.bytes <= BYTES);
            assert_eq!(
                grants.bytes,
                grants.known.keys().map(String::len).sum::<usize>()
            );
        }
    }

    #[test]
    fn expired_ones_make_room_first() {
        let mut grants = Grants::default();
        for n in 0..ENTRIES - 1 {
            grants.insert(&n.to_string(), grant(1000), 1000);
        }
        grants.insert("young", grant(2000), 2000);
        grants.insert("one more", grant(2000), 2000);
        assert!(grants.get("young").is_some() && grants.get("1").is_none());
    }
}
