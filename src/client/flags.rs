//! Problems of the User API in terms of the command line.
//!
//! The API names fields and query parameters; a person at a terminal knows the flags that set them.

use crate::api::problem::ProblemBody;

/// Field or query parameter, and how the command line names it.
const FLAGS: [(&str, &str); 47] = [
    ("action", "--action"),
    ("artifact_limit", "--artifact-limit"),
    ("artifacts", "--artifact"),
    ("by", "--by"),
    ("command", "the command"),
    ("cpus", "--cpus"),
    ("current_password", "the current password"),
    ("cursor", "--cursor"),
    ("cwd", "--cwd"),
    ("egress", "--allow"),
    ("email", "--email"),
    ("env", "--env"),
    ("expires_at", "--expires"),
    ("files", "--upload"),
    ("gpus", "--gpus"),
    ("grace_seconds", "--grace"),
    ("handle", "the user name"),
    ("idle_timeout_seconds", "--idle-timeout"),
    ("image", "--image"),
    ("lifetime_seconds", "--lifetime"),
    ("limit", "--limit"),
    ("max_attempts", "--max-attempts"),
    ("memory", "--memory"),
    ("model", "--model"),
    ("name", "--name"),
    ("new_password", "the new password"),
    ("node", "--node"),
    ("node_labels", "--label"),
    ("password", "the password"),
    ("pids", "--pids"),
    ("priority", "--priority"),
    ("prompt", "--prompt"),
    ("pull", "--pull"),
    ("scopes", "--scope"),
    ("script", "the script"),
    ("secrets", "--secret"),
    ("shm_size", "--shm-size"),
    ("since", "--since"),
    ("status", "--status"),
    ("stdin_base64", "--stdin"),
    ("stream", "--stream"),
    ("tail", "--tail"),
    ("task_name", "--name"),
    ("timeout_seconds", "--timeout"),
    ("until", "--until"),
    ("use_inference", "--use-inference"),
    ("who", "--who"),
];

/// Text of a problem, with flags in place of fields and query parameters.
pub(super) fn in_flags(problem: &ProblemBody) -> String {
    if let Some(error) = problem.errors.first() {
        let mut segments = error.pointer.trim_start_matches("#/").split('/');
        if let Some(flag) = segments.next().and_then(flag_of) {
            return match (flag, segments.next()) {
                ("--env", Some(name)) => format!("--env {name} {}", error.detail),
                ("--allow", Some("profiles")) => format!("--egress-profile {}", error.detail),
                ("--allow", Some("terminate")) => format!("--egress-terminate {}", error.detail),
                _ => format!("{flag} {}", error.detail),
            };
        }
    }
    let parameter = problem.detail.strip_prefix("query parameter `");
    if let Some((name, rest)) = parameter.and_then(|rest| rest.split_once('`'))
        && let Some(flag) = flag_of(name)
    {
        return format!("{flag}{rest}");
    }
    problem.detail.clone()
}

/// Field of a warning, such as `timeout_seconds` or `env.PATH`, as a flag.
pub(super) fn field_in_flags(field: &str) -> String {
    let (first, rest) = field.split_once('.').unwrap_or((field, ""));
    match flag_of(first) {
        Some(flag) if rest.is_empty() => flag.to_owned(),
        Some(flag) => format!("{flag} {rest}"),
        None => field.to_owned(),
    }
}

fn flag_of(field: &str) -> Option<&'static str> {
    let found = FLAGS.iter().find(|(name, _)| *name == field);
    found.map(|(_, flag)| *flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::{Problem, ProblemKind};

    #[test]
    fn flags_replace_field_names() {
        for (problem, text) in [
            (
                Problem::field("/timeout_seconds", "must be 1"),
                "--timeout must be 1",
            ),
            (
                Problem::field("/env/A B", "is not valid"),
                "--env A B is not valid",
            ),
            (
                Problem::field("/node_labels/0", "is not valid"),
                "--label is not valid",
            ),
            (
                Problem::field("/egress/allow/0", "names a.b"),
                "--allow names a.b",
            ),
            (
                Problem::field("/egress/profiles/1", "names git"),
                "--egress-profile names git",
            ),
            (
                Problem::field("/egress/terminate/0", "names a.b"),
                "--egress-terminate names a.b",
            ),
            (
                Problem::field("/capability", "is missing"),
                "`capability` is missing",
            ),
            (
                Problem::new(
                    ProblemKind::InvalidRequest,
                    "query parameter `status` must be queued, got \"wrong\"",
                ),
                "--status must be queued, got \"wrong\"",
            ),
            (
                Problem::new(ProblemKind::Conflict, "the task runs"),
                "the task runs",
            ),
        ] {
            assert_eq!(in_flags(&problem.body("r")), text);
        }
        for (field, flag) in [
            ("timeout_seconds", "--timeout"),
            ("env.PATH", "--env PATH"),
            ("node_lables", "node_lables"),
        ] {
            assert_eq!(field_in_flags(field), flag);
        }
    }
}
