//! Printing of an answer: text on stdout as it arrives, and on a terminal a sign of life while nothing does.
//!
//! The model's text is untrusted: on a terminal it can't control that. Elsewhere it is printed as it is.

use super::{
    super::print::{clean, note},
    answer::Answer,
};
use crate::{exit::Failure, inference::chat::Part, terminal::to_stdout, text::clean_lines};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Interval of the sign of life.
const TICK: Duration = Duration::from_millis(120);
/// Time of an answer below which its rate says nothing.
const MIN_RATE_SECONDS: f64 = 0.1;
/// Escapes of a terminal: for what is beside the point, for the prompt, and for the end of both.
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Whether a terminal may show colors.
fn has_colors() -> bool {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// Text of our own that stands back behind the answer.
pub(super) fn dim(text: &str) -> String {
    if io::stderr().is_terminal() && has_colors() {
        format!("{DIM}{text}{PLAIN}")
    } else {
        text.to_owned()
    }
}

/// Text that stands out.
pub(super) fn bold(text: &str) -> String {
    format!("{BOLD}{text}{PLAIN}")
}

/// Printer of one answer.
pub(super) struct Printer {
    is_terminal: bool,
    has_colors: bool,
    /// Whether nothing but the whole answer is printed, later.
    is_silent: bool,
    waiting: Option<ProgressBar>,
    last: Option<Kind>,
    is_line_start: bool,
    begun: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Text,
}

impl Printer {
    /// Printer that shows that `model` is asked until the answer begins.
    pub(super) fn start(model: &str, is_silent: bool) -> Self {
        let waiting = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            waiting.set_style(style);
        }
        waiting.set_message(format!("waiting for {}", clean(model)));
        waiting.enable_steady_tick(TICK);
        Self {
            is_terminal: io::stdout().is_terminal(),
            has_colors: has_colors(),
            is_silent,
            waiting: Some(waiting),
            last: None,
            is_line_start: true,
            begun: None,
        }
    }

    /// Prints the next part.
    pub(super) fn print(&mut self, part: &Part) -> Result<(), Failure> {
        self.begun.get_or_insert_with(Instant::now);
        if self.is_silent {
            return Ok(());
        }
        let text = self.render(part);
        if text.is_empty() {
            return Ok(());
        }
        self.stop_waiting();
        self.is_line_start = text.ends_with('\n');
        to_stdout(|out| out.write_all(text.as_bytes()))
    }

    /// Ends the last line, and what was dim. To be called also where the answer broke off.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        self.stop_waiting();
        let plain = match self.last.take() {
            Some(Kind::Reasoning) if self.has_colors => PLAIN,
            _ => "",
        };
        let end = if self.is_line_start { "" } else { "\n" };
        self.is_line_start = true;
        to_stdout(|out| write!(out, "{plain}{end}"))
    }

    /// Prints, dim, how long the answer was and how fast.
    pub(super) fn statistics(&self, answer: &Answer) {
        let tokens = answer.usage.map(|usage| usage.completion_tokens);
        if let (Some(tokens @ 1..), Some(begun)) = (tokens, self.begun) {
            let seconds = begun.elapsed().as_secs_f64();
            let rate = if seconds < MIN_RATE_SECONDS {
                String::new()
            } else {
                format!(", {:.1}/s", tokens as f64 / seconds)
            };
            let tokens = if tokens == 1 {
                "1 token".to_owned()
            } else {
                format!("{tokens} tokens")
            };
            note(&dim(&format!("[{tokens}{rate}]")));
        }
    }

    /// Bytes for a part. What a model thinks is shown to people only.
    fn render(&mut self, part: &Part) -> String {
        let (kind, text) = match part {
            Part::Reasoning(_) if !self.is_terminal => return String::new(),
            Part::Reasoning(text) => (Kind::Reasoning, text),
            Part::Text(text) => (Kind::Text, text),
        };
        if !self.is_terminal {
            self.last = Some(kind);
            return text.clone();
        }
        let begin = match (self.last.replace(kind), kind) {
            (Some(Kind::Reasoning), Kind::Text) if self.has_colors => "\x1b[0m\n\n",
            (Some(Kind::Reasoning), Kind::Text) => "\n\n",
            (None | Some(Kind::Text), Kind::Reasoning) if self.has_colors => DIM,
            (None | Some(Kind::Text), Kind::Reasoning) => "(thinking) ",
            _ => "",
        };
        format!("{begin}{}", clean_lines(text))
    }

    fn stop_waiting(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(is_terminal: bool, has_colors: bool, parts: &[Part]) -> String {
        let mut printer = Printer {
            is_terminal,
            has_colors,
            is_silent: false,
            waiting: None,
            last: None,
            is_line_start: true,
            begun: None,
        };
        parts.iter().map(|part| printer.render(part)).collect()
    }

    #[test]
    fn terminal_is_safe_from_models() {
        let parts = ["a\u{1b}[2J", "\u{9b}31m\tb\n", "\u{202e}c"];
        let parts = parts.map(|text| Part::Text(text.to_owned()));
        assert_eq!(rendered(true, true, &parts), "a [2J 31m\tb\n c");
        assert_eq!(
            rendered(false, true, &parts),
            "a\u{1b}[2J\u{9b}31m\tb\n\u{202e}c"
        );
    }

    #[test]
    fn thoughts_are_set_apart_on_terminals_only() {
        let parts = [
            Part::Reasoning("h".to_owned()),
            Part::Reasoning("m".to_owned()),
            Part::Text("yes".to_owned()),
        ];
        assert_eq!(rendered(true, true, &parts), "\x1b[2mhm\x1b[0m\n\nyes");
        assert_eq!(rendered(true, false, &parts), "(thinking) hm\n\nyes");
        assert_eq!(rendered(false, true, &parts), "yes");
    }
}
