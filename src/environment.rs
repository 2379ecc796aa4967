//! What of our own environment is not for the programs that we start.

use std::env;
use tokio::process::Command;

/// Our secrets and settings, and what systemd told us alone.
const OURS: [&str; 6] = [
    "CREDENTIALS_DIRECTORY",
    "CYNODE_",
    "CYNORK_",
    "LISTEN_",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
];

/// Takes it out of what a program gets.
pub(crate) fn close(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if OURS.iter().any(|ours| bytes.starts_with(ours.as_bytes())) {
            command.env_remove(name);
        }
    }
    command
}
