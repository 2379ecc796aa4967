//! The docs agree with the tests and the command line.

use crate::support::{cynode, process};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn checklist_names_existing_tests() {
    let checklist = fs::read_to_string("docs/phase1.md").unwrap();
    let (mut file, mut tests, mut named) = ("", String::new(), 0);
    for name in quoted(&checklist) {
        if name.ends_with(".rs") {
            file = name;
            tests = fs::read_to_string(Path::new("tests/it").join(file)).unwrap();
        } else if name.matches('_').count() >= 2 {
            assert!(
                tests.contains(&format!("#[test]\nfn {name}()")),
                "{file} has no test {name}"
            );
            named += 1;
        }
    }
    assert!(named > 20, "only {named} tests were found in the checklist");
}

#[test]
fn docs_name_existing_flags() {
    let home = tempfile::tempdir().unwrap();
    let help: String = [
        vec!["dev"],
        vec!["serve-orchestrator"],
        vec!["node"],
        vec!["worker"],
        vec!["run"],
        vec!["task", "create"],
        vec!["task", "list"],
        vec!["task", "logs"],
        vec!["task", "cancel"],
        vec!["task", "artifacts"],
        vec!["artifacts", "download"],
        vec!["sandbox", "create"],
        vec!["sandbox", "exec"],
        vec!["sandbox", "shell"],
        vec!["sandbox", "ls"],
        vec!["sandbox", "snapshots"],
        vec!["sandbox", "renew"],
        vec!["login"],
        vec!["nodes", "forget"],
        vec!["nodes", "token", "create"],
        vec!["users", "create"],
        vec!["keys", "create"],
        vec!["chat"],
        vec!["secrets", "set"],
        vec!["usage"],
        vec!["audit"],
        vec!["backup"],
        vec!["doctor"],
    ]
    .into_iter()
    .map(|command| process::run(cynode(home.path()).args(command).arg("--help")).stdout)
    .collect();
    let others = [
        "--rm",
        "--data-binary",
        "--header",
        "--post-data",
        "--restart",
        "--add-subuids",
        "--add-subgids",
        "--path",
        "--no-sandbox",
        // Deprecated.
        "--inference-timeout",
        "--ledger-retain",
    ];
    for file in [
        "README.md",
        "docs/usage.md",
        "docs/sandbox.md",
        "docs/api.md",
    ] {
        let text = fs::read_to_string(file).unwrap();
        let flags = text
            .split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 3);
        for flag in flags {
            let ours = help
                .split_whitespace()
                .any(|word| word.trim_end_matches(',') == flag);
            assert!(
                ours || others.contains(&flag) || podmans(flag),
                "{file} names {flag}"
            );
        }
    }
}

/// Options of podman that the docs explain.
fn podmans(flag: &str) -> bool {
    let options = [
        "--authfile",
        "--cpus",
        "--device",
        "--format",
        "--image-volume",
        "--memory",
        "--memory-swap",
        "--network",
        "--pids-limit",
        "--preserve-fds",
        "--shm-size",
        "--storage-opt",
    ];
    options.contains(&flag)
}

/// Text files at or below a path.
fn texts_below(path: &Path) -> Vec<(PathBuf, String)> {
    if !path.is_dir() {
        return vec![(path.to_owned(), fs::read_to_string(path).unwrap())];
    }
    let entries = fs::read_dir(path).unwrap();
    entries
        .flat_map(|entry| texts_below(&entry.unwrap().path()))
        .collect()
}

#[test]
fn user_texts_avoid_unclear_phrases() {
    // The golden files are the help of every command.
    let texts = ["README.md", "docs", "tests/it/golden"].map(|top| texts_below(Path::new(top)));
    let riddles = [
        "and the mend",
        "made up for",
        "Offer what a node runs",
        "Who did what",
        "Keep a user out",
        "no more jobs",
        "whoever shows",
        "What it still runs or keeps",
        "It is looked for every",
        "begins anew]",
        " anew",
        " whoever ",
        " leftovers",
        " the mend",
        " hears of",
        " to be had",
        " is no label",
    ];
    let texts: Vec<_> = texts.into_iter().flatten().collect();
    assert!(texts.len() > 40, "{} texts", texts.len());
    for (path, text) in texts {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for riddle in riddles {
            assert!(!text.contains(riddle), "{}: {riddle}", path.display());
        }
    }
}
