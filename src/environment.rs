//! Environment of the programs that cynode starts.

use std::env;
use tokio::process::Command;

/// Prefixes of variables that are for this process alone: secrets, settings, and what systemd hands over.
const PRIVATE_PREFIXES: [&str; 6] = [
    "CREDENTIALS_DIRECTORY",
    "CYNODE_",
    "CYNORK_",
    "LISTEN_",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
];

/// Removes secrets and settings of this process from the environment of a program.
pub(crate) fn scrub(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if PRIVATE_PREFIXES
            .iter()
            .any(|prefix| bytes.starts_with(prefix.as_bytes()))
        {
            command.env_remove(name);
        }
    }
    command
}
