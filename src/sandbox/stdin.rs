//! Stdin of a command: what is there goes to init, never more at a time than init keeps for the command.

use crate::{sandbox_init::wire::InitRequest, spool::StdinReader};
use parking_lot::Mutex;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Bytes that init keeps until the command reads.
const WINDOW_BYTES: u64 = 256 * 1024;
/// Longest message.
const MESSAGE_BYTES: u64 = 64 * 1024;
/// Bytes after which the sender of more is notified.
const NOTICE_BYTES: u64 = 512 * 1024;
/// Pause before a record that could not be written, such as on a full disk, is written again.
const RECORD_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Source of a command's stdin.
#[derive(Clone)]
pub(crate) struct StdinSource {
    pub(crate) reader: Arc<Mutex<StdinReader>>,
    /// Notifications that there is more.
    pub(crate) updates: watch::Receiver<()>,
}

/// Stdin on its way to init.
pub(super) struct StdinFeed {
    source: StdinSource,
    window: Window,
    noticed: u64,
    /// Time of the next try to record what was passed on, where the record is behind: its sender waits for it.
    retry_at: Option<Instant>,
}

/// Next step of a feed.
#[derive(Debug)]
pub(super) enum FeedStep {
    /// A message to init.
    Send(InitRequest),
    /// The record has caught up: the sender of more is to be notified.
    Recorded,
}

/// Next thing to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Bytes {
        offset: u64,
        length: usize,
    },
    End,
    /// Nothing, until there is more or init took some.
    Wait,
}

/// Offsets of what was sent and taken; pure.
#[derive(Clone, Copy, Default, Debug)]
struct Window {
    sent: u64,
    taken: u64,
    is_over: bool,
}

impl Window {
    /// Next thing to send of a stdin that has this length so far.
    fn next(&self, available: u64, has_ended: bool) -> Next {
        let room = WINDOW_BYTES.saturating_sub(self.sent - self.taken);
        let rest = available.saturating_sub(self.sent);
        match rest.min(room).min(MESSAGE_BYTES) {
            _ if self.is_over => Next::Wait,
            0 if rest == 0 && has_ended => Next::End,
            0 => Next::Wait,
            length => Next::Bytes {
                offset: self.sent,
                length: length as usize,
            },
        }
    }

    /// Records that init passed so many bytes on; never more than it was sent.
    fn record_taken(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_add(bytes).min(self.sent);
    }
}

impl StdinFeed {
    pub(super) fn new(source: &StdinSource) -> Self {
        Self {
            source: source.clone(),
            window: Window::default(),
            noticed: 0,
            retry_at: None,
        }
    }

    /// Whether there may be something to send or to record.
    pub(super) fn is_open(&self) -> bool {
        !self.window.is_over || self.retry_at.is_some()
    }

    /// Waits for the next step. Reads on this thread, as all that a sandbox prints is written on it: the
    /// bytes were written just now. Fails once when they can't be read: an end would make the command take a part for
    /// the whole. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<FeedStep> {
        loop {
            if self.retry_at.is_some_and(|at| at <= Instant::now()) && self.record_again() {
                return Ok(FeedStep::Recorded);
            }
            // Before the look, so that nothing is missed.
            self.source.updates.mark_unchanged();
            match self.read() {
                Ok(Some(request)) => return Ok(FeedStep::Send(request)),
                Ok(None) => {}
                Err(error) => {
                    self.window.is_over = true;
                    return Err(error);
                }
            }
            tokio::select! {
                Ok(()) = self.source.updates.changed() => {}
                () = sleep_to(self.retry_at) => {}
            }
        }
    }

    fn read(&mut self) -> io::Result<Option<InitRequest>> {
        if self.window.is_over {
            return Ok(None);
        }
        let reader = self.source.reader.lock();
        let (available, has_ended) = reader.available()?;
        let bytes = match self.window.next(available, has_ended) {
            Next::Wait => return Ok(None),
            Next::End => {
                self.window.is_over = true;
                Vec::new()
            }
            Next::Bytes { offset, length } => {
                let bytes = reader.read(offset, length)?;
                self.window.sent += length as u64;
                bytes
            }
        };
        Ok(Some(InitRequest::Stdin(bytes)))
    }

    /// Records what init passed on. Whether a sender of more is to be notified.
    pub(super) fn record_taken(&mut self, bytes: u32) -> bool {
        self.window.record_taken(bytes.into());
        let Window { sent, taken, .. } = self.window;
        let recorded = self.source.reader.lock().record_passed(taken);
        self.on_recorded(recorded);
        let is_due = taken == sent || taken - self.noticed >= NOTICE_BYTES;
        if is_due {
            self.noticed = taken;
        }
        is_due
    }

    /// Records that the command reads no more.
    pub(super) fn record_closed(&mut self) {
        self.window.is_over = true;
        let recorded = self.source.reader.lock().record_closed();
        self.on_recorded(recorded);
    }

    /// Writes the record again, with all that it lacks. Whether it could be written.
    fn record_again(&mut self) -> bool {
        let recorded = self.source.reader.lock().record_passed(self.window.taken);
        self.on_recorded(recorded);
        self.retry_at.is_none()
    }

    fn on_recorded(&mut self, recorded: io::Result<()>) {
        let Err(error) = recorded else {
            self.retry_at = None;
            return;
        };
        if self.retry_at.is_none() {
            tracing::error!(%error, "what the command read can't be recorded; retrying");
        }
        self.retry_at = Some(Instant::now() + RECORD_RETRY_INTERVAL);
    }
}

