//! The model server in a capability report: its state, and its models.

use super::{
    MAX_WARNING_BYTES,
    validation::{MAX_TEXT_BYTES, check_text},
};
use crate::{
    api::{
        lenient::{default_true, invalid_as_default, null_as_default, null_as_true},
        problem::Problem,
    },
    text,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most models in a report.
pub const MAX_MODELS: usize = 256;
/// Longest name of a model, in bytes.
pub const MAX_MODEL_NAME_BYTES: usize = MAX_TEXT_BYTES;
/// Longest digest of a model, in bytes.
const MAX_DIGEST_BYTES: usize = 128;
/// Most features of a model server in a report.
const MAX_FEATURES: usize = 32;

/// Image of the model server where nobody names one.
pub const DEFAULT_MODEL_SERVER_IMAGE: &str = "docker.io/ollama/ollama:latest";
/// Feature of a node that serves `/v1/worker/inference/…` of the Worker API.
pub const INFERENCE_PROXY: &str = "proxy";

/// Model server.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Inference {
    /// Whether the node serves models; `true` where the object does not say.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub supported: bool,
    /// Mode: `off`, `auto` or `on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Whether the server answers now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
    /// Reason why the server can't be started, with its kind first: `image-unavailable: …`. Only admins see more than
    /// the kind.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub reason: Option<String>,
    /// Whether the server is an external one that cynode did not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing_service: Option<bool>,
    /// Names of the models that the server has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Models of the server, with their sizes and whether they are loaded. Absent from nodes that report names only.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub model_details: Option<Vec<ModelDetails>>,
    /// Features of the node, such as `proxy`: it passes calls of the Worker API on to its model server.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Option::is_none"
    )]
    pub features: Option<Vec<String>>,
}

impl Inference {
    /// Whether the server has a model. A name without a tag means the tag `latest`.
    pub fn has_model(&self, name: &str) -> bool {
        let is_same = |known: &String| known.strip_suffix(":latest").unwrap_or(known) == name;
        let mut models = self.models.iter().flatten();
        models.any(|known| known == name || is_same(known))
    }
}

/// Model of a model server.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelDetails {
    /// Name, such as `qwen3:0.6b`.
    pub name: String,
    /// Size on disk, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Digest of its manifest, as the model server names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether it is in memory, so that it answers without being loaded first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub loaded: bool,
    /// Memory of graphics processors that it occupies, in bytes; only of a loaded model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_bytes: Option<u64>,
    /// Length of its context, in tokens; only of a loaded model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
}

