//! What an orchestrator does for its store beside all work: forgets what is not kept any more,
//! gives the room back, and sees when a data directory goes away and when a disk that failed is well again.

use super::Orchestrator;
use crate::{
    api::time::Time,
    errors,
    http::server::{Shutdown, ended},
    pause::Pauses,
    store::{Retention, Store, StoreError},
};
use std::{sync::Arc, time::Duration};

/// Between two looks for what is not kept any more. So late may a task be forgotten.
const LONGEST_LOOK: Duration = Duration::from_secs(10);
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
/// How often the data directory is looked at.
const PLACE_INTERVAL: Duration = Duration::from_secs(2);
/// Pauses between two probes.
const FIRST_PROBE: Duration = Duration::from_secs(1);
const LONGEST_PROBE: Duration = Duration::from_secs(15);

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    tokio::select! {
        () = forget(&orchestrator.store, orchestrator.settings.retention) => {}
        () = mend(&orchestrator) => {}
        () = watch_place(&orchestrator) => {}
        () = ended(shutdown) => {}
    }
}

/// Notes when the data directory is no more where it was.
async fn watch_place(orchestrator: &Orchestrator) {
    loop {
        tokio::time::sleep(PLACE_INTERVAL).await;
        orchestrator.trouble();
    }
}

/// Looks at a pace that goes with how long tasks are kept.
async fn forget(store: &Store, keep: Retention) {
    let pace = keep.age.map_or(LONGEST_LOOK, |age| age / 10);
    loop {
        tokio::time::sleep(pace.clamp(SHORTEST_LOOK, LONGEST_LOOK)).await;
        if let Err(error) = pass(store, keep).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "what is not kept any more can't be forgotten now");
        }
    }
}

/// Forgets all that is to go, and gives back what that leaves.
async fn pass(store: &Store, keep: Retention) -> Result<(), StoreError> {
    let mut tasks = 0;
    loop {
        let forgotten = store.forget_some(keep, Time::now()).await?;
        tasks += forgotten.tasks;
        if !forgotten.more {
            break;
        }
    }
    if tasks > 0 {
        tracing::info!(tasks, "finished tasks were forgotten");
    }
    while store.shrink().await? {}
    if let Err(error) = store.restore_ballast() {
        tracing::debug!(%error, "no room can be kept for a start on a full disk");
    }
    Ok(())
}

/// Probes a store in trouble with growing pauses, and has work go on once it is well.
async fn mend(orchestrator: &Orchestrator) {
    let store = &orchestrator.store;
    loop {
        store.troubled().await;
        let mut pauses = Pauses::new(FIRST_PROBE, LONGEST_PROBE);
        while store.trouble().is_some() {
            tokio::time::sleep(pauses.take()).await;
            if orchestrator.place.check().is_err() {
                // It can be written well enough, where nobody finds it.
                continue;
            }
            if let Err(error) = store.probe().await {
                tracing::debug!(error = errors::chain(&error), "the store is not well yet");
            }
        }
        orchestrator.wake.notify_one();
    }
}
