//! Every operation of the User API, in the order of the router's list.

use super::{
    super::{
        MAX_PAGE_SIZE,
        audit::DEFAULT_PAGE_SIZE as AUDIT_PAGE_SIZE,
        tasks::{DEFAULT_PAGE_SIZE, KEY_PATTERN},
    },
    operation::{Operation, of, operation, text},
};
use crate::api::{
    audit::{AuditAction, AuditLog},
    auth::{Login, Logout, Refresh, Tokens, User},
    nodes::{NodeList, NodeView},
    tasks::{CancelAnswer, CreateTask, Task, TaskList, TaskLogs, TaskResult, TaskStatus},
    users::{CreateUser, ResetPassword, UserList},
};
use crate::store::MAX_OFFSET;
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

const EVENTS: &str = "\
Each of the server-sent events that come with follow=true or when Accept names this type. In data, \
`status` has `{\"status\", \"reason\"?, \"detail\"?}`, `stdout` and `stderr` have `{\"data\"}`, `gap` has \
`{\"stream\", \"bytes\"}` (output that was dropped), and the last one, `end`, has \
`{\"status\", \"exit_code\"?}`. An id is `<attempt>-<seq>`; give it as Last-Event-ID to go on after it.";

/// An event's id.
const PLACE: &str = "[0-9]{1,9}-[0-9]{1,18}";

fn event(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["id", "event", "data"],
        "properties": {
            "id": {"type": "string", "pattern": format!("^{PLACE}$")},
            "event": {"type": "string", "enum": ["status", "stdout", "stderr", "gap", "end"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    })
}

/// How long a page is to be.
fn limit(usual: u32) -> Schema {
    json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": usual})
}

fn get(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    operation(Method::GET, path, id, summary)
}

fn post(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    operation(Method::POST, path, id, summary)
}

/// All of them.
pub(super) fn all() -> Vec<Operation> {
    [auth(), users(), tasks(), nodes(), service()]
        .into_iter()
        .flatten()
        .collect()
}

fn auth() -> Vec<Operation> {
    vec![
        post("/v1/auth/login", "log_in", "Open a session with a password")
            .open()
            .takes::<Login>()
            .gives::<Tokens>()
            .or_problem(401)
            .or_problem(429),
        post(
            "/v1/auth/refresh",
            "refresh",
            "Trade a refresh token for new tokens, once",
        )
        .open()
        .takes::<Refresh>()
        .gives::<Tokens>()
        .or_problem(401)
        .or_problem(429),
        post("/v1/auth/logout", "log_out", "End the session at once").may_take::<Logout>(),
        get("/v1/users/me", "who_am_i", "Who one is").gives::<User>(),
    ]
}

fn users() -> Vec<Operation> {
    let act = |path, id, summary| post(path, id, summary).admin();
    vec![
        act("/v1/users", "create_user", "Create a user")
            .takes::<CreateUser>()
            .makes::<User>()
            .or_problem(409),
        get("/v1/users", "list_users", "All users, by handle")
            .admin()
            .query("limit", "At most so many.", |_| limit(MAX_PAGE_SIZE))
            .query("cursor", "The next_cursor of an earlier answer.", text)
            .gives::<UserList>(),
        act(
            "/v1/users/{id}/disable",
            "disable_user",
            "Disable a user immediately; 409 for the last active admin",
        )
        .or_problem(409),
        act(
            "/v1/users/{id}/enable",
            "enable_user",
            "Enable a disabled user",
        ),
        act(
            "/v1/users/{id}/revoke_sessions",
            "revoke_sessions",
            "End all sessions of a user, at once",
        ),
        act(
            "/v1/users/{id}/reset_password",
            "reset_password",
            "Give a user another password, and end their sessions",
        )
        .takes::<ResetPassword>(),
        audit(),
    ]
}

fn audit() -> Operation {
    get(
        "/v1/audit",
        "audit",
        "Show the audit log: logins, registrations, administration; newest first",
    )
    .admin()
    .query("limit", "At most so many.", |_| limit(AUDIT_PAGE_SIZE))
    .query(
        "cursor",
        "The next_cursor of an earlier answer.",
        |_| json_schema!({"type": "string", "pattern": "^[0-9]{0,18}$"}),
    )
    .query("action", "Only of this action.", of::<AuditAction>)
    .query("who", "Only by this handle or slug, or done to it.", text)
    .gives::<AuditLog>()
}

fn tasks() -> Vec<Operation> {
    vec![
        post(
            "/v1/tasks",
            "create_task",
            "Create a task; it is stored and answered at once",
        )
        .header(
            "Idempotency-Key",
            "Makes a repeat within 24 hours return the first answer; with another body it is 409.",
            |_| json_schema!({"type": "string", "pattern": KEY_PATTERN}),
        )
        .takes::<CreateTask>()
        .creates::<Task>()
        .or_problem(409)
        .or_problem(507),
        list_tasks(),
        get("/v1/tasks/{id}", "get_task", "A task").gives::<Task>(),
        get(
            "/v1/tasks/{id}/result",
            "get_task_result",
            "A task's jobs, with their results",
        )
        .gives::<TaskResult>(),
        operation(
            Method::DELETE,
            "/v1/tasks/{id}",
            "delete_task",
            "Delete a finished task with its jobs and output",
        )
        .or_problem(409),
        post(
            "/v1/tasks/{id}/cancel",
            "cancel_task",
            "Cancel a task; a running sandbox is gone within a second",
        )
        .gives::<CancelAnswer>(),
        get(
            "/v1/tasks/{id}/logs",
            "get_task_logs",
            "What a task printed, or prints",
        )
        .query(
            "stream",
            "One of both, or all; all when absent.",
            |_| json_schema!({"type": "string", "enum": ["all", "stdout", "stderr"]}),
        )
        .query("follow", "Whether to send events as they come.", of::<bool>)
        .header(
            "Last-Event-ID",
            "The id of an event; those after it are sent.",
            |_| json_schema!({"type": "string", "pattern": format!("^({PLACE})?$")}),
        )
        .gives::<TaskLogs>()
        .or_gives("text/event-stream", EVENTS, event),
    ]
}

fn list_tasks() -> Operation {
    get(
        "/v1/tasks",
        "list_tasks",
        "One's own tasks, newest first; an admin's list has everybody's",
    )
    .query("limit", "At most so many.", |_| limit(DEFAULT_PAGE_SIZE))
    .query(
        "cursor",
        "The next_cursor of an earlier answer.",
        |_| json_schema!({"type": "string", "anyOf": [{"format": "uuid"}, {"maxLength": 0}]}),
    )
    .query(
        "offset",
        "Leaves so many of the newest out. To read further, use cursor.",
        |_| json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}),
    )
    .query("status", "Only those in this state.", of::<TaskStatus>)
    .query(
        "name",
        "Only those of this name, with a number or without.",
        text,
    )
    .gives::<TaskList>()
}

