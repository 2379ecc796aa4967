//! Every subcommand and flag, grouped as a user reads `--help`.
//!
//! These are the raw arguments; [`crate::roles`] turns those of a role into its settings.
//! Each flag has an environment twin `CYNODE_<FLAG>`; a flag beats it.

#![allow(
    missing_docs,
    reason = "doc comments are help texts here; flattened groups have none of their own"
)]

use crate::node::InferenceMode;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
#[derive(Args, Debug)]
pub struct Common {
    /// Log what is at least this important: error, warn, info, debug, trace
    #[arg(
        long,
        global = true,
        env = "CYNODE_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL"
    )]
    pub log_level: String,
    /// How log lines look
    #[arg(long, global = true, env = "CYNODE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
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
    /// List nodes, and drain or resume one
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Whether the orchestrator and its nodes can do work
    Status(Client),

    /// Log in; asks for the password unless it is given
    Login(LoginArgs),
    /// Log out, here and at the orchestrator
    Logout(Client),
    /// Who you are logged in as
    Whoami(Client),

    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// Where state is kept.
#[derive(Args, Debug)]
pub struct State {
    /// Where state is kept [default: $XDG_STATE_HOME/cynode; root: /var/lib/cynode]
    #[arg(long, env = "CYNODE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// The pre-shared key.
#[derive(Args, Debug)]
pub struct Psk {
    /// The pre-shared key by which nodes register
    #[arg(
        long,
        env = "CYNODE_PSK",
        hide_env_values = true,
        value_name = "KEY",
        conflicts_with = "psk_file"
    )]
    pub psk: Option<String>,
    /// A file that holds the pre-shared key
    #[arg(long, env = "CYNODE_PSK_FILE", value_name = "FILE")]
    pub psk_file: Option<PathBuf>,
}

/// What an orchestrator is told, alone or in `dev`.
#[derive(Args, Debug)]
pub struct OrchestratorFlags {
    /// Where users reach it; port 0 takes a free one
    #[arg(
        long,
        env = "CYNODE_GATEWAY_LISTEN",
        default_value = "127.0.0.1:12080",
        value_name = "ADDR:PORT"
    )]
    pub gateway_listen: SocketAddr,
    /// The first admin's password, from a file; counts only at the first start
    #[arg(long, env = "CYNODE_ADMIN_PASSWORD_FILE", value_name = "FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// The image of a task that names none
    #[arg(
        long,
        env = "CYNODE_DEFAULT_IMAGE",
        default_value = "docker.io/library/alpine:latest",
        value_name = "IMAGE"
    )]
    pub default_image: String,
}

#[derive(Args, Debug)]
pub struct ServeOrchestrator {
    #[command(flatten)]
    pub state: State,
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Where nodes reach it
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "0.0.0.0:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// How nodes are to call it [default: the address they came by]
    #[arg(long, env = "CYNODE_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub psk: Psk,
    /// Reach the node SLUG at URL, whatever it says; repeatable
    #[arg(
        long,
        env = "CYNODE_WORKER_URL",
        value_name = "SLUG=URL",
        value_delimiter = ','
    )]
    pub worker_url: Vec<String>,
    /// Have nodes run this model server image
    #[arg(long, env = "CYNODE_INFERENCE_IMAGE", value_name = "IMAGE")]
    pub inference_image: Option<String>,
    /// Be ready only while a node has inference running
    #[arg(long, env = "CYNODE_REQUIRE_INFERENCE", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub require_inference: bool,
}

/// What a machine that runs sandboxes is told.
#[derive(Args, Debug)]
pub struct SandboxFlags {
    /// Where the Worker API listens; port 0 takes a free one
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        default_value = "0.0.0.0:12090",
        value_name = "ADDR:PORT"
    )]
    pub worker_listen: SocketAddr,
    #[command(flatten)]
    pub engine: EngineFlags,
    /// An image to fetch before the first job asks for it
    #[arg(long, env = "CYNODE_DEFAULT_IMAGE", value_name = "IMAGE")]
    pub default_image: Option<String>,
}

/// How sandboxes are run.
#[derive(Args, Debug)]
pub struct EngineFlags {
    /// Jobs at the same time [default: CPU cores]
    #[arg(long, env = "CYNODE_MAX_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrency: Option<u32>,
    /// Allow only images that match, such as docker.io/library/*; repeatable [default: all]
    #[arg(
        long,
        env = "CYNODE_ALLOWED_IMAGE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub allowed_image: Vec<String>,
    /// Name or path of podman
    #[arg(
        long,
        env = "CYNODE_ENGINE",
        default_value = "podman",
        value_name = "PROGRAM"
    )]
    pub engine: PathBuf,
    /// The OCI runtime that podman is to use [default: the first that works here]
    #[arg(long, env = "CYNODE_ENGINE_RUNTIME", value_name = "RUNTIME")]
    pub engine_runtime: Option<String>,
    /// How long running jobs may go on at shutdown, such as 10s
    #[arg(long, env = "CYNODE_SHUTDOWN_GRACE", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub shutdown_grace: Duration,
}

