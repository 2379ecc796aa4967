//! Confirmation of actions that are hard to undo.

use super::print;
use crate::exit::{Exit, Failure};
use std::io::{self, IsTerminal as _, Write as _};

/// Asks at the terminal whether to proceed, unless `yes` was given. Fails where there is no terminal, and
/// where the answer is no.
pub(super) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "{question}\nThere is no terminal to ask at; add --yes to proceed"
        )));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    drop(stderr);
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    print::note("Nothing was changed.");
    Err(Failure::silent(Exit::Usage.code()))
}
