//! The rules of the house, kept by reading the source: which room may import which, who may start a process or
//! speak to the database, and how long files and functions may be.

#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

mod paths;
mod rooms;
mod sizes;
mod source;
