//! Looking after the model server while the node runs: what it has, whether it answers, and
//! bringing it back when it doesn't.

use super::{Keeper, Origin, Plan, server::ModelServer};
use crate::{api::nodes::Inference, pause::Pauses};
use std::time::Duration;
use tokio::{sync::watch, time::sleep};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// So many looks without an answer, and a server that still runs is taken for hung.
const MISSES: u32 = 5;
/// After so many good looks the next death is the first again.
const STEADY: u32 = 30;
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
const FIRST_FETCH: Duration = Duration::from_secs(10);
const LONGEST_FETCH: Duration = Duration::from_mins(10);

/// Keeps the server up and its models there, for ever; `told` hears how it is.
pub(in crate::node) async fn watch(
    keeper: Keeper,
    plan: Plan,
    origin: Origin,
    told: watch::Sender<Inference>,
) {
    let server = ModelServer::at(plan.port);
    tokio::join!(
        keep(&keeper, &plan, origin, &server, &told),
        fetch(&server, &plan.models),
    );
}

async fn keep(
    keeper: &Keeper,
    plan: &Plan,
    mut origin: Origin,
    server: &ModelServer,
    told: &watch::Sender<Inference>,
) {
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    let (mut misses, mut good) = (0, 0);
    loop {
        if server.version().await.is_some() {
            (misses, good) = (0, good + 1);
            if good == STEADY {
                pauses.reset();
            }
            tell(told, origin, true, server.models().await);
            sleep(LOOK).await;
            continue;
        }
        (misses, good) = (misses + 1, 0);
        let ended = origin == Origin::Container && keeper.has_ended(&plan.name()).await;
        if !ended && misses < MISSES {
            sleep(LOOK).await;
            continue;
        }
        let news = tell(told, origin, false, None);
        if origin == Origin::Existing {
            if news {
                tracing::warn!(address = %server.address(), "the model server that was here before us does not answer any more; restart it, or restart this node to have it run one of its own");
            }
            sleep(LOOK).await;
            continue;
        }
        let pause = pauses.take();
        tracing::warn!(
            container = plan.name(),
            ended,
            seconds = pause.as_secs_f32(),
            "the model server does not answer; it is restarted after a pause"
        );
        sleep(pause).await;
        match keeper.revive(plan).await {
            Ok(found) => origin = found,
            Err(error) => {
                tracing::error!(%error, "the model server could not be restarted; trying on")
            }
        }
        misses = 0;
    }
}

/// Tells how it is, where that is news; whether it was.
fn tell(
    told: &watch::Sender<Inference>,
    origin: Origin,
    running: bool,
    models: Option<Vec<String>>,
) -> bool {
    told.send_if_modified(|known| {
        let now = Inference {
            running: Some(running),
            existing_service: Some(origin == Origin::Existing),
            models: models.or_else(|| known.models.clone()),
            ..known.clone()
        };
        let news = *known != now;
        *known = now;
        news
    })
}

/// Fetches the models that are wanted and missing, until all are there.
async fn fetch(server: &ModelServer, wanted: &[String]) {
    let mut pauses = Pauses::new(FIRST_FETCH, LONGEST_FETCH);
    loop {
        let Some(there) = server.models().await else {
            sleep(LOOK).await;
            continue;
        };
        let mut failed = false;
        for model in wanted.iter().filter(|model| !has(&there, model)) {
            tracing::info!(model, "fetching a model");
            match server.pull(model).await {
                Ok(()) => tracing::info!(model, "the model is here"),
                Err(error) => {
                    tracing::warn!(model, %error, "the model could not be fetched; trying again later");
                    failed = true;
                }
            }
        }
        if !failed {
            return;
        }
        sleep(pauses.take()).await;
    }
}

/// Whether a model is there; without a tag, `latest` is meant.
fn has(there: &[String], wanted: &str) -> bool {
    let tagged = wanted
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    there
        .iter()
        .any(|name| name == wanted || (!tagged && *name == format!("{wanted}:latest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_a_tag_is_its_latest() {
        let there = ["a:latest".to_owned(), "b/c:7b".to_owned()];
        for (wanted, is_there) in [
            ("a", true),
            ("a:latest", true),
            ("a:7b", false),
            ("b/c:7b", true),
            ("b/c", false),
        ] {
            assert_eq!(has(&there, wanted), is_there, "{wanted}");
        }
    }
}
