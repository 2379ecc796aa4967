//! All operations of the User API, in the order of the router's list.

use super::{
    super::{
        MAX_PAGE_SIZE,
        audit::DEFAULT_PAGE_SIZE as AUDIT_PAGE_SIZE,
        tasks::{DEFAULT_PAGE_SIZE, KEY_PATTERN},
    },
    api_keys, artifacts, join_tokens, models, node_models,
    operation::{Operation, operation},
    sandbox_calls, sandboxes,
    schemas::{any_text, event, last_event_id, schema_of},
    secrets, service, snapshots,
};
use crate::api::{
    audit::{AuditAction, AuditLog},
    auth::{Login, Logout, Refresh, Tokens, User},
    events::MAX_TAIL_LINES,
    images::{PushImage, PushedImages},
    nodes::{NodeList, NodeView},
    tasks::{
        CancelAnswer, CreateTask, StdinAnswer, Task, TaskList, TaskLogs, TaskResult, TaskStatus,
    },
    users::{ChangePassword, CreateUser, ResetPassword, UserList},
};
use crate::store::MAX_OFFSET;
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

const EVENTS: &str = "\
Server-sent events, with follow=true or if Accept names this type. The data of `status` is \
`{\"status\", \"reason\"?, \"detail\"?}`, of `stdout` and `stderr` `{\"data\" or \"data_base64\", \"time\"?}`, of `gap` (output that was dropped) \
`{\"stream\", \"bytes\"}`, of `egress` (a request of the job to a host, unless one stream is selected) `{\"host\"?, \"port\"?, \
\"verdict\": \"allowed\", \"refused\" or \"ended\", \"detail\"?, \"bytes_sent\"?, \"bytes_received\"?, \"time\"?}`, and of `end`, the last event, `{\"status\", \"exit_code\"?}`. An id is \
`<attempt>-<seq>`; send it as Last-Event-ID to continue after that event.";

fn log_event(_: &mut SchemaGenerator) -> Schema {
    event(&["status", "stdout", "stderr", "gap", "egress", "end"])
}

/// Schema of the size of a page.
fn page_size(default: u32) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": default})
}

fn get(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    operation(Method::GET, path, id, summary)
}

