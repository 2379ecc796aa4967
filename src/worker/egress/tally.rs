//! Sums of what a job did through the proxy, and the limit of its bytes.
//!
//! They are counted here and saved now and then, so that a worker that is restarted goes on counting: what a killed
//! worker counted in its last second is lost. They are final when the result is there.

use super::{metrics::EgressMetrics, refusal::Refusal};
use crate::{
    api::{egress::EgressTotals, size::ByteSize},
    spool::Spool,
};
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Longest reason of a refusal that is kept, in characters.
const MAX_REASON_CHARS: usize = 400;

/// Direction of bytes, as the job sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From the job.
    Sent,
    /// To the job.
    Received,
}

/// Sums of one job.
#[derive(Default)]
pub(in crate::worker) struct Tally {
    requests: AtomicU64,
    refused: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    last_refusal: Mutex<Option<String>>,
    /// Held while the file is read or written.
    file: Mutex<FileState>,
}

/// State of the sums on disk.
#[derive(Default)]
struct FileState {
    /// Whether the sums of an earlier worker were added.
    is_restored: bool,
    is_final: bool,
    /// Sums that are on disk.
    saved: Option<EgressTotals>,
}

impl Tally {
    fn totals(&self) -> EgressTotals {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EgressTotals {
            requests: value(&self.requests),
            refused: value(&self.refused),
            bytes_sent: value(&self.sent),
            bytes_received: value(&self.received),
            last_refusal: self.last_refusal.lock().clone(),
        }
    }

    /// Whether there are sums that were not saved yet; false while a save is under way.
    pub(super) fn has_changed(&self) -> bool {
        let file = self.file.try_lock();
        file.is_some_and(|file| !file.is_final && file.saved.as_ref() != Some(&self.totals()))
    }

    /// Adds the sums of an earlier worker. Reads a file.
    pub(super) fn restore(&self, spool: &Spool) {
        self.restore_once(&mut self.file.lock(), spool);
    }

    fn restore_once(&self, file: &mut FileState, spool: &Spool) {
        if std::mem::replace(&mut file.is_restored, true) {
            return;
        }
        let earlier = spool.egress_totals().unwrap_or_else(|error| {
            tracing::warn!(%error, "sums of the job's proxy can't be read; counting from zero");
            None
        });
        let Some(earlier) = earlier else { return };
        for (counter, value) in [
            (&self.requests, earlier.requests),
            (&self.refused, earlier.refused),
            (&self.sent, earlier.bytes_sent),
            (&self.received, earlier.bytes_received),
        ] {
            counter.fetch_add(value, Ordering::Relaxed);
        }
        let mut last_refusal = self.last_refusal.lock();
        if last_refusal.is_none() {
            last_refusal.clone_from(&earlier.last_refusal);
        }
        drop(last_refusal);
        file.saved = Some(earlier);
    }

    /// Writes the sums where they have changed, and for the last time where they are final. Writes a file.
    pub(super) fn save(&self, spool: &Spool, is_final: bool) -> io::Result<()> {
        let mut file = self.file.lock();
        if file.is_final {
            return Ok(());
        }
        self.restore_once(&mut file, spool);
        let totals = self.totals();
        if file.saved.as_ref() != Some(&totals) {
            spool.write_egress_totals(&totals)?;
            file.saved = Some(totals);
        }
        file.is_final = is_final;
        Ok(())
    }
}

/// Meter of a job's traffic: its sums, its limit, and the sums of the node.
pub(super) struct Meter {
    tally: Arc<Tally>,
    limit: Option<u64>,
    metrics: EgressMetrics,
    /// Bytes of heads of plain HTTP since this worker began. They are in no sum, but a job could send all that it has
    /// in them.
    heads: AtomicU64,
    /// Whether reasons of refusals are kept.
    keeps_reasons: bool,
}

impl Meter {
    /// Meter with a limit for both directions together. Reasons of refusals are kept but for a job that has secrets, which
    /// could be in what it asks for.
    pub(super) fn new(
        tally: Arc<Tally>,
        limit: Option<ByteSize>,
        metrics: EgressMetrics,
        has_secrets: bool,
    ) -> Self {
        Self {
            tally,
            limit: limit.map(|ByteSize(limit)| limit),
            metrics,
            heads: AtomicU64::new(0),
            keeps_reasons: !has_secrets,
        }
    }