impl ModelDetails {
    /// Whether a report may name a model like this: not empty, short enough, and fit for a terminal and a log.
    pub fn is_valid_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= MAX_MODEL_NAME_BYTES && text::clean(name) == name
    }

    /// Whether a digest fits into a report.
    pub fn is_valid_digest(digest: &str) -> bool {
        digest.len() <= MAX_DIGEST_BYTES && digest.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl Inference {
    /// Models of the server; of a node that reports only names, none of which counts as loaded.
    pub fn known_models(&self) -> Vec<ModelDetails> {
        if let Some(models) = &self.model_details {
            return models.clone();
        }
        let names = self.models.iter().flatten();
        let valid = names.filter(|name| ModelDetails::is_valid_name(name));
        let named = valid.map(|name| ModelDetails {
            name: name.clone(),
            ..ModelDetails::default()
        });
        named.collect()
    }

    /// Whether the node serves models now.
    pub fn is_serving(&self) -> bool {
        self.supported && self.running == Some(true)
    }

    /// Whether the node has a feature.
    pub fn has_feature(&self, feature: &str) -> bool {
        let features = self.features.as_deref().unwrap_or_default();
        features.iter().any(|known| known == feature)
    }

    /// Sets the models, and their names for orchestrators that know only names.
    pub fn set_models(&mut self, models: Option<Vec<ModelDetails>>) {
        let names = |models: &Vec<ModelDetails>| {
            let names = models.iter().map(|model| model.name.clone());
            names.collect()
        };
        self.models = models.as_ref().map(names);
        self.model_details = models;
    }

    /// Checks the details of models and the features; `at` is the JSON pointer of this object.
    pub(super) fn check(&self, at: &str) -> Result<(), Problem> {
        let reason = self.reason.as_deref().unwrap_or_default();
        if reason.len() > MAX_WARNING_BYTES {
            return Err(Problem::field(
                &format!("{at}/reason"),
                format!("must have at most {MAX_WARNING_BYTES} bytes"),
            ));
        }
        let models = self.model_details.as_deref().unwrap_or_default();
        let pointer = format!("{at}/model_details");
        check_count(&pointer, models.len(), MAX_MODELS)?;
        for (n, model) in models.iter().enumerate() {
            if !ModelDetails::is_valid_name(&model.name) {
                return Err(Problem::field(
                    &format!("{pointer}/{n}/name"),
                    format!("must be 1 to {MAX_MODEL_NAME_BYTES} bytes of printable characters"),
                ));
            }
            let digest = model.digest.as_deref().unwrap_or_default();
            if !ModelDetails::is_valid_digest(digest) {
                return Err(Problem::field(
                    &format!("{pointer}/{n}/digest"),
                    format!("must be at most {MAX_DIGEST_BYTES} visible ASCII characters"),
                ));
            }
        }
        let features = self.features.as_deref().unwrap_or_default();
        let pointer = format!("{at}/features");
        check_count(&pointer, features.len(), MAX_FEATURES)?;
        for (n, feature) in features.iter().enumerate() {
            check_text(&format!("{pointer}/{n}"), Some(feature))?;
        }
        Ok(())
    }
}

fn check_count(pointer: &str, count: usize, most: usize) -> Result<(), Problem> {
    if count <= most {
        return Ok(());
    }
    let detail = format!("must have at most {most} entries, got {count}");
    Err(Problem::field(pointer, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn model_details_are_bounded() {
        let check = |inference: serde_json::Value| {
            let inference: Inference = serde_json::from_value(inference).unwrap();
            inference
                .check("/inference")
                .map_err(|problem| problem.detail)
        };
        let model = |name: &str| json!({"name": name});
        let longest = "m".repeat(MAX_MODEL_NAME_BYTES);
        for good in [
            json!({}),
            json!({"model_details": null, "features": null}),
            json!({"model_details": [model("qwen3:0.6b"), model("名前"), model(&longest)]}),
            json!({"model_details": [{"name": "m", "loaded": null, "unknown": 1, "digest": "sha256:00"}]}),
            json!({"features": ["proxy"]}),
            // Peers may mean something else by these names.
            json!({"features": {"x": 1}, "model_details": [7]}),
        ] {
            check(good.clone()).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        let many = vec![model("m"); MAX_MODELS + 1];
        for (wrong, field) in [
            (json!({"model_details": many}), "inference.model_details"),
            (
                json!({"model_details": [model("")]}),
                "inference.model_details.0.name",
            ),
            (
                json!({"model_details": [model("a\u{1b}[2J")]}),
                "inference.model_details.0.name",
            ),
            (
                json!({"model_details": [model(&format!("{longest}m"))]}),
                ".0.name",
            ),
            (
                json!({"model_details": [model("m"), {"name": "n", "digest": "a\n"}]}),
                ".1.digest",
            ),
            (
                json!({"features": vec!["f"; MAX_FEATURES + 1]}),
                "inference.features",
            ),
            (
                json!({"features": ["f".repeat(257)]}),
                "inference.features.0",
            ),
        ] {
            let error = check(wrong.clone()).unwrap_err();
            assert!(error.contains(&format!("{field}`")), "{field}: {error}");
        }
    }

    #[test]
    fn names_without_details_stay_valid() {
        let known: Inference = serde_json::from_value(json!({"models": ["m"]})).unwrap();
        assert!(known.supported && known.model_details.is_none());
        assert!(!known.has_feature(INFERENCE_PROXY));
        let newer: Inference = serde_json::from_value(json!({"features": ["x", "proxy"]})).unwrap();
        assert!(newer.has_feature(INFERENCE_PROXY));
    }
}