fn post(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    operation(Method::POST, path, id, summary)
}

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    [
        auth(),
        users(),
        api_keys::all(),
        tasks(),
        artifacts::all(),
        sandboxes::all(),
        sandbox_calls::all(),
        snapshots::all(),
        models::all(),
        nodes(),
        join_tokens::all(),
        secrets::all(),
        node_models::all(),
        service::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn auth() -> Vec<Operation> {
    vec![
        post("/v1/auth/login", "log_in", "Open a session with a password")
            .public()
            .body::<Login>()
            .returns::<Tokens>()
            .fails_with(401)
            .fails_with(429),
        post(
            "/v1/auth/refresh",
            "refresh",
            "Exchange a refresh token for new tokens; each works once",
        )
        .public()
        .body::<Refresh>()
        .returns::<Tokens>()
        .fails_with(401)
        .fails_with(429),
        post("/v1/auth/logout", "log_out", "End the session immediately").optional_body::<Logout>(),
        get("/v1/users/me", "who_am_i", "Show the user of this session").returns::<User>(),
        post(
            "/v1/users/me/password",
            "change_password",
            "Change your password and end your other sessions; 403 where the current one is wrong",
        )
        .body::<ChangePassword>()
        .fails_with(403)
        .fails_with(409)
        .fails_with(429),
    ]
}

fn users() -> Vec<Operation> {
    let admin_post = |path, id, summary| post(path, id, summary).admin_only();
    vec![
        admin_post("/v1/users", "create_user", "Create a user")
            .body::<CreateUser>()
            .creates::<User>()
            .fails_with(409),
        get("/v1/users", "list_users", "List users by handle")
            .admin_only()
            .query("limit", "Maximum number of entries.", |_| {
                page_size(MAX_PAGE_SIZE)
            })
            .query("cursor", "The next_cursor of the previous page.", any_text)
            .returns::<UserList>(),
        admin_post(
            "/v1/users/{id}/disable",
            "disable_user",
            "Disable a user immediately; 409 for the last active admin",
        )
        .fails_with(409),
        admin_post(
            "/v1/users/{id}/enable",
            "enable_user",
            "Enable a disabled user",
        ),
        admin_post(
            "/v1/users/{id}/revoke_sessions",
            "revoke_sessions",
            "End all sessions of a user immediately",
        ),
        admin_post(
            "/v1/users/{id}/reset_password",
            "reset_password",
            "Set a new password for a user and end their sessions",
        )
        .body::<ResetPassword>(),
        audit(),
    ]
}

fn audit() -> Operation {
    get(
        "/v1/audit",
        "audit",
        "Show the audit log: logins, registrations, administration; newest first",
    )
    .admin_only()
    .query("limit", "Maximum number of entries.", |_| {
        page_size(AUDIT_PAGE_SIZE)
    })
    .query(
        "cursor",
        "The next_cursor of the previous page.",
        |_| json_schema!({"type": "string", "pattern": "^[0-9]{0,18}$"}),
    )
    .query(
        "action",
        "Only events of this action.",
        schema_of::<AuditAction>,
    )
    .query(
        "who",
        "Only events by or about this handle or slug, or about the API key of this prefix.",
        any_text,
    )
    .returns::<AuditLog>()
}

fn tasks() -> Vec<Operation> {
    vec![
        post(
            "/v1/tasks",
            "create_task",
            "Create a task; it is stored before the answer",
        )
        .header(
            "Idempotency-Key",
            "A request repeated with the same key within 24 hours returns the first answer; another body with the same key is a 409.",
            |_| json_schema!({"type": "string", "pattern": KEY_PATTERN}),
        )
        .body::<CreateTask>()
        .creates_at_location::<Task>()
        .fails_with(409)
        .fails_with(507),
        list_tasks(),
        get("/v1/tasks/{id}", "get_task", "Show a task").returns::<Task>(),
        get(
            "/v1/tasks/{id}/result",
            "get_task_result",
            "Show the jobs of a task with their results",
        )
        .returns::<TaskResult>(),
        operation(
            Method::DELETE,
            "/v1/tasks/{id}",
            "delete_task",
            "Delete a finished task with its jobs and output",
        )
        .fails_with(409),
        cancel_task(),
        send_stdin(),
        get_task_logs(),
    ]
}

fn cancel_task() -> Operation {
    post(
        "/v1/tasks/{id}/cancel",
        "cancel_task",
        "Cancel a task: TERM for its command, then KILL after its grace; a second call kills at once",
    )
    .query(
        "force",
        "Whether the command is killed at once, also during its grace.",
        schema_of::<bool>,
    )
    .returns::<CancelAnswer>()
}

fn send_stdin() -> Operation {
    post(
        "/v1/tasks/{id}/stdin",
        "send_task_stdin",
        "Send a piece of the stdin of an interactive task: the body, at most 1 MiB of any bytes",
    )
    .query(
        "offset",
        "Number of bytes before this piece. A piece may be sent again: it is received once.",
        |_| json_schema!({"type": "integer", "minimum": 0}),
    )
    .query(
        "eof",
        "Whether stdin ends behind this piece.",
        schema_of::<bool>,
    )
    .octets()
    .returns::<StdinAnswer>()
}

fn get_task_logs() -> Operation {
    get(
        "/v1/tasks/{id}/logs",
        "get_task_logs",
        "Show or follow the output of a task",
    )
    .query(
        "stream",
        "Output stream; both if absent.",
        |_| json_schema!({"type": "string", "enum": ["all", "stdout", "stderr"]}),
    )
    .query(
        "follow",
        "Whether to stream events as they happen.",
        schema_of::<bool>,
    )
    .query(
        "encoding",
        "Encoding of the output: text, or bytes in base64.",
        |_| json_schema!({"type": "string", "enum": ["text", "base64"]}),
    )
    .query(
        "tail",
        "Number of lines from the end, both streams together.",
        |_| json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_TAIL_LINES}),
    )
    .query(
        "since",
        "Earliest time of output: RFC 3339, or a duration before now, such as 10m.",
        schema_of::<String>,
    )
    .query(
        "timestamps",
        "Whether each line of the document begins with its time.",
        schema_of::<bool>,
    )
    .header(
        "Last-Event-ID",
        "Id of the last event received; events after it are sent.",
        last_event_id,
    )
    .returns::<TaskLogs>()
    .returns_media("text/event-stream", EVENTS, log_event)
}

fn list_tasks() -> Operation {
    get(
        "/v1/tasks",
        "list_tasks",
        "List your tasks, newest first; admins get the tasks of all users",
    )
    .query("limit", "Maximum number of entries.", |_| {
        page_size(DEFAULT_PAGE_SIZE)
    })
    .query(
        "cursor",
        "The next_cursor of the previous page.",
        |_| json_schema!({"type": "string", "anyOf": [{"format": "uuid"}, {"maxLength": 0}]}),
    )
    .query(
        "offset",
        "Number of the newest tasks to skip. Use cursor to read further.",
        |_| json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}),
    )
    .query(
        "status",
        "Only tasks with this status.",
        schema_of::<TaskStatus>,
    )
    .query(
        "name",
        "Only tasks with this name, with or without a number appended.",
        any_text,
    )
    .returns::<TaskList>()
}

fn nodes() -> Vec<Operation> {
    vec![
        get(
            "/v1/nodes",
            "list_nodes",
            "List nodes with their status and its reason",
        )
        .returns::<NodeList>(),
        get("/v1/nodes/{slug}", "get_node", "Show a node").returns::<NodeView>(),
        operation(
            Method::DELETE,
            "/v1/nodes/{slug}",
            "forget_node",
            "Forget a node: revoke its token and free its slug",
        )
        .admin_only()
        .fails_with(409),
        post(
            "/v1/nodes/{slug}/drain",
            "drain_node",
            "Stop scheduling jobs on a node",
        )
        .admin_only(),
        post(
            "/v1/nodes/{slug}/resume",
            "resume_node",
            "Schedule jobs on a node again",
        )
        .admin_only(),
        post(
            "/v1/nodes/{slug}/images",
            "push_image",
            "Have a node load an image from an artifact; answers once it has it",
        )
        .admin_only()
        .body::<PushImage>()
        .returns::<PushedImages>()
        .fails_with(409)
        .fails_with(503),
    ]
}
