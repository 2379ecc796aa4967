//! Monitor of the model server: starts it, publishes its state, restarts it when it fails, and pulls missing models.

use super::{InferenceError, ModelServerManager, Plan, Source, publisher::Publisher};
use crate::{
    api::nodes::ModelDetails,
    backoff::Backoff,
    errors,
    inference::ollama::{OllamaClient, PullError},
};
use std::time::Duration;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

/// Interval between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// Failed probes in a row after which a running server counts as hung.
const MAX_MISSED_PROBES: u32 = 5;
/// Successful probes in a row after which the restart backoff begins at its start.
const STABLE_PROBES: u32 = 30;
const INITIAL_START_BACKOFF: Duration = Duration::from_secs(10);
const MAX_START_BACKOFF: Duration = Duration::from_mins(10);
const INITIAL_RESTART_BACKOFF: Duration = Duration::from_secs(2);
const MAX_RESTART_BACKOFF: Duration = Duration::from_mins(1);
/// Interval between log lines of a pull.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);
const INITIAL_PULL_BACKOFF: Duration = Duration::from_secs(10);
const MAX_PULL_BACKOFF: Duration = Duration::from_mins(10);

/// Starts the server, and keeps it running and its models present, until it is aborted. Reports the outcome of the first
/// start to `on_started`; a server that is required and fails is not tried again.
pub(super) async fn run_monitor(
    manager: ModelServerManager,
    plan: Plan,
    publisher: Publisher,
    on_started: oneshot::Sender<Result<(), InferenceError>>,
) {
    let server = OllamaClient::at(plan.address());
    let Some(source) = start(&manager, &plan, &server, &publisher, on_started).await else {
        return;
    };
    tokio::join!(
        keep_running(&manager, &plan, source, &server, &publisher),
        pull_missing(&server, &plan.models),
    );
}

/// Starts the server, however often that takes. `None`: the first start of a required one failed.
async fn start(
    manager: &ModelServerManager,
    plan: &Plan,
    server: &OllamaClient,
    publisher: &Publisher,
    on_started: oneshot::Sender<Result<(), InferenceError>>,
) -> Option<Source> {
    let mut on_started = Some(on_started);
    // The node may have stopped waiting.
    let mut report = |outcome| on_started.take().map(|sender| sender.send(outcome).is_ok());
    let mut backoff = Backoff::new(INITIAL_START_BACKOFF, MAX_START_BACKOFF);
    loop {
        match manager.ensure_running(plan).await {
            Ok(source) => {
                publisher.set_running(source, server.models().await);
                report(Ok(()));
                return Some(source);
            }
            Err(error) if plan.is_required => {
                report(Err(error));
                return None;
            }
            Err(error) => {
                let (pause, message) = (backoff.next_delay(), errors::chain(&error));
                tracing::warn!(
                    error = message,
                    retry_seconds = pause.as_secs_f32(),
                    "model server can't be started; the node runs sandboxes only"
                );
                publisher.set_failed(error.kind(), message);
                report(Err(error));
                sleep(pause).await;
            }
        }
    }
}

/// Publishes the state of a server that somebody else runs, whenever it is there, until it is aborted. Notifies
/// `on_looked` when it has looked once.
pub(super) async fn watch_existing(
    server: OllamaClient,
    publisher: Publisher,
    on_looked: oneshot::Sender<()>,
) {
    let mut on_looked = Some(on_looked);
    let (mut is_running, mut misses) = (false, 0);
    loop {
        if server.version().await.is_some() {
            if !is_running {
                tracing::info!(address = %server.address(), "using the model server that runs already");
            }
            (is_running, misses) = (true, 0);
            publisher.set_running(Source::External, server.models().await);
        } else {
            misses += 1;
            if is_running && misses >= MAX_MISSED_PROBES {
                is_running = false;
                tracing::info!(address = %server.address(), "model server that was used is gone");
                publisher.set_idle();
            }
        }
        if let Some(on_looked) = on_looked.take() {
            // The node may have stopped waiting.
            let _ = on_looked.send(());
        }
        sleep(PROBE_INTERVAL).await;
    }
}

