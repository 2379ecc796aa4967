//! Old names of flags and variables, accepted for one release beside the new ones. Old flags are hidden aliases
//! of the new ones; for variables, [`variable`] picks the one that is set.

use crate::exit::Failure;
use clap::error::{ContextKind, ContextValue};
use std::{
    env,
    ffi::{OsStr, OsString},
};

/// A setting with an old name.
struct Renamed {
    /// Commands that take it.
    commands: &'static [&'static str],
    /// Flag, which overrides both variables.
    flag: &'static str,
    /// Its old name, where the flag was renamed.
    old_flag: Option<&'static str>,
    /// Old and new variable.
    variables: [&'static str; 2],
    /// The old variable means another setting of another command, so both may be set to different values.
    is_shared: bool,
}

const RENAMED: [Renamed; 4] = [
    Renamed {
        commands: &["node", "worker"],
        flag: "--prefetch-image",
        old_flag: Some("--default-image"),
        variables: ["CYNODE_DEFAULT_IMAGE", "CYNODE_PREFETCH_IMAGE"],
        is_shared: true,
    },
    Renamed {
        commands: &["dev", "node"],
        flag: "--inference-pull-timeout",
        old_flag: Some("--inference-timeout"),
        variables: ["CYNODE_INFERENCE_TIMEOUT", "CYNODE_INFERENCE_PULL_TIMEOUT"],
        is_shared: true,
    },
    Renamed {
        commands: &["dev", "node", "worker", "doctor"],
        flag: "--result-retention",
        old_flag: Some("--ledger-retain"),
        variables: ["CYNODE_LEDGER_RETAIN", "CYNODE_RESULT_RETENTION"],
        is_shared: false,
    },
    Renamed {
        commands: &["worker"],
        flag: "--token-file",
        old_flag: None,
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
    let words: Vec<_> = env::args_os().skip(1).collect();
    notices_for(
        command,
        |flag| is_given(&words, flag),
        |name| env::var_os(name),
    )
}

/// Fails where a command line has an old and a new name of one flag.
pub(super) fn check_conflict(words: &[OsString]) -> Result<(), Failure> {
    let conflict = RENAMED.iter().find_map(|setting| {
        let old = setting.old_flag?;
        let are_given = is_given(words, old) && is_given(words, setting.flag);
        are_given.then(|| contradiction(old, setting.flag))
    });
    conflict.map_or(Ok(()), Err)
}

/// The error with the flag or the variable that was given in place of the flag's new name.
pub(super) fn name_source(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let argument = OsStr::new(argument.split(' ').next().unwrap_or_default());
    let is_set = |name: &str| env::var_os(name).is_some();
    let setting = RENAMED.iter().find(|setting| argument == setting.flag);
    let source = setting.and_then(|setting| source(setting, |flag| is_given(words, flag), is_set));
    if let Some(source) = source {
        error.insert(
            ContextKind::InvalidArg,
            ContextValue::String(source.to_owned()),
        );
    }
    error
}

/// Flag or variable from which a setting's value is, unless it is the flag under its new name.
fn source(
    setting: &Renamed,
    is_given: impl Fn(&str) -> bool,
    is_set: impl Fn(&str) -> bool,
) -> Option<&'static str> {
    if is_given(setting.flag) {
        return None;
    }
    let [old, new] = setting.variables;
    let old_flag = setting.old_flag.filter(|flag| is_given(flag));
    old_flag.or_else(|| [new, old].into_iter().find(|name| is_set(name)))
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
        let old_flag = setting.old_flag.filter(|flag| is_given(flag));
        let has_new_flag = is_given(setting.flag);
        if let Some(old) = old_flag {
            if has_new_flag {
                return Err(contradiction(old, setting.flag));
            }
            notices.push(format!("{old} is deprecated; use {}", setting.flag));
        }
        let is_overridden = has_new_flag || old_flag.is_some();
        let [old, new] = setting.variables;
        match (value(old), value(new)) {
            (Some(_), None) => notices.push(format!("{old} is deprecated; use {new}")),
            (Some(old_value), Some(value))
                if !is_overridden && !setting.is_shared && old_value != value =>
            {
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

fn is_given(words: &[OsString], flag: &str) -> bool {
    words.iter().any(|word| is_flag(word, flag))
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
    fn flag_overrides_contradicting_variables() {
        let retention = [
            ("CYNODE_LEDGER_RETAIN", "1d"),
            ("CYNODE_RESULT_RETENTION", "2d"),
        ];
        for (flag, notices) in [("--result-retention", 0), ("--ledger-retain", 1)] {
            let found = of("node", &[flag], &retention).unwrap();
            assert_eq!(found.lines().count(), notices, "{flag}: {found}");
        }
        let token = [
            ("CYNODE_TOKEN_FILE", "a"),
            ("CYNODE_WORKER_TOKEN_FILE", "b"),
        ];
        assert!(of("worker", &[], &token).is_err());
        assert_eq!(of("worker", &["--token-file"], &token), Ok(String::new()));
    }

    #[test]
    fn errors_name_the_given_flag_or_variable() {
        let (old_flag, new_flag) = ("--ledger-retain", "--result-retention");
        let (old, new) = ("CYNODE_LEDGER_RETAIN", "CYNODE_RESULT_RETENTION");
        for (flags, variables, expected) in [
            (&[][..], &[old][..], Some(old)),
            (&[], &[old, new], Some(new)),
            (&[old_flag], &[old, new], Some(old_flag)),
            (&[new_flag], &[old, new], None),
            (&[], &[], None),
        ] {
            let setting = &RENAMED[2];
            let found = source(
                setting,
                |flag| flags.contains(&flag),
                |name| variables.contains(&name),
            );
            assert_eq!(found, expected, "{flags:?} {variables:?}");
        }
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
