//! Operations of sandboxes that stay.

use super::{
    super::{MAX_PAGE_SIZE, tasks::DEFAULT_PAGE_SIZE},
    operation::{Operation, operation},
    schemas::{event, last_event_id, schema_of},
};
use crate::api::sandboxes::{CreateSandbox, RenewSandbox, Sandbox, SandboxList};
use http::Method;
use schemars::json_schema;

const EVENTS: &str = "\
Server-sent events. The data of `egress` is that of the logs of tasks, of `status` `{\"detail\"}`, which says why there are \
none where they are lost, and of `end`, the last event, `{\"status\"}`: `queued`, `running` (also while it starts) or `ended`. An id is `<attempt>-<seq>`; send it as Last-Event-ID to continue after that event.";

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::POST,
            "/v1/sandboxes",
            "create_sandbox",
            "Create a sandbox that stays; it is stored before the answer, which waits for it to run",
        )
        .optional_body::<CreateSandbox>()
        .creates_at_location::<Sandbox>()
        .fails_with(409)
        .fails_with(507),
        list(),
        operation(
            Method::GET,
            "/v1/sandboxes/{id}",
            "get_sandbox",
            "Show a sandbox",
        )
        .returns::<Sandbox>(),
        operation(
            Method::DELETE,
            "/v1/sandboxes/{id}",
            "delete_sandbox",
            "End a sandbox and all that runs in it, immediately; the record of one that has ended is removed",
        ),
        operation(
            Method::POST,
            "/v1/sandboxes/{id}/renew",
            "renew_sandbox",
            "Give a sandbox a new lifetime, counted from now",
        )
        .body::<RenewSandbox>()
        .returns::<Sandbox>()
        .fails_with(410),
        events(),
    ]
}

fn events() -> Operation {
    operation(
        Method::GET,
        "/v1/sandboxes/{id}/events",
        "get_sandbox_events",
        "Show or follow what a sandbox asked hosts for",
    )
    .query(
        "follow",
        "Whether to stream events as they happen, until the sandbox ends: the default.",
        schema_of::<bool>,
    )
    .header(
        "Last-Event-ID",
        "Id of the last event received; events after it are sent.",
        last_event_id,
    )
    .returns_media("text/event-stream", EVENTS, |_| {
        event(&["status", "egress", "end"])
    })
}

fn list() -> Operation {
    operation(
        Method::GET,
        "/v1/sandboxes",
        "list_sandboxes",
        "List your sandboxes that have not ended, newest first; admins get those of all users",
    )
    .query("limit", "Maximum number of entries.", |_| {
        json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE})
    })
    .query(
        "cursor",
        "The next_cursor of the previous page.",
        |_| json_schema!({"type": "string", "anyOf": [{"format": "uuid"}, {"maxLength": 0}]}),
    )
    .query(
        "all",
        "Whether those that have ended are listed, too.",
        schema_of::<bool>,
    )
    .returns::<SandboxList>()
}
