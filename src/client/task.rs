//! `cynode task …`.

use super::{
    api_client::ApiClient,
    download,
    flags::in_flags,
    input::StdinWarning,
    paths,
    print::{self, clean},
    quote::quoted,
    remarks, task_end, task_get,
    upload::{self, Upload},
};
use crate::{
    api::{
        jobs::{Env, MAX_SCRIPT_BYTES, check_size},
        tasks::{
            CreateTask, FileInput, JobView, MAX_INLINE_BYTES, Task, TaskList, TaskResult,
            TaskStatus,
        },
    },
    cli::{OutputFormat, TaskArgs, TaskCommand, TaskCreateArgs, TaskFlags, TaskListArgs},
    exit::{Exit, Failure},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::Method;
use std::{fs::File, io::Read as _, path::Path};

/// Runs a subcommand of `cynode task`.
pub fn task(command: TaskCommand) -> Result<(), Failure> {
    match command {
        TaskCommand::Create(args) => create(*args),
        TaskCommand::List(args) => list(&args),
        TaskCommand::Get(args) => task_get::get(&args),
        TaskCommand::Result(args) => result(&args),
        TaskCommand::Logs(args) => super::logs::logs(&args),
        TaskCommand::Artifacts(args) => download::task_artifacts(&args),
        TaskCommand::Cancel(args) => task_end::cancel(&args),
        TaskCommand::Delete(args) => task_end::delete(&args),
        TaskCommand::Wait(args) => task_end::wait(&args),
    }
}

/// Variables of `--env` flags. A name alone stands for its value here.
pub(super) fn env_of_flags(flags: Vec<String>) -> Result<Option<Env>, Failure> {
    let env = flags
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
    Ok((!env.is_empty()).then_some(env))
}

/// Task with the fields that the sandbox flags set.
pub(super) fn from_flags(flags: TaskFlags) -> Result<CreateTask, Failure> {
    let seconds = |time: std::time::Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let (network_policy, egress) = flags.egress.into_fields(&flags.secrets);
    Ok(CreateTask {
        task_name: flags.name,
        image: flags.image,
        env: env_of_flags(flags.env)?,
        secrets: flags.secrets.inputs(),
        mask: flags.secrets.mask(),
        timeout_seconds: flags.timeout.map(seconds),
        // A grace too long for the field is too long for the orchestrator, too, which says so.
        grace_seconds: (flags.grace.map(seconds)).map(|s| s.try_into().unwrap_or(u32::MAX)),
        node_labels: (!flags.label.is_empty()).then_some(flags.label),
        node: flags.node,
        pull: flags.pull,
        max_attempts: flags.max_attempts,
        priority: flags.priority,
        artifacts: (!flags.files.artifact.is_empty()).then_some(flags.files.artifact),
        artifact_limit: flags.files.artifact_limit,
        cpus: flags.limits.cpus,
        memory: flags.limits.memory,
        pids: flags.limits.pids,
        shm_size: flags.limits.shm_size,
        gpus: flags.limits.gpus,
        use_inference: flags.limits.use_inference.then_some(true),
        network_policy,
        egress,
        ..CreateTask::default()
    })
}

fn create(args: TaskCreateArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let uploads = upload::parse_all(&args.sandbox.files.upload)?;
    let mut create = from_flags(args.sandbox)?;
    let is_input = |path: &Path| path == Path::new("-");
    let is_dash = |text: &Option<String>| text.as_deref() == Some("-");
    let takes_input = is_dash(&args.script)
        || is_dash(&args.prompt)
        || args.stdin.as_deref().is_some_and(is_input);
    if let Some(path) = &args.stdin {
        create.stdin_base64 = Some(read_stdin(path)?);
    }
    create.model = args.model;
    match args.script {
        Some(script) => create.script = Some(text_or_stdin(script)?),
        None if args.prompt.is_some() => {
            create.prompt = args.prompt.map(text_or_stdin).transpose()?;
        }
        None if args.script_file.is_some() => {
            let path = args.script_file.unwrap_or_default();
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Failure::usage(format!("--script-file {}: {error}", path.display()))
            })?;
            create.script = Some(text);
        }
        None => create.command = Some(args.command),
    }
    for (pointer, text) in [("/script", &create.script), ("/prompt", &create.prompt)] {
        // A body that is refused while it is sent looks like an unreachable orchestrator.
        check_size(
            pointer,
            text.as_deref().unwrap_or_default(),
            MAX_SCRIPT_BYTES,
        )
        .map_err(|problem| Failure::new(Exit::Invalid, in_flags(&problem.body(""))))?;
    }
    create.files = send_files(&mut api, &uploads, &create)?;
    let task: Task = api.call(Method::POST, "/v1/tasks", Some(&create))?;
    if !takes_input {
        StdinWarning::default().warn_if_input();
    }
    match args.client.output {
        OutputFormat::Json => print::json(&task),
        OutputFormat::Text => print::line(&task.id.to_string()),
    }
}