/// Sleeps until this time, for ever where there is none.
async fn sleep_to(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;
    use proptest::prelude::*;
    use std::{fs, path::Path};

    /// Feed of a stdin of four bytes, that nothing notifies.
    fn feed(dir: &Path) -> StdinFeed {
        let spool = Spool::at(dir.to_owned());
        fs::write(spool.stdin(), b"some").unwrap();
        let reader = spool.stdin_reader().unwrap().unwrap();
        StdinFeed::new(&StdinSource {
            reader: Arc::new(Mutex::new(reader)),
            updates: watch::channel(()).1,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn record_catches_up_after_failures() {
        let dir = tempfile::tempdir().unwrap();
        let mut feed = feed(dir.path());
        let sent = feed.next().await.unwrap();
        assert!(matches!(sent, FeedStep::Send(InitRequest::Stdin(bytes)) if bytes == b"some"));
        let end = feed.next().await.unwrap();
        assert!(matches!(end, FeedStep::Send(InitRequest::Stdin(bytes)) if bytes.is_empty()));
        assert!(!feed.is_open());
        let record = dir.path().join("stdin.passed");
        // In its place a record can't be written.
        fs::create_dir(&record).unwrap();
        feed.record_taken(4);
        feed.record_closed();
        assert!(feed.is_open(), "there is something to record");
        let pause = 5 * RECORD_RETRY_INTERVAL;
        assert!(tokio::time::timeout(pause, feed.next()).await.is_err());
        fs::remove_dir(&record).unwrap();
        assert!(matches!(feed.next().await.unwrap(), FeedStep::Recorded));
        assert_eq!(fs::read(&record).unwrap(), [4, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!(!feed.is_open());
    }

    #[tokio::test]
    async fn unreadable_stdin_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut feed = feed(dir.path());
        fs::write(dir.path().join("stdin.received"), b"damaged").unwrap();
        assert!(feed.next().await.is_err());
        assert!(!feed.is_open(), "it would fail again and again");
    }

    proptest! {
        #[test]
        fn all_bytes_are_sent_once_within_the_window(
            steps in proptest::collection::vec((0u64..3 * WINDOW_BYTES, 0u64..WINDOW_BYTES), 1..40),
        ) {
            let (mut window, mut available) = (Window::default(), 0);
            for (more, taken) in steps {
                available += more;
                while let Next::Bytes { offset, length } = window.next(available, false) {
                    prop_assert_eq!(offset, window.sent);
                    prop_assert!(length > 0);
                    window.sent += length as u64;
                }
                prop_assert!(window.sent <= available && window.sent - window.taken <= WINDOW_BYTES);
                let is_full = window.sent - window.taken == WINDOW_BYTES;
                prop_assert!(is_full || window.sent == available);
                window.record_taken(taken);
            }
            // The end comes behind the last byte.
            loop {
                match window.next(available, true) {
                    Next::Bytes { length, .. } => window.sent += length as u64,
                    Next::Wait => window.record_taken(u64::MAX),
                    Next::End => break,
                }
            }
            prop_assert_eq!(window.sent, available);
        }
    }
}
