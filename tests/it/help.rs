//! `--help` of every command, compared with golden files.

use crate::support::{
    cynode,
    golden::{assert_golden, golden_files},
    process::run,
};
use std::path::Path;

/// Help of a command, as wide as at any other machine.
fn help(home: &Path, command: &[String]) -> String {
    let mut process = cynode(home);
    let done = run(process.args(command).arg("--help").env("COLUMNS", "100"));
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

/// Names below `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // Continued lines are indented further.
    let names = lines.filter_map(|line| {
        line.strip_prefix("  ")
            .filter(|line| !line.starts_with(' '))
    });
    let names = names.map(|line| line.split(' ').next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

#[test]
fn help_matches_golden_files() {
    let home = tempfile::tempdir().unwrap();
    let (mut commands, mut files) = (vec![Vec::new()], Vec::new());
    while let Some(command) = commands.pop() {
        let text = help(home.path(), &command);
        for name in subcommands(&text) {
            commands.push([command.clone(), vec![name]].concat());
        }
        let name = [vec!["cynode".to_owned()], command].concat().join("-") + ".txt";
        assert_golden(&format!("help/{name}"), &text);
        files.push(name);
    }
    files.sort();
    assert!(files.len() > 30, "{files:?}");
    assert_eq!(golden_files("help"), files, "files of removed commands");
}

#[test]
fn old_and_hidden_flags_stay_out_of_help() {
    let home = tempfile::tempdir().unwrap();
    for (command, hidden) in [
        ("node", ["--default-image", "--ledger-retain"]),
        ("dev", ["--inference-timeout", "--ledger-retain"]),
        ("run", ["--log-level", "--log-format"]),
    ] {
        let text = help(home.path(), &[command.to_owned()]);
        let flags: Vec<_> = text.split_whitespace().collect();
        assert!(hidden.iter().all(|flag| !flags.contains(flag)), "{command}");
    }
}
