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
mod orchestrator;
mod roles;
mod sandbox;
mod variables;

pub use client::*;
pub use doctor::*;
pub use orchestrator::*;
pub use roles::*;
pub use sandbox::*;
pub(crate) use variables::warn_about_unknown;

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
    pub common: LogFlags,
    #[command(subcommand)]
    pub command: Command,
}

/// What every subcommand takes.
#[derive(Args, Clone, Debug)]
pub struct LogFlags {
    /// Log messages of this level and above [default: info]
    #[arg(long, global = true, env = "CYNODE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// Format of log lines [default: text]
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
    /// Run all roles on this machine in one process and log in: the quickest start
    Dev(Box<DevArgs>),
    /// Run the orchestrator: accept tasks and schedule them on nodes
    ServeOrchestrator(Box<ServeOrchestratorArgs>),
    /// Join this machine to an orchestrator as a node and run sandboxes
    Node(Box<NodeArgs>),
    /// Run only the Worker API, protected by a token
    Worker(Box<WorkerArgs>),

    /// Run a command in a sandbox, print its output live, and exit with its exit code
    ///
    /// Ctrl-C, SIGTERM and a closed output pipe (as with `| head`) cancel the task; a second Ctrl-C leaves it
    /// running and exits. Use --detach for a task that must outlive this command.
    Run(RunArgs),
    /// Create, list, read and cancel tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// List, drain, resume and forget nodes
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Create, list, disable and enable users, reset passwords (admins only)
    #[command(subcommand)]
    Users(UsersCommand),
    /// Show the audit log: logins, registrations, administration (admins only)
    Audit(AuditArgs),
    /// Show whether the orchestrator and its nodes are ready
    Status(ClientFlags),

    /// Log in (asks for the password unless it is given)
    Login(LoginArgs),
    /// Log out
    Logout(ClientFlags),
    /// Show who you are logged in as
    Whoami(ClientFlags),

    /// Back up the orchestrator's database to a new file, even while it runs
    Backup(BackupArgs),
    /// Check this machine and show how to fix what is wrong
    Doctor(Box<DoctorArgs>),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// `90`, `90s`, `5m`, `2h`, `1d`, or `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
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

/// The same, or `off`, which is none.
pub(crate) fn parse_duration_or_off(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        _ => parse_duration(text).map_err(|advice| format!("{advice}, or off")),
    }
}

/// `64MiB`, `2GiB`; a bare number is bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
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
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "m", "5 m", "-1s", "1.5s", "5w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("7", 7), ("7B", 7), ("64MiB", 64 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64M", "-1", "1.5GiB", "64 MiB", "64mib"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size("99999999999TiB"), Ok(u64::MAX));
    }

    proptest! {
        #[test]
        fn a_duration_is_a_number_and_a_unit(number: u64, unit in 0usize..6, text in "[0-9smhd .+-]{0,6}|[0-9]{18,22}[sd]?") {
            let (unit, millis) = [("ms", 1), ("", 1000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)][unit];
            // What no clock can count is as long as can be counted.
            let expected = u64::try_from(u128::from(number) * millis).unwrap_or(u64::MAX);
            prop_assert_eq!(parse_duration(&format!("{number}{unit}")), Ok(Duration::from_millis(expected)));
            if parse_duration(&text).is_ok() {
                let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
                prop_assert!(["ms", "", "s", "m", "h", "d"].contains(&unit) && unit.len() < text.len());
            }
        }
    }
}
