//! Sizes of files and functions.

use crate::source::{SRC, Source, TESTS};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Most lines of a file.
const MAX_FILE_LINES: usize = 400;
/// Most lines of a function, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;

/// Files and functions that are still too long. No new one comes in, and one that was split goes out.
const STILL_LONG: &[&str] = &[
    "src/api/tasks/create/tests.rs: wrong_tasks_name_the_field",
    "src/store/sqlite/nodes/tests.rs: job_is_not_assigned_to_a_deleted_node",
    "src/worker/ledger/tests.rs: attempts_fence_and_slots_are_kept",
    "tests/it/audit.rs: audit_records_actor_action_and_outcome",
    "tests/it/backup.rs: failed_backup_says_why_and_leaves_nothing",
    "tests/it/bad_input/mod.rs: invalid_task_field_is_named_nothing_stored",
    "tests/it/bad_input/mod.rs: worker_refuses_malformed_requests",
    "tests/it/bad_input/wrong_types.rs: user_api_names_field_form_and_type",
    "tests/it/client.rs: run_is_as_if_the_command_ran_here",
    "tests/it/client.rs: tasks_are_created_listed_read_and_canceled",
    "tests/it/client_failures.rs: every_failure_has_exit_code_and_advice",
    "tests/it/control_plane.rs: the_start_of_a_node_step_by_step",
    "tests/it/first_start.rs: first_start_shows_generated_secrets_once",
    "tests/it/logs.rs: task_log_follows_live_and_resumes_anywhere",
    "tests/it/logs.rs: live_and_late_subscribers_get_their_events",
    "tests/it/node_claims.rs: node_texts_are_bounded",
    "tests/it/task_names.rs: ambiguous_or_foreign_task_is_refused",
    "tests/it/worker_api.rs: job_answer_is_whole_or_streamed_and_repeatable",
];

/// Name, first line and number of lines of each function with a body, those in macros too.
fn functions(tokens: TokenStream, found: &mut Vec<(String, usize, usize)>) {
    let trees: Vec<_> = tokens.into_iter().collect();
    let is_end = |tree: &&TokenTree| match tree {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        tree => tree.to_string() == ";",
    };
    for (n, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            functions(group.stream(), found);
        }
        if let [TokenTree::Ident(word), TokenTree::Ident(name), rest @ ..] = &trees[n..]
            && word == "fn"
            && let Some(TokenTree::Group(body)) = rest.iter().find(is_end)
        {
            let first = word.span().start().line;
            let lines = body.span_close().end().line + 1 - first;
            found.push((name.to_string(), first, lines));
        }
    }
}

/// Files and functions that are too long, each by its path and name, and with its place.
fn too_long(source: &Source) -> Vec<(String, String)> {
    let (path, mut offenders) = (&source.path, Vec::new());
    let lines = source.text.lines().count();
    if lines > MAX_FILE_LINES {
        offenders.push((path.clone(), format!("{path}: {lines} lines")));
    }
    let mut found = Vec::new();
    functions(source.text.parse().unwrap(), &mut found);
    for (name, line, lines) in found {
        if lines > MAX_FUNCTION_LINES {
            let place = format!("{path}:{line}: fn {name}, {lines} lines");
            offenders.push((format!("{path}: {name}"), place));
        }
    }
    offenders
}

#[test]
fn files_and_functions_stay_short() {
    let (old, new): (Vec<_>, Vec<_>) = SRC
        .iter()
        .chain(TESTS.iter())
        .flat_map(too_long)
        .partition(|(name, _)| STILL_LONG.contains(&name.as_str()));
    let places: Vec<_> = new.into_iter().map(|(_, place)| place).collect();
    assert!(
        places.is_empty(),
        "a file has at most {MAX_FILE_LINES} lines, a function {MAX_FUNCTION_LINES}. Split these by what they do; a \
         long file is a module that wants to be two:\n{}",
        places.join("\n")
    );
    let is_gone = |name: &&&str| old.iter().all(|(old, _)| old != *name);
    let gone: Vec<_> = STILL_LONG.iter().filter(is_gone).collect();
    assert!(
        gone.is_empty(),
        "short by now, take it out of `STILL_LONG`: {gone:?}"
    );
}

#[test]
fn long_files_and_functions_are_found() {
    let body = "    x();\n".repeat(MAX_FUNCTION_LINES - 1);
    let long = format!(
        "fn ok() {{\n    x();\n}}\ntrait T {{\n    fn none(&self);\n}}\nfn long(f: fn(u8) -> u8)\nwhere\n{{\n{body}}}\n"
    );
    let offenders = too_long(&Source::new("src/a.rs", &long));
    assert_eq!(offenders[0].1, "src/a.rs:7: fn long, 73 lines");
    assert_eq!(offenders.len(), 1);
    let offenders = too_long(&Source::new("src/a.rs", &"//\n".repeat(MAX_FILE_LINES + 1)));
    assert_eq!(offenders[0].1, "src/a.rs: 401 lines");
}
