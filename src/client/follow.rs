//! Output of a task while it runs: server-sent events, resumed after an interruption.

use super::{
    api_client::ApiClient,
    egress_events::egress_line,
    output::OutputPrinter,
    sse::{SseEvent, SseReader},
};
use crate::{
    api::{
        events::{OutputData, OutputEncoding, Stream},
        tasks::TaskStatus,
        time::Time,
    },
    exit::{Exit, Failure},
    http::request::parse_json,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::DeserializeOwned};
use std::time::{Duration, Instant};

/// Time for which the orchestrator may be unreachable.
const RECONNECT_TIMEOUT: Duration = Duration::from_mins(10);
/// Pause between two attempts to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Last event of a task.
#[derive(Deserialize)]
pub(super) struct TaskEnd {
    /// Status of the task; not a final one where the reader did not follow it.
    pub(super) status: TaskStatus,
    #[serde(default)]
    pub(super) exit_code: Option<i32>,
    /// Whether there was any output.
    #[serde(skip)]
    pub(super) has_output: bool,
}

#[derive(Deserialize)]
struct Output {
    #[serde(flatten)]
    data: OutputData,
    #[serde(default)]
    time: Option<Time>,
}

/// Output that is missing.
#[derive(Deserialize)]
pub(super) struct Gap {
    pub(super) stream: String,
    pub(super) bytes: u64,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    detail: Option<String>,
}

/// Form in which the events of a task are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowMode {
    /// Output of the command, on stdout and stderr.
    Output,
    /// No output; only reasons for waiting, on stderr.
    Progress,
    /// Nothing but failures.
    Silent,
    /// Each event as a line of JSON on stdout.
    Events,
}

/// Part of a log to be shown.
#[derive(Default)]
pub(super) struct LogOptions {
    /// Whether to wait for the end of the task.
    pub(super) follow: bool,
    pub(super) stream: Option<String>,
    pub(super) tail: Option<String>,
    pub(super) since: Option<String>,
    pub(super) timestamps: bool,
    /// Whether to show what was asked for of hosts, too.
    pub(super) shows_egress: bool,
    /// Whether the task is known to exist, so that a first call that fails is retried.
    pub(super) is_known: bool,
}

impl LogOptions {
    /// Path of the log, as events in this encoding, or as a document.
    pub(super) fn path(&self, task: &str, events: Option<OutputEncoding>) -> String {
        let follow = if self.follow { "true" } else { "false" };
        let timestamps = (self.timestamps && events.is_none()).then_some("true");
        super::paths::with_query(
            &super::paths::task(task, "/logs"),
            &[
                ("follow", events.map(|_| follow)),
                ("encoding", events.map(OutputEncoding::as_str)),
                ("stream", self.stream.as_deref()),
                ("tail", self.tail.as_deref()),
                ("since", self.since.as_deref()),
                ("timestamps", timestamps),
            ],
        )
    }
}

/// Prints the events of a task until it ends.
///
/// Where the orchestrator goes away, this says so, and connects again. A first call that fails is retried only where
/// the task `is_known` to exist.
pub(super) fn follow(
    api: &mut ApiClient,
    task: &str,
    show: FollowMode,
    is_known: bool,
) -> Result<TaskEnd, Failure> {
    let options = LogOptions {
        follow: true,
        is_known,
        ..LogOptions::default()
    };
    follow_part(api, task, show, &options)
}

/// Prints the events of a part of a log.
pub(super) fn follow_part(
    api: &mut ApiClient,
    task: &str,
    show: FollowMode,
    options: &LogOptions,
) -> Result<TaskEnd, Failure> {
    let encoding = match show {
        FollowMode::Output => OutputEncoding::Base64,
        _ => OutputEncoding::Text,
    };
    let path = options.path(task, Some(encoding));
    let mut printer = EventPrinter {
        show,
        attempt: String::new(),
        reason: None,
        output: OutputPrinter::new(options.timestamps),
        egress: options.shows_egress.then_some(options.timestamps),
    };
    let going_on = format!("the task goes on. Resume with: cynode task logs -f {task}");
    read_to_end(api, &path, options.is_known, &going_on, |event| {
        printer.print(event)
    })
}

/// Reads a stream of events until `take` finds its end, and connects again where it is cut.
///
/// A first call that fails is retried only where what the events are of `is_known` to exist. `going_on` says what happens
/// without this reader.
pub(super) fn read_to_end<T>(
    api: &mut ApiClient,
    path: &str,
    is_known: bool,
    going_on: &str,
    mut take: impl FnMut(&SseEvent) -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let mut outage = Outage::default();
    let mut last_id = String::new();
    loop {
        let headers = [
            ("accept", "text/event-stream"),
            ("last-event-id", last_id.as_str()),
        ];
        let headers = if last_id.is_empty() {
            &headers[..1]
        } else {
            &headers[..]
        };
        match api.stream(path, headers) {
            Ok(stream) => {
                let opened = Instant::now();
                let mut events = SseReader::new(stream);
                while let Some(event) = events.next()? {
                    if event.name.is_empty() {
                        continue;
                    }
                    outage.end();
                    if !event.id.is_empty() {
                        event.id.clone_into(&mut last_id);
                    }
                    if let Some(end) = take(&event)? {
                        return Ok(end);
                    }
                }
                // The orchestrator was there, and had nothing to say.
                if opened.elapsed() > RECONNECT_INTERVAL {
                    outage.end();
                }
            }
            // The first call shows whether there is something to follow; later ones are retried.
            Err(failure) if !is_known && last_id.is_empty() => return Err(failure),
            Err(failure) if !matches!(failure.exit, Exit::Unreachable | Exit::Internal) => {
                return Err(failure);
            }
            Err(_) => outage.note(),
        }
        if outage.begin().elapsed() > RECONNECT_TIMEOUT {
            let text = format!(
                "the orchestrator at {} is still unreachable; {going_on}",
                api.url
            );
            return Err(Failure::new(Exit::Unreachable, text));
        }
        std::thread::sleep(RECONNECT_INTERVAL);
    }
}

