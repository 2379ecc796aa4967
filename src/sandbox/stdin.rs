//! Stdin of a command: what is there goes to init, never more at a time than init keeps for the command.

use crate::{sandbox_init::wire::InitRequest, spool::StdinReader};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use tokio::sync::watch;

/// Bytes that init keeps until the command reads.
const WINDOW_BYTES: u64 = 256 * 1024;
/// Longest message.
const MESSAGE_BYTES: u64 = 64 * 1024;
/// Bytes after which the sender of more is notified.
const NOTICE_BYTES: u64 = 512 * 1024;

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
        }
    }

    /// Whether there may be something to send.
    pub(super) fn is_open(&self) -> bool {
        !self.window.is_over
    }

    /// Waits for the next message to init. Reads on this thread, as all that a sandbox prints is written on it: the
    /// bytes were written just now. Fails once when they can't be read: an end would make the command take a part for
    /// the whole. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<InitRequest> {
        loop {
            // Before the look, so that nothing is missed.
            self.source.updates.mark_unchanged();
            match self.read() {
                Ok(Some(request)) => return Ok(request),
                Ok(None) => {}
                Err(error) => {
                    self.window.is_over = true;
                    return Err(error);
                }
            }
            if self.source.updates.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn read(&mut self) -> io::Result<Option<InitRequest>> {
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
        if let Err(error) = self.source.reader.lock().record_passed(taken) {
            tracing::error!(%error, "what the command read can't be recorded");
        }
        let is_due = taken == sent || taken - self.noticed >= NOTICE_BYTES;
        if is_due {
            self.noticed = taken;
        }
        is_due
    }

    /// Records that the command reads no more.
    pub(super) fn record_closed(&mut self) {
        self.window.is_over = true;
        if let Err(error) = self.source.reader.lock().record_closed() {
            tracing::error!(%error, "the end of stdin can't be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;
    use proptest::prelude::*;
    use std::fs;

    #[tokio::test]
    async fn unreadable_stdin_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(dir.path().to_owned());
        fs::write(spool.stdin(), b"some").unwrap();
        let reader = spool.stdin_reader().unwrap().unwrap();
        let (_updates, updates) = watch::channel(());
        let mut feed = StdinFeed::new(&StdinSource {
            reader: Arc::new(Mutex::new(reader)),
            updates,
        });
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
