//! A terminal in a sandbox, over a WebSocket.
//!
//! [`raw`] makes the terminal of this process raw and restores it, or after a kill its [`guard`] does; [`keys`] finds the keys that detach, [`modes`] knows
//! what a program has done to the screen, [`pump`] serves one connection ([`link`]), and [`session`] connects again
//! where one is lost.

pub(crate) mod guard;
mod keys;
mod link;
mod modes;
mod pump;
mod raw;
mod session;

pub(super) use raw::{RawTerminal, check};
pub(super) use session::End;

use self::session::Program;
use super::{leaving::Leaving, target::Target};
use crate::{
    api::{
        ExecId,
        sandboxes::exec::{Exec, StartExec},
    },
    cli::{ClientFlags, ShellFlags},
    client::{api_client::ApiClient, print::note},
    exit::{Exit, Failure},
};
use http::Method;

/// Kind of terminal for which images have a description, unlike for the one here, perhaps.
const TERM: &str = "xterm-256color";

/// `cynode sandbox shell` and `cynode shell`.
pub(super) fn shell(
    target: &Target,
    client: &ClientFlags,
    flags: &ShellFlags,
    command: &[String],
) -> Result<(), Failure> {
    check()?;
    let mut api = ApiClient::from_args(client)?;
    // Says where there is no such sandbox, and renews the login.
    let target = &target.resolve(&mut api)?;
    let leaving = Leaving::listen()?;
    let program = match &flags.attach {
        Some(exec) => {
            let exec: Exec = api.get(&target.exec(exec, ""))?;
            if !exec.tty {
                let text = format!(
                    "the command has no terminal; follow its output with: {}",
                    target.follow_hint(&exec.exec_id.to_string())
                );
                return Err(Failure::new(Exit::Conflict, text));
            }
            Program {
                exec_id: exec.exec_id.to_string(),
                command: Vec::new(),
                cwd: None,
                is_running: true,
            }
        }
        None => Program {
            exec_id: ExecId::new().to_string(),
            command: command.to_vec(),
            cwd: flags.cwd.clone(),
            is_running: false,
        },
    };
    let end = session::run(&mut api, target, &program, &leaving)?;
    finish(target, &program.exec_id, &end)
}

/// `exec -t`.
pub(super) fn exec(target: &Target, client: &ClientFlags, start: StartExec) -> Result<(), Failure> {
    check()?;
    let mut api = ApiClient::from_args(client)?;
    let target = &target.resolve(&mut api)?;
    let leaving = Leaving::listen()?;
    let (exec_id, end) = run(&mut api, target, start, &leaving)?;
    finish(target, &exec_id, &end)
}

/// Gives the terminal to a command. Returns the id of its exec, too.
pub(super) fn run(
    api: &mut ApiClient,
    target: &Target,
    start: StartExec,
    leaving: &Leaving,
) -> Result<(String, End), Failure> {
    let mut env = start.env.unwrap_or_default();
    env.entry("TERM".to_owned())
        .or_insert_with(|| TERM.to_owned());
    let start = StartExec {
        env: Some(env),
        tty: true,
        size: Some(raw::size()),
        background: true,
        interactive: true,
        ..start
    };
    // The terminal's own call has no place for all that a command may have.
    let exec: Exec = api.call(Method::POST, &target.path("/exec"), Some(&start))?;
    let program = Program {
        exec_id: exec.exec_id.to_string(),
        command: Vec::new(),
        cwd: None,
        is_running: true,
    };
    let end = session::run(api, target, &program, leaving)?;
    Ok((program.exec_id, end))
}

/// Ends the process as the program ended.
fn finish(target: &Target, exec_id: &str, end: &End) -> Result<(), Failure> {
    match end {
        End::Detached => {
            let hint = target.attach_hint(exec_id);
            note(&format!("detached; come back with: {hint}"));
            Ok(())
        }
        End::Exited(end) => end.exit(),
    }
}