/// Time without the orchestrator.
#[derive(Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    is_noted: bool,
}

impl Outage {
    /// Begin of the outage, now where none is under way.
    pub(super) fn begin(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now)
    }

    /// Says once that the orchestrator is away.
    pub(super) fn note(&mut self) {
        if !self.is_noted {
            super::print::note("orchestrator unreachable; the job goes on; retrying");
            self.is_noted = true;
        }
    }

    pub(super) fn end(&mut self) {
        if self.is_noted {
            super::print::note("orchestrator reachable again");
        }
        *self = Self::default();
    }
}

/// Printer of events.
struct EventPrinter {
    show: FollowMode,
    attempt: String,
    /// Reason for waiting that was printed last; it is printed again only after another one.
    reason: Option<String>,
    output: OutputPrinter,
    /// Whether events of the proxy begin with their time, where they are shown.
    egress: Option<bool>,
}

impl EventPrinter {
    /// Prints an event; returns the end when the event is that.
    fn print(&mut self, event: &SseEvent) -> Result<Option<TaskEnd>, Failure> {
        if !event.id.is_empty() {
            let attempt = event.id.split('-').next().unwrap_or_default();
            if attempt != self.attempt && attempt != "0" {
                self.reason = None;
                if !self.attempt.is_empty()
                    && matches!(self.show, FollowMode::Output | FollowMode::Progress)
                {
                    super::print::note(&format!("[retry: attempt {attempt}, output starts over]"));
                }
                attempt.clone_into(&mut self.attempt);
            }
        }
        if self.show == FollowMode::Events {
            print_event(event)?;
            let is_end = event.name == "end";
            return is_end.then(|| parse(&event.data)).transpose();
        }
        let shows_output = self.show == FollowMode::Output;
        match event.name.as_str() {
            "stdout" if shows_output => self.print_output(Stream::Stdout, &event.data)?,
            "stderr" if shows_output => self.print_output(Stream::Stderr, &event.data)?,
            "gap" if shows_output => {
                let Gap { stream, bytes } = parse(&event.data)?;
                super::print::note(&format!("[{bytes} more bytes of {stream} were dropped]"));
            }
            "egress" => {
                if let Some(timestamps) = self.egress {
                    super::print::note(&egress_line(&event.data, timestamps)?);
                }
            }
            "status" if self.show != FollowMode::Silent => {
                let Status { reason, detail } = parse(&event.data)?;
                if let Some(reason) = reason
                    && self.reason.as_ref() != Some(&reason)
                {
                    super::print::note(&format!("waiting: {}", super::print::clean(&reason)));
                    self.reason = Some(reason);
                }
                if let Some(detail) = detail {
                    super::print::note(&super::print::clean(&detail));
                }
            }
            "end" => {
                let end: TaskEnd = parse(&event.data)?;
                let has_output = self.output.has_printed();
                return Ok(Some(TaskEnd { has_output, ..end }));
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

/// Bytes of an event of output, and their time.
pub(super) fn parse_output(data: &str) -> Result<(Vec<u8>, Option<Time>), Failure> {
    let Output { data, time } = parse(data)?;
    let bytes = match data {
        OutputData::Text(text) => text.into_bytes(),
        OutputData::Base64(text) => STANDARD.decode(text).map_err(|error| {
            Failure::internal(format!(
                "the orchestrator sent output that is not base64: {error}"
            ))
        })?,
    };
    Ok((bytes, time))
}

/// Prints an event as one line: its data with its name and id.
pub(super) fn print_event(event: &SseEvent) -> Result<(), Failure> {
    let mut line: serde_json::Map<String, serde_json::Value> = parse(&event.data)?;
    line.insert("event".to_owned(), event.name.as_str().into());
    if !event.id.is_empty() {
        line.insert("id".to_owned(), event.id.as_str().into());
    }
    super::print::line(&serde_json::Value::from(line).to_string())
}

/// Data of an event.
pub(super) fn parse<T: DeserializeOwned>(data: &str) -> Result<T, Failure> {
    parse_json(data.as_bytes()).map_err(|problem| {
        Failure::internal(format!(
            "the orchestrator sent an event that this cynode does not understand: {}",
            problem.detail
        ))
    })
}
