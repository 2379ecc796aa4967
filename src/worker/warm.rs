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

mod keeper;

pub(super) use keeper::keep_warm;

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
}

/// A warm sandbox; it ends when this is dropped.
pub(super) struct Warm {
    kind: Kind,
    image_id: String,
    pub(super) id: SandboxId,
    pub(super) dir: PathBuf,
    pub(super) handle: ShimHandle,
    /// User and group to which podman gave the workspace.
    pub(super) owner: (u32, u32),
    born: Instant,
}

/// Kind that was asked for lately, or is always kept.
struct Wanted {
    kind: Kind,
    demand: Demand,
    least: usize,
    retry_at: Option<Instant>,
}

/// One that is being started.
struct Coming {
    id: SandboxId,
    kind: Kind,
    image_id: String,
    /// Job that takes it once it is ready.
    claim: Option<oneshot::Sender<Warm>>,
}

#[derive(Default)]
struct State {
    ready: Vec<Warm>,
    coming: Vec<Coming>,
    /// Those that are being ended, or have ended by themselves.
    ending: Vec<Warm>,
    wanted: Vec<Wanted>,
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
    is_kept: watch::Sender<bool>,
    /// Sandboxes that jobs got, by how they were started.
    starts: IntCounterVec,
}

/// Mark of a job whose command has not begun in its sandbox.
pub(super) struct StartTurn<'a>(&'a WarmPool);

impl Drop for StartTurn<'_> {
    fn drop(&mut self) {
        self.0.starting_jobs.fetch_sub(1, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

impl WarmPool {
    /// Pool of at most so many sandboxes, of which the kinds of `prefetched` images are always wanted.
    pub(super) fn new(most: usize, prefetched: &[ImageRef], starts: IntCounterVec) -> Self {
        let wanted = prefetched.iter().map(|image| Wanted {
            kind: Kind {
                image: image.clone(),
                limits: Limits::default(),
                inference: false,
            },
            demand: Demand::default(),
            least: 1,
            retry_at: None,
        });
        let state = State {
            wanted: wanted.take(MAX_KINDS).collect(),
            ..State::default()
        };
        Self {
            most,
            state: state.into(),
            wake: Notify::new(),
            starting_jobs: AtomicUsize::new(0),
            is_kept: watch::Sender::new(false),
            starts,
        }
    }

    /// Number of sandboxes that are ready, and the most that are kept.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.state.lock().ready.len(), self.most)
    }

    /// Takes a sandbox for a job, or waits for the one of its kind that is being started; `None` where there is
    /// none. One for a job with files has a workspace that this process can fill.
    pub(super) async fn take(&self, kind: Kind, image_id: &str, has_files: bool) -> Option<Warm> {
        if self.most == 0 {
            return None;
        }
        let taken = self.state.lock().take(kind, image_id, has_files);
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
    pub(super) fn enter_start(&self, is_warm: bool) -> StartTurn<'_> {
        let start = if is_warm { "warm" } else { "cold" };
        self.starts.with_label_values(&[start]).inc();
        self.starting_jobs.fetch_add(1, Ordering::Relaxed);
        StartTurn(self)
    }

    /// Ends all warm sandboxes, and waits until nothing is left of them.
    pub(super) async fn close(&self) {
        self.state.lock().is_closed = true;
        self.wake.notify_one();
        let closed = async {
            // Fails for one that is never kept, and has none.
            let _ = wait::until(&mut self.is_kept.subscribe(), |is_kept| !is_kept).await;
            let warm = {
                let mut state = self.state.lock();
                state.end_where(|_| true);
                mem::take(&mut state.ending)
            };
            join_all(warm.into_iter().map(Warm::ended)).await;
        };
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!(
                "warm sandboxes not removed before the end; the next start removes them"
            );
        }
    }
}

impl Warm {
    /// Whether this process may place a job's files in its workspace.
    fn takes_files(&self) -> bool {
        let own = rustix::process::geteuid();
        own.is_root() || own.as_raw() == self.owner.0
    }

    /// Name and id of its image.
    fn image(&self) -> (ImageRef, String) {
        (self.kind.image.clone(), self.image_id.clone())
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
        has_files: bool,
    ) -> Result<Warm, Option<oneshot::Receiver<Warm>>> {
        let is_wanted = |warm: &Warm| {
            warm.kind == kind && warm.image_id == image_id && (!has_files || warm.takes_files())
        };
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
        let claim = self.coming.iter_mut().find(|coming| {
            let is_same = coming.kind == kind && coming.image_id == image_id;
            is_same && coming.claim.is_none() && !has_files
        });
        let claimed = match (&found, claim) {
            (None, Some(coming)) => {
                let (claim, claimed) = oneshot::channel();
                coming.claim = Some(claim);
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
        if let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.kind == kind) {
            wanted.demand.count(now);
            return;
        }
        if self.wanted.len() >= MAX_KINDS {
            let seldom = self.wanted.iter().enumerate();
            let seldom = seldom.filter(|(_, wanted)| wanted.least == 0);
            match seldom.min_by_key(|(_, wanted)| wanted.demand.last()) {
                Some((at, _)) => self.wanted.swap_remove(at),
                None => return,
            };
        }
        let mut demand = Demand::default();
        demand.count(now);
        self.wanted.push(Wanted {
            kind,
            demand,
            least: 0,
            retry_at: None,
        });
    }

    /// Number of sandboxes to keep of each kind that is wanted, the latest first.
    fn shares(&mut self, most: usize) -> Vec<(Kind, usize)> {
        let (now, start_time) = (Instant::now(), self.start_time.unwrap_or(USUAL_START));
        self.wanted.retain_mut(|wanted| {
            wanted.demand.forget_old(now);
            wanted.least > 0 || wanted.demand.last().is_some()
        });
        self.wanted
            .sort_by_key(|wanted| Reverse(wanted.demand.last()));
        let targets = self.wanted.iter();
        let targets = targets.map(|wanted| wanted.demand.target(start_time).max(wanted.least));
        let shares = share(&targets.collect::<Vec<_>>(), most);
        let kinds = self.wanted.iter().map(|wanted| wanted.kind.clone());
        kinds.zip(shares).collect()
    }

    /// Kind of which there are too few, while none is being started that no job has claimed.
    fn next_missing(&mut self, most: usize) -> Option<Kind> {
        if self.is_closed || self.coming.iter().any(|coming| coming.claim.is_none()) {
            return None;
        }
        let now = Instant::now();
        let shares = self.shares(most);
        let is_missing = |(kind, share): &(Kind, usize)| {
            let there = self.ready.iter().filter(|warm| warm.kind == *kind).count();
            let wanted = self.wanted.iter().find(|wanted| wanted.kind == *kind);
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
                Some((_, share @ 1..)) if warm.born.elapsed() < MAX_AGE => {
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
    fn end_where(&mut self, is_meant: impl Fn(&Warm) -> bool) {
        for mut warm in self.ready.extract_if(.., |warm| is_meant(warm)) {
            warm.end();
            self.ending.push(warm);
        }
    }

    /// Takes those that have ended.
    fn take_ended(&mut self) -> Vec<Warm> {
        let ended = self.ending.extract_if(.., |warm| warm.handle.has_ended());
        ended.collect()
    }
}
