//! Validation of tasks: accepted ones, and the field that an error names.

use super::*;

fn resolve(json: &str) -> Result<TaskSpec, Problem> {
    serde_json::from_str::<CreateTask>(json)
        .unwrap()
        .resolve("alpine")
}

#[test]
fn command_has_three_forms() {
    assert_eq!(
        resolve(r#"{"command":["echo","a b"]}"#)
            .unwrap()
            .sandbox
            .command,
        ["echo", "a b"]
    );
    assert_eq!(
        resolve(r#"{"script":"echo a"}"#).unwrap().sandbox.command,
        ["/bin/sh", "-c", "echo a"]
    );
    for mode in ["script", "commands"] {
        let spec = resolve(&format!(r#"{{"prompt":"echo a","input_mode":"{mode}"}}"#)).unwrap();
        assert_eq!(spec.sandbox.command, ["/bin/sh", "-c", "echo a"]);
    }
    assert_eq!(
        resolve(r#"{"script":"x"}"#).unwrap().sandbox.image,
        "docker.io/library/alpine:latest"
    );
}

#[test]
fn prompt_needs_no_sandbox() {
    let spec = resolve(r#"{"prompt":"why?","model":"m","timeout_seconds":5}"#).unwrap();
    assert_eq!(spec.prompt, None);
    let prompt = spec.sandbox.prompt.unwrap();
    assert_eq!(
        (prompt.text.as_str(), prompt.model.as_deref()),
        ("why?", Some("m"))
    );
    assert!(spec.sandbox.command.is_empty());
    let named = resolve(r#"{"prompt":"why?","input_mode":"prompt"}"#).unwrap();
    assert_eq!(named.sandbox.prompt.unwrap().model, None);
}

fn script() -> CreateTask {
    CreateTask {
        script: Some("x".to_owned()),
        ..CreateTask::default()
    }
}

#[test]
fn wrong_tasks_name_the_field() {
    let long = "x".repeat(jobs::MAX_SCRIPT_BYTES + 1);
    let argument = &long[..=jobs::MAX_ARGUMENT_BYTES];
    for (json, pointer) in [
        (r#"{"command":[]}"#.to_owned(), "#/command"),
        (r#"{"command":[""]}"#.to_owned(), "#/command"),
        (
            r#"{"command":["a"],"files":[{"path":"../b","content":""}]}"#.to_owned(),
            "#/files/0/path",
        ),
        (r#"{"command":["a","b\u0000"]}"#.to_owned(), "#/command/1"),
        (r#"{"script":" \n"}"#.to_owned(), "#/script"),
        (format!(r#"{{"script":"{long}"}}"#), "#/script"),
        (
            format!(r#"{{"command":["/bin/sh","-c","{argument}"]}}"#),
            "#/command/2",
        ),
        (r#"{"prompt":" "}"#.to_owned(), "#/prompt"),
        (r#"{"prompt":"x","model":"a b"}"#.to_owned(), "#/model"),
        (r#"{"prompt":"x","memory":"1GiB"}"#.to_owned(), "#/memory"),
        (r#"{"prompt":"x","stdin":"y"}"#.to_owned(), "#/stdin"),
        (r#"{"script":"x","model":"m"}"#.to_owned(), "#/model"),
        (
            r#"{"prompt":"x","use_inference":true}"#.to_owned(),
            "#/use_inference",
        ),
        (r#"{"script":"x","image":"-v"}"#.to_owned(), "#/image"),
        (r#"{"script":"x","image":""}"#.to_owned(), "#/image"),
        (
            r#"{"script":"x","env":{"A=B":"c"}}"#.to_owned(),
            "#/env/A=B",
        ),
        (
            r#"{"script":"x","env":{"CYNODE_JOB_ID":"c"}}"#.to_owned(),
            "#/env/CYNODE_JOB_ID",
        ),
        (
            r#"{"script":"x","node_labels":["-x"]}"#.to_owned(),
            "#/node_labels/0",
        ),
        (
            r#"{"script":"x","input_mode":"prompt"}"#.to_owned(),
            "#/input_mode",
        ),
        (
            format!(r#"{{"script":"x","task_name":"{}"}}"#, "é".repeat(201)),
            "#/task_name",
        ),
    ] {
        let problem = resolve(&json).unwrap_err();
        assert_eq!(
            problem.errors.first().map(|e| e.pointer.as_str()),
            Some(pointer),
            "{json:.80}: {problem:?}"
        );
        assert_eq!(problem.kind.status(), 400);
    }
    for json in [
        "{}",
        r#"{"script":"a","command":["b"]}"#,
        r#"{"script":"a","prompt":"b"}"#,
    ] {
        assert_eq!(resolve(json).unwrap_err().kind, ProblemKind::InvalidRequest);
    }
}

#[test]
fn wrong_numbers_name_their_range() {
    for (task, text) in [
        (
            CreateTask {
                timeout_seconds: Some(0),
                ..script()
            },
            "`timeout_seconds` must be a whole number of at least 1, got 0",
        ),
        (
            CreateTask {
                max_attempts: Some(101),
                ..script()
            },
            "`max_attempts` must be a whole number from 1 to 100, got 101",
        ),
        (
            CreateTask {
                priority: Some(-101),
                ..script()
            },
            "`priority` must be a whole number from -100 to 100, got -101",
        ),
    ] {
        assert_eq!(task.resolve("alpine").unwrap_err().detail, text);
    }
}

#[test]
fn uncountable_sizes_name_the_field() {
    for (size, text) in [
        (
            r#""memory":"9000000TiB""#,
            "`memory` must be at most 1024TiB",
        ),
        (
            r#""shm_size":18446744073709551615"#,
            "`shm_size` must be at most 1024TiB",
        ),
        (
            r#""memory":1"#,
            "`memory` must be at least 8MiB, got 1 bytes",
        ),
    ] {
        let refused = resolve(&format!(r#"{{"script":"x",{size}}}"#)).unwrap_err();
        assert_eq!(refused.detail, text);
    }
}
