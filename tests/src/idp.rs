//! Identity providers, the real ones: Keycloak, and oidc-provider as a second that does some things otherwise.
//!
//! Both are fetched once by `tests/idp/build`, listen on a free port over TLS with an authority of their own, and
//! end with their value. Keycloak takes half a minute and 450 MiB: one per test binary will do.

use std::{path::PathBuf, sync::LazyLock, time::Duration};

use crate::{command::Cmd, place};

mod browser;
mod keycloak;
mod pipeline;
mod provider;
mod sign_in;

pub use browser::{Browser, Page};
pub use keycloak::{CLIENT, Keycloak, REALM};
pub use pipeline::Pipeline;
pub use provider::Provider;
pub use sign_in::{authentication, entry, in_browser, login, on_device};

/// Where `tests/idp/build` put a program; built when it isn't there.
fn built(name: &str) -> PathBuf {
    static BUILT: LazyLock<String> = LazyLock::new(|| {
        Cmd::new(place::tree().join("tests/idp/build"))
            .limit(Duration::from_secs(600))
            .ok()
    });
    let line = BUILT
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    PathBuf::from(line.unwrap_or_else(|| panic!("tests/idp/build built no {name}: {}", *BUILT)))
}
