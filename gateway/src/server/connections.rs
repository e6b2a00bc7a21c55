//! How many connections there may be: in all, and from one address.
//!
//! Threat: one machine opens connections until the gateway has no files left, and nobody else gets in.
//! Decision: half of the files that the system allows are for callers, the rest for what they cause. One address gets
//! so many of them; an IPv6 address stands for its /64, which one machine may have as a whole.
//! Consequence: whoever is over the limit is hung up on before TLS, which costs the gateway next to nothing.
//! Addresses of trusted proxies are everybody's, and have no limit.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Resource, getrlimit};

/// The most connections, however many files there may be.
const MOST: u64 = 50_000;

/// Connections at a time; more wait in the kernel's queue.
pub(super) fn most() -> usize {
    let files = getrlimit(Resource::Nofile).current;
    let most = files.map_or(MOST, |files| (files / 2).clamp(16, MOST));
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Connections by address.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    most: u32,
    from: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

/// One connection's; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    /// None; up to `most` from one address.
    pub(super) fn new(most: u32) -> Self {
        Self {
            most,
            from: Arc::default(),
        }
    }

    /// One more, unless the address has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut from = self.lock();
        let count = from.entry(address).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(from);
        Some(Place {
            connections: self.clone(),
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.from.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What limits by address count as one: a machine with one IPv6 address may have all of its /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut from = self.connections.lock();
        if let Some(count) = from.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                from.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_so_many_and_gives_them_back() {
        let connections = Connections::new(2);
        let take = |address: &str| connections.take(address.parse().unwrap());
        let held = [take("192.0.2.1").unwrap(), take("192.0.2.1").unwrap()];
        assert!(take("192.0.2.1").is_none());
        assert!(
            take("::ffff:192.0.2.1").is_none(),
            "the same in IPv6's words"
        );
        assert!(take("192.0.2.2").is_some());
        let network = [take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap()];
        assert!(take("2001:db8::3").is_none());
        assert!(take("2001:db8:0:1::1").is_some());
        drop((held, network));
        assert!(connections.lock().is_empty());
        assert!((16..=50_000).contains(&most()));
    }
}
