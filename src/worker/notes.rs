//! Notes for the log of a job, on their way to its shim, which alone writes to the log while the job runs.
//!
//! Nobody waits for a note for long, and one that finds no room is dropped: a job must not be able to hold up its worker by
//! what it does.

use bytes::Bytes;
use std::time::Duration;
use tokio::{
    sync::{Mutex, MutexGuard, mpsc, oneshot},
    time::timeout,
};

/// Notes that wait for the supervisor of a job.
const MAX_WAITING: usize = 1024;
/// Longest wait for a note to be taken, as by a supervisor that waits for a disk.
const TAKE_TIMEOUT: Duration = Duration::from_millis(250);

/// Note on its way. Its sender learns from its drop that it was taken.
pub(super) struct Note {
    content: Bytes,
    _taken: oneshot::Sender<()>,
}

impl Note {
    /// What is to be noted.
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }
}

/// Notes of one job.
pub(super) struct Notes {
    to: NoteSender,
    from: Mutex<mpsc::Receiver<Note>>,
}

/// Sender of notes; cheap to clone.
#[derive(Clone)]
pub(super) struct NoteSender(mpsc::Sender<Note>);

impl Default for Notes {
    fn default() -> Self {
        let (to, from) = mpsc::channel(MAX_WAITING);
        Self {
            to: NoteSender(to),
            from: from.into(),
        }
    }
}

impl Notes {
    /// Sender of notes.
    pub(super) fn sender(&self) -> NoteSender {
        self.to.clone()
    }

    /// Receiver of all notes, for as long as this caller supervises the job.
    pub(super) async fn receiver(&self) -> MutexGuard<'_, mpsc::Receiver<Note>> {
        self.from.lock().await
    }
}

impl NoteSender {
    /// Sends a note, and does not wait.
    pub(super) fn send(&self, content: Bytes) {
        drop(self.enqueue(content));
    }

    /// Sends a note, and waits until it was taken, within limits.
    pub(super) async fn hand_over(&self, content: Bytes) {
        if let Some(taken) = self.enqueue(content) {
            // It ends with an error, since nothing is sent.
            let _ = timeout(TAKE_TIMEOUT, taken).await;
        }
    }

    fn enqueue(&self, content: Bytes) -> Option<oneshot::Receiver<()>> {
        let (_taken, taken) = oneshot::channel();
        let sent = self.0.try_send(Note { content, _taken });
        sent.ok().map(|()| taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sender_waits_for_supervisor_within_limits() {
        let notes = Notes::default();
        let sender = notes.sender();
        // Nobody takes it: the clock of the test goes on by itself.
        sender.hand_over(Bytes::from_static(b"first")).await;
        let mut receiver = notes.receiver().await;
        let first = receiver.recv().await.unwrap();
        assert_eq!(first.content(), b"first");
        let taken = async {
            let second = receiver.recv().await.unwrap();
            assert_eq!(second.content(), b"second");
        };
        tokio::join!(sender.hand_over(Bytes::from_static(b"second")), taken);
    }

    #[tokio::test]
    async fn notes_beyond_room_are_dropped() {
        let notes = Notes::default();
        let sender = notes.sender();
        for n in 0..MAX_WAITING + 10 {
            sender.send(n.to_string().into());
        }
        let mut receiver = notes.receiver().await;
        let mut count = 0;
        while receiver.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, MAX_WAITING);
    }
}
