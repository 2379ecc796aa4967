//! Properties of every parser of a stranger's input. No server, no podman.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a failed test panics; the fuzz targets use the oracles, too"
)]

mod bodies;
mod events;
mod figures;
mod image;
mod names;
mod oracles;
mod peers;
mod queries;
mod spool;
mod wire;

use proptest::prelude::*;

/// Nearly valid texts: of few characters, some of them special.
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
