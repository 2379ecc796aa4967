//! Model servers of nodes: which node is told to run one, and whether readiness depends on that. Pure.

use super::{RequireInference, Settings};
use crate::api::nodes::{
    CapabilityReport, DEFAULT_MODEL_SERVER_IMAGE, InferenceBackend, InferenceMode, NodeStatus,
};

/// Model server in the configuration of a node: of the operator's image, or of the default one where the node has a
/// graphics processor.
pub(super) fn backend(
    settings: &Settings,
    slug: &str,
    report: &CapabilityReport,
) -> Option<InferenceBackend> {
    let image = match &settings.inference_image {
        Some(image) => image.as_str(),
        None => has_gpu(report).then_some(DEFAULT_MODEL_SERVER_IMAGE)?,
    };
    let is_for_node = |of: &Option<String>| of.as_deref().is_none_or(|of| of == slug);
    let wanted = settings.inference_models.iter();
    let models: Vec<String> = wanted
        .filter(|model| is_for_node(&model.slug))
        .map(|model| model.name.clone())
        .collect();
    Some(InferenceBackend {
        enabled: true,
        image: Some(image.to_owned()),
        variant: None,
        port: None,
        models: (!models.is_empty()).then_some(models),
    })
}

/// Whether readiness depends on inference: always or never, or where one of these nodes was told to run it, by its own
/// operator or by its configuration. Of a node that is away, only the word of its operator counts: one laptop with a
/// graphics processor must not make the whole unready while it is closed.
pub(super) fn is_required<'a>(
    settings: &Settings,
    nodes: impl IntoIterator<Item = (&'a CapabilityReport, NodeStatus)>,
) -> bool {
    match settings.require_inference {
        RequireInference::True => true,
        RequireInference::False => false,
        RequireInference::Auto => nodes.into_iter().any(|(report, status)| {
            let is_away = matches!(status, NodeStatus::Offline | NodeStatus::Draining);
            is_told(settings.inference_image.is_some(), is_away, report)
        }),
    }
}

fn is_told(has_image: bool, is_away: bool, report: &CapabilityReport) -> bool {
    let mode = report
        .inference
        .as_ref()
        .and_then(|known| known.mode.as_deref());
    let is_mode = |known: InferenceMode| mode == Some(known.as_str());
    is_mode(InferenceMode::On)
        || (!is_away && (has_image || has_gpu(report)) && !is_mode(InferenceMode::Off))
}

fn has_gpu(report: &CapabilityReport) -> bool {
    report.gpu.as_ref().is_some_and(|gpu| gpu.present)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(mode: &str, has_gpu: bool) -> CapabilityReport {
        serde_json::from_value(json!({
            "version": 1, "node": {"node_slug": "box"}, "gpu": {"present": has_gpu},
            "inference": {"supported": mode == "on", "mode": mode},
        }))
        .unwrap()
    }

    #[test]
    fn told_nodes_make_inference_required() {
        for (has_image, mode, has_gpu, expected) in [
            (false, "auto", false, false),
            (false, "auto", true, true),
            (false, "on", false, true),
            (false, "off", true, false),
            (true, "auto", false, true),
            (true, "off", false, false),
            // Of another implementation.
            (true, "allow", false, true),
        ] {
            let report = report(mode, has_gpu);
            assert_eq!(
                is_told(has_image, false, &report),
                expected,
                "{has_image} {mode} {has_gpu}"
            );
            assert_eq!(is_told(has_image, true, &report), mode == "on");
        }
        let silent: CapabilityReport =
            serde_json::from_value(json!({"version": 1, "node": {"node_slug": "peer"}})).unwrap();
        assert!(!is_told(false, false, &silent) && is_told(true, false, &silent));
    }
}
