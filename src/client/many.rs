//! Commands about several tasks: each is tried, and the first failure decides the exit code.

use super::print::{self, clean};
use crate::exit::{Exit, Failure};

/// Failures of a command about several things.
#[derive(Default)]
pub(super) struct Failures {
    exit: Option<Exit>,
    messages: Vec<String>,
}

impl Failures {
    /// Calls `act` for each name in their order; returns what it returned, with its name.
    pub(super) fn collect<'a, T>(
        &mut self,
        names: &'a [String],
        mut act: impl FnMut(&str) -> Result<T, Failure>,
    ) -> Vec<(&'a str, T)> {
        let mut done = Vec::new();
        for name in names {
            match act(name) {
                Ok(value) => done.push((name.as_str(), value)),
                Err(failure) if names.len() == 1 || failure.message.is_empty() => {
                    self.add(failure.exit, failure.message);
                }
                Err(failure) => {
                    self.add(
                        failure.exit,
                        format!("{}: {}", clean(name), failure.message),
                    );
                }
            }
        }
        done
    }

    /// Adds a failure; an empty message stands for one that is printed already.
    pub(super) fn add(&mut self, exit: Exit, message: String) {
        self.exit.get_or_insert(exit);
        if !message.is_empty() {
            self.messages.push(message);
        }
    }

    /// The first failure with the messages of all, if there is one.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        let Some(exit) = self.exit else { return Ok(()) };
        let last = self.messages.pop().unwrap_or_default();
        for message in &self.messages {
            print::note(&format!("error: {message}"));
        }
        Err(Failure::new(exit, last))
    }
}
