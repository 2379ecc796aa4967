//! Problems, the errors on the wire: RFC 9457 `application/problem+json`.
//!
//! A [`ProblemKind`] fixes type, title and status together, so that status line and body always agree.
//! `detail` is written for the caller: it is safe to show to anyone and says what to do next.

use crate::{api::jobs::files::ContentHash, text::clean};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Base of the `type` URIs; a slug is appended.
pub const TYPE_BASE: &str = "https://cynode.ai/problems/";

/// Longest echo of a text of the sender, in bytes.
const MAX_ECHOED_BYTES: usize = 2048;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:literal $slug:literal $title:literal;)*) => {
        /// Kind of a problem; a stable vocabulary.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum ProblemKind { $($(#[$doc])* $name,)* }

        impl ProblemKind {
            /// Every kind.
            pub const ALL: &[ProblemKind] = &[$(ProblemKind::$name,)*];

            /// HTTP status, always 4xx or 5xx.
            pub const fn status(self) -> u16 {
                match self { $(ProblemKind::$name => $status,)* }
            }

            /// Last part of the `type` URI.
            pub const fn slug(self) -> &'static str {
                match self { $(ProblemKind::$name => $slug,)* }
            }

            /// `type` URI.
            pub fn uri(self) -> String {
                format!("{TYPE_BASE}{}", self.slug())
            }

            /// Title: a short text that is the same for every problem of this kind.
            pub const fn title(self) -> &'static str {
                match self { $(ProblemKind::$name => $title,)* }
            }
        }
    };
}

kinds! {
    /// The body, a field, a header or a parameter is invalid.
    InvalidRequest = 400 "invalid-request" "The request is invalid";
    /// A payload between orchestrator and node has another version.
    UnsupportedPayloadVersion = 400 "unsupported-payload-version" "Unsupported payload version";
    /// The request needs a model, and there is none.
    InferenceNotAvailable = 400 "inference-not-available" "Inference is not available";
    /// The credentials are missing or wrong.
    Unauthorized = 401 "unauthorized" "Credentials are missing or wrong";
    /// The credentials are valid, but do not allow this.
    Forbidden = 403 "forbidden" "Not allowed";
    /// The resource does not exist, or is not visible to this caller.
    NotFound = 404 "not-found" "Not found";
    /// No node has the model.
    ModelNotFound = 404 "model-not-found" "The model is not found";
    /// The path exists, but not with this method.
    MethodNotAllowed = 405 "method-not-allowed" "The method is not allowed here";
    /// The state of the resource does not allow this.
    Conflict = 409 "conflict" "The request conflicts with the present state";
    /// The slug belongs to another node.
    SlugTaken = 409 "slug-taken" "The node's slug is taken";
    /// Two processes call with one identity.
    DuplicateInstance = 409 "duplicate-instance" "Two processes run with the same data directory";
    /// The worker has finished this job and deleted its result.
    JobAlreadyFinished = 409 "job-already-finished" "The job has finished already";
    /// The worker lacks contents of a job; `missing` names them.
    ContentMissing = 409 "content-missing" "Contents of the job are missing";
    /// The sandbox has ended, or the record of the exec is no longer kept; the detail says which, and why.
    Gone = 410 "gone" "The sandbox or its exec is gone";
    /// The idempotency key was used with another body.
    IdempotencyKeyReused = 409 "idempotency-key-reused" "The idempotency key was used for another request";
    /// The body exceeds the limit.
    PayloadTooLarge = 413 "payload-too-large" "The body is too large";
    /// The range begins beyond the end, or a part of an upload where none is expected.
    RangeNotSatisfiable = 416 "range-not-satisfiable" "The range is not available";
    /// The body is not sent as JSON.
    UnsupportedMediaType = 415 "unsupported-media-type" "The media type is not supported";
    /// The request names a host that is not this server's.
    Misdirected = 421 "misdirected-request" "The request is for another host";
    /// The call needs another protocol, to which the connection has to change.
    UpgradeRequired = 426 "upgrade-required" "Another protocol is required";
    /// A rate or a number of concurrent calls exceeds its limit.
    TooManyRequests = 429 "too-many-requests" "Too many requests";
    /// The queue of tasks is full.
    QueueFull = 429 "queue-full" "The queue is full";
    /// As many jobs as the worker has slots wait for the pull of an image; one with its image present may run.
    PullsFull = 429 "pulls-full" "Too many jobs wait for the pull of an image";
    /// Too few graphics processors of the worker are free; a job without them may run.
    GpusBusy = 429 "gpus-busy" "Too few GPUs are free";
    /// Internal error; the log has the cause under the request id.
    Internal = 500 "internal" "Internal error";
    /// The disk is too full for another job or task.
    InsufficientStorage = 507 "insufficient-storage" "Not enough storage";
    /// The model server, or the way to it, failed before the answer began.
    ModelServerFailed = 502 "model-server-failed" "The model server failed";
    /// The answer of the model server did not begin in time.
    ModelServerTimeout = 504 "model-server-timeout" "The model server is too slow";
    /// A program in the sandbox failed, or answered what it should not.
    SandboxFailed = 502 "sandbox-failed" "The sandbox failed";
    /// Temporarily unavailable; the reason is one that an operator can act on.
    Unavailable = 503 "unavailable" "Not available at present";
}

