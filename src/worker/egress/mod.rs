//! Network of a job by names of hosts: what a node lets its sandboxes reach.

mod limits;

pub use limits::EgressLimits;
