//! Faults on purpose, against the real binary with real podman: `make test-chaos`.
//!
//! Nodes live in network namespaces of their own, so that the network between them and their
//! orchestrator can be cut. What sandboxes really did is written down by themselves, in a place that
//! no part of cynode knows of ([`witness`]); each job's record is held against that ([`jobs`]).
//!
//! [`storm`] does it at random to two hundred jobs, [`walk`] at each step of one job's way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that fails says so by a panic"
)]

mod arena;
mod jobs;
mod network;
mod random;
mod storm;
mod walk;
mod witness;

#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness of another target")]
mod support;
