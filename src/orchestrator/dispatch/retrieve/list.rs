//! Check of a node's list of artifacts against the task: a node must not fill the store with other files.

use crate::{
    api::{
        jobs::{JobArtifact, SandboxSpec, patterns::Patterns},
        size::ByteSize,
    },
    errors,
    orchestrator::AppState,
    store::RunningJob,
};
use std::collections::HashSet;
use tokio::task::spawn_blocking;

/// Reason for which each artifact is none of the task's, as in [`objections`].
pub(super) async fn check(
    state: &AppState,
    job: &RunningJob,
    artifacts: &[JobArtifact],
) -> Vec<Option<String>> {
    let artifacts = artifacts.to_vec();
    let none = vec![None; artifacts.len()];
    let spec = match state.store.task_sandbox(job.task_id).await {
        Ok(spec) => spec,
        Err(error) => {
            // Rather the files of a job too many than none.
            let error = errors::chain(&error);
            tracing::warn!(error, "artifacts can't be checked against their task");
            return none;
        }
    };
    let checked = spawn_blocking(move || objections(&artifacts, &spec));
    checked.await.unwrap_or(none)
}

/// Reason for which each artifact of a list is none of the task's; `None` where it is one.
fn objections(artifacts: &[JobArtifact], spec: &SandboxSpec) -> Vec<Option<String>> {
    let (patterns, _) = Patterns::new(&spec.artifacts);
    let (mut names, mut total) = (HashSet::new(), 0_u64);
    let check = |artifact: &JobArtifact| {
        if !patterns.is_match(artifact.path.as_bytes()) {
            return Some("the task did not ask for it".to_owned());
        }
        if !names.insert(artifact.path.clone()) {
            return Some("its node listed it twice".to_owned());
        }
        let sum = total.saturating_add(artifact.size_bytes);
        if let Some(limit) = spec.artifact_limit.filter(|limit| sum > limit.0) {
            let limit = ByteSize(limit.0);
            return Some(format!("beyond the task's limit of {limit}"));
        }
        total = sum;
        None
    };
    artifacts.iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_task_asks_for_passes() {
        let spec = serde_json::json!({
            "image": "i", "command": ["c"], "artifacts": ["out/*.json"], "artifact_limit": 10,
        });
        let spec: SandboxSpec = serde_json::from_value(spec).unwrap();
        let list = [
            ("out/a.json", 6, true),
            ("out/a.json", 1, false),
            ("other", 1, false),
            ("artifacts/large", 5, false),
            ("artifacts/small", 4, true),
            ("out/huge.json", u64::MAX, false),
        ];
        let artifacts = list.map(|(path, size_bytes, _)| JobArtifact {
            path: path.to_owned(),
            size_bytes,
            executable: false,
        });
        let objections = objections(&artifacts, &spec);
        for ((path, _, is_meant), objection) in list.iter().zip(objections) {
            assert_eq!(objection.is_none(), *is_meant, "{path}: {objection:?}");
        }
    }
}
