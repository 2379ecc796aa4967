//! The recorder of a running job, and those who hear that it wrote something.

use crate::{
    api::{
        events::{ResultEvent, Stream},
        jobs::Effective,
    },
    spool::{JobEnd, JobRecorder},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

pub(super) struct OutputSink {
    recorder: Mutex<JobRecorder>,
    changed: watch::Sender<()>,
}

impl OutputSink {
    pub(super) fn new(recorder: JobRecorder) -> Self {
        Self {
            recorder: Mutex::new(recorder),
            changed: watch::Sender::new(()),
        }
    }

    fn recorder(&self) -> MutexGuard<'_, JobRecorder> {
        self.recorder.lock()
    }

    /// The command runs.
    pub(super) fn mark_started(&self) {
        self.recorder().mark_started();
        self.notify();
    }

    /// The command printed.
    pub(super) fn write(&self, stream: Stream, bytes: &[u8]) {
        self.recorder().append_output(stream, bytes);
        self.notify();
    }

    /// The result, to be written down.
    pub(super) fn take_result(&self, ending: JobEnd, effective: Option<Effective>) -> ResultEvent {
        self.recorder().take_result(ending, effective)
    }

    /// There is something new.
    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Hears of what is new.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
