//! Flags and arguments of the client commands.

use super::{
    EgressFlags, FileFlags, ResourceFlags, SecretFlags, TaskArtifactsArgs, TrustFlags, number,
    parse_duration, values::parse_pull,
};
use crate::api::jobs::PullPolicy;
use clap::{Args, Subcommand, ValueEnum, builder::UnknownArgumentValueParser};
use std::{path::PathBuf, time::Duration};

/// Flags of every client command: where the orchestrator is, and how to print.
#[derive(Args, Clone, Debug)]
pub struct ClientFlags {
    /// URL of the orchestrator's User API [default: the last login's, else http://127.0.0.1:12080]
    #[arg(
        long,
        env = "CYNODE_GATEWAY_URL",
        value_name = "URL",
        help_heading = "Connection"
    )]
    pub gateway_url: Option<String>,
    #[command(flatten)]
    pub trust: TrustFlags,
    /// Output format
    #[arg(long, short, env = "CYNODE_OUTPUT", default_value = "text")]
    pub output: OutputFormat,
}

/// Output format of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OutputFormat {
    Text,
    Json,
}

/// Settings of a new task.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sandbox")]
pub struct TaskFlags {
    /// Image of the sandbox, or snapshot:NAME [default: the orchestrator's --default-image]
    #[arg(long)]
    pub image: Option<String>,
    /// Set a variable; NAME alone copies it from your environment; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Kill the command after this time, such as 90s, 5m or 10h; at most what the node allows [default: 1h]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL when the command is stopped, at most 5m; 0s: kill at once [default: 5s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub grace: Option<Duration>,
    /// Pull the image: missing, where the node lacks it; always, before each attempt; never [default: missing]
    #[arg(long, value_name = "WHEN", value_parser = parse_pull)]
    pub pull: Option<PullPolicy>,
    /// Run only on the node with this slug
    #[arg(long, value_name = "SLUG", help_heading = "Scheduling")]
    pub node: Option<String>,
    /// Run only on nodes with this label; repeatable
    #[arg(long, value_name = "LABEL", help_heading = "Scheduling")]
    pub label: Vec<String>,
    /// Name the task; a number is added if you have used the name before
    #[arg(long, help_heading = "Scheduling")]
    pub name: Option<String>,
    /// Maximum attempts when a node fails or is lost, 1 to 100; 1: never run the command twice [default: 3]
    #[arg(long, value_name = "N", value_parser = number::<u32, _>(..), help_heading = "Scheduling")]
    pub max_attempts: Option<u32>,
    /// Priority among your own tasks, -100 to 100; higher starts sooner [default: 0]
    #[arg(
        long,
        value_name = "N",
        value_parser = number::<i32, _>(..),
        allow_negative_numbers = true,
        help_heading = "Scheduling"
    )]
    pub priority: Option<i32>,
    #[command(flatten)]
    pub files: FileFlags,
    #[command(flatten)]
    pub secrets: SecretFlags,
    #[command(flatten)]
    pub limits: ResourceFlags,
    #[command(flatten)]
    pub egress: EgressFlags,
}

/// Tip where `cynode run` is given a prompt.
const PROMPT_TIP: &str = "a prompt is a task of its own: cynode task create --prompt TEXT";

#[derive(Args, Debug)]
pub struct RunArgs {
    /// Print the task's id and return immediately
    #[arg(long, short)]
    pub detach: bool,
    /// Pass stdin to the command while it runs; the task then has one attempt
    #[arg(long, short, conflicts_with = "detach")]
    pub interactive: bool,
    /// Give the command a terminal: yours; Ctrl-P Ctrl-Q leaves it running
    #[arg(long, short, conflicts_with_all = ["detach", "download"])]
    pub tty: bool,
    /// Download the files in /workspace that match, after the end, to DIR [default: .]; repeatable
    ///
    /// Files keep their path in /workspace: `--download 'out/*.json'` writes out/a.json, and `--download
    /// 'out/*.json:results'` writes results/out/a.json. They are downloaded however the command ended.
    #[arg(
        long,
        value_name = "GLOB[:DIR]",
        help_heading = "Files",
        conflicts_with = "detach"
    )]
    pub download: Vec<String>,
    // Flag of another command, which its users look for here; it is always refused.
    #[arg(long, hide = true, value_name = "TEXT", value_parser = UnknownArgumentValueParser::suggest(PROMPT_TIP))]
    pub prompt: Option<String>,
    /// Command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub sandbox: TaskFlags,
}

#[derive(Subcommand, Debug)]
pub enum TaskCommand {
    /// Create a task and print its id
    Create(Box<TaskCreateArgs>),
    /// List tasks, newest first
    List(TaskListArgs),
    /// Show one task
    #[command(visible_alias = "show")]
    Get(TaskArgs),
    /// Show a task's result and output
    Result(TaskArgs),
    /// Print a task's output
    Logs(TaskLogsArgs),
    /// List the files that were collected from a task, or download them
    Artifacts(TaskArtifactsArgs),
    /// Cancel tasks: TERM for the command, then KILL after its grace
    Cancel(TaskCancelArgs),
    /// Delete finished tasks with their output, before their retention ends
    #[command(visible_alias = "rm")]
    Delete(TasksArgs),
    /// Wait for tasks to end and exit with the exit code of the first that failed
    Wait(TasksArgs),
}

