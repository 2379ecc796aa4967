//! `cynode run`: a command in a sandbox, as if it ran here.

use super::{follow::follow, gateway::Gateway, print, task};
use crate::{
    api::tasks::{CancelAnswer, CreateTask, Task},
    cli::{Output, RunArgs},
    exit::Failure,
};
use http::Method;

/// Creates the task, prints what it prints, and ends as it ends. The first Ctrl-C cancels it, the
/// second gives up on it.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    let mut gateway = Gateway::open(&args.client)?;
    let create = CreateTask {
        command: Some(args.command),
        ..task::options(args.sandbox)?
    };
    let task: Task = gateway.call(Method::POST, "/v1/tasks", Some(&create))?;
    let id = task.id.to_string();
    let output = args.client.output;
    if args.detach {
        return match output {
            Output::Json => print::json(&task),
            Output::Text => print::line(&id),
        };
    }
    cancel_on_signal(gateway.clone(), id.clone());
    let quiet = output == Output::Json;
    let ended = follow(&mut gateway, &id, quiet);
    if let Err(failure) = &ended
        && failure.message.is_empty()
    {
        // Nobody reads the output any more, so nobody wants the rest of it.
        cancel(&mut gateway, &id)?;
    }
    task::finish(&mut gateway, &id, &ended?, output)
}

fn cancel(gateway: &mut Gateway, id: &str) -> Result<CancelAnswer, Failure> {
    gateway.call(Method::POST, &format!("/v1/tasks/{id}/cancel"), None::<&()>)
}

fn cancel_on_signal(mut gateway: Gateway, id: String) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        let mut canceled = false;
        while runtime.block_on(interrupted()).is_ok() {
            if std::mem::replace(&mut canceled, true) {
                std::process::exit(130);
            }
            print::note("canceling; a second Ctrl-C leaves the task alone");
            if let Err(failure) = cancel(&mut gateway, &id) {
                print::note(&format!("could not cancel: {}", failure.message));
                std::process::exit(130);
            }
        }
    });
}

async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}
