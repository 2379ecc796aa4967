//! Log of a role: lines on stderr, as text or JSON. A panic is one of them.

use crate::cli::{LogFlags, LogFormat, LogLevel};
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _},
    panic::PanicHookInfo,
    thread,
};
use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Opens the log; stdout belongs to results.
pub(super) fn start(flags: &LogFlags) {
    let level = match flags.log_level.unwrap_or(LogLevel::Info) {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        // It would print its own errors, and panic where stderr is on a full disk.
        .log_internal_errors(false)
        .with_target(false);
    // It logs each frame, and warns of faults of a peer, which could fill the log.
    let targets = Targets::new()
        .with_default(level)
        .with_target("h2", LevelFilter::ERROR);
    match flags.log_format.unwrap_or(LogFormat::Text) {
        // The innermost span is the last of the list already.
        LogFormat::Json => {
            let builder = builder.json().with_current_span(false);
            builder.finish().with(targets).init();
        }
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let builder = builder.with_ansi(io::stderr().is_terminal() && !plain);
            builder.finish().with(targets).init();
        }
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// Logs a panic as one line, in the span of its task. Its fields are strings, which the log quotes.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let error = panic.payload_as_str().unwrap_or("not a text");
    let location = panic.location().map(ToString::to_string);
    let thread = thread::current();
    // Empty unless RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        error,
        location,
        thread = thread.name(),
        backtrace,
        "panicked"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const FORMAT_VARIABLE: &str = "PANIC_TEST_FORMAT";

    /// Panics with a log of the format that the parent test asks for.
    #[test]
    #[ignore = "started by the test below, in a process of its own"]
    fn child_panics() {
        let is_json = std::env::var(FORMAT_VARIABLE).unwrap() == "json";
        start(&LogFlags {
            log_level: None,
            log_format: is_json.then_some(LogFormat::Json),
        });
        let task = || {
            let _span =
                tracing::info_span!("background", background_task = "send_heartbeat").entered();
            panic!("first line\nsecond line");
        };
        let thread = thread::Builder::new().name("victim".to_owned());
        thread.spawn(task).unwrap().join().unwrap_err();
    }

    /// The log of a child that panics.
    fn panic_log(format: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "roles::logging::tests::child_panics"])
            .args(["--ignored", "--nocapture"])
            .env(FORMAT_VARIABLE, format)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[test]
    fn panic_is_one_json_line() {
        let log = panic_log("json");
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        let fields = &line["fields"];
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["spans"][0]["background_task"], "send_heartbeat");
        assert_eq!(fields["message"], "panicked");
        assert_eq!(fields["error"], "first line\nsecond line");
        assert_eq!(fields["thread"], "victim");
        let location = fields["location"].as_str().unwrap();
        assert!(location.starts_with(file!()), "{location}");
    }

    #[test]
    fn panic_is_one_text_line() {
        let log = panic_log("text");
        assert_eq!(log.lines().count(), 1, "{log}");
        for part in [
            "ERROR",
            "panicked",
            r"first line\nsecond line",
            "victim",
            file!(),
        ] {
            assert!(log.contains(part), "{part}: {log}");
        }
    }
}
