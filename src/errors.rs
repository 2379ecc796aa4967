//! An error with all its causes, in one line, for logs and terminals; never for strangers.

use std::error::Error;

/// The error's own text and its causes'. Some errors repeat their cause in their own text; it is told
/// once.
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
