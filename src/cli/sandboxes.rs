//! Arguments of `cynode sandbox`, `cynode exec` and `cynode shell`.

use super::{ClientFlags, EgressFlags, ResourceFlags, SecretFlags, number, parse_duration};
use crate::api::{nodes::check_slug, snapshots};
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum SandboxCommand {
    /// Create a sandbox, wait until it runs, and print its id
    ///
    /// It stays until it is removed, its lifetime is over, or it has not been used for its idle timeout. Files that
    /// commands leave in it are there for the next one.
    Create(Box<SandboxCreateArgs>),
    /// List your sandboxes, newest first
    List(SandboxListArgs),
    /// Show one sandbox and its commands
    #[command(visible_alias = "get")]
    Show(SandboxArgs),
    /// Run a command in a sandbox, with its output live and its exit code
    ///
    /// Input from a pipe or file is passed to the command while it runs. Ctrl-C interrupts the command; a second one
    /// leaves it alone and exits.
    Exec(Box<SandboxExecArgs>),
    /// Open a terminal in a sandbox
    ///
    /// Ctrl-C and the other keys go to the program inside. Ctrl-P Ctrl-Q leaves it running and shows how to come back.
    Shell(SandboxShellArgs),
    /// Copy files and directories into a sandbox or out of it, as `docker cp`
    ///
    /// One of both is NAME:PATH, a path in a sandbox; a relative one is below /workspace. `-` in place of the other is a
    /// tar archive on stdin or stdout. A directory lands in a directory that exists, under its own name, or else becomes
    /// the destination; with `/.` at its end, its content lands there.
    Cp(SandboxCpArgs),
    /// List files in a sandbox
    Ls(SandboxLsArgs),
    /// Print the output of a command in a sandbox
    Logs(SandboxLogsArgs),
    /// Show which hosts the commands in a sandbox asked for
    Events(SandboxEventsArgs),
    /// Give a sandbox a new lifetime, counted from now
    Renew(SandboxRenewArgs),
    /// Remove sandboxes with all that is in them
    #[command(visible_alias = "delete")]
    Rm(SandboxesArgs),
    /// Save the files of a sandbox as a snapshot, to start others from
    ///
    /// A snapshot has the files in /workspace and those that changed in the image; processes are not saved. It stays on
    /// the node of the sandbox. `cynode sandbox create --image snapshot:NAME` and `cynode run --image snapshot:NAME` start
    /// from it, there. One of the same name is replaced.
    Snapshot(SandboxSnapshotArgs),
    /// List your snapshots, by name
    Snapshots(SnapshotListArgs),
    /// Delete snapshots that no sandbox uses
    ///
    /// A snapshot that queued tasks or sandboxes of yours wait for is kept, unless --force is given: then they fail.
    RmSnapshot(SnapshotsArgs),
}

#[derive(Args, Debug)]
pub struct SandboxCreateArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name the sandbox; none of your other sandboxes may have the name
    #[arg(long)]
    pub name: Option<String>,
    /// Image of the sandbox, or snapshot:NAME [default: the orchestrator's --default-image]
    #[arg(long, help_heading = "Sandbox")]
    pub image: Option<String>,
    /// Set a variable for all commands; NAME alone copies it from your environment; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]", help_heading = "Sandbox")]
    pub env: Vec<String>,
    /// Remove it after this time, at most a day; see renew [default: 1h]
    #[arg(long, value_parser = parse_duration, value_name = "TIME", help_heading = "Sandbox")]
    pub lifetime: Option<Duration>,
    /// Remove it when no command has run and no call has come for this time [default: 15m]
    #[arg(long, value_parser = parse_duration, value_name = "TIME", help_heading = "Sandbox")]
    pub idle_timeout: Option<Duration>,
    /// Create it on a node with this label; repeatable
    #[arg(long, value_name = "LABEL", help_heading = "Scheduling")]
    pub label: Vec<String>,
    /// Create it on the node with this slug
    #[arg(long, value_name = "SLUG", help_heading = "Scheduling")]
    pub node: Option<String>,
    /// Print its id at once, even where it does not run yet
    #[arg(long, help_heading = "Scheduling")]
    pub no_wait: bool,
    #[command(flatten)]
    pub secrets: SecretFlags,
    #[command(flatten)]
    pub limits: ResourceFlags,
    #[command(flatten)]
    pub egress: EgressFlags,
}

#[derive(Args, Debug)]
pub struct SandboxListArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// List sandboxes that have ended, too
    #[arg(long, short)]
    pub all: bool,
    /// Maximum number of sandboxes, 1 to 200
    #[arg(long, default_value_t = 20, value_parser = number::<u32, _>(1..=200), value_name = "N")]
    pub limit: u32,
    /// Continue after the previous page: the cursor that it ended with
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Args, Debug)]
pub struct SandboxArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name or id of the sandbox
    pub name: String,
}