/// Error of one field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) into the body as a URI fragment, such as `#/env/PATH`.
    pub pointer: String,
    /// Predicate about the field, such as `must be a string, got a number`.
    pub detail: String,
}

/// Error as the caller gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Kind, which fixes `type`, `title` and `status`.
    pub kind: ProblemKind,
    /// Description of what happened and what to do next.
    pub detail: String,
    /// Invalid fields of the body.
    pub errors: Vec<FieldError>,
    /// Seconds to wait before the next attempt (`Retry-After`).
    pub retry_after: Option<u64>,
    /// Methods of the path (`Allow`), for 405.
    pub allow: Option<String>,
    /// Members that few problems have.
    pub extras: Box<ProblemExtras>,
}

/// Parts of a problem that few have; apart, so that an error stays small.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProblemExtras {
    /// Further header fields, such as `Content-Range`.
    pub headers: Vec<(&'static str, String)>,
    /// Contents that are missing.
    pub missing: Vec<ContentHash>,
}

/// JSON body of a problem.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    /// URI of the kind.
    #[serde(rename = "type", default)]
    #[schemars(extend("enum" = ProblemKind::ALL.iter().map(|kind| kind.uri()).collect::<Vec<_>>()))]
    pub kind: String,
    /// Title of the kind.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Description of what happened and what to do next.
    #[serde(default)]
    pub detail: String,
    /// Request id, which is also in the server's log.
    #[serde(default)]
    pub instance: String,
    /// Invalid fields of the body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// SHA-256 of the contents that are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<ContentHash>,
}

impl ProblemBody {
    /// Slug of the type; empty where it is not one of cynode's.
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(TYPE_BASE).unwrap_or_default()
    }
}

