//! Operations that pass to the node of a sandbox: execs, files and terminals. Those of execs and terminals are there for
//! running tasks, too.

use super::{
    operation::{Operation, operation},
    schemas::{any_text, octets, schema_of},
};
use crate::api::{
    events::MAX_TAIL_LINES,
    sandboxes::{
        exec::{
            Exec, ExecList, ExecLogs, ExecResult, MAX_TERMINAL_CELLS, SignalExec, StartExec,
            StdinTaken, TerminalSize,
        },
        files::{FileList, MAX_LIST_DEPTH, MakeDirectory, MoveFile},
    },
};
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

const EVENTS: &str = "\
Server-sent events, if Accept names this type. The first event is `started`; the data of `stdout` and `stderr` is \
`{\"data\" or \"data_base64\", \"time\"?}`, of `gap` (output that was dropped) `{\"stream\", \"bytes\"}`, of `warning` \
(two minutes before the end of the sandbox) `{\"detail\"}`, and of `exit`, the last event, the exec. An id is \
`<attempt>-<seq>`; send it as Last-Event-ID to continue after that event.";

const TERMINAL: &str = "\
Opens a terminal over a WebSocket (RFC 6455). Binary messages are the bytes of the terminal, in both directions. Text \
messages are JSON: the server sends `{\"exec_id\"}` first, `{\"warning\"}` before an end of the sandbox, and \
`{\"exit_code\"}` last; the client sends `{\"resize\": {\"cols\", \"rows\"}}`, and `{\"detach\": true}` before it leaves a \
command that is to go on.";

