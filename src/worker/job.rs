//! The life of one job: allowed? → image → slot → shim → its end → clean up.
//!
//! A job ends exactly once, when there is a result in its spool; its slot is free once container
//! and workspace are gone. While it has a shim, it is the shim that writes there, and we only
//! look; before and after, we do.
//!
//! ```text
//! begin ──▶ prepare ──▶ start a shim ──▶ look on ──▶ the shim is gone: is there a result?
//!              │                            ▲            ├─ yes ──────────────▶ done
//!              ▼ not allowed, canceled, …   │            ├─ no, and a request ▶ start another
//!           result              adopt ──────┘            └─ neither ──────────▶ lost
//! ```

use super::{
    access::Terms,
    disk::Disk,
    disk_guard::{LiveJob, LiveJobs},
    init_copy::InitCopy,
    ledger::Job,
    metrics::Metrics,
    prepare::{Halt, engine_error, prepare},
    trash::Trash,
};
use crate::{
    api::{
        jobs::{Effective, JobErrorKind, SandboxSpec},
        problem::{Kind, Problem},
    },
    data_dir::{Place, make_private_subdir},
    engine::{Engine, FoundImage, ImageLease, Images},
    sandbox_init::seccomp,
    shim::{Link, Order, Stop},
    spool::{Ending, Recorder},
    wait,
};
use futures_util::FutureExt as _;
use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};

/// How often a shim is started for one attempt, should somebody kill it before the command began.
const STARTS: usize = 3;
/// Before a shim that has let go of us is spoken to again, or an end is written down again.
const PAUSE: Duration = Duration::from_secs(1);
/// After so long podman should have started a sandbox.
const PATIENCE: Duration = Duration::from_secs(10);
/// All that jobs share.
pub(super) struct Workshop {
    pub(super) engine: Engine,
    pub(super) init: InitCopy,
    pub(super) images: Arc<Images>,
    pub(super) node_uuid: String,
    pub(super) log_bytes: u64,
    pub(super) disk: Disk,
    /// Where what ended jobs leave goes.
    pub(super) trash: Arc<Trash>,
    pub(super) terms: watch::Receiver<Terms>,
    /// Sandboxes at the same time, counted until they are cleared away.
    pub(super) slots: Semaphore,
    pub(super) metrics: Metrics,
    /// Paths under which everything has to stay.
    pub(super) place: Place,
    /// Says that jobs began or ceased to wait for images, or that the place changed.
    pub(super) changed: watch::Sender<()>,
    /// Jobs that may have something on disk.
    pub(super) live: LiveJobs,
}

impl Workshop {
    /// Whether one more job can be run here.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Err(misplaced) = self.place.check() {
            return Err(Problem::new(Kind::Unavailable, misplaced.to_string()));
        }
        if let Some(reason) = self.engine.trouble() {
            let detail =
                format!("podman does not work on this node, and so it takes no job: {reason}");
            return Err(Problem::new(Kind::Unavailable, detail).retry_after(PAUSE.as_secs()));
        }
        self.disk.check()
    }
}

/// Where to begin.
pub(super) enum Entry {
    /// Nothing was done yet.
    Begin(SandboxSpec),
    /// An earlier process started a shim; gone, where there is no link.
    Adopt(Option<Link>),
}

/// Resolves once the job is to be ended.
async fn canceled(cancel: &mut watch::Receiver<bool>) {
    if wait::until(cancel, |cancel| *cancel).await.is_err() {
        // Nobody can cancel any more, so nobody will.
        std::future::pending().await
    }
}

/// Resolves once a job that has a sandbox is to be ended, with the reason.
async fn stopped(job: &Job) -> Stop {
    let (mut cancel, mut excess) = (job.cancel.subscribe(), job.excess.subscribe());
    tokio::select! {
        () = canceled(&mut cancel) => Stop::Cancel,
        Ok(Some(excess)) = wait::until(&mut excess, Option::is_some) => Stop::NoRoom(excess),
    }
}

