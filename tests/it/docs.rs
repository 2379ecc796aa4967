//! The docs agree with the tests and the command line.

use crate::support::{cynode, process};
use std::{fs, path::Path};

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
        vec!["login"],
        vec!["nodes", "forget"],
        vec!["users", "create"],
        vec!["audit"],
        vec!["backup"],
        vec!["doctor"],
    ]
    .into_iter()
    .map(|command| process::run(cynode(home.path()).args(command).arg("--help")).stdout)
    .collect();
    let others = [
        "--rm",
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
        "--image-volume",
        "--network",
        "--preserve-fds",
        "--storage-opt",
    ];
    options.contains(&flag)
}

#[test]
fn user_texts_avoid_unclear_phrases() {
    let home = tempfile::tempdir().unwrap();
    let mut texts: Vec<(String, String)> = ["README.md", "docs/usage.md", "docs/api.md"]
        .map(|file| (file.to_owned(), fs::read_to_string(file).unwrap()))
        .into();
    let commands: [&[&str]; 9] = [
        &[],
        &["dev"],
        &["serve-orchestrator"],
        &["node"],
        &["worker"],
        &["run"],
        &["nodes"],
        &["users"],
        &["doctor"],
    ];
    for command in commands {
        let help = process::run(cynode(home.path()).args(command).arg("--help")).stdout;
        texts.push((format!("{command:?} --help"), help));
    }
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
    ];
    for (place, text) in texts {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for riddle in riddles {
            assert!(!text.contains(riddle), "{place}: {riddle}");
        }
    }
}
