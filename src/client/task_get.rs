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
        egress::Egress,
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
    let ended = ended_result(&mut api, &task)?;
    let traffic = ended.as_ref().and_then(remarks::traffic);
    pairs.extend(traffic.map(|traffic| ("traffic", traffic)));
    let refusal = ended.as_ref().and_then(remarks::refusal);
    pairs.extend(refusal.map(|refusal| ("refused", refusal)));
    pairs.extend(model(&task, ended.as_ref()).map(|model| ("model", model)));
    pairs.extend([
        ("priority", task.priority.to_string()),
        ("created", task.created_at.to_string()),
        ("started", time(task.started_at)),
        ("ended", time(task.ended_at)),
    ]);
    print::pairs(pairs)
}

/// Result of a task that has ended, where it says more about the task: of a prompt, and of one with a network.
fn ended_result(api: &mut ApiClient, task: &Task) -> Result<Option<TaskResult>, Failure> {
    let says_more = task.prompt.is_some() || task.details.egress.is_some();
    if !says_more || !task.status.is_final() {
        return Ok(None);
    }
    api.get(&paths::task(&task.id.to_string(), "/result"))
        .map(Some)
}

/// Model that answered a prompt, else the one that was asked for.
fn model(task: &Task, ended: Option<&TaskResult>) -> Option<String> {
    let answered = ended.and_then(remarks::model);
    answered.or_else(|| task.details.model.as_deref().map(clean))
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
        network_policy,
        egress,
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
        (
            "network",
            network_policy.map(|policy| policy.as_str().to_owned()),
        ),
        ("hosts", egress.as_ref().map(hosts_text)),
        ("tls opened", egress.as_ref().and_then(opened_text)),
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

/// Secrets as `--secret` names them.
pub(super) fn secrets_text(secrets: &[SecretRef]) -> String {
    let secrets = secrets.iter().map(|secret| clean(&secret.to_string()));
    secrets.collect::<Vec<_>>().join(", ")
}

/// Hosts of a task or a sandbox.
pub(super) fn hosts_text(egress: &Egress) -> String {
    let hosts = egress.allow.iter().map(ToString::to_string);
    let profiles = egress.profiles.iter();
    let all = hosts.chain(profiles.map(|profile| profile.as_str().to_owned()));
    all.collect::<Vec<_>>().join(", ")
}

/// Hosts whose TLS the proxy opens, where there are some.
pub(super) fn opened_text(egress: &Egress) -> Option<String> {
    let hosts = egress.terminate.iter().map(ToString::to_string);
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    (!hosts.is_empty()).then_some(hosts)
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