/// Runs a job to its end.
pub(super) async fn run(shop: Arc<Workshop>, job: Arc<Job>, entry: Entry) {
    let accepted = &job.accepted;
    if matches!(entry, Entry::Begin(_)) {
        tracing::info!(job = %accepted.job_id, task = %accepted.task_id, attempt = accepted.attempt, image = accepted.image, "job accepted");
    }
    let walked = AssertUnwindSafe(walk(&shop, &job, entry))
        .catch_unwind()
        .await;
    // A fault of ours must not leave a job that never ends.
    if walked.is_err() && !job.has_ended() {
        let halt = engine_error("the worker made a mistake; its log says which");
        finish(&shop, &job, halt.into()).await;
    }
}

async fn walk(shop: &Workshop, job: &Arc<Job>, entry: Entry) {
    let live = shop.live.enter(job);
    let mut spec = match entry {
        Entry::Begin(spec) => spec,
        Entry::Adopt(link) => {
            // A worker that was started anew with fewer slots has too many jobs for a while.
            let _slot = shop.slots.try_acquire();
            let _lease = lease(shop, job).await;
            if let Some(link) = link {
                look_on(shop, job, link).await;
            }
            match leftover(shop, &live).await {
                Some(spec) => spec,
                None => return,
            }
        }
    };
    // An earlier process of ours may have started some.
    let earlier = job.spool.container().and_then(|name| number(&name));
    for start in (earlier.unwrap_or(0) + 1..).take(STARTS) {
        let mut cancel = job.cancel.subscribe();
        let prepared = tokio::select! {
            prepared = prepare(shop, job) => prepared,
            () = canceled(&mut cancel) => Err(Halt::Canceled),
        };
        let (image, _slot, _lease) = match prepared {
            Ok(prepared) => prepared,
            Err(halt) => return finish(shop, job, halt.into()).await,
        };
        // A name of its own: the podman of a shim that was killed may still be about to make its container.
        let container = format!(
            "cynode-{}-{}.{start}",
            job.accepted.job_id, job.accepted.attempt
        );
        let order = order(shop, job, &spec, image, container);
        let started = async {
            shop.init.ensure().await?;
            Link::start(&job.spool, &order).await
        };
        match started.await {
            Ok(link) => look_on(shop, job, link).await,
            Err(error) => {
                let halt = engine_error(format!("no shim could be started: {error}"));
                return finish(shop, job, halt.into()).await;
            }
        }
        match leftover(shop, &live).await {
            Some(again) => spec = again,
            None => return,
        }
    }
    let halt = engine_error("somebody kills the sandbox's shim before it can begin");
    finish(shop, job, halt.into()).await;
}

/// Which start a container is of, by its name.
fn number(container: &str) -> Option<u32> {
    container.rsplit_once('.')?.1.parse().ok()
}

/// Keeps the image of a job that was started by an earlier process.
async fn lease(shop: &Workshop, job: &Job) -> Option<ImageLease> {
    let image = job.accepted.image.parse().ok()?;
    shop.images.lease(&image).await
}

fn order(
    shop: &Workshop,
    job: &Job,
    spec: &SandboxSpec,
    image: FoundImage,
    container: String,
) -> Order {
    let (default, most) = {
        let terms = shop.terms.borrow();
        (
            terms.default_timeout_seconds,
            terms.policy.max_timeout_seconds,
        )
    };
    let effective = Effective {
        image_id: image.id,
        network: "none".to_owned(),
        runtime: shop.engine.runtime_name().to_owned(),
        timeout_seconds: spec.timeout_seconds.unwrap_or(default).min(most),
        seccomp: Some(seccomp::NAME.to_owned()),
    };
    Order {
        spool: job.spool.path().to_owned(),
        engine: shop.engine.clone(),
        init: shop.init.path().to_owned(),
        node_uuid: shop.node_uuid.clone(),
        accepted: job.accepted.clone(),
        container,
        image_index: image.stamp,
        effective,
        log_bytes: shop.log_bytes,
    }
}

/// Passes on what a shim says until it is gone, and to it that the job is to end.
async fn look_on(shop: &Workshop, job: &Job, mut link: Link) {
    let mut told_to_end = false;
    let doubtful = Instant::now() + PATIENCE;
    let mut is_looked_at = false;
    loop {
        tokio::select! {
            () = sleep_until(doubtful), if !is_looked_at => {
                is_looked_at = true;
                if !job.spool.has_begun() {
                    shop.engine.suspect();
                }
            }
            lives = link.news() => {
                note_end(shop, job).await;
                if !lives {
                    // Only one that can't be found again is gone.
                    match Link::find(&job.spool) {
                        Ok(Some(again)) => {
                            tokio::time::sleep(PAUSE).await;
                            (link, told_to_end) = (again, false);
                        }
                        _ => return,
                    }
                }
                job.tell();
            }
            why = stopped(job), if !told_to_end => {
                told_to_end = true;
                link.end(why).await;
            }
        }
    }
}