#[derive(Args, Debug)]
pub struct TaskCreateArgs {
    /// Script for /bin/sh instead of a command; - reads it from stdin
    #[arg(long, value_name = "TEXT", conflicts_with = "command")]
    pub script: Option<String>,
    /// Script file for /bin/sh
    #[arg(long, value_name = "FILE", conflicts_with_all = ["command", "script"])]
    pub script_file: Option<PathBuf>,
    /// Prompt for a model, whose answer is the task's stdout; - reads it from stdin
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["command", "script", "script_file", "stdin"])]
    pub prompt: Option<String>,
    /// Model that answers the prompt [default: the orchestrator's --default-model, else one that is loaded]
    #[arg(long, requires = "prompt")]
    pub model: Option<String>,
    /// Content of the command's stdin, at most 10 MiB; - reads yours to its end
    #[arg(long, value_name = "FILE")]
    pub stdin: Option<PathBuf>,
    /// Command and arguments
    #[arg(
        trailing_var_arg = true,
        required_unless_present_any = ["script", "script_file", "prompt"],
        value_name = "CMD"
    )]
    pub command: Vec<String>,
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub sandbox: TaskFlags,
}

#[derive(Args, Debug)]
pub struct TaskListArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// List only tasks that are queued, running, completed, failed or canceled
    #[arg(long)]
    pub status: Option<String>,
    /// List only tasks of this name, with a number or without
    #[arg(long)]
    pub name: Option<String>,
    /// Maximum number of tasks, 1 to 200
    #[arg(long, default_value_t = 20, value_parser = number::<u32, _>(1..=200), value_name = "N")]
    pub limit: u32,
    /// Continue after the previous page: the cursor that it ended with
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Args, Debug)]
pub struct TaskArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Id or name of the task, or the first 8 or more characters of its id
    pub id: String,
}

#[derive(Args, Debug)]
pub struct TaskCancelArgs {
    #[command(flatten)]
    pub tasks: TasksArgs,
    /// Kill the command at once, also during its grace
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct TasksArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Ids or names of the tasks, or the first 8 or more characters of their ids
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

/// Output stream of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

impl OutputStream {
    /// Name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Args, Debug)]
pub struct TaskLogsArgs {
    #[command(flatten)]
    pub task: TaskArgs,
    /// Follow the output until the task ends; with --output json, one event per line
    #[arg(long, short)]
    pub follow: bool,
    /// Show only the last lines of the output, both streams together
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// Show only output since a time (RFC 3339) or of the last while, such as 10m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Begin each line with its time
    #[arg(long)]
    pub timestamps: bool,
    /// Show only this stream
    #[arg(long, value_name = "STREAM")]
    pub stream: Option<OutputStream>,
    /// Show also, on stderr, which hosts the task asked for; with --output json, one event per line
    #[arg(long, conflicts_with = "stream")]
    pub events: bool,
}

#[derive(Subcommand, Debug)]
pub enum UsersCommand {
    /// List all users
    List(ClientFlags),
    /// Create a user
    Create(UserCreateArgs),
    /// Disable a user immediately
    Disable(UserDisableArgs),
    /// Enable a disabled user
    Enable(UserArgs),
    /// End all sessions of a user immediately
    RevokeSessions(UserArgs),
    /// Set a new password and end all sessions of the user
    ResetPassword(UserResetArgs),
}

#[derive(Args, Debug)]
pub struct UserArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Handle of the user
    pub handle: String,
}

#[derive(Args, Debug)]
pub struct UserDisableArgs {
    #[command(flatten)]
    pub user: UserArgs,
    /// Do not ask, even if you disable yourself
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct UserCreateArgs {
    #[command(flatten)]
    pub user: UserArgs,
    #[command(flatten)]
    pub password: NewPasswordFlags,
    /// Email address
    #[arg(long)]
    pub email: Option<String>,
    /// Make the user an admin
    #[arg(long)]
    pub admin: bool,
}

#[derive(Args, Debug)]
pub struct UserResetArgs {
    #[command(flatten)]
    pub user: UserArgs,
    #[command(flatten)]
    pub password: NewPasswordFlags,
}

/// Source of a new password; without one, the command asks for it.
#[derive(Args, Debug)]
pub struct NewPasswordFlags {
    /// Generate a password and show it once
    #[arg(long, conflicts_with = "new_password_file")]
    pub generate: bool,
    /// Read the new password from a file
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct AuditArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Show only this action, such as auth.login or user.create
    #[arg(long)]
    pub action: Option<String>,
    /// Show only events by or about this user or node
    #[arg(long, value_name = "NAME")]
    pub who: Option<String>,
    /// Maximum number of events, 1 to 200
    #[arg(long, default_value_t = 20, value_parser = number::<u32, _>(1..=200), value_name = "N")]
    pub limit: u32,
    /// Continue after the previous page: the cursor that it ended with
    #[arg(long)]
    pub cursor: Option<String>,
}
