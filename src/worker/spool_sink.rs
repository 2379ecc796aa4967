//! Sink of a running job: what its command does and prints, written into the job's [spool](crate::spool).

use super::masking::Recording;
use crate::{
    api::{
        events::{ResultEvent, Stream},
        jobs::Effective,
    },
    sandbox::OutputSink,
    spool::{JobEnd, JobRecorder, Spool},
};
use parking_lot::Mutex;
use std::io;
use tokio::sync::watch;

/// Sink of a running job.
pub(super) struct SpoolSink<'a> {
    spool: &'a Spool,
    recording: Mutex<Recording<JobRecorder>>,
    updates: watch::Sender<()>,
}

impl<'a> SpoolSink<'a> {
    /// Sink that records in a spool, and notifies `updates` of it.
    pub(super) fn new(
        spool: &'a Spool,
        recording: Recording<JobRecorder>,
        updates: watch::Sender<()>,
    ) -> Self {
        Self {
            spool,
            recording: recording.into(),
            updates,
        }
    }

    /// Result of the attempt, once no more output can come.
    pub(super) fn take_result(&self, end: JobEnd, effective: Option<Effective>) -> ResultEvent {
        let mut recording = self.recording.lock();
        recording.finish_output();
        recording.recorder.take_result(end, effective)
    }
}

impl OutputSink for SpoolSink<'_> {
    fn exec_starting(&self) -> io::Result<()> {
        self.spool.mark_started()
    }

    fn exec_started(&self) {
        self.recording.lock().recorder.mark_started();
        self.updates.send_replace(());
    }

    fn output(&self, stream: Stream, bytes: &[u8]) {
        self.recording.lock().append_output(stream, bytes);
        self.updates.send_replace(());
    }

    fn stdin_taken(&self) {
        self.updates.send_replace(());
    }
}
