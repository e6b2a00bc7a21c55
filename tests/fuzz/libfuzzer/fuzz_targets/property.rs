//! One property under libFuzzer, chosen by `TOWLINE_FUZZ_TARGET`: one program to build and link instead of a score.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use towline_fuzz::{Property, TARGETS};

static PROPERTY: LazyLock<Property> = LazyLock::new(|| {
    let wanted =
        std::env::var("TOWLINE_FUZZ_TARGET").expect("TOWLINE_FUZZ_TARGET names a property");
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    found
        .expect("TOWLINE_FUZZ_TARGET names a property that there is")
        .1
});

fuzz_target!(|data: &[u8]| PROPERTY(data));