impl Problem {
    /// Problem of a kind, described by `detail`.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            allow: None,
            extras: Box::default(),
        }
    }

    /// 400 about the field at `pointer`, such as `/env/PATH`. `detail` is a predicate about it, such as `must be …`.
    pub fn field(pointer: &str, detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::InvalidRequest, detail).at(pointer)
    }

    /// 401, with what to do about it as `detail`.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Unauthorized, detail)
    }

    /// 404 for a `thing` that does not exist or is not visible to the caller.
    pub fn not_found(thing: &str) -> Self {
        Self::new(
            ProblemKind::NotFound,
            format!(
                "there is no such {thing}, or you may not see it; check its name or id, or list what there is"
            ),
        )
    }

    /// 404 for a node that is not registered.
    pub fn unknown_node(slug: &str) -> Self {
        let slug = quoted(slug);
        let detail = format!("there is no node {slug}; cynode nodes list shows those there are");
        Self::new(ProblemKind::NotFound, detail)
    }

    /// 404 for a task that does not exist or is not visible to the caller.
    pub fn unknown_task(name: &str) -> Self {
        let name = quoted(name);
        let detail = format!(
            "there is no task {name} that you may see; cynode task list shows those there are"
        );
        Self::new(ProblemKind::NotFound, detail)
    }

    /// 404 for a sandbox that does not exist or is not visible to the caller.
    pub fn unknown_sandbox(name: &str) -> Self {
        let name = quoted(name);
        let detail = format!(
            "there is no sandbox {name} that you may see; cynode sandbox list --all shows those there are"
        );
        Self::new(ProblemKind::NotFound, detail)
    }

    /// 404 for a snapshot that the caller does not have.
    pub fn unknown_snapshot(name: &str) -> Self {
        let name = quoted(name);
        let detail = format!(
            "you have no snapshot {name}; cynode sandbox snapshots lists those that you have"
        );
        Self::new(ProblemKind::NotFound, detail)
    }

    /// 500. The cause belongs into the log, never into the answer.
    pub fn internal() -> Self {
        Self::new(
            ProblemKind::Internal,
            "internal error; try again, and give the operator the request id if it persists",
        )
    }

    /// Same problem with the seconds after which to try again.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// Same problem with a further header field. `name` is in lower case.
    pub fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.extras.headers.push((name, value));
        self
    }

    /// Same problem about the field at `pointer`; its detail is a predicate, such as `must be …`.
    pub fn at(mut self, pointer: &str) -> Self {
        let pointer = truncated(pointer.to_owned());
        self.detail = truncated(self.detail);
        let field = pointer.trim_start_matches('/').replace('/', ".");
        self.errors.push(FieldError {
            pointer: format!("#{pointer}"),
            detail: self.detail.clone(),
        });
        if !field.is_empty() {
            self.detail = format!("`{field}` {}", self.detail);
        }
        self
    }

    /// Same problem about the field `name` at the top of the body; its detail is a sentence that names the field.
    pub fn about(mut self, name: &str) -> Self {
        self.errors.push(FieldError {
            pointer: format!("#/{name}"),
            detail: self.detail.clone(),
        });
        self
    }

    /// JSON body for the request with the id `instance`.
    pub fn body(&self, instance: &str) -> ProblemBody {
        ProblemBody {
            kind: self.kind.uri(),
            title: self.kind.title().to_owned(),
            status: self.kind.status(),
            detail: self.detail.clone(),
            instance: instance.to_owned(),
            errors: self.errors.clone(),
            missing: self.extras.missing.clone(),
        }
    }
}

/// Text, truncated to [`MAX_ECHOED_BYTES`].
pub(crate) fn truncated(mut text: String) -> String {
    if text.len() > MAX_ECHOED_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ECHOED_BYTES));
        text.push('…');
    }
    text
}

/// Name of a thing as it was asked for, in quotes, without what a terminal would obey.
fn quoted(name: &str) -> String {
    truncated(clean(&format!("{name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_field_name_makes_bounded_problem() {
        let name = "é".repeat(1 << 20);
        let problem = Problem::field(&format!("/env/{name}"), format!("no {name}"));
        let size = serde_json::to_vec(&problem.body("r1")).unwrap().len();
        assert!(size < 5 * MAX_ECHOED_BYTES, "{size}");
    }

    #[test]
    fn every_problem_kind_has_unique_slug() {
        for (n, kind) in ProblemKind::ALL.iter().enumerate() {
            assert!((400..600).contains(&kind.status()), "{kind:?}");
            assert!(
                ProblemKind::ALL[n + 1..]
                    .iter()
                    .all(|other| other.slug() != kind.slug()),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn field_problem_names_field_in_text_and_pointer() {
        let body = Problem::field("/env/A B", "is not a name").body("r1");
        assert_eq!(body.detail, "`env.A B` is not a name");
        assert_eq!(
            body.errors,
            [FieldError {
                pointer: "#/env/A B".into(),
                detail: "is not a name".into()
            }]
        );
        assert_eq!(body.kind, "https://cynode.ai/problems/invalid-request");
    }
}
