//! `cynode run`: a command in a sandbox, with the output and the exit code of a local command.

use super::{
    api_client::ApiClient,
    download::{self, Wanted},
    follow::{FollowMode, TaskEnd, follow},
    input::StdinWarning,
    paths, print, receive, remarks, sandbox, stdin, task, task_end, upload,
};
use crate::{
    api::tasks::{CreateTask, Task},
    cli::{OutputFormat, RunArgs},
    exit::{Exit, Failure},
};
use http::Method;
use std::{
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Time for a download to remove what it has written so far, after a signal.
const STOP_TIME: Duration = Duration::from_secs(2);
/// Time within which a second TERM counts as the first one.
const SAME_TERM: Duration = Duration::from_secs(1);

/// Creates a task, prints its output, and ends the process as the task ended. The first Ctrl-C cancels the task, the
/// second kills its command at once, and the third exits without it.
pub fn run(args: RunArgs) -> Result<(), Failure> {
    if args.tty {
        return sandbox::run_at_terminal(args);
    }
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
    create.files = task::send_files(&mut api, &uploads, &create)?;
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
    let ended_hint = Arc::new(OnceLock::new());
    let created = cancel_on_signal(api.clone(), Arc::clone(&ended_hint))?;
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
    finish(&mut api, &id, (&ended, &ended_hint), &wanted, output)
}

/// Downloads what was asked for, and ends the process as the task ended.
fn finish(
    api: &mut ApiClient,
    id: &str,
    (end, ended_hint): (&TaskEnd, &OnceLock<String>),
    wanted: &Wanted,
    output: OutputFormat,
) -> Result<(), Failure> {
    let hint = if wanted.is_empty() {
        format!("See how the task ended with: cynode task result {id}")
    } else {
        format!("Get its files with: cynode task artifacts {id} --out DIR")
    };
    // From now on a signal ends this process; there is no task to cancel any more.
    let hint = ended_hint.get_or_init(|| hint);
    let with_hint = |failure: Failure| match failure.exit {
        Exit::Unreachable | Exit::Internal => {
            Failure::new(failure.exit, format!("{}\n{hint}", failure.message))
        }
        _ => failure,
    };
    // Where the end is known, and nothing more is wanted, the rest is worth a look, but no wait.
    let is_enough =
        wanted.is_empty() && output == OutputFormat::Text && task_end::is_code_known(end);
    let result = if is_enough {
        api.get(&paths::task(id, "/result"))
    } else {
        task_end::result_of(api, id)
    };
    let (outcome, downloaded) = match result {
        Ok(result) => {
            let downloaded = download::after_end(api, id, wanted, &result);
            if receive::is_stopped() {
                return Err(Failure::silent(receive::EXIT_INTERRUPTED));
            }
            if wanted.is_empty()
                && let Some(missing) = remarks::skipped(&result)
            {
                print::note(&format!("warning: {missing}"));
            }
            let outcome = task_end::exit_like_task(api, id, end, &result, output);
            (outcome, downloaded.map_err(with_hint))
        }
        // The known part of the end counts more than that the rest is unknown.
        Err(failure) => match task_end::end_code(api, id, end, None)? {
            (0, _) if is_enough => (Ok(()), Ok(())),
            (0, _) => (Ok(()), Err(with_hint(failure))),
            (code, _) if is_enough => (Err(Failure::silent(code)), Ok(())),
            (code, _) => (Err(Failure::silent(code)), Err(with_hint(failure))),
        },
    };
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
/// Once `ended` says what to do after the end of the task, a signal ends this process.
fn cancel_on_signal(
    api: ApiClient,
    ended: Arc<OnceLock<String>>,
) -> Result<mpsc::Sender<String>, Failure> {
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
    std::thread::spawn(move || runtime.block_on(listen(signals, &sender, &ended)));
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
async fn listen(
    (mut interrupt, mut terminate): (Signal, Signal),
    orders: &mpsc::Sender<bool>,
    ended: &OnceLock<String>,
) {
    let mut signals = 0;
    let mut terminated: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                // timeout(1) sends TERM to this process, and then to its group.
                if terminated.is_some_and(|at| at.elapsed() < SAME_TERM) {
                    continue;
                }
                terminated = Some(Instant::now());
            }
        }
        if let Some(hint) = ended.get() {
            print::note(&format!("interrupted\n{hint}"));
            receive::stop();
            tokio::time::sleep(STOP_TIME).await;
            std::process::exit(receive::EXIT_INTERRUPTED.into());
        }
        signals += 1;
        match signals {
            1 => print::note("canceling; a second Ctrl-C kills the command at once"),
            2 => print::note("killing; a third Ctrl-C leaves the task alone"),
            _ => std::process::exit(receive::EXIT_INTERRUPTED.into()),
        }
        let _ = orders.send(signals > 1);
    }
}