    /// Counts the head of a request or of an answer, for the limit alone.
    pub(super) fn add_head(&self, bytes: usize) {
        self.heads.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a request that is let through.
    pub(super) fn count_allowed(&self) {
        self.tally.requests.fetch_add(1, Ordering::Relaxed);
        self.metrics.allowed.inc();
    }

    /// Counts a request that is refused.
    pub(super) fn count_refused(&self, refusal: &Refusal) {
        self.tally.requests.fetch_add(1, Ordering::Relaxed);
        self.count_cut(&refusal.detail);
    }

    /// Counts the refusal of a request that was let through at first: its connection is cut by a rule.
    pub(super) fn count_cut(&self, reason: &str) {
        if self.keeps_reasons {
            let reason = reason.chars().take(MAX_REASON_CHARS).collect();
            *self.tally.last_refusal.lock() = Some(reason);
        }
        self.tally.refused.fetch_add(1, Ordering::Relaxed);
        self.metrics.refused.inc();
    }

    /// Counts a connection that is cut where the job has used all bytes that it may.
    pub(super) fn count_used_up(&self) {
        if let Some(limit) = self.excess() {
            self.count_cut(&Refusal::used_up(limit).detail);
        }
    }

    /// Counts bytes. Fails where the job has had more than it may.
    pub(super) fn add(&self, direction: Direction, bytes: usize) -> io::Result<()> {
        let bytes = bytes as u64;
        let (sum, metric) = match direction {
            Direction::Sent => (&self.tally.sent, &self.metrics.sent),
            Direction::Received => (&self.tally.received, &self.metrics.received),
        };
        sum.fetch_add(bytes, Ordering::Relaxed);
        metric.inc_by(bytes);
        match self.excess() {
            Some(_) => Err(io::Error::other("the job has used all bytes that it may")),
            None => Ok(()),
        }
    }

    /// Limit of the job, where it has used more.
    pub(super) fn excess(&self) -> Option<ByteSize> {
        let counters = [&self.tally.sent, &self.tally.received, &self.heads];
        let counts = counters.map(|counter| counter.load(Ordering::Relaxed));
        let used = counts.into_iter().fold(0, u64::saturating_add);
        self.limit.filter(|limit| used > *limit).map(ByteSize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::metrics::MetricsRegistry;

    fn meter(tally: &Arc<Tally>, limit: u64) -> Meter {
        let metrics = EgressMetrics::new(&MetricsRegistry::default());
        Meter::new(Arc::clone(tally), Some(ByteSize(limit)), metrics, false)
    }

    #[test]
    fn both_directions_count_for_limit() {
        let meter = meter(&Arc::default(), 100);
        meter.add(Direction::Sent, 60).unwrap();
        meter.add(Direction::Received, 40).unwrap();
        assert_eq!(meter.excess(), None);
        meter.add(Direction::Received, 1).unwrap_err();
        assert_eq!(meter.excess(), Some(ByteSize(100)));
    }

    #[test]
    fn reasons_are_kept_but_for_jobs_with_secrets() {
        let metrics = EgressMetrics::new(&MetricsRegistry::default());
        for (has_secrets, expected) in [(false, Some(MAX_REASON_CHARS)), (true, None)] {
            let tally = Arc::<Tally>::default();
            let meter = Meter::new(Arc::clone(&tally), None, metrics.clone(), has_secrets);
            meter.count_cut(&"ü".repeat(MAX_REASON_CHARS + 1));
            let reason = tally.totals().last_refusal;
            assert_eq!(reason.map(|reason| reason.chars().count()), expected);
        }
    }

    #[test]
    fn heads_count_for_limit_alone() {
        let tally = Arc::default();
        let meter = meter(&tally, 100);
        meter.add_head(60);
        meter.add(Direction::Sent, 40).unwrap();
        meter.add_head(1);
        assert_eq!(meter.excess(), Some(ByteSize(100)));
        assert_eq!(tally.totals().bytes_sent, 40);
    }

    #[test]
    fn next_worker_goes_on_counting() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::at(home.path().to_owned());
        let first = Arc::<Tally>::default();
        let counted = meter(&first, 100);
        counted.count_allowed();
        counted.count_cut("not listed");
        counted.add(Direction::Sent, 60).unwrap();
        first.save(&spool, false).unwrap();

        let second = Arc::<Tally>::default();
        second.restore(&spool);
        let counted = meter(&second, 100);
        counted.count_allowed();
        counted.add(Direction::Received, 50).unwrap_err();
        second.save(&spool, true).unwrap();
        counted.add(Direction::Received, 50).unwrap_err();
        second.save(&spool, false).unwrap();
        let totals = EgressTotals {
            requests: 2,
            refused: 1,
            bytes_sent: 60,
            bytes_received: 50,
            last_refusal: Some("not listed".to_owned()),
        };
        assert_eq!(
            spool.egress_totals().unwrap(),
            Some(totals.clone()),
            "the last is final"
        );

        // One that ends a job without having served it loses nothing.
        Arc::<Tally>::default().save(&spool, true).unwrap();
        assert_eq!(spool.egress_totals().unwrap(), Some(totals));
    }
}
