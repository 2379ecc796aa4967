//! The one question of a chat that is none: from `--message`, from piped input, or from both.

use crate::{client::print::note, exit::Failure};
use std::{
    io::{self, IsTerminal as _, Read as _},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// Longest input, in bytes; as JSON it can be longer.
const MAX_INPUT_BYTES: usize = 8 << 20;
/// Time after which a person is told what the command waits for.
const SILENCE: Duration = Duration::from_secs(3);

/// Question of this command: the message, then the input. Fails where both are empty.
pub(super) fn read(message: Option<&str>) -> Result<String, Failure> {
    let is_terminal = io::stdin().is_terminal();
    let input = match message {
        Some(_) if is_terminal => Vec::new(),
        _ => {
            if is_terminal {
                note("Type your message; Ctrl-D on a line of its own ends it.");
            }
            read_input(is_terminal)?
        }
    };
    if input.len() > MAX_INPUT_BYTES {
        return Err(Failure::usage(
            "the input is longer than 8 MiB; send less of it, such as its beginning (head -c 100000)",
        ));
    }
    let input = String::from_utf8_lossy(&input);
    if matches!(input, std::borrow::Cow::Owned(_)) {
        note("warning: bytes of the input that are not UTF-8 are replaced by U+FFFD");
    }
    joined(message.unwrap_or_default(), &input)
        .ok_or_else(|| Failure::usage("there is no message; give one with -m TEXT, or pipe one in"))
}

/// Reads stdin to its end, or to the limit and a byte.
fn read_input(is_terminal: bool) -> Result<Vec<u8>, Failure> {
    let (sender, input) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let limit = MAX_INPUT_BYTES as u64 + 1;
        let read = io::stdin().lock().take(limit).read_to_end(&mut bytes);
        // The receiver waits for as long as this process has to read.
        let _ = sender.send(read.map(|_| bytes));
    });
    let read = match input.recv_timeout(SILENCE) {
        Err(RecvTimeoutError::Timeout) => {
            if !is_terminal {
                note("reading stdin to its end; </dev/null where there is no input");
            }
            input.recv().map_err(Failure::internal)?
        }
        read => read.map_err(Failure::internal)?,
    };
    read.map_err(|error| Failure::usage(format!("stdin can't be read: {error}")))
}

fn joined(message: &str, input: &str) -> Option<String> {
    let parts = [message, input].map(str::trim_end);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    let parts: Vec<&str> = parts.collect();
    (!parts.is_empty()).then(|| parts.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_stands_before_input() {
        for (message, input, expected) in [
            ("review this", " diff\n", Some("review this\n\n diff")),
            ("", "question\n", Some("question")),
            ("question", "\n", Some("question")),
            (" ", "", None),
        ] {
            assert_eq!(joined(message, input).as_deref(), expected);
        }
    }
}
