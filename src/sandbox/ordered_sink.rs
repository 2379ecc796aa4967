//! Order of what an owner learns of a command, however it ends: handed over, running, output.

use super::OutputSink;
use crate::api::events::Stream;
use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

/// Sink that passes the start of a command on once, and before its output: a command whose init is silent may have
/// printed already.
pub(super) struct OrderedSink<'a> {
    sink: &'a dyn OutputSink,
    is_started: AtomicBool,
}

impl<'a> OrderedSink<'a> {
    pub(super) fn new(sink: &'a dyn OutputSink) -> Self {
        Self {
            sink,
            is_started: AtomicBool::new(false),
        }
    }
}

impl OutputSink for OrderedSink<'_> {
    fn exec_starting(&self) -> io::Result<()> {
        self.sink.exec_starting()
    }

    fn exec_started(&self) {
        if !self.is_started.swap(true, Ordering::Relaxed) {
            self.sink.exec_started();
        }
    }

    fn output(&self, stream: Stream, bytes: &[u8]) {
        self.exec_started();
        self.sink.output(stream, bytes);
    }

    fn stdin_taken(&self) {
        self.sink.stdin_taken();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    struct Calls(Mutex<Vec<String>>);

    impl OutputSink for Calls {
        fn exec_starting(&self) -> io::Result<()> {
            self.0.lock().push("starting".to_owned());
            Ok(())
        }

        fn exec_started(&self) {
            self.0.lock().push("started".to_owned());
        }

        fn output(&self, _: Stream, bytes: &[u8]) {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.lock().push(text);
        }

        fn stdin_taken(&self) {
            self.0.lock().push("taken".to_owned());
        }
    }

    #[test]
    fn start_is_passed_on_once_and_before_output() {
        let calls = Calls(Mutex::default());
        let sink = OrderedSink::new(&calls);
        sink.exec_starting().unwrap();
        sink.output(Stream::Stdout, b"one");
        sink.exec_started();
        sink.output(Stream::Stderr, b"two");
        let expected = ["starting", "started", "one", "two"];
        assert_eq!(*calls.0.lock(), expected);
    }
}
