//! `cynode task …`.

use super::{
    api_client::ApiClient,
    flags::in_flags,
    follow::{FollowMode, TaskEnd, follow},
    input::StdinWarning,
    paths,
    print::{self, clean},
};
use crate::{
    api::{
        jobs::{Env, MAX_SCRIPT_BYTES, check_size},
        tasks::{
            CancelAnswer, CreateTask, JobStatus, JobView, Task, TaskList, TaskLogs, TaskResult,
            TaskStatus,
        },
    },
    cli::{
        OutputFormat, TaskArgs, TaskCancelArgs, TaskCommand, TaskCreateArgs, TaskFlags,
        TaskListArgs, TaskLogsArgs, TasksArgs,
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{io::Read as _, sync::mpsc, time::Duration};

/// Time after which a cancel that is still not confirmed is explained.
const CANCEL_NOTICE_DELAY: Duration = Duration::from_secs(2);
/// Exit code of a task that reached its time limit.
const EXIT_TIMEOUT: u8 = 124;
/// Exit code of a task without a result: it could not run, or was lost.
const EXIT_NO_RESULT: u8 = 125;
/// Exit code of a canceled task.
const EXIT_CANCELED: u8 = 130;

/// Runs a subcommand of `cynode task`.
pub fn task(command: TaskCommand) -> Result<(), Failure> {
    match command {
        TaskCommand::Create(args) => create(args),
        TaskCommand::List(args) => list(&args),
        TaskCommand::Get(args) => get(&args),
        TaskCommand::Result(args) => result(&args),
        TaskCommand::Logs(args) => logs(&args),
        TaskCommand::Cancel(args) => cancel(&args),
        TaskCommand::Delete(args) => delete(&args),
        TaskCommand::Wait(args) => wait(&args),
    }
}

/// Task with the fields that the sandbox flags set.
pub(super) fn from_flags(flags: TaskFlags) -> Result<CreateTask, Failure> {
    let env = flags
        .env
        .into_iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => match std::env::var(&pair) {
                Ok(value) => Ok((pair, value)),
                Err(_) => Err(Failure::usage(format!(
                    "--env {pair}: the variable is not set; write {pair}=VALUE"
                ))),
            },
        })
        .collect::<Result<Env, _>>()?;
    let seconds = |time: std::time::Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    Ok(CreateTask {
        task_name: flags.name,
        image: flags.image,
        env: (!env.is_empty()).then_some(env),
        timeout_seconds: flags.timeout.map(seconds),
        // What is too long for the field is too long for the orchestrator, too, which says so.
        grace_seconds: (flags.grace.map(seconds)).map(|s| s.try_into().unwrap_or(u32::MAX)),
        node_labels: (!flags.label.is_empty()).then_some(flags.label),
        max_attempts: flags.max_attempts,
        priority: flags.priority,
        ..CreateTask::default()
    })
}

fn create(args: TaskCreateArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let mut create = from_flags(args.sandbox)?;
    let takes_input = args.script.as_deref() == Some("-");
    match args.script {
        Some(script) if script == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            create.script = Some(text);
        }
        Some(script) => create.script = Some(script),
        None if args.script_file.is_some() => {
            let path = args.script_file.unwrap_or_default();
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Failure::usage(format!("--script-file {}: {error}", path.display()))
            })?;
            create.script = Some(text);
        }
        None => create.command = Some(args.command),
    }
    if let Some(script) = &create.script {
        // A body that is refused while it is sent looks like an unreachable orchestrator.
        check_size("/script", script, MAX_SCRIPT_BYTES)
            .map_err(|problem| Failure::new(Exit::Invalid, in_flags(&problem.body(""))))?;
    }
    let task: Task = api.call(Method::POST, "/v1/tasks", Some(&create))?;
    if !takes_input {
        StdinWarning::default().warn_if_input();
    }
    match args.client.output {
        OutputFormat::Json => print::json(&task),
        OutputFormat::Text => print::line(&task.id.to_string()),
    }
}

