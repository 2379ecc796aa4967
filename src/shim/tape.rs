//! The recorder of a running job, and those who hear that it wrote something.

use crate::{
    api::{
        events::{ResultEvent, Stream},
        jobs::Effective,
    },
    spool::{Ending, Recorder},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

pub(super) struct Tape {
    recorder: Mutex<Recorder>,
    news: watch::Sender<()>,
}

impl Tape {
    pub(super) fn new(recorder: Recorder) -> Self {
        Self {
            recorder: Mutex::new(recorder),
            news: watch::Sender::new(()),
        }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The command runs.
    pub(super) fn started(&self) {
        self.recorder().started();
        self.tell();
    }

    /// The command printed.
    pub(super) fn print(&self, stream: Stream, bytes: &[u8]) {
        self.recorder().print(stream, bytes);
        self.tell();
    }

    /// The result, to be written down.
    pub(super) fn finish(&self, ending: Ending, effective: Option<Effective>) -> ResultEvent {
        self.recorder().finish(ending, effective)
    }

    /// There is something new.
    pub(super) fn tell(&self) {
        self.news.send_replace(());
    }

    /// Hears of what is new.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}
