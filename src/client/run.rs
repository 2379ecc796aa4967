//! `cynode run`: a command in a sandbox, with the output and the exit code of a local command.

use super::{
    api_client::ApiClient,
    follow::{FollowMode, follow},
    input::StdinWarning,
    print, task,
};
use crate::{
    api::tasks::{CreateTask, Task},
    cli::{OutputFormat, RunArgs},
    exit::Failure,
};
use http::Method;
use std::sync::mpsc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Creates a task, prints its output, and ends the process as the task ended. The first Ctrl-C cancels the task,
/// the second exits without it.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let output = args.client.output;
    let create = CreateTask {
        command: Some(args.command),
        ..task::from_flags(args.sandbox)?
    };
    let mut input = StdinWarning::default();
    if args.detach {
        let task: Task = api.call(Method::POST, "/v1/tasks", Some(&create))?;
        input.warn_if_input();
        return match output {
            OutputFormat::Json => print::json(&task),
            OutputFormat::Text => print::line(&task.id.to_string()),
        };
    }
    // Before the task is created, so that no signal is missed between its creation and the listener.
    let created = cancel_on_signal(api.clone())?;
    let task: Task = api.call(Method::POST, "/v1/tasks", Some(&create))?;
    let id = task.id.to_string();
    // The receiver lives as long as this process.
    let _ = created.send(id.clone());
    input.warn_if_input();
    let show = match output {
        OutputFormat::Json => FollowMode::Progress,
        OutputFormat::Text => FollowMode::Output,
    };
    let ended = follow(&mut api, &id, show);
    input.warn_if_input();
    if let Err(failure) = &ended
        && failure.message.is_empty()
    {
        // The reader of the output is gone, so the rest of it is not needed.
        task::cancel_task(&mut api, &id)?;
    }
    let ended = ended.map_err(|failure| match failure.message.as_str() {
        "" => failure,
        message => {
            let text =
                format!("{message}\nThe task goes on; wait for it with: cynode task wait {id}");
            Failure::new(failure.exit, text)
        }
    });
    task::exit_like_task(&mut api, &id, &ended?, output)
}

/// Listens for signals in the background; the returned sender takes the id of the task once it is created.
fn cancel_on_signal(mut api: ApiClient) -> Result<mpsc::Sender<String>, Failure> {
    let (created, id) = mpsc::channel::<String>();
    let (first, orders) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    std::thread::spawn(move || runtime.block_on(listen(signals, &first)));
    // A thread of its own, so that the second signal is handled while the cancel is in progress.
    std::thread::spawn(move || {
        let (Ok(()), Ok(id)) = (orders.recv(), id.recv()) else {
            return;
        };
        if let Err(failure) = task::cancel_task(&mut api, &id) {
            print::note(&format!("error: {}", failure.message));
            print::note(&format!(
                "The task goes on; cancel it with: cynode task cancel {id}"
            ));
            std::process::exit(failure.exit.code().into());
        }
    });
    Ok(created)
}

async fn listen((mut interrupt, mut terminate): (Signal, Signal), first: &mpsc::Sender<()>) {
    let mut signals = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        signals += 1;
        if signals > 1 {
            std::process::exit(130);
        }
        print::note("canceling; a second Ctrl-C leaves the task alone");
        let _ = first.send(());
    }
}