fn list(args: &TaskListArgs) -> Result<(), Failure> {
    let limit = args.limit.to_string();
    let path = paths::with_query(
        "/v1/tasks",
        &[
            ("limit", Some(&limit)),
            ("status", args.status.as_deref()),
            ("name", args.name.as_deref()),
            ("cursor", args.cursor.as_deref()),
        ],
    );
    let list: TaskList = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&list);
    }
    let rows = list.tasks.iter().map(|task| {
        let what = task
            .task_name
            .clone()
            .or_else(|| task.command.as_ref().map(|c| c.join(" ")));
        [
            task.id.to_string(),
            task.status.as_str().to_owned(),
            print::age(task.created_at),
            clean(&what.unwrap_or_default()),
            clean(task.summary.as_deref().unwrap_or_default()),
        ]
    });
    print::table(["ID", "STATUS", "AGE", "TASK", "SUMMARY"], rows)?;
    if !list.next_cursor.is_empty() {
        print::note(&format!("More tasks: --cursor {}", list.next_cursor));
    }
    Ok(())
}

fn get(args: &TaskArgs) -> Result<(), Failure> {
    let task: Task = ApiClient::from_args(&args.client)?.get(&paths::task(&args.id, ""))?;
    if args.client.output == OutputFormat::Json {
        return print::json(&task);
    }
    let time = |time: Option<crate::api::time::Time>| {
        time.map_or_else(|| "-".to_owned(), |time| time.to_string())
    };
    print::pairs([
        ("id", task.id.to_string()),
        ("status", task.status.as_str().to_owned()),
        ("summary", clean(task.summary.as_deref().unwrap_or("-"))),
        (
            "waiting for",
            clean(task.waiting_for.as_deref().unwrap_or("-")),
        ),
        ("name", clean(task.task_name.as_deref().unwrap_or("-"))),
        (
            "command",
            clean(&task.command.unwrap_or_default().join(" ")),
        ),
        ("image", clean(task.image.as_deref().unwrap_or("-"))),
        ("priority", task.priority.to_string()),
        ("created", task.created_at.to_string()),
        ("started", time(task.started_at)),
        ("ended", time(task.ended_at)),
    ])
}

fn result(args: &TaskArgs) -> Result<(), Failure> {
    let result: TaskResult =
        ApiClient::from_args(&args.client)?.get(&paths::task(&args.id, "/result"))?;
    if args.client.output == OutputFormat::Json {
        return print::json(&result);
    }
    for job in &result.jobs {
        show_job(result.status, job)?;
    }
    Ok(())
}

fn show_job(task: TaskStatus, job: &JobView) -> Result<(), Failure> {
    let result = job.result_object.as_ref();
    print::pairs([
        ("task", task.as_str().to_owned()),
        ("job", format!("{} ({})", job.id, job.status.as_str())),
        ("node", clean(job.node_slug.as_deref().unwrap_or("-"))),
        ("attempt", job.attempt.to_string()),
        (
            "exit code",
            result
                .and_then(|r| r.exit_code)
                .map_or_else(|| "-".to_owned(), |code| code.to_string()),
        ),
    ])?;
    let Some(result) = result else { return Ok(()) };
    if result.truncated.stdout || result.truncated.stderr {
        print::note("truncated: only the first 256 KiB of a stream are kept");
    }
    if let Some(error) = &result.error {
        let kind = serde_json::to_value(error.kind).unwrap_or_default();
        print::line(&format!(
            "error        {}: {}",
            kind.as_str().unwrap_or("error"),
            clean(&error.message)
        ))?;
    }
    for (name, text) in [("stdout", &result.stdout), ("stderr", &result.stderr)] {
        if !text.is_empty() {
            print::line(&format!("--- {name}"))?;
            print::raw(text)?;
            if !text.ends_with('\n') {
                print::line("")?;
            }
        }
    }
    Ok(())
}

fn logs(args: &TaskLogsArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.task.client)?;
    if args.follow {
        let show = match args.task.client.output {
            OutputFormat::Json => FollowMode::Events,
            OutputFormat::Text => FollowMode::Output,
        };
        let end = follow(&mut api, &args.task.id, show)?;
        if show == FollowMode::Output && end.exit_code.is_none() {
            explain_missing_output(&mut api, &args.task.id)?;
        }
        return Ok(());
    }
    let logs: TaskLogs = api.get(&paths::task(&args.task.id, "/logs"))?;
    if args.task.client.output == OutputFormat::Json {
        return print::json(&logs);
    }
    print::raw(&logs.stdout)?;
    print::raw_stderr(&logs.stderr)?;
    if logs.stdout.is_empty() && logs.stderr.is_empty() {
        explain_missing_output(&mut api, &args.task.id)?;
    }
    if logs
        .truncated
        .is_some_and(|truncated| truncated.stdout || truncated.stderr)
    {
        print::note("[truncated: only the first 256 KiB of a stream are kept]");
    }
    Ok(())
}

