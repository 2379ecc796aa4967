//! The prompt: a line editor with history, and completion of commands and models.

use super::{
    commands::{COMMANDS, is_complete},
    screen::bold,
    state::State,
};
use crate::{client::print::note, exit::Failure};
use rustyline::{
    Behavior, CompletionType, Config, Context, Editor, Helper,
    completion::Completer,
    config::BellStyle,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::MemHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::io;

/// Text before the input.
const PROMPT: &str = "> ";

/// Line that a person entered.
pub(super) enum Entered {
    Text(String),
    /// Ctrl-C.
    Canceled,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// Line editor of a chat.
pub(super) struct Prompt<'a> {
    editor: Editor<Words, MemHistory>,
    state: &'a State,
    /// Whether a failure to keep the history was shown.
    is_warned: bool,
}

/// Words that can be completed.
#[derive(Default)]
struct Words {
    models: Vec<String>,
}

impl<'a> Prompt<'a> {
    pub(super) fn new(state: &'a State) -> Result<Self, Failure> {
        let config = Config::builder()
            .behavior(Behavior::Stdio)
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .bell_style(BellStyle::None)
            .history_ignore_space(true)
            .max_history_size(usize::MAX)
            .map_err(Failure::internal)?
            .build();
        let history = MemHistory::with_config(&config);
        let mut editor = Editor::with_history(config, history).map_err(Failure::internal)?;
        editor.set_helper(Some(Words::default()));
        let mut prompt = Self {
            editor,
            state,
            is_warned: false,
        };
        let entries = prompt.kept(state.history()).unwrap_or_default();
        for entry in entries {
            prompt
                .editor
                .add_history_entry(entry)
                .map_err(Failure::internal)?;
        }
        Ok(prompt)
    }

    /// Names that `/model` completes.
    pub(super) fn set_models(&mut self, models: Vec<String>) {
        if let Some(words) = self.editor.helper_mut() {
            words.models = models;
        }
    }

    /// Reads the next input.
    pub(super) fn read(&mut self) -> Result<Entered, Failure> {
        let text = match self.editor.readline(&(PROMPT, bold(PROMPT))) {
            Ok(text) => text,
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => {
                return Ok(Entered::Canceled);
            }
            Err(ReadlineError::Eof) => return Ok(Entered::End),
            Err(ReadlineError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
                return Err(Failure::internal(format!(
                    "the terminal can't be read: {error}"
                )));
            }
            Err(error) => {
                note(&format!("this can't be read: {error}"));
                return Ok(Entered::Canceled);
            }
        };
        if self
            .editor
            .add_history_entry(text.as_str())
            .map_err(Failure::internal)?
        {
            let kept = self.state.remember(&text);
            self.kept(kept);
        }
        Ok(Entered::Text(text))
    }

    /// Warns once where the history can't be kept: the chat goes on without.
    fn kept<T>(&mut self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if !std::mem::replace(&mut self.is_warned, true) {
                    note(&format!(
                        "warning: the history of this chat is not kept: {error}"
                    ));
                }
                None
            }
        }
    }
}

/// Place of the word that is typed, and what it may become: a command, or after `/model` a model.
fn candidates(line: &str, models: &[String]) -> (usize, Vec<String>) {
    let matching = |names: &mut dyn Iterator<Item = &str>, begin: &str| {
        let matching = names.filter(|name| name.starts_with(begin));
        matching.map(str::to_owned).collect()
    };
    if let Some(begin) = line.strip_prefix("/model ") {
        let mut names = models.iter().map(String::as_str);
        return (line.len() - begin.len(), matching(&mut names, begin));
    }
    // With a space where an argument may follow.
    let name = |usage: &'static str| &usage[..usage.find(' ').map_or(usage.len(), |at| at + 1)];
    let mut commands = COMMANDS
        .iter()
        .map(|(usage, _)| name(usage))
        .filter(|name| name.starts_with('/'));
    if line.starts_with('/') {
        return (0, matching(&mut commands, line));
    }
    (line.len(), Vec::new())
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(candidates(&line[..position], &self.models))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(context.input()) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_models_are_completed() {
        let names =
            |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).to_owned()).collect() };
        let models = names(&["llama3:8b", "llava", "qwen3"]);
        for (line, expected) in [
            ("/s", (0, &["/system ", "/save "][..])),
            ("/cl", (0, &["/clear"])),
            ("/model l", (7, &["llama3:8b", "llava"])),
            ("/model ", (7, &["llama3:8b", "llava", "qwen3"])),
            ("/save x", (0, &[])),
            ("hello", (5, &[])),
        ] {
            let (place, found) = candidates(line, &models);
            assert_eq!((place, found), (expected.0, names(expected.1)), "{line}");
        }
    }
}
