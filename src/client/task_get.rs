//! `cynode task get`: one task with its settings. Settings that nobody set are left out.

use super::{
    api_client::ApiClient,
    paths,
    print::{self, clean},
    quote::quoted,
    remarks,
};
use crate::{
    api::{
        jobs::resources::GpuRequest,
        secrets::SecretRef,
        tasks::{Task, TaskDetails, TaskFile, TaskResult},
        time::Time,
    },
    cli::{OutputFormat, TaskArgs},
    exit::Failure,
};

/// Shows one task.
pub(super) fn get(args: &TaskArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let task: Task = api.get(&paths::task(&args.id, ""))?;
    if args.client.output == OutputFormat::Json {
        return print::json(&task);
    }
    let time = |time: Option<Time>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    let text = |text: Option<&str>| clean(text.unwrap_or("-"));
    let details = &task.details;
    let mut pairs = vec![
        ("id", task.id.to_string()),
        ("status", task.status.as_str().to_owned()),
        ("summary", text(task.summary.as_deref())),
        ("waiting for", text(task.waiting_for.as_deref())),
        ("name", text(task.task_name.as_deref())),
        ("owner", text(details.owner.as_deref())),
        ("node", text(details.node_slug.as_deref())),
        (
            "attempt",
            format!("{} of {}", details.attempt, details.max_attempts),
        ),
    ];
    match (&task.command, &task.prompt) {
        (None, Some(prompt)) => pairs.push(("prompt", clean(prompt))),
        (command, _) => pairs.extend([
            ("command", quoted(command.as_deref().unwrap_or_default())),
            ("image", text(task.image.as_deref())),
        ]),
    }
    pairs.extend(settings(&task));
    pairs.extend(model(&mut api, &task)?.map(|model| ("model", model)));
    pairs.extend([
        ("priority", task.priority.to_string()),
        ("created", task.created_at.to_string()),
        ("started", time(task.started_at)),
        ("ended", time(task.ended_at)),
    ]);
    print::pairs(pairs)
}

/// Model that answered a prompt, else the one that was asked for.
fn model(api: &mut ApiClient, task: &Task) -> Result<Option<String>, Failure> {
    let answered = if task.prompt.is_some() && task.status.is_final() {
        let result: TaskResult = api.get(&paths::task(&task.id.to_string(), "/result"))?;
        remarks::model(&result)
    } else {
        None
    };
    Ok(answered.or_else(|| task.details.model.as_deref().map(clean)))
}

/// Settings that the user made.
fn settings(task: &Task) -> Vec<(&'static str, String)> {
    let TaskDetails {
        node_labels,
        env_names,
        secrets,
        grace_seconds,
        cpus,
        memory,
        pids,
        shm_size,
        gpus,
        pull,
        files,
        artifacts,
        artifact_limit,
        ..
    } = &task.details;
    let seconds = |seconds: u64| format!("{seconds} s");
    let list = |items: &[String]| (!items.is_empty()).then(|| clean(&items.join(", ")));
    let all = [
        ("time limit", time_limit(task)),
        ("grace", grace_seconds.map(|grace| seconds(grace.into()))),
        ("labels", list(node_labels)),
        ("env", list(env_names)),
        (
            "secrets",
            (!secrets.is_empty()).then(|| secrets_text(secrets)),
        ),
        ("gpus", gpus.as_ref().map(gpus_text)),
        ("cpus", cpus.map(|cpus| cpus.to_string())),
        ("memory", memory.map(|size| size.to_string())),
        ("pids", pids.map(|pids| pids.to_string())),
        ("shm size", shm_size.map(|size| size.to_string())),
        ("pull", pull.map(|pull| pull.as_str().to_owned())),
        ("files", (!files.is_empty()).then(|| files_text(files))),
        ("artifacts", list(artifacts)),
        ("artifact max", artifact_limit.map(|size| size.to_string())),
    ];
    let set = all.into_iter();
    set.filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// Time limit that was asked for, and the one in force where it differs.
fn time_limit(task: &Task) -> Option<String> {
    match (task.timeout_seconds, task.details.effective_timeout_seconds) {
        (Some(asked), Some(effective)) if asked != effective => {
            Some(format!("{asked} s, of which {effective} s are in force"))
        }
        (Some(seconds), _) | (None, Some(seconds)) => Some(format!("{seconds} s")),
        (None, None) => None,
    }
}

fn secrets_text(secrets: &[SecretRef]) -> String {
    let secrets = secrets.iter().map(|secret| clean(&secret.to_string()));
    secrets.collect::<Vec<_>>().join(", ")
}

fn gpus_text(gpus: &GpuRequest) -> String {
    match gpus {
        GpuRequest::All => "all".to_owned(),
        GpuRequest::Count(count) => count.to_string(),
        GpuRequest::Ids(ids) => clean(&ids.join(",")),
    }
}

fn files_text(files: &[TaskFile]) -> String {
    let files = files.iter().map(|file| {
        let kind = if file.extract { ", archive" } else { "" };
        format!(
            "{} ({}{kind})",
            clean(&file.path),
            print::size(file.size_bytes)
        )
    });
    files.collect::<Vec<_>>().join(", ")
}
