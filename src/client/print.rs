//! Output of the client: tables for people, JSON for programs, errors on stderr.

pub(super) use crate::{
    terminal::{print_json as json, print_line as line, print_note as note},
    text::clean,
};

use crate::{api::time::Time, cli::Cli, exit::Failure, terminal::to_stdout};
use clap::CommandFactory as _;
use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

/// Prints output of a job on stdout, unchanged.
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    note_replaced(text);
    to_stdout(|out| out.write_all(text.as_bytes()))
}

/// Warns, once per process, that output may differ from what the command printed: a result keeps text.
fn note_replaced(text: &str) {
    static IS_SHOWN: AtomicBool = AtomicBool::new(false);
    if text.contains(char::REPLACEMENT_CHARACTER) && !IS_SHOWN.swap(true, Ordering::Relaxed) {
        note(
            "warning: bytes of the output that are not UTF-8 are replaced by U+FFFD in a result; for the bytes use \
             cynode task logs",
        );
    }
}

/// Prints names and values, one pair a line.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Result<(), Failure> {
    const LEAST_WIDTH: usize = 12;
    let pairs: Vec<_> = pairs.into_iter().collect();
    let widths = pairs.iter().map(|(name, _)| name.len());
    let width = widths.fold(LEAST_WIDTH, usize::max);
    to_stdout(|out| {
        let mut pairs = pairs.iter();
        pairs.try_for_each(|(name, value)| writeln!(out, "{name:<width$} {value}"))
    })
}

/// Size for people, such as `1.5 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// Prints a table; at a terminal cells are cut to 40 characters.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), Failure> {
    wide_table(&head, rows.map(Vec::from))
}

/// Same with any number of columns; each row has as many cells as the head.
pub(super) fn wide_table(
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Result<(), Failure> {
    const MAX_CELL_CHARS: usize = 40;
    let cut = io::stdout().is_terminal();
    let shorten = |cell: String| {
        if cut && cell.chars().count() > MAX_CELL_CHARS {
            cell.chars().take(MAX_CELL_CHARS - 1).chain(['…']).collect()
        } else {
            cell
        }
    };
    let first: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rest = rows.into_iter();
    let rest = rest.map(|row| row.into_iter().map(shorten).collect());
    let rows: Vec<Vec<String>> = std::iter::once(first).chain(rest).collect();
    let width = |n: usize| {
        rows.iter()
            .map(|row| row[n].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
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

/// Age in one unit, such as `5m`.
pub(super) fn age(time: Time) -> String {
    let seconds = Time::now().since(time).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Prints the completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cynode", &mut script);
    to_stdout(|out| out.write_all(&script))
}

/// Prints the version.
pub fn version() -> Result<(), Failure> {
    line(concat!("cynode ", env!("CARGO_PKG_VERSION")))
}

/// Prints a failure on stderr; returns the code to exit with.
pub fn failure(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        note(&format!("error: {}", failure.message));
    }
    failure.exit.code().into()
}
