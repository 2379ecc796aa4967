//! Errors with all their causes in one line, for logs and terminals; never for other users.

use std::error::Error;

/// Text of an error and of its causes, each once: some errors repeat their cause.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
