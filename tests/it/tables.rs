//! Tables that the client prints, as golden files.

use crate::support::{Orchestrator, StandIn, cynode, golden::assert_golden, process::run};
use serde_json::json;

/// Text of a table in which everything that differs from run to run is replaced by its kind.
fn normalized(text: &str) -> String {
    let words = |line: &str| {
        let cells = line.split("  ").map(str::trim);
        let cells = cells.filter(|cell| !cell.is_empty()).map(kind);
        cells.collect::<Vec<_>>().join("  ")
    };
    text.lines().map(|line| words(line) + "\n").collect()
}

/// Kind of a cell that differs from run to run; any other cell unchanged.
fn kind(cell: &str) -> String {
    let (first, rest) = cell.split_at(cell.find(' ').unwrap_or(cell.len()));
    let digits = first.bytes().filter(u8::is_ascii_digit).count();
    let kind = if first.len() == 36 && first.matches('-').count() == 4 {
        "ID"
    } else if first.len() == 24 && first.ends_with('Z') {
        "TIME"
    } else if digits > 0 && digits + 1 == first.len() && first.ends_with(['s', 'm', 'h']) {
        "AGE"
    } else {
        let url = first.strip_prefix("http://127.0.0.1:");
        return url.map_or(cell.to_owned(), |_| format!("URL{rest}"));
    };
    format!("{kind}{rest}")
}

#[test]
fn tables_match_golden_files() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--require-inference", "false"]);
    let user = orchestrator.login();
    StandIn::idle(&orchestrator, "box").join();
    orchestrator.add_user(&user, "ann");
    let waiting = json!({
        "command": ["echo", "hello"], "task_name": "waiting", "node_labels": ["gpu"], "priority": 7,
    });
    user.post("/v1/tasks", &waiting).expect(201);
    let canceled = json!({"command": ["true"], "node_labels": ["gpu"], "task_name": "canceled"});
    user.post("/v1/tasks", &canceled).expect(201);
    user.act("/v1/tasks/canceled/cancel").expect(200);
    for arguments in [
        &["task", "list"][..],
        &["task", "get", "waiting"],
        &["task", "result", "canceled"],
        &["task", "logs", "canceled"],
        &["nodes", "list"],
        &["nodes", "show", "box"],
        &["users", "list"],
        &["status"],
        &["sandbox", "snapshots"],
        &["audit", "--who", "admin"],
    ] {
        let mut command = cynode(home.path());
        command
            .args(arguments)
            .env("CYNODE_GATEWAY_URL", &orchestrator.gateway_url)
            .env("CYNODE_TOKEN", user.token());
        let done = run(&mut command);
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        let name = arguments[..arguments.len().min(2)].join("-");
        let text = normalized(&done.stdout) + &normalized(&done.stderr);
        assert_golden(&format!("tables/{name}.txt"), &text);
    }
}
