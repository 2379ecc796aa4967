//! Environment variables that cynode reads, and a warning about others with its prefix.

use super::{Cli, old_names};
use clap::CommandFactory as _;
use std::{collections::BTreeSet, env};

/// Variables that no flag declares: mostly secrets, whose values `--help` would show.
const UNLISTED_VARIABLES: [&str; 8] = [
    "CYNODE_ADMIN_PASSWORD",
    "CYNODE_JOIN",
    "CYNODE_JOIN_FILE",
    "CYNODE_PASSWORD",
    "CYNODE_PSK",
    "CYNODE_PSK_FILE",
    "CYNODE_TOKEN",
    "CYNODE_WORKER_TOKEN",
];

/// Variable that is for the programs of users: the docs name an API key so in their examples. No command reads it.
const KEY_OF_PROGRAMS: &str = "CYNODE_KEY";

/// Logs the variables that look like settings and that no command reads. Their values stay out of the log: they
/// may be secrets under a misspelled name.
pub(crate) fn warn_about_unknown() {
    let names = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let variables = unknown(names).join(", ");
    if !variables.is_empty() {
        tracing::warn!(
            variables,
            "unknown environment variables are ignored; check their names against --help"
        );
    }
}

/// The `names` with the prefix of a setting that no command reads.
fn unknown(names: impl Iterator<Item = String>) -> Vec<String> {
    let known = known();
    let mut unknown: Vec<String> = names
        .filter(|name| name.starts_with("CYNODE_") && !known.contains(name))
        .filter(|name| name != KEY_OF_PROGRAMS)
        .map(|name| name.escape_debug().to_string())
        .collect();
    unknown.sort();
    unknown
}

/// Names of all variables that some command reads.
fn known() -> BTreeSet<String> {
    let mut known: BTreeSet<String> = UNLISTED_VARIABLES.map(str::to_owned).into();
    known.extend(old_names::variables().map(str::to_owned));
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands().cloned());
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    fn each_source(directory: &Path, see: &mut impl FnMut(&str)) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                each_source(&path, see);
            } else if !path.ends_with("cli/variables.rs") {
                see(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_used_variable_is_known() {
        let (known, mut seen) = (known(), 0);
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for room in ["cli", "client", "roles"] {
            each_source(&sources.join(room), &mut |source| {
                for rest in source.split("\"CYNODE_").skip(1) {
                    let name = rest.split('"').next().unwrap_or_default();
                    let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
                    if !name.is_empty() && name.chars().all(is_name) {
                        assert!(known.contains(&format!("CYNODE_{name}")), "{name}");
                        seen += 1;
                    }
                }
            });
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn only_unknown_settings_are_named() {
        let names = [
            "PATH",
            "CYNODE_SLUG",
            "CYNODE_PSK",
            "CYNODE_KEY",
            "CYNODE_LABELS",
            "CYNODE_\u{1b}",
        ];
        let unknown = unknown(names.map(str::to_owned).into_iter());
        assert_eq!(unknown, ["CYNODE_LABELS", "CYNODE_\\u{1b}"]);
    }
}
