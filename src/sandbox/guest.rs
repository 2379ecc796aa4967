//! Guest of a sandbox: its command, and the receiver of what that does.

use super::{
    Exec, OutputSink,
    lifecycle::Event,
    ordered_sink::OrderedSink,
    stdin::{FeedStep, StdinFeed},
    streams::OutputPipe,
};
use crate::sandbox_init::wire::Report;
use std::{future::pending, io};

/// Command of a sandbox, and the receiver of what it does.
pub(super) struct Guest<'a> {
    pub(super) exec: &'a Exec,
    pub(super) sink: OrderedSink<'a>,
    pub(super) stdin: Option<StdinFeed>,
}

impl Guest<'_> {
    pub(super) fn on_report(&mut self, report: &Report) -> Option<Event> {
        match report {
            Report::Started => {
                self.sink.exec_started();
                Some(Event::ExecStarted)
            }
            Report::StdinTaken(_) | Report::StdinClosed => {
                self.on_stdin(report);
                None
            }
            Report::Signaled => Some(Event::ExecSignaled),
            Report::Ended(end) => Some(Event::ExecEnded(*end)),
            // About the sandbox alone.
            _ => None,
        }
    }

    fn on_stdin(&mut self, report: &Report) {
        let Some(stdin) = &mut self.stdin else { return };
        let is_due = match report {
            Report::StdinTaken(bytes) => stdin.record_taken(*bytes),
            _ => {
                stdin.record_closed();
                true
            }
        };
        if is_due {
            self.sink.stdin_taken();
        }
    }
}

/// Moves output of the command to its receiver. Cancel-safe.
pub(super) async fn pump(pipe: &mut OutputPipe, sink: Option<&OrderedSink<'_>>) {
    match sink {
        Some(sink) => pipe.pump(sink).await,
        None => pending().await,
    }
}

/// Waits for the next step of a command's stdin, for ever where there is none. Cancel-safe.
pub(super) async fn next_stdin(stdin: Option<&mut StdinFeed>) -> io::Result<FeedStep> {
    match stdin {
        Some(stdin) if stdin.is_open() => stdin.next().await,
        _ => pending().await,
    }
}