fn nodes() -> Vec<Operation> {
    vec![
        get("/v1/nodes", "list_nodes", "Nodes, where they stand and why").gives::<NodeList>(),
        get("/v1/nodes/{slug}", "get_node", "A node").gives::<NodeView>(),
        operation(
            Method::DELETE,
            "/v1/nodes/{slug}",
            "forget_node",
            "Forget a node: its token dies, its slug is free",
        )
        .admin()
        .or_problem(409),
        post(
            "/v1/nodes/{slug}/drain",
            "drain_node",
            "Stop scheduling jobs on a node",
        )
        .admin(),
        post(
            "/v1/nodes/{slug}/resume",
            "resume_node",
            "Schedule jobs on a node again",
        )
        .admin(),
    ]
}

fn service() -> Vec<Operation> {
    vec![
        get("/openapi.json", "openapi", "This document")
            .open()
            .or_gives(
                "application/json",
                "An OpenAPI 3.1 document.",
                |_| json_schema!({"type": "object"}),
            ),
        get(
            "/metrics",
            "metrics",
            "What is measured, in the Prometheus text format",
        )
        .open()
        .or_gives("text/plain", "The text format 0.0.4.", text)
        .or_problem(503),
        get("/healthz", "healthz", "Whether the process answers")
            .open()
            .or_gives("text/plain", "`ok`", text),
        get("/readyz", "readyz", "Whether tasks can run, or why not")
            .open()
            .or_gives("text/plain", "`ready`", text)
            .or_problem(503),
    ]
}
