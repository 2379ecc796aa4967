//! Warm sandboxes: started, and never used. A job that takes one begins within milliseconds.
//!
//! They are kept by their [`Kind`], as many as the jobs of the last minutes would have needed
//! ([`pool`](crate::sandbox::pool)), and one of each image to prefetch. Each serves at most one job, holds nothing of any
//! job before, and belongs to this process: its shim ends it when the connection to it closes. What a process that was
//! killed leaves of one is a directory of no job and a container without a shim, which the next start removes
//! ([`recovery`](super::recovery), [`orphans`](super::orphans)).
//!
//! ```text
//! <jobs dir>/warm-<sandbox id>/    workspace, shim.sock, shim.log, container: as of a job that was not accepted
//! ```
//!
//! One is started at a time, and only beside fewer starts for jobs than the machine has cores: a sandbox that is kept
//! ready must never cost a job anything. A job that finds none of its kind takes the one that is being started, which is
//! ready before a new one would be; another is started then.

mod refill;

pub(super) use refill::run_warm_pool;

use crate::{
    api::image::ImageRef,
    engine::limits::Limits,
    sandbox::{
        SandboxId, StopReason, StopRequest,
        pool::{DEMAND_WINDOW, Demand, share},
        shim::ShimHandle,
    },
    wait,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use std::{
    cmp::Reverse,
    mem,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};

/// Age at which one that no job took is replaced.
const MAX_AGE: Duration = DEMAND_WINDOW;
/// Kinds whose demand is known, the latest.
const MAX_KINDS: usize = 32;
/// Time for all to end at shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of a start, until one was measured.
const USUAL_START: Duration = Duration::from_millis(200);

/// Properties of a sandbox that can't be changed once it is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Kind {
    pub(super) image: ImageRef,
    pub(super) limits: Limits,
    pub(super) inference: bool,
    pub(super) egress: bool,
}

/// A warm sandbox; it ends when this is dropped.
pub(super) struct WarmSandbox {
    kind: Kind,
    image_id: String,
    pub(super) id: SandboxId,
    pub(super) dir: PathBuf,
    pub(super) handle: ShimHandle,
    /// User and group to which podman gave the workspace.
    pub(super) owner: (u32, u32),
    started_at: Instant,
}

/// Kind that was asked for lately, or is always kept.
struct KindDemand {
    kind: Kind,
    demand: Demand,
    min: usize,
    /// Time of the next try, after one that failed.
    retry_at: Option<Instant>,
}

/// Start that is under way.
struct PendingStart {
    id: SandboxId,
    kind: Kind,
    image_id: String,
    /// Job that takes it once it is ready.
    claim: Option<oneshot::Sender<WarmSandbox>>,
}

#[derive(Default)]
struct State {
    ready: Vec<WarmSandbox>,
    pending: Vec<PendingStart>,
    /// Those that are being ended, or have ended by themselves.
    ending: Vec<WarmSandbox>,
    kinds: Vec<KindDemand>,
    /// Usual time of a start; none before the first.
    start_time: Option<Duration>,
    is_closed: bool,
}

/// Warm sandboxes of a worker.
pub(super) struct WarmPool {
    /// Most that are kept.
    most: usize,
    state: Mutex<State>,
    wake: Notify,
    /// Number of jobs that have a sandbox, warm or new, and whose commands have not begun.
    starting_jobs: AtomicUsize,
    /// Whether there may be sandboxes.
    is_running: watch::Sender<bool>,
    /// Sandboxes that jobs got, by how they were started.
    starts: IntCounterVec,
}

/// Mark of a job whose command has not begun in its sandbox.
pub(super) struct StartMark<'a>(&'a WarmPool);

