//! Every subcommand and flag, grouped as a user reads `--help`.
//!
//! These are the raw arguments; [`crate::roles`] turns those of a role into its settings.
//! Each flag has an environment twin `CYNODE_<FLAG>`; a flag beats it.

#![allow(
    missing_docs,
    reason = "doc comments are help texts here; flattened groups have none of their own"
)]

mod client;
mod doctor;
mod roles;

pub use client::*;
pub use doctor::*;
pub use roles::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::time::Duration;

/// cynode runs your team's commands in fresh, network-less sandboxes on machines of your own.
#[derive(Parser, Debug)]
#[command(
    name = "cynode",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every subcommand takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Log what is at least this important [default: info]
    #[arg(long, global = true, env = "CYNODE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// How log lines look [default: text]
    #[arg(long, global = true, env = "CYNODE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// From which importance on something is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Everything on this machine in one process, and you logged in: the quickest start
    Dev(Box<Dev>),
    /// Take users' tasks and give them to nodes
    ServeOrchestrator(Box<ServeOrchestrator>),
    /// Join this machine to an orchestrator and run its sandboxes
    Node(Box<NodeArgs>),
    /// The Worker API alone, for whoever shows its token
    Worker(Box<WorkerArgs>),

    /// Run a command in a sandbox, print its output live, and exit with its exit code
    Run(RunArgs),
    /// Create, list and read tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// List nodes, and drain, resume or forget one
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Create, list, disable and enable users, end their sessions, reset passwords; for admins
    #[command(subcommand)]
    Users(UsersCommand),
    /// Who did what: logins, registrations, administration; for admins
    Audit(AuditArgs),
    /// Whether the orchestrator and its nodes can do work
    Status(Client),

    /// Log in; asks for the password unless it is given
    Login(LoginArgs),
    /// Log out, here and at the orchestrator
    Logout(Client),
    /// Who you are logged in as
    Whoami(Client),

    /// Copy an orchestrator's database into a new file, also while it runs
    Backup(BackupArgs),
    /// What on this machine would keep a role from working, and how to mend it
    Doctor(Box<DoctorArgs>),
    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// `90`, `90s`, `5m`, `2h`, `1d`, or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write it like 90s, 5m or 2h".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write it like 90s, 5m or 2h".to_owned())?;
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

/// `64MiB`, `2GiB`; a bare number is bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write it like 64MiB or 2GiB".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    Ok(number.saturating_mul(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86_400),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "m", "5 m", "-1s", "1.5s", "5w"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("7", 7), ("7B", 7), ("64MiB", 64 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64M", "-1", "1.5GiB", "64 MiB", "64mib"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(size("99999999999TiB"), Ok(u64::MAX));
    }

    proptest! {
        #[test]
        fn a_duration_is_a_number_and_a_unit(number: u64, unit in 0usize..6, text in "[0-9smhd .+-]{0,6}|[0-9]{18,22}[sd]?") {
            let (unit, millis) = [("ms", 1), ("", 1000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)][unit];
            // What no clock can count is as long as can be counted.
            let expected = u64::try_from(u128::from(number) * millis).unwrap_or(u64::MAX);
            prop_assert_eq!(duration(&format!("{number}{unit}")), Ok(Duration::from_millis(expected)));
            if duration(&text).is_ok() {
                let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
                prop_assert!(["ms", "", "s", "m", "h", "d"].contains(&unit) && unit.len() < text.len());
            }
        }
    }
}
