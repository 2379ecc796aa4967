//! Events of an exec: output, and its end.

use crate::{
    api::{
        events::Stream,
        sandboxes::exec::{Exec, ExecEndCause, ExecStatus},
    },
    client::{
        follow::{Gap, Outage, parse, parse_output, print_event},
        output::OutputPrinter,
        print::{clean, note},
        sse::{SseEvent, SseReader},
    },
    exit::Failure,
};
use std::io::Read;

/// Exit code of a command whose end is unknown.
const EXIT_LOST: u8 = 125;
/// Exit code of a command that reached its time limit, as of a task.
const EXIT_TIMEOUT: u8 = 124;

/// Form in which events are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Output of the command, on stdout and stderr.
    Output,
    /// Nothing.
    Nothing,
    /// Each event as a line of JSON on stdout.
    Events,
}

/// Printer of the events of one exec, with the position in its log.
pub(super) struct EventPrinter {
    show: Show,
    pub(super) last_id: String,
    output: OutputPrinter,
}

impl EventPrinter {
    pub(super) fn new(show: Show, timestamps: bool) -> Self {
        Self {
            show,
            last_id: String::new(),
            output: OutputPrinter::new(timestamps),
        }
    }

    /// Prints the events of a stream until its end, or until it is cut. The exec where it has ended.
    pub(super) fn print_all(
        &mut self,
        stream: impl Read,
        outage: &mut Outage,
    ) -> Result<Option<Exec>, Failure> {
        let mut events = SseReader::new(stream);
        while let Some(event) = events.next()? {
            if event.name.is_empty() {
                continue;
            }
            outage.end();
            if let Some(exec) = self.print(&event)? {
                return Ok(Some(exec));
            }
        }
        Ok(None)
    }

    fn print(&mut self, event: &SseEvent) -> Result<Option<Exec>, Failure> {
        if !event.id.is_empty() {
            event.id.clone_into(&mut self.last_id);
        }
        if self.show == Show::Events {
            print_event(event)?;
        }
        match event.name.as_str() {
            "exit" => return parse(&event.data).map(Some),
            "stdout" if self.show == Show::Output => {
                self.print_output(Stream::Stdout, &event.data)?
            }
            "stderr" if self.show == Show::Output => {
                self.print_output(Stream::Stderr, &event.data)?
            }
            "gap" if self.show == Show::Output => {
                let Gap { stream, bytes } = parse(&event.data)?;
                note(&format!(
                    "[{bytes} more bytes of {} were dropped]",
                    clean(&stream)
                ));
            }
            _ => {}
        }
        Ok(None)
    }

    fn print_output(&mut self, stream: Stream, data: &str) -> Result<(), Failure> {
        let (bytes, time) = parse_output(data)?;
        self.output.print(stream, &bytes, time)
    }
}

/// End of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExecEnd {
    /// Whether its end is unknown.
    pub(super) is_lost: bool,
    pub(super) code: Option<i32>,
    pub(super) cause: Option<ExecEndCause>,
}

impl From<&Exec> for ExecEnd {
    fn from(exec: &Exec) -> Self {
        Self {
            is_lost: exec.status == ExecStatus::Lost,
            code: exec.exit_code,
            cause: exec.cause,
        }
    }
}

impl ExecEnd {
    /// Ends the process as the command ended: with its exit code, or with one that stands for its end.
    pub(super) fn exit(self) -> Result<(), Failure> {
        if self.is_lost {
            let text = "the sandbox ended before the command; what the command did is unknown";
            note(&format!("cynode: {text}"));
            return Err(Failure::silent(EXIT_LOST));
        }
        if let Some(text) = self.cause.and_then(cause_text) {
            note(&format!("cynode: {text}"));
        }
        if self.cause == Some(ExecEndCause::Timeout) {
            return Err(Failure::silent(EXIT_TIMEOUT));
        }
        match self.code {
            Some(0) => Ok(()),
            // Exit codes are bytes, as in the kernel.
            Some(code) => Err(Failure::silent(code.to_le_bytes()[0])),
            None => Err(Failure::silent(EXIT_LOST)),
        }
    }
}

/// Sentence about an end that the command did not choose. A signal was sent by somebody who knows.
fn cause_text(cause: ExecEndCause) -> Option<&'static str> {
    match cause {
        ExecEndCause::Timeout => Some("the command reached its time limit"),
        ExecEndCause::Oom => Some("the kernel killed a process for want of memory"),
        ExecEndCause::Signal => None,
    }
}
