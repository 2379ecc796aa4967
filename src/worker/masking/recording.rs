//! A recorder of output behind the masks of its command.

use super::{Masking, Masks};
use crate::{
    api::events::Stream,
    spool::{ExecRecorder, JobRecorder},
};

/// Recorder that is given output.
pub(in crate::worker) trait RecordOutput {
    /// Appends output to the log.
    fn append_output(&mut self, stream: Stream, bytes: &[u8]);
}

impl RecordOutput for JobRecorder {
    fn append_output(&mut self, stream: Stream, bytes: &[u8]) {
        Self::append_output(self, stream, bytes);
    }
}

impl RecordOutput for ExecRecorder {
    fn append_output(&mut self, stream: Stream, bytes: &[u8]) {
        Self::append_output(self, stream, bytes);
    }
}

/// Recorder, and the masks through which it gets output.
pub(in crate::worker) struct Recording<R> {
    /// Recorder, for what is not output.
    pub(in crate::worker) recorder: R,
    masks: Masks,
}

impl<R: RecordOutput> Recording<R> {
    pub(in crate::worker) fn new(recorder: R, masking: &Masking) -> Self {
        Self {
            recorder,
            masks: masking.masks(),
        }
    }

    /// Appends output that can't be a part of a value; the rest waits.
    pub(in crate::worker) fn append_output(&mut self, stream: Stream, bytes: &[u8]) {
        let Self { recorder, masks } = self;
        masks.push(stream, bytes, |bytes| recorder.append_output(stream, bytes));
    }

    /// Whether so little of a stream waits that a person should see it.
    pub(in crate::worker) fn may_release(&self, stream: Stream) -> bool {
        self.masks.may_release(stream)
    }

    /// Appends what little of a stream waits.
    pub(in crate::worker) fn release(&mut self, stream: Stream) {
        let Self { recorder, masks } = self;
        masks.release(stream, |bytes| recorder.append_output(stream, bytes));
    }

    /// Appends what waits at the end of the output.
    pub(in crate::worker) fn finish_output(&mut self) {
        let Self { recorder, masks } = self;
        masks.finish(|stream, bytes| recorder.append_output(stream, bytes));
    }
}
