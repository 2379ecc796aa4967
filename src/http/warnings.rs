//! Warnings of an answer: the parts of a request that were ignored or changed.
//!
//! Unknown fields and query parameters are ignored, so that an older orchestrator serves a newer client.
//! Without a warning that would hide every typing error: `timout_seconds` would mean no limit at all. A
//! [`Request`](super::request::Request) collects them while its handler reads it; the router writes them into
//! the field `warnings` of the JSON object that the handler answers.

use super::{
    query::decode_form,
    response::{self, Response},
};
use crate::api::warning::Warning;
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::{Mutex, MutexGuard};
use std::{collections::BTreeSet, future::ready, sync::Arc};

/// Most warnings of an answer; more are only counted.
const MAX_WARNINGS: usize = 16;
/// Longest field name that is echoed, in bytes.
const MAX_FIELD_BYTES: usize = 100;

/// Warnings of one request, shared by its handler and the router.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    warnings: Vec<Warning>,
    /// Number of warnings beyond those.
    uncounted: usize,
    /// Query parameters that the handler asked for.
    parameters: BTreeSet<String>,
}

impl Collected {
    fn add(&mut self, field: &str, detail: String) {
        if self.warnings.len() >= MAX_WARNINGS {
            self.uncounted += 1;
            return;
        }
        let end = field.floor_char_boundary(MAX_FIELD_BYTES);
        let cut = if end < field.len() { "…" } else { "" };
        self.warnings.push(Warning {
            field: format!("{}{cut}", &field[..end]),
            detail,
        });
    }

    /// All warnings of a request with this query; the last one stands for those left out.
    fn finish(&mut self, query: &str) -> Vec<Warning> {
        let named: BTreeSet<String> = names(query)
            .filter(|name| !self.parameters.contains(name))
            .collect();
        for name in named {
            self.add(&name, "unknown query parameter; ignored".to_owned());
        }
        let mut warnings = std::mem::take(&mut self.warnings);
        if self.uncounted > 0 {
            warnings.push(Warning {
                field: "…".to_owned(),
                detail: format!("{} more were ignored", self.uncounted),
            });
        }
        warnings
    }
}

/// Names of the parameters of a query.
fn names(query: &str) -> impl Iterator<Item = String> {
    let names = query.split('&');
    let names = names.map(|pair| decode_form(pair.split('=').next().unwrap_or_default()));
    names.filter(|name| !name.is_empty())
}

impl Warnings {
    fn collected(&self) -> MutexGuard<'_, Collected> {
        self.0.lock()
    }

    /// Adds a warning about a field.
    pub(super) fn add(&self, field: &str, detail: String) {
        self.collected().add(field, detail);
    }

    /// Adds a warning about a field that the type of the body does not have.
    pub(super) fn add_unknown_field(&self, path: &serde_ignored::Path<'_>) {
        self.add(&label(path), "unknown field; ignored".to_owned());
    }

    /// Marks a query parameter as known to the handler.
    pub(super) fn mark_parameter_known(&self, parameter: &str) {
        self.collected().parameters.insert(parameter.to_owned());
    }

    /// Marks all parameters of a query as known to the handler.
    pub(super) fn mark_parameters_known(&self, query: &str) {
        self.collected().parameters.extend(names(query));
    }

    /// Writes the warnings into a successful answer, where that is a JSON object.
    pub(super) async fn write(&self, query: Option<&str>, answer: Response) -> Response {
        if !answer.status().is_success() || !is_json(&answer) {
            return answer;
        }
        let warnings = self.collected().finish(query.unwrap_or_default());
        if warnings.is_empty() {
            return answer;
        }
        let (mut parts, body) = answer.into_parts();
        // An answer that was passed on has that of its sender.
        parts.headers.remove(header::CONTENT_LENGTH);
        match body.collect().await {
            Ok(whole) => {
                let body = append_field(whole.to_bytes(), &warnings);
                Response::from_parts(parts, response::whole(body))
            }
            Err(error) => {
                let cut = futures_util::stream::once(ready(Err(error)));
                Response::from_parts(parts, StreamBody::new(cut).boxed_unsync())
            }
        }
    }
}

fn is_json(answer: &Response) -> bool {
    answer.headers().get(header::CONTENT_TYPE)
        == Some(&HeaderValue::from_static("application/json"))
}

/// JSON object with the field `warnings` added; any other text unchanged.
fn append_field(body: Bytes, warnings: &[Warning]) -> Bytes {
    let (Some(fields), Ok(warnings)) = (
        body.strip_prefix(b"{")
            .and_then(|body| body.strip_suffix(b"}")),
        serde_json::to_string(warnings),
    ) else {
        return body;
    };
    let comma = if fields.is_empty() { "" } else { "," };
    let mut whole = Vec::with_capacity(body.len() + warnings.len() + 16);
    whole.extend_from_slice(b"{");
    whole.extend_from_slice(fields);
    whole.extend_from_slice(format!("{comma}\"warnings\":{warnings}}}").as_bytes());
    whole.into()
}

/// Dotted path of a field: `a.0.b` for `b` of the first element of `a`.
fn label(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    let below = |parent: &Path<'_>, name: &str| match label(parent) {
        parent if parent.is_empty() => name.to_owned(),
        parent => format!("{parent}.{name}"),
    };
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => below(parent, &index.to_string()),
        Path::Map { parent, key } => below(parent, key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => label(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_in_number_and_size() {
        let warnings = Warnings::default();
        for n in 0..1000 {
            warnings.add(&format!("{n}{}", "é".repeat(1000)), "ignored".to_owned());
        }
        let all = warnings.collected().finish("x=1&limit=2");
        assert_eq!(all.len(), MAX_WARNINGS + 1);
        assert_eq!(all[MAX_WARNINGS].detail, "986 more were ignored");
        assert!(serde_json::to_string(&all).unwrap().len() < 4096);
    }

    #[test]
    fn parameters_are_named_once_and_decoded() {
        let warnings = Warnings::default();
        warnings.mark_parameter_known("limit");
        let all = warnings.collected().finish("limit=1&a%20b=&a+b&&=x");
        let fields: Vec<&str> = all.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["a b"]);
    }

    #[test]
    fn only_objects_get_warnings_field() {
        let one = [Warning {
            field: "a".to_owned(),
            detail: "b".to_owned(),
        }];
        let written = |body: &'static str| append_field(body.into(), &one);
        assert_eq!(
            written("{\"x\":1}"),
            "{\"x\":1,\"warnings\":[{\"field\":\"a\",\"detail\":\"b\"}]}"
        );
        assert_eq!(
            written("{}"),
            "{\"warnings\":[{\"field\":\"a\",\"detail\":\"b\"}]}"
        );
        assert_eq!(written("[1]"), "[1]");
    }
}
