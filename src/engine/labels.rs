//! The labels by which we know our own containers.

/// Whose a container is: a UUID that a node keeps in its data directory. Two nodes may share a
/// host, and each touches only what bears its own.
pub const NODE: &str = "io.cynode.node";
/// The job that a sandbox runs.
pub const JOB: &str = "io.cynode.job-id";
/// The task of that job.
pub const TASK: &str = "io.cynode.task-id";
/// The attempt of that job.
pub const ATTEMPT: &str = "io.cynode.attempt";
/// The id of a sandbox.
pub const SANDBOX: &str = "io.cynode.sandbox-id";
/// The slug of a service's node, for people.
pub const SLUG: &str = "io.cynode.slug";
/// What a service is; a sandbox has no such label.
pub const SERVICE: &str = "io.cynode.service";
/// A hash of the image and settings that a service was made from.
pub const SPEC_HASH: &str = "io.cynode.recipe";