/// Ids and paths of the operations on execs.
struct ExecCalls {
    exec: [&'static str; 2],
    list: [&'static str; 2],
    get: [&'static str; 2],
    logs: [&'static str; 2],
    stdin: [&'static str; 2],
    signal: [&'static str; 2],
    resize: [&'static str; 2],
    terminal: [&'static str; 2],
}

const OF_SANDBOX: ExecCalls = ExecCalls {
    exec: ["exec_in_sandbox", "/v1/sandboxes/{id}/exec"],
    list: ["list_execs", "/v1/sandboxes/{id}/execs"],
    get: ["get_exec", "/v1/sandboxes/{id}/execs/{exec}"],
    logs: ["get_exec_logs", "/v1/sandboxes/{id}/execs/{exec}/logs"],
    stdin: ["send_exec_stdin", "/v1/sandboxes/{id}/execs/{exec}/stdin"],
    signal: ["signal_exec", "/v1/sandboxes/{id}/execs/{exec}/signal"],
    resize: ["resize_exec", "/v1/sandboxes/{id}/execs/{exec}/resize"],
    terminal: ["open_terminal", "/v1/sandboxes/{id}/terminal"],
};

const OF_TASK: ExecCalls = ExecCalls {
    exec: ["exec_in_task", "/v1/tasks/{id}/exec"],
    list: ["list_task_execs", "/v1/tasks/{id}/execs"],
    get: ["get_task_exec", "/v1/tasks/{id}/execs/{exec}"],
    logs: ["get_task_exec_logs", "/v1/tasks/{id}/execs/{exec}/logs"],
    stdin: ["send_task_exec_stdin", "/v1/tasks/{id}/execs/{exec}/stdin"],
    signal: ["signal_task_exec", "/v1/tasks/{id}/execs/{exec}/signal"],
    resize: ["resize_task_exec", "/v1/tasks/{id}/execs/{exec}/resize"],
    terminal: ["open_task_terminal", "/v1/tasks/{id}/terminal"],
};

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    let mut all = execs(&OF_SANDBOX);
    all.extend(files());
    all.extend(archives());
    all.extend(execs(&OF_TASK));
    all
}

/// Operation that passes.
fn passed(method: Method, [id, path]: [&'static str; 2], summary: &'static str) -> Operation {
    let operation = operation(method, path, id, summary);
    operation.fails_with(410).fails_with(502)
}

fn execs(calls: &ExecCalls) -> Vec<Operation> {
    let get = |call, summary| passed(Method::GET, call, summary);
    let post = |call, summary| passed(Method::POST, call, summary);
    vec![
        exec(calls.exec),
        get(calls.list, "List the execs of a sandbox, newest first").returns::<ExecList>(),
        get(calls.get, "Show an exec").returns::<Exec>(),
        output_queries(get(calls.logs, "Show or follow the output of an exec"))
            .query(
                "follow",
                "Whether to wait for output to come, as events.",
                schema_of::<bool>,
            )
            .query(
                "timestamps",
                "Whether each line of the document begins with its time.",
                schema_of::<bool>,
            )
            .returns::<ExecLogs>()
            .returns_media("text/event-stream", EVENTS, exec_event),
        post(
            calls.stdin,
            "Send bytes to the stdin of an exec, as fast as its command reads them",
        )
        .query("eof", "Whether stdin ends behind them.", schema_of::<bool>)
        .query(
            "offset",
            "Bytes that calls with this parameter have sent before. With it, the same call may be sent again: what the command has got is not written twice.",
            schema_of::<u64>,
        )
        .octets()
        .returns::<StdinTaken>(),
        post(
            calls.signal,
            "Send a signal to the process group of an exec",
        )
        .body::<SignalExec>(),
        post(calls.resize, "Resize the terminal of an exec").body::<TerminalSize>(),
        terminal(calls.terminal),
    ]
}

fn exec([id, path]: [&'static str; 2]) -> Operation {
    let operation = passed(
        Method::POST,
        [id, path],
        "Run a command: wait for its end, follow it as events, or leave it (background)",
    );
    output_queries(operation)
        .body::<StartExec>()
        .returns_media(
            "application/json",
            "Result of the exec; of one that was started before, with background: true, the exec.",
            |schemas| {
                let result = schemas.subschema_for::<ExecResult>();
                json_schema!({"anyOf": [result, schemas.subschema_for::<Exec>()]})
            },
        )
        .returns_media("text/event-stream", EVENTS, exec_event)
        .also_returns::<Exec>(201, "Exec that was started, with background: true")
}

/// Adds the parameters that select output.
fn output_queries(operation: Operation) -> Operation {
    operation
        .query(
            "stream",
            "Output stream; both if absent.",
            |_| json_schema!({"type": "string", "enum": ["all", "stdout", "stderr"]}),
        )
        .query(
            "encoding",
            "Encoding of the output: text, where bytes that are not UTF-8 become U+FFFD, or base64.",
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
            any_text,
        )
        .header(
            "Last-Event-ID",
            "Id of the last event received; events after it are sent.",
            any_text,
        )
}

fn exec_event(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["id", "event", "data"],
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string", "enum": ["started", "stdout", "stderr", "gap", "warning", "exit"]},
            "data": {"type": "string", "contentMediaType": "application/json"},
        },
    })
}

fn terminal(call: [&'static str; 2]) -> Operation {
    let cells = |_: &mut SchemaGenerator| json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_TERMINAL_CELLS});
    passed(Method::GET, call, "Open a terminal over a WebSocket")
        .described(TERMINAL)
        .query(
            "command",
            "Program and arguments, one parameter each; a login shell by default.",
            |_| json_schema!({"type": "array", "items": {"type": "string"}}),
        )
        .query("cols", "Columns; 80 by default.", cells)
        .query("rows", "Rows; 24 by default.", cells)
        .query("cwd", "Working directory; /workspace by default.", any_text)
        .query(
            "exec_id",
            "Id for the exec of the terminal. A second connection with it shows the same terminal.",
            |_| json_schema!({"type": "string", "format": "uuid"}),
        )
        .switches_protocol()
}

fn with_path(operation: Operation) -> Operation {
    operation.required_query(
        "path",
        "Path in the sandbox; a relative one begins at /workspace.",
        any_text,
    )
}

fn read_file(file: &'static str) -> Operation {
    let operation = passed(Method::GET, ["read_file", file], "Read a file, of any size");
    with_path(operation)
        .header("Range", "One range of bytes, answered with 206.", any_text)
        .header(
            "If-Range",
            "`Last-Modified` of an earlier answer: all of a file that has changed since.",
            any_text,
        )
        .returns_media("application/octet-stream", "Bytes of the file.", octets)
        .also(206, "Range of the bytes")
        .fails_with(416)
}

fn files() -> Vec<Operation> {
    let call = |method, id, path, summary| passed(method, [id, path], summary);
    let mode =
        |_: &mut SchemaGenerator| json_schema!({"type": "string", "pattern": "^0?[0-7]{3}$"});
    let file = "/v1/sandboxes/{id}/files";
    vec![
        read_file(file),
        with_path(call(
            Method::PUT,
            "write_file",
            file,
            "Write a file, of any size; missing directories are made",
        ))
        .query("mode", "Permission bits, as octal digits.", mode)
        .octets()
        .also(201, "The file is new")
        .fails_with(413)
        .fails_with(507),
        with_path(call(
            Method::DELETE,
            "delete_file",
            file,
            "Delete a file or an empty directory",
        ))
        .query(
            "recursive",
            "Whether a directory is deleted with all that is in it.",
            schema_of::<bool>,
        ),
        with_path(call(
            Method::GET,
            "list_files",
            "/v1/sandboxes/{id}/files:list",
            "List a directory",
        ))
        .query(
            "depth",
            "Number of levels below the directory; 1 by default.",
            |_| json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_LIST_DEPTH}),
        )
        .returns::<FileList>(),
        call(
            Method::POST,
            "make_directory",
            "/v1/sandboxes/{id}/files:mkdir",
            "Make a directory and its missing parents",
        )
        .body::<MakeDirectory>()
        .also(201, "The directory is new"),
        call(
            Method::POST,
            "move_file",
            "/v1/sandboxes/{id}/files:move",
            "Move or rename a file or a directory",
        )
        .body::<MoveFile>(),
    ]
}

fn archives() -> Vec<Operation> {
    let archive = "/v1/sandboxes/{id}/archive";
    let call = |method, id, summary| with_path(passed(method, [id, archive], summary));
    vec![
        call(
            Method::GET,
            "download_archive",
            "Download a file or directory as a tar archive",
        )
        .returns_media("application/x-tar", "Tar archive.", octets),
        call(
            Method::PUT,
            "upload_archive",
            "Unpack a tar archive below a directory",
        )
        .octets()
        .fails_with(413)
        .fails_with(507),
    ]
}
