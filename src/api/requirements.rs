//! Requirements that tasks and sandboxes have in common: the image, the node and its labels, limits.

use super::{
    image,
    integer::optional_integer,
    jobs::{
        self,
        resources::{MAX_PIDS, MIN_PIDS},
    },
    nodes::{MAX_LABELS, check_label, check_slug},
    problem::Problem,
};
use serde::Deserializer;
use serde_json::{Value, json};

/// Limit of processes, for fields of requests.
pub(super) fn pids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    optional_integer(deserializer, MIN_PIDS..=MAX_PIDS)
}

/// Schema of an argument or of a variable's value.
pub(super) fn text_schema(shortest: usize) -> Value {
    json!({
        "type": "string",
        "pattern": jobs::NO_NUL_PATTERN,
        "minLength": shortest,
        "maxLength": jobs::MAX_ARGUMENT_BYTES,
    })
}

/// Checks the labels that the node must have, and the slug of the only node.
pub(super) fn check_node(labels: &[String], node: Option<&str>) -> Result<(), Problem> {
    for (n, label) in labels.iter().enumerate() {
        check_label(&format!("/node_labels/{n}"), label)?;
    }
    if labels.len() > MAX_LABELS {
        let detail = format!(
            "must have at most {MAX_LABELS} labels, got {}",
            labels.len()
        );
        return Err(Problem::field("/node_labels", detail));
    }
    node.map_or(Ok(()), |node| check_slug("/node", node))
}

/// Image in normal form; `default_image` where none is given.
pub(super) fn resolve_image(image: Option<&str>, default_image: &str) -> Result<String, Problem> {
    let image = image.unwrap_or(default_image);
    if image.len() > image::MAX_INPUT_BYTES {
        let detail = format!(
            "must have at most {} bytes, got {}",
            image::MAX_INPUT_BYTES,
            image.len()
        );
        return Err(Problem::field("/image", detail));
    }
    Ok(jobs::parse_image("/image", image)?.as_str().to_owned())
}
