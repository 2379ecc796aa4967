//! Old names of flags and variables, accepted for one release beside the new ones. Old flags are hidden aliases
//! of the new ones; for variables, [`variable`] picks the one that is set.

use crate::exit::Failure;
use std::{env, ffi::OsStr};

/// A setting with an old name.
struct Renamed {
    /// Commands that take it.
    commands: &'static [&'static str],
    /// Old and new flag, where the flag was renamed.
    flags: Option<[&'static str; 2]>,
    /// Old and new variable.
    variables: [&'static str; 2],
    /// The old variable means another setting of another command, so both may be set to different values.
    is_shared: bool,
}

const RENAMED: [Renamed; 4] = [
    Renamed {
        commands: &["node", "worker"],
        flags: Some(["--default-image", "--prefetch-image"]),
        variables: ["CYNODE_DEFAULT_IMAGE", "CYNODE_PREFETCH_IMAGE"],
        is_shared: true,
    },
    Renamed {
        commands: &["dev", "node"],
        flags: Some(["--inference-timeout", "--inference-pull-timeout"]),
        variables: ["CYNODE_INFERENCE_TIMEOUT", "CYNODE_INFERENCE_PULL_TIMEOUT"],
        is_shared: false,
    },
    Renamed {
        commands: &["dev", "node", "worker", "doctor"],
        flags: Some(["--ledger-retain", "--result-retention"]),
        variables: ["CYNODE_LEDGER_RETAIN", "CYNODE_RESULT_RETENTION"],
        is_shared: false,
    },
    Renamed {
        commands: &["worker"],
        flags: None,
        variables: ["CYNODE_TOKEN_FILE", "CYNODE_WORKER_TOKEN_FILE"],
        is_shared: false,
    },
];

/// The variable to read for a setting: `new`, or its old name where only that is set.
pub(super) fn variable(new: &'static str) -> &'static str {
    let is_set = |name: &str| env::var_os(name).is_some();
    let renamed = RENAMED.iter().map(|setting| setting.variables);
    renamed
        .filter(|[_, name]| *name == new && !is_set(name))
        .map(|[old, _]| old)
        .find(|old| is_set(old))
        .unwrap_or(new)
}

/// All variables of renamed settings.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    RENAMED.iter().flat_map(|setting| setting.variables)
}

/// Notices about the old names that this process was given, to be logged. Fails where an old and a new name
/// contradict each other.
pub(crate) fn notices(command: &str) -> Result<Vec<String>, Failure> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    notices_for(
        command,
        |flag| arguments.iter().any(|argument| is_flag(argument, flag)),
        |name| env::var_os(name),
    )
}

fn notices_for<V: PartialEq>(
    command: &str,
    is_given: impl Fn(&str) -> bool,
    value: impl Fn(&str) -> Option<V>,
) -> Result<Vec<String>, Failure> {
    let mut notices = Vec::new();
    let settings = RENAMED
        .iter()
        .filter(|setting| setting.commands.contains(&command));
    for setting in settings {
        if let Some([old, new]) = setting.flags.filter(|[old, _]| is_given(old)) {
            if is_given(new) {
                return Err(contradiction(old, new));
            }
            notices.push(format!("{old} is deprecated; use {new}"));
        }
        let [old, new] = setting.variables;
        match (value(old), value(new)) {
            (Some(_), None) => notices.push(format!("{old} is deprecated; use {new}")),
            (Some(old_value), Some(value)) if !setting.is_shared && old_value != value => {
                return Err(contradiction(old, new));
            }
            _ => {}
        }
    }
    Ok(notices)
}

fn contradiction(old: &str, new: &str) -> Failure {
    Failure::usage(format!(
        "{old} is the old name of {new}, and both are given; keep only {new}"
    ))
}

/// Whether an argument is this flag, alone or with its value.
fn is_flag(argument: &OsStr, flag: &str) -> bool {
    let rest = argument.as_encoded_bytes().strip_prefix(flag.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str, flags: &[&str], variables: &[(&str, &str)]) -> Result<String, String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let notices = notices_for(command, |flag| flags.contains(&flag), value);
        notices
            .map(|notices| notices.join("\n"))
            .map_err(|failure| failure.message)
    }

    #[test]
    fn old_names_are_noticed() {
        assert_eq!(of("node", &["--result-retention"], &[]), Ok(String::new()));
        assert_eq!(
            of("node", &["--ledger-retain"], &[]).unwrap(),
            "--ledger-retain is deprecated; use --result-retention"
        );
        let old = ("CYNODE_TOKEN_FILE", "t");
        assert!(of("worker", &[], &[old]).unwrap().contains("deprecated"));
        assert_eq!(of("node", &[], &[old]), Ok(String::new()));
    }

    #[test]
    fn contradicting_names_are_refused() {
        let both = ["--default-image", "--prefetch-image"];
        let error = of("worker", &both, &[]).unwrap_err();
        assert!(error.contains("keep only --prefetch-image"), "{error}");
        let values = |new| {
            [
                ("CYNODE_LEDGER_RETAIN", "1d"),
                ("CYNODE_RESULT_RETENTION", new),
            ]
        };
        assert_eq!(of("node", &[], &values("1d")), Ok(String::new()));
        assert!(of("node", &[], &values("2d")).is_err());
        // An orchestrator on the same machine reads the old one.
        let shared = [
            ("CYNODE_DEFAULT_IMAGE", "a"),
            ("CYNODE_PREFETCH_IMAGE", "b"),
        ];
        assert_eq!(of("node", &[], &shared), Ok(String::new()));
    }

    #[test]
    fn flags_are_recognised_with_and_without_value() {
        for (argument, expected) in [
            ("--a", true),
            ("--a=1", true),
            ("--ab", false),
            ("a", false),
        ] {
            assert_eq!(is_flag(OsStr::new(argument), "--a"), expected, "{argument}");
        }
    }
}
