//! A closed container that runs a command: its shim process, its life, its end.

pub mod shim;
