//! Record of the artifacts of an attempt: those that are here, and the reasons why others are missing.

use crate::{
    api::{events::ResultEvent, jobs::SkippedArtifacts},
    contents::{Pin, StoredContent},
    orchestrator::artifacts::ResultShare,
    store::NewArtifact,
};
use std::collections::BTreeMap;

/// Artifacts that are here, pinned until the end of the job refers to them.
#[derive(Default)]
pub(in crate::orchestrator::dispatch) struct Retrieved {
    pub(in crate::orchestrator::dispatch) artifacts: Vec<NewArtifact>,
    pub(super) pins: Vec<Pin>,
    pub(super) share: Option<ResultShare>,
}

/// Artifact, or the reason why it is missing.
pub(super) type Fetched = Result<StoredContent, String>;

/// Leaves those artifacts in a result that are here, and says why the others are not.
pub(super) fn record(last: &mut ResultEvent, fetched: Vec<Fetched>) -> Retrieved {
    let mut retrieved = Retrieved::default();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let artifacts = std::mem::take(&mut last.result.artifacts);
    for (artifact, fetched) in artifacts.into_iter().zip(fetched) {
        match fetched {
            Ok(StoredContent { content, pin }) => {
                retrieved.artifacts.push(NewArtifact {
                    name: artifact.path.clone(),
                    content,
                    is_executable: artifact.executable,
                });
                retrieved.pins.push(pin);
                last.result.artifacts.push(artifact);
            }
            Err(reason) => missing.entry(reason).or_default().push(artifact.path),
        }
    }
    for (reason, paths) in missing {
        let count = paths.len();
        tracing::warn!(count, reason, "artifacts of a job are missing");
        let skipped = SkippedArtifacts::new(
            count as u64,
            format!("not stored: {count} ({reason}), such as {:?}", paths[0]),
        );
        let before = last.result.artifacts_skipped.take();
        last.result.artifacts_skipped = Some(match before {
            Some(before) => before.and(skipped),
            None => skipped,
        });
    }
    retrieved
}
