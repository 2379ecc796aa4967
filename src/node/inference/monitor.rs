//! Monitor of the model server: publishes its state, restarts it when it fails, and pulls missing models.

use super::{ModelServerManager, Plan, Source, ollama::OllamaClient};
use crate::{
    api::nodes::{Inference, ModelDetails},
    backoff::Backoff,
};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// Interval between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// Failed probes in a row after which a running server counts as hung.
const MAX_MISSED_PROBES: u32 = 5;
/// Successful probes in a row after which the restart backoff begins at its start.
const STABLE_PROBES: u32 = 30;
const INITIAL_RESTART_BACKOFF: Duration = Duration::from_secs(2);
const MAX_RESTART_BACKOFF: Duration = Duration::from_mins(1);
const INITIAL_PULL_BACKOFF: Duration = Duration::from_secs(10);
const MAX_PULL_BACKOFF: Duration = Duration::from_mins(10);

/// Keeps the server running and its models present, until it is aborted. Publishes each change to `status`.
pub(super) async fn run_monitor(
    manager: ModelServerManager,
    plan: Plan,
    source: Source,
    status: watch::Sender<Inference>,
) {
    let server = OllamaClient::new(plan.port);
    tokio::join!(
        keep_running(&manager, &plan, source, &server, &status),
        pull_missing(&server, &plan.models),
    );
}

async fn keep_running(
    manager: &ModelServerManager,
    plan: &Plan,
    mut source: Source,
    server: &OllamaClient,
    status: &watch::Sender<Inference>,
) {
    let mut backoff = Backoff::new(INITIAL_RESTART_BACKOFF, MAX_RESTART_BACKOFF);
    let (mut misses, mut good) = (0, 0);
    loop {
        if server.version().await.is_some() {
            (misses, good) = (0, good + 1);
            if good == STABLE_PROBES {
                backoff.reset();
            }
            publish(status, source, true, server.models().await);
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        (misses, good) = (misses + 1, 0);
        let ended = source == Source::Container && manager.has_ended(&plan.name()).await;
        if !ended && misses < MAX_MISSED_PROBES {
            sleep(PROBE_INTERVAL).await;
            continue;
        }
        let changed = publish(status, source, false, None);
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
                tracing::error!(%error, "model server could not be restarted; retrying")
            }
        }
        misses = 0;
    }
}

/// Publishes the state. Returns whether it has changed.
fn publish(
    status: &watch::Sender<Inference>,
    source: Source,
    running: bool,
    models: Option<Vec<ModelDetails>>,
) -> bool {
    status.send_if_modified(|known| {
        let mut now = Inference {
            running: Some(running),
            existing_service: Some(source == Source::External),
            ..known.clone()
        };
        if models.is_some() {
            now.set_models(models);
        }
        let changed = *known != now;
        *known = now;
        changed
    })
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
            match server.pull(model).await {
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