async fn keep_running(
    manager: &ModelServerManager,
    plan: &Plan,
    mut source: Source,
    server: &OllamaClient,
    publisher: &Publisher,
) {
    let mut backoff = Backoff::new(INITIAL_RESTART_BACKOFF, MAX_RESTART_BACKOFF);
    let (mut misses, mut good) = (0, 0);
    loop {
        if server.version().await.is_some() {
            (misses, good) = (0, good + 1);
            if good == STABLE_PROBES {
                backoff.reset();
            }
            publisher.set_running(source, server.models().await);
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        (misses, good) = (misses + 1, 0);
        let ended = source == Source::Container && manager.has_ended(&plan.name()).await;
        if !ended && misses < MAX_MISSED_PROBES {
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        let changed = publisher.set_silent(source);
        if source == Source::External {
            if changed {
                tracing::warn!(address = %server.address(), "external model server does not answer; restart it, or restart this node to replace it");
            }
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        let pause = backoff.next_delay();
        tracing::warn!(
            container = plan.name(),
            ended,
            seconds = pause.as_secs_f32(),
            "model server does not answer; restarting it after a pause"
        );
        sleep(pause).await;
        match manager.restart(plan).await {
            Ok(found) => source = found,
            Err(error) => {
                tracing::error!(%error, "model server could not be restarted; retrying");
                publisher.set_failed(error.kind(), errors::chain(&error));
            }
        }
        misses = 0;
    }
}

/// Pulls the missing models, until all are present.
async fn pull_missing(server: &OllamaClient, wanted: &[String]) {
    let mut backoff = Backoff::new(INITIAL_PULL_BACKOFF, MAX_PULL_BACKOFF);
    loop {
        let Some(there) = server.models().await else {
            sleep(PROBE_INTERVAL).await;
            continue;
        };
        let mut failed = false;
        for model in wanted.iter().filter(|model| !has_model(&there, model)) {
            tracing::info!(model, "pulling a model");
            match pull(server, model).await {
                Ok(()) => tracing::info!(model, "model is present"),
                Err(error) => {
                    tracing::warn!(model, %error, "model could not be pulled; retrying later");
                    failed = true;
                }
            }
        }
        if !failed {
            return;
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Pulls a model, and logs the progress.
async fn pull(server: &OllamaClient, model: &str) -> Result<(), PullError> {
    let mut pull = server.pull(model).await?;
    let mut last_logged = Instant::now();
    while let Some(progress) = pull.next().await? {
        if last_logged.elapsed() >= PROGRESS_LOG_INTERVAL {
            last_logged = Instant::now();
            let [mib, of] = [progress.completed_bytes, progress.total_bytes]
                .map(|bytes| bytes.unwrap_or(0) >> 20);
            let status = progress.status;
            tracing::info!(model, status, mib, of, "pulling a model");
        }
    }
    Ok(())
}

/// Whether a model is present. A name without a tag means `latest`.
fn has_model(there: &[ModelDetails], wanted: &str) -> bool {
    let tagged = wanted
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    there
        .iter()
        .map(|model| model.name.as_str())
        .any(|name| name == wanted || (!tagged && name == format!("{wanted}:latest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_without_tag_is_latest() {
        let there = ["a:latest", "b/c:7b"].map(|name| ModelDetails {
            name: name.to_owned(),
            ..ModelDetails::default()
        });
        for (wanted, is_there) in [
            ("a", true),
            ("a:latest", true),
            ("a:7b", false),
            ("b/c:7b", true),
            ("b/c", false),
        ] {
            assert_eq!(has_model(&there, wanted), is_there, "{wanted}");
        }
    }
}
