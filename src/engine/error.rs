//! Failures of podman.

use std::{io, path::PathBuf, time::Duration};

/// Failure of a podman call, or of what it needs.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The program can't be started.
    #[error(
        "{program:?} can't be started: {source}; install podman (apt-get install podman), or name it with --engine"
    )]
    NotStarted {
        /// Program that was named.
        program: PathBuf,
        /// Reason of the operating system.
        source: io::Error,
    },
    /// Podman ended with an error.
    #[error("podman {call} failed: {message}")]
    Failed {
        /// Subcommand.
        call: String,
        /// Podman's own message.
        message: String,
    },
    /// Podman did not end in time.
    #[error("podman {call} did not end within {} s; see what holds it up with: ps -C podman -o pid,stat,etime,args", limit.as_secs())]
    TimedOut {
        /// Subcommand.
        call: String,
        /// Time limit of the call.
        limit: Duration,
    },
    /// No combination of runtime and resource limits runs a container.
    #[error("podman can't run a container on this host; what was tried:\n{0}")]
    NoRuntimeWorks(String),
    /// A settings file of podman can't be used.
    #[error("podman's settings in {path} can't be used: {reason}; correct that file", path = path.display())]
    InvalidSettings {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A sandbox is less isolated than it was asked to be.
    #[error(
        "sandboxes on this host are not isolated, and a node runs no jobs like this: {}; remove what is named, or the program in podman's place (--engine)",
        findings.join("; ")
    )]
    NotIsolated {
        /// Findings, each with the setting that causes it.
        findings: Vec<String>,
    },
    /// Podman printed something in another format than expected.
    #[error(
        "podman {call} printed what this version of cynode doesn't understand: {reason}; see which versions of podman are supported, or report this"
    )]
    UnexpectedOutput {
        /// Subcommand.
        call: String,
        /// The problem.
        reason: String,
    },
    /// A file or a socket of cynode failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
