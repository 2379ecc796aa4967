//! `cynode run -it`: a sandbox behind the scenes, with this process's terminal in it, removed at the end.

use super::{
    create::{NewSandbox, wait_until_running},
    leaving::Leaving,
    manage::whole_seconds,
    send,
    target::Target,
    terminal::{self, End, check},
};
use crate::{
    api::{
        ExecId,
        sandboxes::{MAX_LIFETIME_SECONDS, exec::StartExec},
    },
    cli::{RunArgs, TaskFlags},
    client::{
        api_client::ApiClient,
        print::{clean, note},
        task::env_of_flags,
        upload,
    },
    exit::Failure,
};
use http::Method;
use std::time::Duration;

/// Time that the sandbox outlives its command by, where this process can't remove it.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Runs a command at this process's terminal.
pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    check()?;
    let RunArgs {
        command,
        client,
        sandbox: flags,
        ..
    } = args;
    refuse_flags(&flags)?;
    let uploads = upload::parse_all(&flags.files.upload)?;
    let mut api = ApiClient::from_args(&client)?;
    let start = StartExec {
        exec_id: Some(ExecId::new()),
        command: Some(command),
        timeout_seconds: flags.timeout.map(whole_seconds),
        ..StartExec::default()
    };
    let new = NewSandbox {
        name: flags.name,
        image: flags.image,
        env: env_of_flags(flags.env)?,
        secrets: flags.secrets,
        node: flags.node,
        labels: flags.label,
        limits: flags.limits,
        egress: flags.egress,
        lifetime: Some(Duration::from_secs(MAX_LIFETIME_SECONDS)),
        idle_timeout: Some(IDLE_TIMEOUT),
        // So that a signal finds what is to be removed.
        is_immediate: true,
    };
    let leaving = Leaving::listen()?;
    let sandbox = new.create(&mut api)?;
    let target = Target::sandbox(&sandbox.id.to_string());
    leaving.remove(api.clone(), target.clone());
    let ended = wait_until_running(&mut api, sandbox).and_then(|_| {
        for upload in &uploads {
            send::upload(&mut api, &target, upload)?;
        }
        terminal::run(&mut api, &target, start, &leaving)
    });
    if let Ok((exec, End::Detached)) = &ended {
        leaving.keep();
        note(&format!(
            "detached; come back with: {}\nRemove its sandbox with: cynode sandbox rm {}",
            target.attach_hint(exec),
            target.word()
        ));
        return Ok(());
    }
    remove(&mut api, &target);
    leaving.keep();
    match ended? {
        (_, End::Exited(end)) => end.exit(),
        (_, End::Detached) => Ok(()),
    }
}

/// Removes the sandbox. A failure is not the command's.
fn remove(api: &mut ApiClient, target: &Target) {
    if let Err(failure) = api.done(Method::DELETE, &target.path(""), None::<&()>) {
        note(&format!(
            "warning: the sandbox is not removed: {}\nRemove it with: cynode sandbox rm {}",
            clean(&failure.message),
            target.word()
        ));
    }
}

/// Refuses what only a task can do.
fn refuse_flags(flags: &TaskFlags) -> Result<(), Failure> {
    let given = [
        ("--grace", flags.grace.is_some()),
        ("--pull", flags.pull.is_some()),
        ("--max-attempts", flags.max_attempts.is_some()),
        ("--priority", flags.priority.is_some()),
        ("--artifact", !flags.files.artifact.is_empty()),
        ("--artifact-limit", flags.files.artifact_limit.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::usage(format!(
            "{flag} is for tasks and not for a terminal (-t); leave one of both out"
        ))),
    }
}
