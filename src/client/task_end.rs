//! Ends of tasks: cancel, delete, wait, and the exit code that stands for an end.

use super::{
    api_client::ApiClient,
    follow::{FollowMode, TaskEnd, follow},
    many::{self, Failures},
    paths,
    print::{self, clean},
    remarks,
    task::failure_text,
};
use crate::{
    api::{
        jobs::MAX_GRACE_SECONDS,
        tasks::{CancelAnswer, JobStatus, JobView, Task, TaskResult, TaskStatus},
    },
    cli::{OutputFormat, TaskCancelArgs, TasksArgs},
    exit::Failure,
};
use http::Method;
use std::{sync::mpsc, time::Duration};

/// Time for the answer of a cancel, which comes once the command has had its grace and its node has reported the end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(MAX_GRACE_SECONDS as u64 + 60);
/// Time after which a cancel that is still not confirmed is explained.
const CANCEL_NOTICE_DELAY: Duration = Duration::from_secs(2);
/// Exit code of a task that reached its time limit.
const EXIT_TIMEOUT: u8 = 124;
/// Exit code of a task without a result: it could not run, or was lost.
const EXIT_NO_RESULT: u8 = 125;
/// Exit code of a canceled task.
const EXIT_CANCELED: u8 = 130;

/// Cancels tasks.
pub(super) fn cancel(
    TaskCancelArgs { tasks: args, force }: &TaskCancelArgs,
) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let (mut failures, is_text) = (
        Failures::default(),
        args.client.output == OutputFormat::Text,
    );
    let answers = failures.collect(&args.ids, |id| {
        let answer = cancel_task(&mut api, id, *force)?;
        let text = if answer.canceled {
            "canceled"
        } else {
            "the task had already ended"
        };
        match (is_text, args.ids.len()) {
            (true, 1) => print::line(text)?,
            (true, _) => print::line(&format!("{}: {text}", clean(id)))?,
            _ => {}
        }
        Ok(answer)
    });
    match (&answers[..], args.ids.len()) {
        _ if is_text => {}
        ([(_, answer)], 1) => print::json(answer)?,
        ([], 1) => {}
        _ => {
            let answers: Vec<_> = answers.iter().map(|(_, answer)| answer).collect();
            print::json(&serde_json::json!({ "tasks": answers }))?;
        }
    }
    failures.finish()
}

/// Deletes tasks.
pub(super) fn delete(args: &TasksArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let path = |id: &str| paths::task(id, "");
    many::delete(&mut api, args.client.output, &args.ids, "deleted", path)
}

/// Waits for tasks. One task decides the exit code as in `cynode run`; of several, the first that did not complete.
pub(super) fn wait(args: &TasksArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    if let [id] = &args.ids[..] {
        let end = follow(&mut api, id, FollowMode::Progress, false)?;
        let result = result_of(&mut api, id)?;
        if let Some(missing) = remarks::skipped(&result) {
            print::note(&format!("warning: {missing}"));
        }
        return exit_like_task(&mut api, id, &end, &result, args.client.output);
    }
    let (mut failures, mut results) = (Failures::default(), Vec::new());
    failures.collect(&args.ids, |id| {
        let end = follow(&mut api, id, FollowMode::Silent, false)?;
        let result = result_of(&mut api, id)?;
        let (code, reason) = end_code(&mut api, id, &end, Some(&result))?;
        if args.client.output == OutputFormat::Text {
            let reason = reason.or_else(|| remarks::reason(&result).filter(|_| code != 0));
            let detail = reason.unwrap_or_else(|| format!("exit {code}"));
            let status = end.status.as_str();
            print::line(&format!("{}: {status}: {detail}", clean(id)))?;
        }
        results.push(result);
        // In its turn, so that the first failure of all decides.
        match code {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        }
    });
    if args.client.output == OutputFormat::Json {
        print::json(&serde_json::json!({ "tasks": results }))?;
    }
    failures.finish()
}

/// Result of a task that has ended.
pub(super) fn result_of(api: &mut ApiClient, id: &str) -> Result<TaskResult, Failure> {
    api.get_patiently(&paths::task(id, "/result"))
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
    let answer = api
        .with_patience(CANCEL_TIMEOUT)
        .call(Method::POST, &path, None::<&()>);
    drop(answered);
    answer
}

/// Ends the process as the task ended: with its exit code, or with one that stands for its end.
pub(super) fn exit_like_task(
    api: &mut ApiClient,
    id: &str,
    end: &TaskEnd,
    result: &TaskResult,
    output: OutputFormat,
) -> Result<(), Failure> {
    if output == OutputFormat::Json {
        print::json(result)?;
    }
    let (code, reason) = end_code(api, id, end, Some(result))?;
    // Most programs print the number of the answer alone.
    if let Some(refusal) = remarks::refusal(result) {
        print::note(&format!("warning: the proxy refused a request: {refusal}"));
    }
    match (end.status, reason.or_else(|| remarks::reason(result))) {
        // A command may survive the end of one of its processes.
        (TaskStatus::Completed, Some(reason)) => print::note(&format!("warning: {reason}")),
        (TaskStatus::Canceled, Some(reason)) => print::note(&reason),
        (_, Some(reason)) => print::note(&format!("cynode: {reason}")),
        (_, None) => {}
    }
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

/// Whether the exit code for an end is known without the task's result.
pub(super) fn is_code_known(end: &TaskEnd) -> bool {
    end.status == TaskStatus::Completed || end.exit_code.is_some()
}

/// Exit code that stands for the end of a task, and the reason where the command has no exit code.
pub(super) fn end_code(
    api: &mut ApiClient,
    id: &str,
    end: &TaskEnd,
    result: Option<&TaskResult>,
) -> Result<(u8, Option<String>), Failure> {
    Ok(match (end.status, end.exit_code) {
        (TaskStatus::Completed, _) => (0, None),
        // Exit codes are bytes, as in the kernel.
        (_, Some(code)) => (code.to_le_bytes()[0], None),
        (TaskStatus::Canceled, None) => (EXIT_CANCELED, Some("the task was canceled".to_owned())),
        (_, None) => {
            let task: Task = api.get_patiently(&paths::task(id, ""))?;
            let last = result.and_then(|result| result.jobs.last());
            let timed_out = last.is_some_and(|job| job.status == JobStatus::Timeout);
            let code = if timed_out {
                EXIT_TIMEOUT
            } else {
                EXIT_NO_RESULT
            };
            let failed_at = last.and_then(failed_at);
            (code, Some(with_node(failure_text(&task), failed_at)))
        }
    })
}

/// Node that could not run a job, whose log may say more.
fn failed_at(job: &JobView) -> Option<&str> {
    let result = job.result_object.as_ref()?;
    result.error.as_ref().and(job.node_slug.as_deref())
}

/// Reason of a failure with its node, unless it is named already.
fn with_node(reason: String, node: Option<&str>) -> String {
    match node.map(|node| format!("node {}", clean(node))) {
        Some(node) if !reason.contains(&node) => format!("{reason} (at {node})"),
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_of_failure_is_named_once() {
        let named = "could not run at node box (image-not-found: x)";
        for (reason, node, text) in [
            ("no pull", Some("box"), "no pull (at node box)"),
            ("no pull", None, "no pull"),
            (named, Some("box"), named),
        ] {
            assert_eq!(with_node(reason.to_owned(), node), text);
        }
    }
}
