//! Input at the prompt: messages, and commands that begin with a slash.

/// Commands with their arguments, and what they do.
pub(super) const COMMANDS: [(&str, &str); 7] = [
    (
        "/model [NAME]",
        "list the models, or ask this one from now on",
    ),
    (
        "/system [TEXT|none]",
        "show, set or remove the system prompt",
    ),
    (
        "/save [FILE]",
        "save the conversation: as JSON to *.json, else as Markdown",
    ),
    (
        "/clear",
        "forget the conversation and begin a new one; the system prompt stays",
    ),
    ("/help", "show this help"),
    ("/exit", "leave; so does Ctrl-D"),
    (
        "\"\"\"",
        "begin and end a message of several lines; a \\ at the end of a line goes on, too",
    ),
];

/// Input of a person.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Input {
    Nothing,
    Message(String),
    Command(Command),
    /// Word with a slash that is no command.
    Unknown(String),
}

#[derive(PartialEq, Eq, Debug)]
pub(super) enum Command {
    Help,
    Model(Option<String>),
    System(SystemChange),
    Save(Option<String>),
    Clear,
    Exit,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) enum SystemChange {
    Show,
    Set(String),
    Remove,
}

/// Reads what was typed. A word such as `/etc/hosts` begins a message, as does a line that begins with a space.
pub(super) fn parse(typed: &str) -> Input {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphabetic());
    if let Some(line) = typed.strip_prefix('/') {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if is_name(name) {
            return command(name, rest.trim());
        }
    }
    let message = joined(typed);
    if message.trim().is_empty() {
        Input::Nothing
    } else {
        Input::Message(message)
    }
}

fn command(name: &str, argument: &str) -> Input {
    let some = || Some(argument.to_owned()).filter(|argument| !argument.is_empty());
    Input::Command(match name {
        "help" => Command::Help,
        "model" | "models" => Command::Model(some()),
        "system" => Command::System(match argument {
            "" => SystemChange::Show,
            "none" => SystemChange::Remove,
            text => SystemChange::Set(joined(text)),
        }),
        "save" => Command::Save(some()),
        "clear" | "new" => Command::Clear,
        "exit" | "quit" | "bye" => Command::Exit,
        _ => return Input::Unknown(format!("/{name}")),
    })
}

/// Whether Enter ends the input: not after a backslash, and not between triple quotes.
pub(super) fn is_complete(typed: &str) -> bool {
    typed.matches(QUOTES).count().is_multiple_of(2) && !typed.ends_with('\\')
}

const QUOTES: &str = "\"\"\"";

/// Message without what only told the prompt that it goes on.
fn joined(typed: &str) -> String {
    let trimmed = typed.trim();
    let quoted = trimmed.strip_prefix(QUOTES);
    match quoted.and_then(|rest| rest.strip_suffix(QUOTES)) {
        Some(inside) if !inside.contains(QUOTES) => inside.trim_matches('\n').to_owned(),
        _ => trimmed.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_and_messages_are_told_apart() {
        let message = |text: &str| Input::Message(text.to_owned());
        let some = |text: &str| Some(text.to_owned());
        for (typed, expected) in [
            ("", Input::Nothing),
            (" \n", Input::Nothing),
            ("hello", message("hello")),
            ("/etc/hosts: why?", message("/etc/hosts: why?")),
            (" /help me", message("/help me")),
            ("/ is the root", Input::Unknown("/".to_owned())),
            ("/help", Input::Command(Command::Help)),
            ("/model", Input::Command(Command::Model(None))),
            ("/model  a:1 ", Input::Command(Command::Model(some("a:1")))),
            (
                "/system",
                Input::Command(Command::System(SystemChange::Show)),
            ),
            (
                "/system none",
                Input::Command(Command::System(SystemChange::Remove)),
            ),
            (
                "/system be brief",
                Input::Command(Command::System(SystemChange::Set("be brief".to_owned()))),
            ),
            (
                "/save a b.md",
                Input::Command(Command::Save(some("a b.md"))),
            ),
            ("/clear", Input::Command(Command::Clear)),
            ("/bye", Input::Command(Command::Exit)),
            ("/frob x", Input::Unknown("/frob".to_owned())),
        ] {
            assert_eq!(parse(typed), expected, "{typed:?}");
        }
    }

    #[test]
    fn lines_go_on_between_quotes_and_after_backslash() {
        for (typed, message) in [
            ("\"\"\"\na\n\nb\n\"\"\"", "a\n\nb"),
            ("\"\"\"a\"\"\"", "a"),
            ("a \\\nb", "a \nb"),
            ("say \"\"\"x\"\"\" twice", "say \"\"\"x\"\"\" twice"),
        ] {
            assert!(is_complete(typed), "{typed:?}");
            assert_eq!(parse(typed), Input::Message(message.to_owned()));
        }
        for typed in ["\"\"\"", "\"\"\"a\nb", "a\\", "say \"\"\"x"] {
            assert!(!is_complete(typed), "{typed:?}");
        }
    }

    proptest! {
        #[test]
        fn no_message_is_lost(text in "[^/\\s\"\\\\][^\"\\\\]*[^\\s\"\\\\]") {
            prop_assert_eq!(parse(&text), Input::Message(text));
        }
    }
}