impl Drop for StartMark<'_> {
    fn drop(&mut self) {
        self.0.starting_jobs.fetch_sub(1, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

impl WarmPool {
    /// Pool of at most so many sandboxes, of which the kinds of `prefetched` images are always wanted.
    pub(super) fn new(most: usize, prefetched: &[ImageRef], starts: IntCounterVec) -> Self {
        let kinds = prefetched.iter().map(|image| KindDemand {
            kind: Kind {
                image: image.clone(),
                limits: Limits::default(),
                inference: false,
                egress: false,
            },
            demand: Demand::default(),
            min: 1,
            retry_at: None,
        });
        let state = State {
            kinds: kinds.take(MAX_KINDS).collect(),
            ..State::default()
        };
        Self {
            most,
            state: state.into(),
            wake: Notify::new(),
            starting_jobs: AtomicUsize::new(0),
            is_running: watch::Sender::new(false),
            starts,
        }
    }

    /// Number of sandboxes that are ready, and the most that are kept.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.state.lock().ready.len(), self.most)
    }

    /// Takes a sandbox for a job, or waits for the one of its kind that is being started; `None` where there is
    /// none.
    pub(super) async fn take(&self, kind: Kind, image_id: &str) -> Option<WarmSandbox> {
        if self.most == 0 {
            return None;
        }
        let taken = self.state.lock().take(kind, image_id);
        match taken {
            Ok(warm) => Some(warm),
            Err(Some(claim)) => {
                self.wake.notify_one();
                // Without one where it did not start.
                claim.await.ok()
            }
            Err(None) => None,
        }
    }

    /// Counts a job that gets a sandbox, and marks it as being started.
    pub(super) fn enter_start(&self, is_warm: bool) -> StartMark<'_> {
        let start = if is_warm { "warm" } else { "cold" };
        self.starts.with_label_values(&[start]).inc();
        self.starting_jobs.fetch_add(1, Ordering::Relaxed);
        StartMark(self)
    }

    /// Ends the sandboxes of an image, and starts no more before a job asks for one. Returns whether there may be some.
    pub(super) fn end_image(&self, image: &ImageRef) -> bool {
        let mut state = self.state.lock();
        state.kinds.retain(|wanted| wanted.kind.image != *image);
        state.end_where(|warm| warm.kind.image == *image);
        let mut kept = state.ending.iter().map(|warm| &warm.kind);
        let mut starting = state.pending.iter().map(|start| &start.kind);
        let is_any =
            kept.any(|kind| kind.image == *image) || starting.any(|kind| kind.image == *image);
        drop(state);
        self.wake.notify_one();
        is_any
    }

    /// Ends all warm sandboxes, and waits until nothing is left of them.
    pub(super) async fn close(&self) {
        {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.end_where(|_| true);
        }
        self.wake.notify_one();
        let closed = async {
            // Fails for one that is never kept, and has none.
            let _ = wait::until(&mut self.is_running.subscribe(), |is_running| !is_running).await;
            // The last that was started with them.
            let warm = {
                let mut state = self.state.lock();
                state.end_where(|_| true);
                mem::take(&mut state.ending)
            };
            join_all(warm.into_iter().map(WarmSandbox::ended)).await;
        };
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!(
                "warm sandboxes not removed before the end; the next start removes them"
            );
        }
    }
}

impl WarmSandbox {
    /// Name and id of its image.
    fn image(&self) -> (ImageRef, String) {
        (self.kind.image.clone(), self.image_id.clone())
    }

    /// Ends it, and waits until nothing is left of it, or not for ever.
    pub(super) async fn end_now(mut self) {
        self.end();
        // What is left is found by its directory.
        let _ = timeout(CLOSE_TIMEOUT, self.ended()).await;
    }

    /// Requests its end.
    fn end(&mut self) {
        let stop = StopRequest::within(StopReason::Canceled, Duration::ZERO);
        self.handle.stop(stop);
        // Sends it.
        let _ = self.handle.has_ended();
    }

    /// Waits for its end.
    async fn ended(mut self) {
        while self.handle.changed().await {}
    }
}

