//! Operations of sandboxes that stay.

use super::{
    super::{MAX_PAGE_SIZE, tasks::DEFAULT_PAGE_SIZE},
    operation::{Operation, operation},
    schemas::schema_of,
};
use crate::api::sandboxes::{CreateSandbox, RenewSandbox, Sandbox, SandboxList};
use http::Method;
use schemars::json_schema;

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
    ]
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
