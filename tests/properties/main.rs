//! Properties of everything that reads what a stranger sent. No server, no podman.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a test that fails says so by a panic; the fuzz targets use the oracles, too"
)]

mod bodies;
mod events;
mod image;
mod names;
mod oracles;
mod peers;
mod queries;
mod spool;
mod wire;

use proptest::prelude::*;

/// Texts that are nearly right: of few characters, some of which mean something.
fn near(meaning: &'static str) -> impl Strategy<Value = String> {
    let short = proptest::collection::vec(
        proptest::sample::select(meaning.chars().collect::<Vec<_>>()),
        0..24,
    );
    prop_oneof![
        4 => short.prop_map(String::from_iter),
        2 => "[ -~]{0,40}",
        1 => any::<String>(),
    ]
}