/// Who a node is.
#[derive(Args, Debug)]
pub struct Identity {
    /// This machine's name in commands [default: the host's name]
    #[arg(long, env = "CYNODE_SLUG")]
    pub slug: Option<String>,
    /// Its name for people
    #[arg(long, env = "CYNODE_NAME")]
    pub name: Option<String>,
    /// What tasks may ask for, such as gpu or zone=attic; repeatable
    #[arg(
        long,
        env = "CYNODE_LABEL",
        value_name = "LABEL",
        value_delimiter = ','
    )]
    pub label: Vec<String>,
    /// Whether to run a model server: auto follows the orchestrator
    #[arg(long, env = "CYNODE_INFERENCE", value_name = "MODE")]
    pub inference: Option<InferenceMode>,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub state: State,
    /// The orchestrator's control plane, such as http://192.168.1.5:12082
    #[arg(long, env = "CYNODE_ORCHESTRATOR", value_name = "URL")]
    pub orchestrator: String,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    /// Where the orchestrator reaches this node [default: the address that leads to it]
    #[arg(long, env = "CYNODE_ADVERTISE_URL", value_name = "URL")]
    pub advertise_url: Option<String>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub state: State,
    /// A file that holds the token callers must show (or CYNODE_WORKER_TOKEN)
    #[arg(long, env = "CYNODE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub sandbox: SandboxFlags,
}

#[derive(Args, Debug)]
pub struct Dev {
    #[command(flatten)]
    pub state: State,
    #[command(flatten)]
    pub flags: OrchestratorFlags,
    /// Where its node reaches it
    #[arg(
        long,
        env = "CYNODE_CONTROL_LISTEN",
        default_value = "127.0.0.1:12082",
        value_name = "ADDR:PORT"
    )]
    pub control_listen: SocketAddr,
    /// Where its Worker API listens
    #[arg(
        long,
        env = "CYNODE_WORKER_LISTEN",
        default_value = "127.0.0.1:12090",
        value_name = "ADDR:PORT"
    )]
    pub worker_listen: SocketAddr,
    #[command(flatten)]
    pub psk: Psk,
    #[command(flatten)]
    pub identity: Identity,
    #[command(flatten)]
    pub engine: EngineFlags,
}

/// How a client command reaches the orchestrator and prints.
#[derive(Args, Clone, Debug)]
pub struct Client {
    /// The orchestrator's User API [default: where you logged in last, else http://127.0.0.1:12080]
    #[arg(long, env = "CYNODE_GATEWAY_URL", value_name = "URL")]
    pub gateway_url: Option<String>,
    /// Text for people, JSON for programs
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: Output,
}

/// How a client command prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// What a sandbox gets.
#[derive(Args, Debug)]
pub struct SandboxOptions {
    /// The sandbox's image [default: the orchestrator's]
    #[arg(long)]
    pub image: Option<String>,
    /// Set a variable, as NAME=VALUE; NAME alone takes it from here; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// End it after this time, such as 90s, 5m or 2h
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Only on a node with this label; repeatable
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// A name to find the task by
    #[arg(long)]
    pub name: Option<String>,
    /// How often a lost node may be made up for; 1 never runs it twice
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<u32>,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub client: Client,
    #[command(flatten)]
    pub sandbox: SandboxOptions,
    /// Print the task's id and return at once
    #[arg(long, short)]
    pub detach: bool,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        required = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<String>,
}

#[derive(Subcommand, Debug)]
pub enum TaskCommand {
    /// Create a task and print its id
    Create(CreateArgs),
    /// List tasks, newest first
    List(ListArgs),
    /// Show one task
    Get(TaskId),
    /// Show how a task ended, with its output
    Result(TaskId),
    /// Print what a task printed
    Logs(LogsArgs),
    /// End a task
    Cancel(TaskId),
    /// Wait for a task's end and exit with its exit code
    Wait(TaskId),
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub client: Client,
    #[command(flatten)]
    pub sandbox: SandboxOptions,
    /// Text for /bin/sh, instead of a command; - reads it from stdin
    #[arg(long, conflicts_with = "command")]
    pub script: Option<String>,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        required_unless_present = "script",
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub client: Client,
    /// Only queued, running, completed, failed or canceled ones
    #[arg(long)]
    pub status: Option<String>,
    /// Only those of this name
    #[arg(long)]
    pub name: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub limit: u32,
    /// Read on after an earlier list
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Args, Debug)]
pub struct TaskId {
    #[command(flatten)]
    pub client: Client,
    /// The task's id
    pub id: String,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    #[command(flatten)]
    pub task: TaskId,
    /// Go on until the task ends
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Subcommand, Debug)]
pub enum NodesCommand {
    /// List all nodes
    List(Client),
    /// Show one node
    Show(NodeSlug),
    /// Give a node no more jobs
    Drain(NodeSlug),
    /// Give a drained node jobs again
    Resume(NodeSlug),
}

#[derive(Args, Debug)]
pub struct NodeSlug {
    #[command(flatten)]
    pub client: Client,
    /// The node's slug
    pub slug: String,
}

#[derive(Args, Debug)]
pub struct LoginArgs {
    #[command(flatten)]
    pub client: Client,
    /// Your name
    #[arg(long, env = "CYNODE_HANDLE", default_value = "admin")]
    pub handle: String,
    /// A file that holds your password (or CYNODE_PASSWORD)
    #[arg(long, env = "CYNODE_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// `90`, `90s`, `5m`, `2h`, `1d`, or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
