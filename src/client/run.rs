//! `cynode run`: a command in a sandbox, with the output and the exit code of a local command.

use super::{
    api_client::ApiClient,
    download::{self, Wanted},
    follow::{FollowMode, follow},
    input::StdinWarning,
    print, stdin, task, task_end, upload,
};
use crate::{
    api::tasks::{CreateTask, Task},
    cli::{OutputFormat, RunArgs},
    exit::Failure,
};
use http::Method;
use std::sync::mpsc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code of a client that leaves its task alone.
const EXIT_INTERRUPTED: i32 = 130;

/// Creates a task, prints its output, and ends the process as the task ended. The first Ctrl-C cancels the task, the
/// second kills its command at once, and the third exits without it.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let output = args.client.output;
    let wanted = Wanted::parse_all(&args.download)?;
    let uploads = upload::parse_all(&args.sandbox.files.upload)?;
    let mut create = CreateTask {
        command: Some(args.command),
        interactive: args.interactive,
        ..task::from_flags(args.sandbox)?
    };
    wanted.add_patterns(&mut create);
    create.files = upload::send_all(&mut api, &uploads)?;
    let mut input = StdinWarning::unless(args.interactive);
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
    if args.interactive {
        stdin::stream(api.clone(), id.clone());
    }
    input.warn_if_input();
    let show = match output {
        OutputFormat::Json => FollowMode::Progress,
        OutputFormat::Text => FollowMode::Output,
    };
    let ended = follow(&mut api, &id, show, true);
    input.warn_if_input();
    if let Err(failure) = &ended
        && failure.message.is_empty()
    {
        // The reader of the output is gone, so the rest of it is not needed.
        task_end::cancel_task(&mut api, &id, false)?;
    }
    let ended = ended.map_err(|failure| match failure.message.as_str() {
        "" => failure,
        message => {
            let text =
                format!("{message}\nThe task goes on; wait for it with: cynode task wait {id}");
            Failure::new(failure.exit, text)
        }
    });
    let ended = ended?;
    let downloaded = download::after_end(&mut api, &id, &wanted);
    let outcome = task_end::exit_like_task(&mut api, &id, &ended, output);
    match (outcome, downloaded) {
        // The exit code of the command counts more than that of its files.
        (Err(outcome), Err(failure)) => {
            print::note(&format!("error: {}", failure.message));
            Err(outcome)
        }
        (outcome, downloaded) => outcome.and(downloaded),
    }
}

/// Listens for signals in the background; the returned sender takes the id of the task once it is created.
fn cancel_on_signal(api: ApiClient) -> Result<mpsc::Sender<String>, Failure> {
    let (created, id) = mpsc::channel::<String>();
    let (sender, orders) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    std::thread::spawn(move || runtime.block_on(listen(signals, &sender)));
    std::thread::spawn(move || {
        let (Ok(first), Ok(id)) = (orders.recv(), id.recv()) else {
            return;
        };
        // A thread for each: the first cancel is in progress for as long as the command has its grace.
        for is_forced in std::iter::once(first).chain(orders) {
            let (mut api, id) = (api.clone(), id.clone());
            std::thread::spawn(move || cancel_or_exit(&mut api, &id, is_forced));
        }
    });
    Ok(created)
}

/// Cancels the task, or ends the process where that fails.
fn cancel_or_exit(api: &mut ApiClient, id: &str, is_forced: bool) {
    if let Err(failure) = task_end::cancel_task(api, id, is_forced) {
        print::note(&format!("error: {}", failure.message));
        print::note(&format!(
            "The task goes on; cancel it with: cynode task cancel {id}"
        ));
        std::process::exit(failure.exit.code().into());
    }
}

/// Sends, for each signal, whether the cancel that it requests is forced.
async fn listen((mut interrupt, mut terminate): (Signal, Signal), orders: &mpsc::Sender<bool>) {
    let mut signals = 0;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        signals += 1;
        match signals {
            1 => print::note("canceling; a second Ctrl-C kills the command at once"),
            2 => print::note("killing; a third Ctrl-C leaves the task alone"),
            _ => std::process::exit(EXIT_INTERRUPTED),
        }
        let _ = orders.send(signals > 1);
    }
}
