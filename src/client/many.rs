//! Commands about several tasks: each is tried, and the first failure decides the exit code.

use super::{
    api_client::ApiClient,
    print::{self, clean},
};
use crate::{
    cli::OutputFormat,
    exit::{Exit, Failure},
};
use http::Method;

/// Deletes the things of these names, each at its `path`, and prints those that are gone as `done`, such as "removed".
pub(super) fn delete(
    api: &mut ApiClient,
    output: OutputFormat,
    names: &[String],
    done: &str,
    path: impl Fn(&str) -> String,
) -> Result<(), Failure> {
    let mut failures = Failures::default();
    let deleted = failures.collect(names, |name| {
        api.done(Method::DELETE, &path(name), None::<&()>)?;
        match output {
            OutputFormat::Text => print::line(&format!("{} {done}", clean(name))),
            OutputFormat::Json => Ok(()),
        }
    });
    if output == OutputFormat::Json {
        let deleted: Vec<_> = deleted.iter().map(|(name, ())| name).collect();
        print::json(&serde_json::json!({ done: deleted }))?;
    }
    failures.finish()
}

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
