//! Models of a node's model server: list, pull and delete.

use super::nodes::ModelDetails;
use crate::api::string_form::named_enum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/nodes/{slug}/models`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeModels {
    /// Slug of the node.
    pub node_slug: String,
    /// Models that its model server has.
    pub models: Vec<ModelDetails>,
}

/// Answer of `GET /v1/worker/models`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerModels {
    /// Payload version, 1.
    pub version: u64,
    /// Models that the model server of the node has.
    pub models: Vec<ModelDetails>,
}

/// Body of `POST /v1/nodes/{slug}/models:pull`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PullModel {
    /// Name of the model, such as `qwen3:0.6b` or `hf.co/owner/name:Q4_K_M`.
    pub model: String,
}

/// Body of `POST /v1/worker/models:pull`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerPull {
    /// Payload version, 1.
    pub version: u64,
    /// Name of the model.
    pub model: String,
}

/// Event of a pull.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// Progress; the same one again, now and then, while there is none.
    Progress(PullProgress),
    /// End, the last event.
    End(PullEnd),
}

/// Progress of a pull, of one part of the model at a time.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PullProgress {
    /// Step, in the words of the model server, such as `pulling manifest`.
    pub status: String,
    /// Digest of the part that is being pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size of that part, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes of that part that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_bytes: Option<u64>,
}

/// End of a pull.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PullEnd {
    /// Outcome.
    pub status: PullStatus,
    /// Reason of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PullEnd {
    /// End of a pull that failed, for this reason.
    pub fn failed(error: impl Into<String>) -> Self {
        Self {
            status: PullStatus::Failed,
            error: Some(error.into()),
        }
    }
}

named_enum! {
    /// Outcome of a pull.
    pub enum PullStatus {
        /// The node has the model.
        Completed,
        /// The model was not pulled; a further pull continues where this one ended.
        Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pull_events_are_flat_objects() {
        let progress = PullEvent::Progress(PullProgress {
            status: "pulling abc".to_owned(),
            total_bytes: Some(7),
            ..PullProgress::default()
        });
        let line = json!({"event": "progress", "status": "pulling abc", "total_bytes": 7});
        assert_eq!(serde_json::to_value(&progress).unwrap(), line);
        assert_eq!(serde_json::from_value::<PullEvent>(line).unwrap(), progress);
        let end = PullEvent::End(PullEnd::failed("no"));
        let line = json!({"event": "end", "status": "failed", "error": "no"});
        assert_eq!(serde_json::to_value(&end).unwrap(), line);
        assert_eq!(serde_json::from_value::<PullEvent>(line).unwrap(), end);
    }
}
