//! Features of a node: the parts of a job that older releases don't know, by the names that a report lists in
//! `sandbox.features`. A job is placed only at nodes that have those that it needs.

/// Files in the workspace, sent as contents.
pub const FILES: &str = "files";
/// Files that are collected after the end.
pub const ARTIFACTS: &str = "artifacts";
/// Stdin of the command.
pub const STDIN: &str = "stdin";
/// Limits of processors, memory, processes and `/dev/shm`.
pub const LIMITS: &str = "limits";
/// Graphics processors that are exclusive to a job.
pub const GPUS: &str = "gpus";
/// Pull policies other than `missing`.
pub const PULL_POLICY: &str = "pull-policy";
/// Whole logs of ended jobs, for the orchestrator to keep.
pub const LOG_ARCHIVE: &str = "log-archive";
