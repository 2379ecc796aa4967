//! Flags of the client commands: what users say.

use super::duration;
use clap::{Args, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

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
    /// Name the task; a number is added if you have used the name before
    #[arg(long)]
    pub name: Option<String>,
    /// How often a lost node may be made up for; 1 never runs it twice
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<u32>,
    /// Before your other tasks, or behind them when below 0: -100 to 100 [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,
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
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
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
    #[arg(long, value_name = "TEXT", conflicts_with = "command")]
    pub script: Option<String>,
    /// A file with text for /bin/sh
    #[arg(long, value_name = "FILE", conflicts_with_all = ["command", "script"])]
    pub script_file: Option<PathBuf>,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        required_unless_present_any = ["script", "script_file"],
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
    /// List only tasks of this name, with a number or without
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
    /// The task's id, its name, or 8 or more characters from the beginning of its id
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
    /// Forget a node that is gone, so that another machine may take its slug
    Forget(NodeForget),
}

#[derive(Args, Debug)]
pub struct NodeSlug {
    #[command(flatten)]
    pub client: Client,
    /// The node's slug
    pub slug: String,
}

#[derive(Args, Debug)]
pub struct NodeForget {
    #[command(flatten)]
    pub node: NodeSlug,
    /// Do not ask, even if the node is alive
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub enum UsersCommand {
    /// List all users
    List(Client),
    /// Create a user
    Create(UserCreate),
    /// Disable a user immediately
    Disable(UserDisable),
    /// Let a disabled user in again
    Enable(UserName),
    /// End all sessions of a user, at once
    RevokeSessions(UserName),
    /// Give a user another password, and end their sessions
    ResetPassword(UserReset),
}

#[derive(Args, Debug)]
pub struct UserName {
    #[command(flatten)]
    pub client: Client,
    /// The user's name
    pub handle: String,
}

#[derive(Args, Debug)]
pub struct UserDisable {
    #[command(flatten)]
    pub user: UserName,
    /// Do not ask, even if you disable yourself
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct UserCreate {
    #[command(flatten)]
    pub user: UserName,
    #[command(flatten)]
    pub password: NewPassword,
    /// A mail address, for people to write to
    #[arg(long)]
    pub email: Option<String>,
    /// Let the user see and change everything
    #[arg(long)]
    pub admin: bool,
}

#[derive(Args, Debug)]
pub struct UserReset {
    #[command(flatten)]
    pub user: UserName,
    #[command(flatten)]
    pub password: NewPassword,
}

/// Where a new password comes from; asked for when nothing is said.
#[derive(Args, Debug)]
pub struct NewPassword {
    /// Make up a password, and show it once
    #[arg(long, conflicts_with = "new_password_file")]
    pub generate: bool,
    /// A file that holds the new password
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct AuditArgs {
    #[command(flatten)]
    pub client: Client,
    /// Only this action, such as auth.login or user.create
    #[arg(long)]
    pub action: Option<String>,
    /// Only what this user or node did, or what was done to it
    #[arg(long, value_name = "NAME")]
    pub who: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub limit: u32,
    /// Read on after an earlier list
    #[arg(long)]
    pub cursor: Option<String>,
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
