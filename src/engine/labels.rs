//! Labels of containers, by which cynode recognizes its own.

/// Node that a container belongs to: the UUID in the node's data directory. Two nodes may share a host, and each
/// touches only containers with its own.
pub const NODE: &str = "io.cynode.node";
/// Job that a sandbox runs.
pub const JOB: &str = "io.cynode.job-id";
/// Task of that job.
pub const TASK: &str = "io.cynode.task-id";
/// Attempt of that job.
pub const ATTEMPT: &str = "io.cynode.attempt";
/// Id of a sandbox.
pub const SANDBOX: &str = "io.cynode.sandbox-id";
/// Slug of a service's node, for people.
pub const SLUG: &str = "io.cynode.slug";
/// Kind of a service; a sandbox has no such label.
pub const SERVICE: &str = "io.cynode.service";
/// Hash of the image and settings that a service was created from.
pub const SPEC_HASH: &str = "io.cynode.recipe";
