//! Sink of a running job: what its command does and prints, written into the job's [spool](crate::spool).

use super::masking::Recording;
use crate::{
    api::{
        events::{EgressEvent, ResultEvent, Stream},
        jobs::Effective,
    },
    sandbox::OutputSink,
    spool::{JobEnd, JobRecorder, Spool},
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{io, pin::pin};
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
};

/// Turns of the runtime after the end of the command, in which notes are taken that were sent before it. Each looks at the
/// socket once, and the task that reads it may get its turn after this one.
const LAST_TURNS: usize = 4;

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

    /// Does work, and meanwhile records the notes of the worker, those that it had sent before the end of the work among them.
    pub(super) async fn record_notes<T>(
        &self,
        notes: Option<mpsc::Receiver<Bytes>>,
        work: impl Future<Output = T>,
    ) -> T {
        let Some(mut notes) = notes else {
            return work.await;
        };
        let mut work = pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                Some(note) = notes.recv() => self.record_note(&note),
            }
        };
        for _ in 0..LAST_TURNS {
            yield_now().await;
            while let Ok(note) = notes.try_recv() {
                self.record_note(&note);
            }
        }
        done
    }

    /// Records an event of the job's proxy, in JSON; all else is of another release.
    fn record_note(&self, note: &[u8]) {
        match serde_json::from_slice::<EgressEvent>(note) {
            Ok(event) => {
                self.recording.lock().recorder.append_egress(event);
                self.updates.send_replace(());
            }
            Err(error) => tracing::debug!(%error, "note of the worker not understood"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{
            JobId,
            events::{EgressVerdict, RecordContent},
        },
        spool::LogReader,
        worker::{ledger::tests::accepted, masking::Masking},
    };

    #[tokio::test]
    async fn notes_are_recorded_up_to_end_of_work() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::at(home.path().to_owned());
        let recorder = JobRecorder::open(&spool, accepted(JobId::new(), 1), 1 << 20).unwrap();
        let recording = Recording::new(recorder, &Masking::default());
        let updates = watch::Sender::new(());
        let sink = SpoolSink::new(&spool, recording, updates);
        let (to, notes) = mpsc::channel(8);
        let event = |verdict| EgressEvent::new(verdict, None, Some(443));
        let note = |verdict| Bytes::from(serde_json::to_vec(&event(verdict)).unwrap());
        let work = async {
            to.send(note(EgressVerdict::Allowed)).await.unwrap();
            to.send(Bytes::from_static(b"no event")).await.unwrap();
            to.send(Bytes::from_static(b"{\"verdict\":\"other\"}"))
                .await
                .unwrap();
            to.send(note(EgressVerdict::Ended)).await.unwrap();
        };
        sink.record_notes(Some(notes), work).await;
        let mut reader = LogReader::open(spool.path().to_owned(), 0);
        let records = reader.read(usize::MAX, true).unwrap();
        let contents: Vec<_> = records.into_iter().map(|record| record.content).collect();
        let expected = [EgressVerdict::Allowed, EgressVerdict::Ended];
        assert_eq!(
            contents,
            expected.map(|verdict| RecordContent::Egress(event(verdict)))
        );
        assert_eq!(sink.record_notes(None, async { 7 }).await, 7);
    }
}