#[derive(Args, Debug)]
pub struct SandboxesArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Names or ids of the sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Settings of a command that runs in a sandbox.
#[derive(Args, Debug, Default)]
pub struct ExecFlags {
    /// Set a variable; NAME alone copies it from your environment; repeatable
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Run the command in this directory [default: /workspace]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Kill the command after this time, such as 90s or 5m
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Print the exec's id and return immediately
    #[arg(long, short = 'd', visible_alias = "detach", conflicts_with_all = ["tty", "interactive"])]
    pub background: bool,
    /// Let processes that the command leaves behind live on, such as a server that it starts
    #[arg(long)]
    pub keep_children: bool,
    /// Give the command a terminal: yours
    #[arg(long, short)]
    pub tty: bool,
    /// Pass stdin to the command, also what is typed at a terminal
    #[arg(long, short)]
    pub interactive: bool,
    /// Leave stdin alone, such as in a loop that reads it
    #[arg(long, short, conflicts_with_all = ["tty", "interactive"])]
    pub no_stdin: bool,
}

#[derive(Args, Debug)]
pub struct SandboxExecArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub flags: ExecFlags,
    /// Name or id of the sandbox
    pub name: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct TaskExecArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub flags: ExecFlags,
    /// Name or id of the task
    pub task: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct SandboxShellArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub flags: ShellFlags,
    /// Name or id of the sandbox
    pub name: String,
    /// Program and arguments [default: /bin/bash, or /bin/sh where there is none]
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct TaskShellArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    #[command(flatten)]
    pub flags: ShellFlags,
    /// Name or id of the task
    pub task: String,
    /// Program and arguments [default: /bin/bash, or /bin/sh where there is none]
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Settings of a terminal.
#[derive(Args, Debug, Default)]
pub struct ShellFlags {
    /// Come back to the terminal of a command that runs, by its exec id
    #[arg(long, value_name = "EXEC", conflicts_with_all = ["command", "cwd"])]
    pub attach: Option<String>,
    /// Start in this directory [default: /workspace]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
}

#[derive(Args, Debug)]
pub struct SandboxCpArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Source: a path here, NAME:PATH, or - for a tar archive on stdin
    #[arg(value_name = "FROM")]
    pub from: String,
    /// Destination: NAME:PATH, a path here, or - for a tar archive on stdout
    #[arg(value_name = "TO")]
    pub to: String,
}

#[derive(Args, Debug)]
pub struct SandboxLsArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Show mode, size, time and the target of links
    #[arg(long, short)]
    pub long: bool,
    /// List directories down to this depth, 1 to 64
    #[arg(long, default_value_t = 1, value_parser = number::<u32, _>(1..=64), value_name = "N")]
    pub depth: u32,
    /// Sandbox, and a path in it, as NAME or NAME:PATH [default path: /workspace]
    #[arg(value_name = "NAME[:PATH]")]
    pub place: String,
}

#[derive(Args, Debug)]
pub struct SandboxLogsArgs {
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Id of the exec [default: the latest]
    pub exec: Option<String>,
    /// Follow the output until the command ends, and exit with its exit code
    #[arg(long, short)]
    pub follow: bool,
    /// Begin each line with its time
    #[arg(long)]
    pub timestamps: bool,
}

#[derive(Args, Debug)]
pub struct SandboxEventsArgs {
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Follow the events until the sandbox ends
    #[arg(long, short)]
    pub follow: bool,
    /// Begin each line with its time
    #[arg(long)]
    pub timestamps: bool,
}

#[derive(Args, Debug)]
pub struct SandboxRenewArgs {
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Time to its end from now, such as 2h; at most a day
    #[arg(long, value_parser = parse_duration, value_name = "TIME", default_value = "1h")]
    pub lifetime: Duration,
}

#[derive(Args, Debug)]
pub struct SandboxSnapshotArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Name of the snapshot: lower-case letters, digits and -
    #[arg(value_parser = snapshot_name, value_name = "NAME")]
    pub name: String,
}

#[derive(Args, Debug)]
pub struct SnapshotListArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// List the snapshots of all users, with their owners; admins only
    #[arg(long, conflicts_with = "user")]
    pub all: bool,
    /// List the snapshots of this user; admins only
    #[arg(long, value_name = "HANDLE")]
    pub user: Option<String>,
}

#[derive(Args, Debug)]
pub struct SnapshotsArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Names of the snapshots
    #[arg(required = true, value_parser = snapshot_name, value_name = "NAME")]
    pub names: Vec<String>,
    /// Delete them also where queued tasks or sandboxes wait for them, which fail then
    #[arg(long)]
    pub force: bool,
    /// Delete snapshots of this user; admins only
    #[arg(long, value_name = "HANDLE")]
    pub user: Option<String>,
}

/// Name of a snapshot, also as `--image` takes it and `cynode sandbox snapshot` prints it.
fn snapshot_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix(snapshots::PREFIX).unwrap_or(text);
    let checked = check_slug("", name).map(|()| name.to_owned());
    checked.map_err(|problem| problem.detail)
}
