//! How things look: tables for people, JSON for programs, two lines for a failure.

pub(super) use crate::{
    terminal::{print_json as json, print_line as line, print_note as note},
    text::clean,
};

use crate::{
    api::time::Time,
    cli::Cli,
    exit::Failure,
    terminal::{to_stdout, write_failure},
};
use clap::CommandFactory as _;
use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

/// A job's own output on stdout, as it is.
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    note_replaced(text);
    to_stdout(|out| out.write_all(text.as_bytes()))
}

/// A job's own output on stderr, as it is.
pub(super) fn raw_stderr(text: &str) -> Result<(), Failure> {
    note_replaced(text);
    io::stderr()
        .lock()
        .write_all(text.as_bytes())
        .map_err(write_failure)
}

/// Says, once in a process, that output may not be what the command printed: nodes send it as text.
fn note_replaced(text: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if text.contains(char::REPLACEMENT_CHARACTER) && !SAID.swap(true, Ordering::Relaxed) {
        note(
            "warning: bytes of the output that are not UTF-8 are replaced by U+FFFD; until output is exact, have the \
             command encode it, as with base64",
        );
    }
}

/// Names and values below each other.
pub(super) fn pairs<const N: usize>(pairs: [(&str, String); N]) -> Result<(), Failure> {
    to_stdout(|out| {
        pairs
            .iter()
            .try_for_each(|(name, value)| writeln!(out, "{name:<10} {value}"))
    })
}

/// A table; at a terminal the last but one column is cut to keep rows readable.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), Failure> {
    const WIDEST: usize = 40;
    let cut = io::stdout().is_terminal();
    let shorten = |cell: String| {
        if cut && cell.chars().count() > WIDEST {
            cell.chars().take(WIDEST - 1).chain(['…']).collect()
        } else {
            cell
        }
    };
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows.map(|row| row.map(shorten)))
        .collect();
    let width = |n: usize| {
        rows.iter()
            .map(|row| row[n].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    to_stdout(|out| {
        for row in &rows {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    })
}

/// How long ago, in one unit.
pub(super) fn age(time: Time) -> String {
    let seconds = Time::now().since(time).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// For a path segment or a query value.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// `cynode completions`.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cynode", &mut script);
    to_stdout(|out| out.write_all(&script))
}

/// `cynode version`.
pub fn version() -> Result<(), Failure> {
    line(concat!("cynode ", env!("CARGO_PKG_VERSION")))
}

/// Says why the process ends, and gives the code to end with.
pub fn failure(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        note(&format!("error: {}", failure.message));
    }
    failure.exit.code().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(percent_encode("a b/é"), "a%20b%2F%C3%A9");
    }
}
