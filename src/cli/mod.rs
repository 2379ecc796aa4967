//! Subcommands and flags, grouped as `--help` shows them.
//!
//! These are the raw arguments; [`crate::roles`] turns those of a role into its settings. Each flag of a role has
//! an environment twin `CYNODE_<FLAG>`, which the flag overrides. A renamed setting keeps its old name for one
//! release ([`old_names`]).

#![allow(
    missing_docs,
    reason = "doc comments are help texts here; a flattened group has none of its own"
)]

mod chat;
mod client;
mod doctor;
mod egress;
mod files;
mod images;
mod keys;
mod login;
mod models;
mod nodes;
mod old_names;
mod orchestrator;
mod roles;
mod sandbox;
mod sandboxes;
mod secrets;
mod tls;
mod values;
mod variables;

pub use chat::*;
pub use client::*;
pub use doctor::*;
pub use egress::*;
pub use files::*;
pub use images::*;
pub use keys::*;
pub use login::*;
pub use models::*;
pub use nodes::*;
pub use orchestrator::*;
pub use roles::*;
pub use sandbox::*;
pub use sandboxes::*;
pub use secrets::*;
pub use tls::*;
pub(crate) use variables::warn_about_unknown;

pub(crate) use egress::{parse_entry, parse_upstream};
pub(crate) use old_names::notices as old_name_notices;
use values::parse_lease;
pub(crate) use values::{
    number, parse_duration, parse_duration_or_off, parse_listen, parse_network, parse_size,
};

use crate::exit::Failure;
use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use std::{env, ffi::OsString};

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
    pub log: AnyLogFlags,
    #[command(subcommand)]
    pub command: Command,
}

/// Parses the command line of this process. Prints the help, or clap's own error, and ends the process.
pub fn parse() -> Result<Cli, Failure> {
    let words: Vec<_> = env::args_os().collect();
    parse_from(&words).or_else(|error| {
        if error.kind() == ErrorKind::ArgumentConflict {
            // For clap, an old and a new name are the same flag, given twice.
            old_names::check_conflict(&words)?;
        }
        error.exit()
    })
}

/// Parses a command line. An error names the flag or the variable that was given, also where it is an old name.
pub(crate) fn parse_from(words: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words).map_err(|error| old_names::name_source(error, words))
}

/// Flags of the log, for the commands that write one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogFlags {
    /// Log messages of this level and above [default: info]
    #[arg(long, env = "CYNODE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// Format of log lines [default: text]
    #[arg(long, env = "CYNODE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Flags of the log on all other commands, and before the command: hidden, and accepted for one release.
#[derive(Args, Clone, Debug)]
pub struct AnyLogFlags {
    #[arg(long, global = true, hide = true)]
    log_level: Option<LogLevel>,
    #[arg(long, global = true, hide = true)]
    log_format: Option<LogFormat>,
}

impl AnyLogFlags {
    /// Whether one of them was given.
    pub const fn is_given(&self) -> bool {
        self.log_level.is_some() || self.log_format.is_some()
    }
}

/// Least importance of a message that is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Format of log lines.
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
    /// Ctrl-C, SIGTERM and a closed output pipe (as with `| head`) cancel the task; a second Ctrl-C kills its
    /// command at once, and a third leaves it alone and exits. Use --detach for a task that must outlive this command.
    /// With -t the command gets your terminal, in a sandbox that is removed at its end.
    Run(Box<RunArgs>),
    /// Create, list, read and cancel tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// Create and use sandboxes that stay: run commands one after the other, copy files, open a terminal
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Run a command in the sandbox of a running task
    ///
    /// Input from a pipe or file is passed to the command. Ctrl-C interrupts the command; a second one leaves it alone
    /// and exits.
    Exec(Box<TaskExecArgs>),
    /// Open a terminal in the sandbox of a running task
    ///
    /// Ctrl-P Ctrl-Q leaves the program inside running and shows how to come back.
    Shell(TaskShellArgs),
    /// List, upload, download and delete artifacts: files for tasks and files of tasks
    #[command(subcommand)]
    Artifacts(ArtifactsCommand),
    /// Send images of this machine to nodes (admins only)
    #[command(subcommand)]
    Images(ImagesCommand),
    /// List, pull and delete models of nodes
    Models(ModelsArgs),
    /// Chat with a model that a node serves, or ask it one question
    ///
    /// At a terminal this is a conversation: answers appear as they are written, Ctrl-C stops an answer, /help lists the
    /// commands, and the arrow keys bring back what you typed, also in earlier chats. With --message, or with input from
    /// a pipe or file, it asks once and prints the answer: `git diff | cynode chat -m "review this"`. Piped input is read
    /// to its end; </dev/null where there is none to read.
    Chat(Box<ChatArgs>),

    /// List, drain, resume and forget nodes, and create tokens by which new ones join
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Create, list, disable and enable users, reset passwords (admins only)
    #[command(subcommand)]
    Users(UsersCommand),
    /// Create, list and revoke API keys, with which programs call the orchestrator
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Store secrets, such as tokens, that tasks and sandboxes get as variables
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Show the use of models: requests and tokens by user, API key and model
    Usage(UsageArgs),
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
    /// Change your password
    Passwd(PasswdArgs),

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

impl Command {
    /// Whether the command writes a log.
    pub const fn writes_log(&self) -> bool {
        matches!(
            self,
            Self::Dev(_) | Self::ServeOrchestrator(_) | Self::Node(_) | Self::Worker(_)
        )
    }
}

/// Says why a flag of logs was given to a command that logs nothing.
pub const LOG_FLAGS_NOTICE: &str =
    "warning: --log-level and --log-format are deprecated here; this command writes no log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn log_flags_work_before_and_after_role() {
        for words in [
            ["cynode", "--log-level=debug", "node"],
            ["cynode", "node", "--log-level=debug"],
        ] {
            let Command::Node(args) = Cli::try_parse_from(words).unwrap().command else {
                panic!("not a node");
            };
            assert_eq!(args.log.log_level, Some(LogLevel::Debug), "{words:?}");
        }
        let other = Cli::try_parse_from(["cynode", "version", "--log-level=debug"]).unwrap();
        assert!(other.log.is_given());
    }
}
