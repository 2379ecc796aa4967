//! `cynode sandbox …`, `cynode exec` and `cynode shell`: sandboxes that stay, and commands in them.
//!
//! - An exec has an id that this client makes, so that a call that is repeated after a cut never runs a command twice.
//! - Files go through the sandbox's own file server; this client unpacks what comes back below one directory, or not at
//!   all.
//! - A terminal is a WebSocket; see [`terminal`].

mod copy;
mod create;
mod events;
mod exec;
mod hosts;
mod interactive;
mod leaving;
mod local;
mod logs;
mod ls;
mod manage;
mod receive;
mod send;
mod signals;
mod snapshots;
mod stdin;
mod target;
mod terminal;
mod unpack;

pub(super) use interactive::run as run_at_terminal;
pub(crate) use terminal::guard as terminal_guard;

use self::target::Target;
use crate::{
    cli::{SandboxCommand, TaskExecArgs, TaskShellArgs},
    exit::Failure,
};

/// Runs a subcommand of `cynode sandbox`.
pub fn sandbox(command: SandboxCommand) -> Result<(), Failure> {
    match command {
        SandboxCommand::Create(args) => create::create(*args),
        SandboxCommand::List(args) => manage::list(&args),
        SandboxCommand::Show(args) => manage::show(&args),
        SandboxCommand::Exec(args) => {
            let target = Target::sandbox(&args.name);
            exec::exec(&target, &args.client, args.flags, args.command)
        }
        SandboxCommand::Shell(args) => {
            let target = Target::sandbox(&args.name);
            terminal::shell(&target, &args.client, &args.flags, &args.command)
        }
        SandboxCommand::Cp(args) => copy::copy(&args),
        SandboxCommand::Ls(args) => ls::ls(&args),
        SandboxCommand::Logs(args) => logs::logs(&args),
        SandboxCommand::Events(args) => hosts::events(&args),
        SandboxCommand::Renew(args) => manage::renew(&args),
        SandboxCommand::Rm(args) => manage::remove(&args),
        SandboxCommand::Snapshot(args) => snapshots::save(&args),
        SandboxCommand::Snapshots(args) => snapshots::list(&args),
        SandboxCommand::RmSnapshot(args) => snapshots::remove(&args),
    }
}

/// Runs a command in the sandbox of a running task.
pub fn exec_in_task(args: TaskExecArgs) -> Result<(), Failure> {
    exec::exec(
        &Target::task(&args.task),
        &args.client,
        args.flags,
        args.command,
    )
}

/// Opens a terminal in the sandbox of a running task.
pub fn shell_in_task(args: &TaskShellArgs) -> Result<(), Failure> {
    terminal::shell(
        &Target::task(&args.task),
        &args.client,
        &args.flags,
        &args.command,
    )
}