/// Whether there is a result by now.
async fn note_end(shop: &Workshop, job: &Job) -> bool {
    if job.has_ended() {
        return true;
    }
    let Some(result) = job.result().await.map(|last| last.result) else {
        return false;
    };
    shop.metrics.job_ended(result.status);
    let kind = result.error.as_ref().map(|error| error.kind);
    tracing::info!(
        job = %result.job_id,
        attempt = result.attempt,
        status = result.status.as_str(),
        exit_code = result.exit_code,
        error_type = kind.map(JobErrorKind::as_str),
        error = result.error.as_ref().map(|error| error.message.as_str()),
        "job ended"
    );
    if kind == Some(JobErrorKind::EngineError) {
        shop.engine.suspect();
    }
    job.end(result.status);
    true
}

/// What a shim that is gone has left: clears it away, and has the job end, unless its command can't
/// have begun, which is then to be run.
async fn leftover(shop: &Workshop, live: &Arc<LiveJob>) -> Option<SandboxSpec> {
    let job = &live.job;
    let workspace = job.spool.workspace();
    let is_left = workspace.exists();
    if is_left && let Some(name) = job.spool.container() {
        // It had not the time to do so.
        shop.engine.remove_container(&name).await;
    }
    let again = conclude(shop, job).await;
    // Last: how the job ended is told first, however long this takes.
    if is_left && again.is_some() {
        // The next start needs an empty one.
        let removed = shop.engine.remove_tree(shop.init.path(), &workspace).await;
        if let Err(error) = removed {
            tracing::warn!(job = %job.accepted.job_id, error, "a workspace can't be emptied");
        }
    } else if is_left {
        shop.trash.add(workspace, Some(live));
    }
    if let Some(upper) = job
        .spool
        .container()
        .and_then(|name| shop.engine.detached_upper(&name))
    {
        shop.trash.add(upper, Some(live));
    }
    again
}

/// Has a job end whose shim is gone, or answers what is to be run once more.
async fn conclude(shop: &Workshop, job: &Arc<Job>) -> Option<SandboxSpec> {
    if note_end(shop, job).await {
        return None;
    }
    if let Ok(Some(spec)) = job.spool.request()
        && !job.spool.has_begun()
    {
        return Some(spec);
    }
    let complaints = std::fs::read_to_string(job.spool.shim_log()).unwrap_or_default();
    tracing::warn!(job = %job.accepted.job_id, attempt = job.accepted.attempt, complaints, "a job's shim is gone");
    let message =
        "its shim was killed, or its machine went down, while it ran; how it ended can't be known";
    finish(shop, job, Ending::trouble(JobErrorKind::Lost, message)).await;
    None
}

/// Writes down the end of a job that has no shim.
async fn finish(shop: &Workshop, job: &Arc<Job>, ending: Ending) {
    while let Err(error) = write_end(shop, job, ending.clone()).await {
        tracing::error!(job = %job.accepted.job_id, %error, "an end can't be written down yet; trying again");
        tokio::time::sleep(PAUSE).await;
    }
    note_end(shop, job).await;
}

async fn write_end(shop: &Workshop, job: &Arc<Job>, ending: Ending) -> io::Result<()> {
    let (held, log_bytes) = (Arc::clone(job), shop.log_bytes);
    // All that it printed is read for this, off the runtime's threads.
    let result = tokio::task::spawn_blocking(move || {
        make_private_subdir(held.spool.path())?;
        let mut recorder = Recorder::open(&held.spool, held.accepted.clone(), log_bytes)?;
        Ok::<_, io::Error>(recorder.finish(ending, None))
    });
    let result = result.await.map_err(io::Error::from).flatten()?;
    job.spool.finish_at_last(&result).await?;
    job.spool.sync()
}