impl State {
    /// Takes a sandbox, or claims the one that is being started.
    fn take(
        &mut self,
        kind: Kind,
        image_id: &str,
    ) -> Result<WarmSandbox, Option<oneshot::Receiver<WarmSandbox>>> {
        let is_wanted = |warm: &WarmSandbox| warm.kind == kind && warm.image_id == image_id;
        let found = loop {
            let Some(at) = self.ready.iter().position(is_wanted) else {
                break None;
            };
            let mut warm = self.ready.remove(at);
            if !warm.handle.has_ended() {
                break Some(warm);
            }
            self.ending.push(warm);
        };
        let claim = self.pending.iter_mut().find(|start| {
            let is_same = start.kind == kind && start.image_id == image_id;
            is_same && start.claim.is_none()
        });
        let claimed = match (&found, claim) {
            (None, Some(start)) => {
                let (claim, claimed) = oneshot::channel();
                start.claim = Some(claim);
                Some(claimed)
            }
            _ => None,
        };
        self.count(kind);
        found.ok_or(claimed)
    }

    /// Counts a job of this kind.
    fn count(&mut self, kind: Kind) {
        let now = Instant::now();
        if let Some(wanted) = self.kinds.iter_mut().find(|wanted| wanted.kind == kind) {
            wanted.demand.count(now);
            return;
        }
        if self.kinds.len() >= MAX_KINDS {
            let least_recent = self.kinds.iter().enumerate();
            let least_recent = least_recent.filter(|(_, wanted)| wanted.min == 0);
            match least_recent.min_by_key(|(_, wanted)| wanted.demand.last()) {
                Some((at, _)) => self.kinds.swap_remove(at),
                None => return,
            };
        }
        let mut demand = Demand::default();
        demand.count(now);
        self.kinds.push(KindDemand {
            kind,
            demand,
            min: 0,
            retry_at: None,
        });
    }

    /// Number of sandboxes to keep of each kind that is wanted, the latest first.
    fn shares(&mut self, most: usize) -> Vec<(Kind, usize)> {
        let (now, start_time) = (Instant::now(), self.start_time.unwrap_or(USUAL_START));
        self.kinds.retain_mut(|wanted| {
            wanted.demand.forget_old(now);
            wanted.min > 0 || wanted.demand.last().is_some()
        });
        self.kinds
            .sort_by_key(|wanted| Reverse(wanted.demand.last()));
        let targets = self.kinds.iter();
        let targets = targets.map(|wanted| wanted.demand.target(start_time).max(wanted.min));
        let shares = share(&targets.collect::<Vec<_>>(), most);
        let kinds = self.kinds.iter().map(|wanted| wanted.kind.clone());
        kinds.zip(shares).collect()
    }

    /// Kind of which there are too few, while none is being started that no job has claimed.
    fn next_missing(&mut self, most: usize) -> Option<Kind> {
        if self.is_closed || self.pending.iter().any(|start| start.claim.is_none()) {
            return None;
        }
        let now = Instant::now();
        let shares = self.shares(most);
        let is_missing = |(kind, share): &(Kind, usize)| {
            let there = self.ready.iter().filter(|warm| warm.kind == *kind).count();
            let wanted = self.kinds.iter().find(|wanted| wanted.kind == *kind);
            let is_due = wanted.is_some_and(|wanted| wanted.retry_at.is_none_or(|at| at <= now));
            there < *share && is_due
        };
        shares.into_iter().find(is_missing).map(|(kind, _)| kind)
    }

    /// Ends those that are too many or too old.
    fn end_unwanted(&mut self, most: usize) {
        let mut shares = self.shares(most);
        for mut warm in mem::take(&mut self.ready) {
            let share = shares.iter_mut().find(|(kind, _)| *kind == warm.kind);
            match share {
                _ if warm.handle.has_ended() => self.ending.push(warm),
                Some((_, share @ 1..)) if warm.started_at.elapsed() < MAX_AGE => {
                    *share -= 1;
                    self.ready.push(warm);
                }
                _ => {
                    warm.end();
                    self.ending.push(warm);
                }
            }
        }
    }

    /// Ends those for which this is true.
    fn end_where(&mut self, is_meant: impl Fn(&WarmSandbox) -> bool) {
        for mut warm in self.ready.extract_if(.., |warm| is_meant(warm)) {
            warm.end();
            self.ending.push(warm);
        }
    }

    /// Takes those that have ended.
    fn take_ended(&mut self) -> Vec<WarmSandbox> {
        let ended = self.ending.extract_if(.., |warm| warm.handle.has_ended());
        ended.collect()
    }
}