/// Text of a flag; `-` stands for all of our own stdin.
fn text_or_stdin(text: String) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text);
    }
    let mut input = Vec::new();
    // One byte more than any text may have shows that there is too much.
    let limit = MAX_SCRIPT_BYTES as u64 + 1;
    std::io::stdin().take(limit).read_to_end(&mut input)?;
    text_of(input)
}

/// Text that was read. One that is too long may be cut within a character; it stays too long, and is refused for that.
fn text_of(input: Vec<u8>) -> Result<String, Failure> {
    if input.len() > MAX_SCRIPT_BYTES {
        return Ok(String::from_utf8_lossy(&input).into_owned());
    }
    let not_text = |_| Failure::usage("stdin is not text in UTF-8; a task's script or prompt is");
    String::from_utf8(input).map_err(not_text)
}

/// Uploads the files of a new task, unless the orchestrator would refuse the rest of it.
pub(super) fn send_files(
    api: &mut ApiClient,
    uploads: &[Upload],
    create: &CreateTask,
) -> Result<Option<Vec<FileInput>>, Failure> {
    if uploads.is_empty() {
        return Ok(None);
    }
    // The orchestrator has an image of its own for a task without one.
    let resolved = create.clone().resolve("image");
    resolved.map_err(|problem| Failure::new(Exit::Invalid, in_flags(&problem.body(""))))?;
    upload::send_all(api, uploads)
}

/// Content of the stdin of a new task, as base64: a file, or all of our own stdin.
fn read_stdin(path: &Path) -> Result<String, Failure> {
    // One byte more shows that there is too much, however much it is.
    let limit = MAX_INLINE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::usage(format!("--stdin {}: {error}", path.display())))?;
    if bytes.len() > MAX_INLINE_BYTES {
        let text =
            "--stdin: more than 10 MiB; stream it with cynode run -i, or send a file with --upload";
        return Err(Failure::new(Exit::Invalid, text));
    }
    Ok(BASE64_STANDARD.encode(bytes))
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
    let rows = list.tasks.iter().map(row);
    // Only admins get tasks of several users, and so the owner of each.
    if list.tasks.iter().any(|task| task.details.owner.is_some()) {
        let owned = list.tasks.iter().zip(rows).map(|(task, [id, rest @ ..])| {
            let owner = clean(task.details.owner.as_deref().unwrap_or("-"));
            let [status, age, what, summary] = rest;
            [id, owner, status, age, what, summary]
        });
        print::table(["ID", "OWNER", "STATUS", "AGE", "TASK", "SUMMARY"], owned)?;
    } else {
        print::table(["ID", "STATUS", "AGE", "TASK", "SUMMARY"], rows)?;
    }
    if !list.next_cursor.is_empty() {
        print::note(&format!("More tasks: --cursor {}", list.next_cursor));
    }
    Ok(())
}

fn row(task: &Task) -> [String; 5] {
    let command = || task.command.as_deref().map(quoted);
    let prompt = || task.prompt.as_deref().map(clean);
    let what = task.task_name.as_deref().map(clean);
    let what = what.or_else(command).or_else(prompt);
    [
        task.id.to_string(),
        task.status.as_str().to_owned(),
        print::age(task.created_at),
        what.unwrap_or_default(),
        clean(task.summary.as_deref().unwrap_or_default()),
    ]
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
        print::note(
            "truncated: a result keeps the first 64 KiB and the end of each stream; see the whole log with: cynode task logs",
        );
    }
    if let Some(missing) = remarks::skipped_of(result) {
        print::note(&format!("warning: {missing}"));
    }
    if let Some(model) = remarks::model_of(result) {
        print::line(&format!("model        {model}"))?;
    }
    if let Some(traffic) = remarks::traffic_of(result) {
        print::line(&format!("traffic      {traffic}"))?;
    }
    if let Some(refusal) = remarks::refusal_of(result) {
        print::line(&format!("refused      {refusal}"))?;
    }
    if result.oom_killed {
        print::line("oom killed   yes")?;
    }
    if let Some(reason) = remarks::reason_of(result) {
        print::line(&format!("reason       {reason}"))?;
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

/// Says on stderr why a task has no output, if its command did not run to an exit code.
pub(super) fn explain_missing_output(api: &mut ApiClient, id: &str) -> Result<(), Failure> {
    let task: Task = api.get(&paths::task(id, ""))?;
    if task.status.is_final() && task.exit_code.is_none() {
        print::note(&format!("cynode: {}", failure_text(&task)));
    }
    Ok(())
}

/// Reason of a task that ended without an exit code.
pub(super) fn failure_text(task: &Task) -> String {
    let default = match task.status {
        TaskStatus::Canceled => "the task was canceled",
        _ => "the task failed",
    };
    clean(task.summary.as_deref().unwrap_or(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_refused_for_its_size() {
        let mut cut = vec![b'x'; MAX_SCRIPT_BYTES];
        cut.push("é".as_bytes()[0]);
        assert!(text_of(cut).unwrap().len() > MAX_SCRIPT_BYTES);
        assert_eq!(text_of(b"why?".to_vec()).unwrap(), "why?");
        let failure = text_of(vec![0xff]).unwrap_err();
        assert!(failure.message.contains("UTF-8"), "{}", failure.message);
    }
}
