//! `cynode task …`.

use super::{
    api_client::ApiClient,
    follow::{FollowMode, TaskEnd, follow},
    input::StdinWarning,
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
        OutputFormat, TaskArgs, TaskCommand, TaskCreateArgs, TaskFlags, TaskListArgs, TaskLogsArgs,
        TasksArgs,
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{io::Read as _, sync::mpsc, time::Duration};

/// A cancel that takes longer is explained.
const CANCEL_NOTICE: Duration = Duration::from_secs(2);
/// The job ran into its time limit.
const EXIT_TIMEOUT: u8 = 124;
/// There is no result to be had.
const EXIT_NO_RESULT: u8 = 125;
/// The task was canceled.
const EXIT_CANCELED: u8 = 130;

/// One of the subcommands.
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

/// What the flags say about a sandbox.
pub(super) fn options(options: TaskFlags) -> Result<CreateTask, Failure> {
    let env = options
        .env
        .into_iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => match std::env::var(&pair) {
                Ok(value) => Ok((pair, value)),
                Err(_) => Err(Failure::usage(format!(
                    "--env {pair}: it is not set here; write {pair}=VALUE"
                ))),
            },
        })
        .collect::<Result<Env, _>>()?;
    let seconds = |time: std::time::Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    Ok(CreateTask {
        task_name: options.name,
        image: options.image,
        env: (!env.is_empty()).then_some(env),
        timeout_seconds: options.timeout.map(seconds),
        node_labels: (!options.label.is_empty()).then_some(options.label),
        max_attempts: options.max_attempts,
        priority: options.priority,
        ..CreateTask::default()
    })
}

fn create(args: TaskCreateArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.client)?;
    let mut create = options(args.sandbox)?;
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
        // A body that is refused while it is sent reads like an orchestrator that is gone.
        check_size("/script", script, MAX_SCRIPT_BYTES)
            .map_err(|problem| Failure::new(Exit::Invalid, problem.detail))?;
    }
    let task: Task = gateway.call(Method::POST, "/v1/tasks", Some(&create))?;
    if !takes_input {
        StdinWarning::default().check();
    }
    match args.client.output {
        OutputFormat::Json => print::json(&task),
        OutputFormat::Text => print::line(&task.id.to_string()),
    }
}

fn list(args: &TaskListArgs) -> Result<(), Failure> {
    let mut query = format!("/v1/tasks?limit={}", args.limit);
    for (name, value) in [
        ("status", &args.status),
        ("name", &args.name),
        ("cursor", &args.cursor),
    ] {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", print::percent_encode(value)));
        }
    }
    let list: TaskList = ApiClient::from_args(&args.client)?.get(&query)?;
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
    print::table(["ID", "STATUS", "AGE", "WHAT", "SUMMARY"], rows)?;
    if !list.next_cursor.is_empty() {
        print::note(&format!("There are more: --cursor {}", list.next_cursor));
    }
    Ok(())
}

fn get(args: &TaskArgs) -> Result<(), Failure> {
    let task: Task = ApiClient::from_args(&args.client)?.get(&path(&args.id, ""))?;
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
            "waits for",
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
    let result: TaskResult = ApiClient::from_args(&args.client)?.get(&path(&args.id, "/result"))?;
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
        print::note("only the first 256 KiB of a stream are kept; there was more");
    }
    if let Some(error) = &result.error {
        let kind = serde_json::to_value(error.kind).unwrap_or_default();
        print::line(&format!(
            "error      {}: {}",
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
    let mut gateway = ApiClient::from_args(&args.task.client)?;
    if args.follow {
        let show = match args.task.client.output {
            OutputFormat::Json => FollowMode::Events,
            OutputFormat::Text => FollowMode::Output,
        };
        return follow(&mut gateway, &args.task.id, show).map(drop);
    }
    let logs: TaskLogs = gateway.get(&path(&args.task.id, "/logs"))?;
    if args.task.client.output == OutputFormat::Json {
        return print::json(&logs);
    }
    print::raw(&logs.stdout)?;
    print::raw_stderr(&logs.stderr)?;
    if logs
        .truncated
        .is_some_and(|truncated| truncated.stdout || truncated.stderr)
    {
        print::note("[only the first 256 KiB of a stream are kept; there was more]");
    }
    Ok(())
}

fn cancel(args: &TaskArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.client)?;
    let answer = cancel_task(&mut gateway, &args.id)?;
    match args.client.output {
        OutputFormat::Json => print::json(&answer),
        OutputFormat::Text if answer.canceled => print::line("canceled"),
        OutputFormat::Text => print::line("it had ended before"),
    }
}

/// Deletes all that can be; names each that can't, and ends with the code of the first of those.
fn delete(args: &TasksArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.client)?;
    let (mut deleted, mut failed) = (Vec::new(), None);
    for id in &args.ids {
        match gateway.done(Method::DELETE, &path(id, ""), None::<&()>) {
            Ok(()) => {
                if args.client.output == OutputFormat::Text {
                    print::line(&format!("{} deleted", clean(id)))?;
                }
                deleted.push(id);
            }
            Err(failure) => {
                let (exit, mut told) = failed.take().unwrap_or((failure.exit, Vec::new()));
                told.push(format!("{}: {}", clean(id), failure.message));
                failed = Some((exit, told));
            }
        }
    }
    if args.client.output == OutputFormat::Json {
        print::json(&serde_json::json!({ "deleted": deleted }))?;
    }
    match failed {
        Some((exit, told)) => Err(Failure::new(exit, told.join("\n"))),
        None => Ok(()),
    }
}

/// Cancels a task. The answer comes once its node has confirmed the end, which may take half a minute where the
/// node does not answer; that is said then.
pub(super) fn cancel_task(gateway: &mut ApiClient, id: &str) -> Result<CancelAnswer, Failure> {
    let (answered, answer) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if answer.recv_timeout(CANCEL_NOTICE) == Err(mpsc::RecvTimeoutError::Timeout) {
            print::note("waiting for the node to confirm that the task has ended");
        }
    });
    let answer = gateway.call(Method::POST, &path(id, "/cancel"), None::<&()>);
    drop(answered);
    answer
}

fn wait(args: &TaskArgs) -> Result<(), Failure> {
    let mut gateway = ApiClient::from_args(&args.client)?;
    let end = follow(&mut gateway, &args.id, FollowMode::Progress)?;
    finish(&mut gateway, &args.id, &end, args.client.output)
}

/// Ends as the task ended: with its exit code, or with one that stands for its end.
pub(super) fn finish(
    gateway: &mut ApiClient,
    id: &str,
    end: &TaskEnd,
    output: OutputFormat,
) -> Result<(), Failure> {
    if output == OutputFormat::Json {
        print::json(&gateway.get::<TaskResult>(&path(id, "/result"))?)?;
    }
    let code = match (end.status, end.exit_code) {
        (TaskStatus::Completed, _) => return Ok(()),
        // Codes are bytes, as the kernel has them.
        (_, Some(code)) => code.to_le_bytes()[0],
        (TaskStatus::Canceled, None) => {
            print::note("the task was canceled");
            EXIT_CANCELED
        }
        (_, None) => {
            let task: Task = gateway.get(&path(id, ""))?;
            let jobs: TaskResult = gateway.get(&path(id, "/result"))?;
            print::note(&format!(
                "cynode: {}",
                clean(task.summary.as_deref().unwrap_or("the task failed"))
            ));
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

pub(super) fn path(id: &str, rest: &str) -> String {
    format!("/v1/tasks/{}{rest}", print::percent_encode(id))
}
