//! A job's log while it is written and read at the same time.

use crate::api::{
    events::{Decoder, JobEvent, OutputLog, ResultEvent, Stream},
    jobs::JobResult,
    time::Time,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    log: OutputLog,
    decoders: [Decoder; 2],
    started_at: Option<Time>,
    result: Option<JobResult>,
}

impl State {
    fn print(&mut self, stream: Stream, text: &str) {
        let (kept, dropped) = text.split_at(self.log.fits(stream, text));
        for part in [kept, dropped] {
            if !part.is_empty() {
                self.log.push(stream, part);
            }
        }
    }
}

/// What a reader wants to be told.
#[derive(Clone, Copy)]
pub(super) struct Telling {
    /// Events behind this number.
    pub(super) after: u64,
    /// What the command prints; else only its start and its result.
    pub(super) output: bool,
    /// What is yet to come; else only what is there.
    pub(super) follow: bool,
}

/// One writer, any number of readers; a slow reader slows nobody.
pub(super) struct JobLog {
    attempt: u32,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl JobLog {
    pub(super) fn new(attempt: u32) -> Self {
        Self {
            attempt,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// The command runs.
    pub(super) fn started(&self) {
        self.change(|state| {
            state.started_at = Some(Time::now());
            state.log.started();
        });
    }

    /// The command printed.
    pub(super) fn push(&self, stream: Stream, bytes: &[u8]) {
        self.change(|state| {
            let text = state.decoders[stream as usize].decode(bytes);
            state.print(stream, &text);
        });
    }

    /// The job has ended; `result` is made from the finished log and the time of the start.
    pub(super) fn finish(&self, result: impl FnOnce(&OutputLog, Option<Time>) -> JobResult) {
        self.change(|state| {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let text = state.decoders[stream as usize].finish();
                state.print(stream, text);
            }
            state.log.finish();
            state.result = Some(result(&state.log, state.started_at));
        });
    }

    /// The result, once there is one.
    pub(super) fn result(&self) -> Option<JobResult> {
        self.state().result.clone()
    }

    /// Whether there is a result.
    pub(super) fn has_ended(&self) -> bool {
        self.state().result.is_some()
    }

    /// Waits for the result.
    pub(super) async fn ended(&self) -> JobResult {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(result) = self.result() {
                return result;
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }

    fn event_after(&self, after: u64) -> Option<JobEvent> {
        let state = self.state();
        state.log.event_after(self.attempt, after).or_else(|| {
            let seq = state.log.last_seq() + 1;
            let result = state.result.clone().filter(|_| after < seq)?;
            let outline = state.log.outline();
            Some(JobEvent::Result(Box::new(ResultEvent {
                seq,
                outline,
                result,
            })))
        })
    }

    /// Events as lines of JSON, up to and with the result.
    pub(super) fn lines(
        self: Arc<Self>,
        telling: Telling,
    ) -> impl futures_util::Stream<Item = Bytes> + Send {
        let changed = self.changed.subscribe();
        futures_util::stream::unfold(Some((self, changed, telling)), |reader| async {
            let (log, mut changed, mut telling) = reader?;
            loop {
                changed.mark_unchanged();
                if let Some(event) = log.event_after(telling.after) {
                    telling.after = event.seq()?;
                    let is_output = matches!(
                        event,
                        JobEvent::Stdout { .. } | JobEvent::Stderr { .. } | JobEvent::Gap { .. }
                    );
                    if is_output && !telling.output {
                        continue;
                    }
                    let last = matches!(event, JobEvent::Result(_));
                    let mut line = serde_json::to_vec(&event).unwrap_or_default();
                    line.push(b'\n');
                    return Some((line.into(), (!last).then_some((log, changed, telling))));
                }
                // A number past the end will never come.
                if log.has_ended() || !telling.follow {
                    return None;
                }
                changed.changed().await.ok()?;
            }
        })
    }
}
