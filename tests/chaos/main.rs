//! Fault injection into the real binary with real podman: `make test-chaos`.
//!
//! Each node has a network namespace of its own, so that the network to its orchestrator can be cut. Sandboxes
//! record what they did in a directory that cynode doesn't know ([`witness`]); the record of each job is
//! checked against it ([`jobs`]).
//!
//! With `CYNODE_TEST_CONNECT=dial` the nodes listen nowhere and are called by their tunnels, which the cuts of the network cut.
//!
//! [`storm`] injects random faults into two hundred jobs and some [`conversations`], [`walk`] each fault at each step of one job.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that fails says so by a panic"
)]

mod conversations;
mod jobs;
mod network;
mod random;
mod storm;
mod test_bed;
mod walk;
mod witness;

#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness of another target")]
mod support;