/// Says on stderr why a task has no output, if its command did not run to an exit code.
fn explain_missing_output(api: &mut ApiClient, id: &str) -> Result<(), Failure> {
    let task: Task = api.get(&paths::task(id, ""))?;
    if task.status.is_final() && task.exit_code.is_none() {
        print::note(&format!("cynode: {}", failure_text(&task)));
    }
    Ok(())
}

/// Reason of a task that ended without an exit code.
fn failure_text(task: &Task) -> String {
    let default = match task.status {
        TaskStatus::Canceled => "the task was canceled",
        _ => "the task failed",
    };
    clean(task.summary.as_deref().unwrap_or(default))
}

fn cancel(args: &TaskCancelArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.task.client)?;
    let answer = cancel_task(&mut api, &args.task.id, args.force)?;
    match args.task.client.output {
        OutputFormat::Json => print::json(&answer),
        OutputFormat::Text if answer.canceled => print::line("canceled"),
        OutputFormat::Text => print::line("the task had already ended"),
    }
}

/// Deletes tasks. Names each that can't be deleted, and fails with the exit code of the first one.
fn delete(args: &TasksArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let (mut deleted, mut failed) = (Vec::new(), None);
    for id in &args.ids {
        match api.done(Method::DELETE, &paths::task(id, ""), None::<&()>) {
            Ok(()) => {
                if args.client.output == OutputFormat::Text {
                    print::line(&format!("{} deleted", clean(id)))?;
                }
                deleted.push(id);
            }
            Err(failure) => {
                let (exit, mut messages) = failed.take().unwrap_or((failure.exit, Vec::new()));
                messages.push(format!("{}: {}", clean(id), failure.message));
                failed = Some((exit, messages));
            }
        }
    }
    if args.client.output == OutputFormat::Json {
        print::json(&serde_json::json!({ "deleted": deleted }))?;
    }
    match failed {
        Some((exit, messages)) => Err(Failure::new(exit, messages.join("\n"))),
        None => Ok(()),
    }
}

/// Cancels a task, at once where `is_forced`. The answer arrives once the command has had its grace and the node has
/// confirmed the end, or half a minute later where the node does not answer; a notice explains the wait.
pub(super) fn cancel_task(
    api: &mut ApiClient,
    id: &str,
    is_forced: bool,
) -> Result<CancelAnswer, Failure> {
    let (answered, answer) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if answer.recv_timeout(CANCEL_NOTICE_DELAY) == Err(mpsc::RecvTimeoutError::Timeout) {
            print::note("waiting for the node to confirm that the task has ended");
        }
    });
    let rest = if is_forced {
        "/cancel?force=true"
    } else {
        "/cancel"
    };
    let path = paths::task(id, rest);
    let answer = api.for_cancel().call(Method::POST, &path, None::<&()>);
    drop(answered);
    answer
}

fn wait(args: &TaskArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let end = follow(&mut api, &args.id, FollowMode::Progress)?;
    exit_like_task(&mut api, &args.id, &end, args.client.output)
}

/// Ends the process as the task ended: with its exit code, or with one that stands for its end.
pub(super) fn exit_like_task(
    api: &mut ApiClient,
    id: &str,
    end: &TaskEnd,
    output: OutputFormat,
) -> Result<(), Failure> {
    if output == OutputFormat::Json {
        print::json(&api.get::<TaskResult>(&paths::task(id, "/result"))?)?;
    }
    let code = match (end.status, end.exit_code) {
        (TaskStatus::Completed, _) => return Ok(()),
        // Exit codes are bytes, as in the kernel.
        (_, Some(code)) => code.to_le_bytes()[0],
        (TaskStatus::Canceled, None) => {
            print::note("the task was canceled");
            EXIT_CANCELED
        }
        (_, None) => {
            let task: Task = api.get(&paths::task(id, ""))?;
            let jobs: TaskResult = api.get(&paths::task(id, "/result"))?;
            print::note(&format!("cynode: {}", failure_text(&task)));
            let timed_out = jobs
                .jobs
                .last()
                .is_some_and(|job| job.status == JobStatus::Timeout);
            if timed_out {
                EXIT_TIMEOUT
            } else {
                EXIT_NO_RESULT
            }
        }
    };
    Err(Failure::silent(code))
}
