//! Errors on the wire: RFC 9457 `application/problem+json`.
//!
//! A [`ProblemKind`] fixes type, title and status together, so an answer can't claim one thing
//! in its status line and another in its body. `detail` is written for the caller: it is
//! safe to show to a stranger and says what to do next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the `type` URIs live; a slug is appended.
pub const TYPE_BASE: &str = "https://cynode.ai/problems/";

/// What is repeated of a text that a sender may have made as long as a body, in bytes.
const MAX_ECHOED_BYTES: usize = 2048;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:literal $slug:literal $title:literal;)*) => {
        /// The stable vocabulary of what can go wrong.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum ProblemKind { $($(#[$doc])* $name,)* }

        impl ProblemKind {
            /// Every kind there is.
            pub const ALL: &[ProblemKind] = &[$(ProblemKind::$name,)*];

            /// The HTTP status, always 4xx or 5xx.
            pub const fn status(self) -> u16 {
                match self { $(ProblemKind::$name => $status,)* }
            }

            /// The last part of the `type` URI.
            pub const fn slug(self) -> &'static str {
                match self { $(ProblemKind::$name => $slug,)* }
            }

            /// The `type` URI.
            pub fn uri(self) -> String {
                format!("{TYPE_BASE}{}", self.slug())
            }

            /// A short text that is the same for every problem of this kind.
            pub const fn title(self) -> &'static str {
                match self { $(ProblemKind::$name => $title,)* }
            }
        }
    };
}

kinds! {
    /// A body or a field is wrong.
    InvalidRequest = 400 "invalid-request" "The request is invalid";
    /// A payload between orchestrator and node has another version.
    UnsupportedPayloadVersion = 400 "unsupported-payload-version" "Unsupported payload version";
    /// A model was asked for, and none can be.
    InferenceNotAvailable = 400 "inference-not-available" "Inference is not available";
    /// No credentials, or wrong ones.
    Unauthorized = 401 "unauthorized" "Credentials are missing or wrong";
    /// The credentials are good, and not enough.
    Forbidden = 403 "forbidden" "Not allowed";
    /// There is no such thing, or not for this caller.
    NotFound = 404 "not-found" "Not found";
    /// The path exists, the method doesn't.
    MethodNotAllowed = 405 "method-not-allowed" "The method is not allowed here";
    /// The state of the thing forbids it.
    Conflict = 409 "conflict" "The request conflicts with the present state";
    /// The slug belongs to another machine.
    SlugTaken = 409 "slug-taken" "The node's slug is taken";
    /// Two processes call under one identity.
    DuplicateInstance = 409 "duplicate-instance" "Two processes run with the same data directory";
    /// The worker has finished and forgotten this job.
    JobAlreadyFinished = 409 "job-already-finished" "The job has finished already";
    /// An idempotency key came back with another body.
    IdempotencyKeyReused = 409 "idempotency-key-reused" "The idempotency key was used for another request";
    /// The body passes the limit.
    PayloadTooLarge = 413 "payload-too-large" "The body is too large";
    /// The body isn't JSON.
    UnsupportedMediaType = 415 "unsupported-media-type" "The media type is not supported";
    /// The host that the request names is another one's.
    Misdirected = 421 "misdirected-request" "The request is for another host";
    /// The request line and headers pass the limit.
    HeadTooLarge = 431 "head-too-large" "The head of the request is too large";
    /// Too often, too many.
    TooManyRequests = 429 "too-many-requests" "Too many requests";
    /// The queue of tasks is full.
    QueueFull = 429 "queue-full" "The queue is full";
    /// As many jobs as the worker has slots wait for pulls; one that needs none may go on.
    PullsFull = 429 "pulls-full" "Too many jobs wait for the pull of an image";
    /// A fault of ours; the log has the cause under the request id.
    Internal = 500 "internal" "Internal error";
    /// The disk has no room for another job or task.
    InsufficientStorage = 507 "insufficient-storage" "Not enough storage";
    /// Not now; an operator can act on the reason.
    Unavailable = 503 "unavailable" "Not available at present";
}

/// One wrong field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// Where in the body: a JSON pointer (RFC 6901) as a URI fragment, such as `#/env/PATH`.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An error as the caller gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What kind of problem; fixes `type`, `title` and `status`.
    pub kind: ProblemKind,
    /// What happened here and what to do next.
    pub detail: String,
    /// The fields at fault, when the body was understood that far.
    pub errors: Vec<FieldError>,
    /// Seconds to wait before another try (`Retry-After`).
    pub retry_after: Option<u64>,
    /// The methods that do exist (`Allow`), for 405.
    pub allow: Option<String>,
}

/// A problem, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    /// A URI that names the kind.
    #[serde(rename = "type", default)]
    #[schemars(extend("enum" = ProblemKind::ALL.iter().map(|kind| kind.uri()).collect::<Vec<_>>()))]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status again, for logs that lose it.
    pub status: u16,
    /// What happened and what to do next.
    #[serde(default)]
    pub detail: String,
    /// The request id.
    #[serde(default)]
    pub instance: String,
    /// The fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ProblemBody {
    /// The slug of its type, empty when the type isn't one of ours.
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(TYPE_BASE).unwrap_or_default()
    }
}

impl Problem {
    /// A problem of `kind`, explained by `detail`.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            allow: None,
        }
    }

    /// 400: the value at `pointer` (such as `/env/PATH`) is wrong because of `detail`.
    pub fn field(pointer: &str, detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::InvalidRequest, detail).at(pointer)
    }

    /// 401, with what to do about it.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Unauthorized, detail)
    }

    /// 404 for a `thing` that this caller can't see.
    pub fn not_found(thing: &str) -> Self {
        Self::new(
            ProblemKind::NotFound,
            format!(
                "there is no such {thing}, or it is not yours to see; check its name or id, a list shows what there is"
            ),
        )
    }

    /// 500. The cause belongs in the log, never in the answer.
    pub fn internal() -> Self {
        Self::new(
            ProblemKind::Internal,
            "something went wrong on our side; try again, and give the operator the request id if it stays",
        )
    }

    /// When another try may go well, in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }

    /// Names the field that the detail is about.
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

    /// The JSON body for the request named `instance`.
    pub fn body(&self, instance: &str) -> ProblemBody {
        ProblemBody {
            kind: self.kind.uri(),
            title: self.kind.title().to_owned(),
            status: self.kind.status(),
            detail: self.detail.clone(),
            instance: instance.to_owned(),
            errors: self.errors.clone(),
        }
    }
}

/// `text` as far as it is repeated to others.
pub(crate) fn truncated(mut text: String) -> String {
    if text.len() > MAX_ECHOED_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ECHOED_BYTES));
        text.push('…');
    }
    text
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
