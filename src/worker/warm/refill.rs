//! Refill of the warm sandboxes: starts what is missing, ends what is too much.

use super::{Kind, PendingStart, State, WarmPool, WarmSandbox};
use crate::{
    api::jobs::PullPolicy,
    background,
    data_dir::make_private_subdir,
    engine::{ResolvedImage, labels},
    sandbox::{
        SandboxId,
        pool::DEMAND_WINDOW,
        shim::{self, ShimHandle},
    },
    spool::Spool,
    worker::{
        context::WorkerContext, job_shim::ShimConfig, job_start::sandbox_config,
        memory_guard::available_memory,
    },
};
use rustix::process::{getegid, geteuid};
use std::{
    collections::HashSet,
    fmt::Display,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// Memory of the machine beyond its reserve without which none is started.
const MEMORY_HEADROOM: u64 = 256 << 20;
/// Value of the label of the job while there is none.
const JOB_LABEL: &str = "warm";
/// Interval of looks at what is kept, beside those that a job causes.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time for a sandbox to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Delay after which a kind is tried again whose sandbox did not start.
const RETRY_DELAY: Duration = Duration::from_secs(30);
/// The same for one of which this process could give none to a job.
const UNFIT_DELAY: Duration = DEMAND_WINDOW;

/// Reason for which there is no new sandbox.
enum StartError {
    /// Its image isn't on this machine, such as one that is still being prefetched.
    NoImage,
    /// No job could have it: nothing may run in its image, or its workspace belongs to another user of this machine than
    /// the one of this process, which can't move it.
    Unfit,
    Failed(String),
}

impl StartError {
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Start that is under way; its record goes when this is dropped, and a job that waits for it goes on without.
struct StartRecord<'a> {
    pool: &'a WarmPool,
    id: SandboxId,
}

impl Drop for StartRecord<'_> {
    fn drop(&mut self) {
        let is_last = {
            let mut state = self.pool.state.lock();
            state.take_claim(self.id);
            state.is_closed && state.pending.is_empty()
        };
        self.pool.wake.notify_one();
        if is_last {
            self.pool.is_running.send_replace(false);
        }
    }
}

/// Keeps the pool of a worker filled until it is closed.
pub(in crate::worker) async fn run_warm_pool(ctx: Arc<WorkerContext>, reserve_memory: u64) {
    let pool = &ctx.warm;
    pool.is_running.send_replace(true);
    let (mut reported, mut index) = (0, None);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    while !pool.state.lock().is_closed {
        let now = ctx.engine.index_stamp().await;
        if now.is_none() || now != index {
            index = now;
            end_replaced(&ctx).await;
        }
        let ended = {
            let mut state = pool.state.lock();
            state.end_unwanted(pool.most);
            state.take_ended()
        };
        for warm in ended {
            discard(&ctx, warm.id, &warm.dir).await;
        }
        if can_start(&ctx, reserve_memory).await
            && let Some((id, kind)) = pool.begin_start(cores)
        {
            let ctx = Arc::clone(&ctx);
            background::spawn("start_warm", async move { start(&ctx, id, kind).await });
        }
        // Not what a job took just now, and will be replaced.
        let (ready, _) = pool.counts();
        if ready != reported && pool.state.lock().pending.is_empty() {
            reported = ready;
            ctx.changed.send_replace(());
        }
        tokio::select! {
            () = pool.wake.notified() => {}
            () = sleep(CHECK_INTERVAL) => {}
        }
    }
    if pool.state.lock().pending.is_empty() {
        pool.is_running.send_replace(false);
    }
}

/// Ends the sandboxes of images whose names stand for others now, or for none.
async fn end_replaced(ctx: &Arc<WorkerContext>) {
    let pool = &ctx.warm;
    let images = pool
        .state
        .lock()
        .ready
        .iter()
        .map(WarmSandbox::image)
        .collect::<HashSet<_>>();
    for (image, id) in images {
        let now = ctx.images.resolve(&image, PullPolicy::Never, |_| ()).await;
        if now.is_ok_and(|now| now.id == id) {
            continue;
        }
        pool.state
            .lock()
            .end_where(|warm| warm.image_id == id && warm.kind.image == image);
    }
}

/// Whether a sandbox is missing, and this node has room for it.
async fn can_start(ctx: &Arc<WorkerContext>, reserve_memory: u64) -> bool {
    let pool = &ctx.warm;
    if pool.state.lock().next_missing(pool.most).is_none() {
        return false;
    }
    let memory = spawn_blocking(available_memory).await.ok().flatten();
    memory.is_none_or(|free| free >= reserve_memory.saturating_add(MEMORY_HEADROOM))
        && ctx.ensure_ready().await.is_ok()
}

/// Starts a sandbox of this kind, which is ready when this returns, or failed.
async fn start(ctx: &Arc<WorkerContext>, id: SandboxId, kind: Kind) {
    let (began, pool) = (Instant::now(), &ctx.warm);
    let record = StartRecord { pool, id };
    let dir = ctx.disk.jobs_dir.join(format!("warm-{id}"));
    let error = match start_in(ctx, &kind, id, &dir).await {
        Ok(warm) => {
            let mut state = pool.state.lock();
            let claim = state.take_claim(id);
            state.record_start_time(began.elapsed());
            state.deliver(warm, claim);
            return;
        }
        Err(error) => error,
    };
    let delay = match &error {
        StartError::NoImage => RETRY_DELAY,
        StartError::Unfit => UNFIT_DELAY,
        StartError::Failed(error) => {
            tracing::warn!(image = %kind.image, error, "no warm sandbox started; trying again later");
            ctx.engine.report_failure();
            RETRY_DELAY
        }
    };
    pool.state.lock().retry_after(&kind, delay);
    // Before what may take long.
    drop(record);
    discard(ctx, id, &dir).await;
}

async fn start_in(
    ctx: &Arc<WorkerContext>,
    kind: &Kind,
    id: SandboxId,
    dir: &Path,
) -> Result<WarmSandbox, StartError> {
    let image = find_image(ctx, kind).await?;
    ctx.warm.state.lock().set_image(id, &image.id);
    let started_at = Instant::now();
    let labels = vec![(labels::JOB.to_owned(), JOB_LABEL.to_owned())];
    let sandbox = sandbox_config(ctx, id, (&image, kind), dir.to_owned(), labels);
    let workspace = sandbox.workspace.clone();
    let mut handle = start_shim(ctx, dir, ShimConfig { sandbox, job: None })
        .await
        .map_err(StartError::failed)?;
    match timeout(START_TIMEOUT, handle.ready()).await {
        Ok(true) => {}
        Ok(false) => {
            let log = on_disk(dir, |dir| Ok(shim::log_in(dir))).await;
            return Err(StartError::Failed(log.unwrap_or_default()));
        }
        Err(_) => return Err(StartError::failed("podman is too slow")),
    }
    let owner = on_disk(&workspace, |path| fs::metadata(path)).await;
    let owner = owner.map_err(StartError::failed)?;
    let (owner, own) = ((owner.uid(), owner.gid()), (geteuid(), getegid()));
    if !own.0.is_root() && owner != (own.0.as_raw(), own.1.as_raw()) {
        return Err(StartError::Unfit);
    }
    Ok(WarmSandbox {
        kind: kind.clone(),
        image_id: image.id,
        id,
        dir: dir.to_owned(),
        handle,
        owner,
        started_at,
    })
}

/// Finds the image of a kind, which is not pulled for this.
async fn find_image(ctx: &Arc<WorkerContext>, kind: &Kind) -> Result<ResolvedImage, StartError> {
    if !ctx.images.is_present(&kind.image).await {
        return Err(StartError::NoImage);
    }
    let resolved = ctx.images.resolve(&kind.image, PullPolicy::Never, |_| ());
    let image = resolved.await.map_err(StartError::failed)?;
    let fault = ctx.images.files_fault(ctx.init.path(), &image.id).await;
    match fault.map_err(StartError::failed)? {
        None => Ok(image),
        // Jobs are told; podman is well.
        Some(_) => Err(StartError::Unfit),
    }
}

/// Starts a shim in a new directory.
async fn start_shim(
    ctx: &Arc<WorkerContext>,
    dir: &Path,
    config: ShimConfig,
) -> io::Result<ShimHandle> {
    ctx.init.ensure().await?;
    let name = config.sandbox.id.container_name();
    on_disk(dir, move |dir| {
        make_private_subdir(dir)?;
        // As of a job, so that the container counts as in use.
        Spool::at(dir.to_owned()).write_container_name(&name)
    })
    .await?;
    ShimHandle::start(dir, ctx.init.path(), &config).await
}

/// Runs a file operation off the runtime's threads.
async fn on_disk<T: Send + 'static>(
    path: &Path,
    operation: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path: PathBuf = path.to_owned();
    let done = spawn_blocking(move || operation(&path)).await;
    done.map_err(io::Error::from).flatten()
}

/// Removes what is left of a sandbox whose shim was killed. One that ended in order has left nothing.
async fn discard(ctx: &Arc<WorkerContext>, id: SandboxId, dir: &Path) {
    if !on_disk(dir, |dir| dir.try_exists()).await.unwrap_or(true) {
        return;
    }
    let name = id.container_name();
    ctx.engine.remove_container(&name).await;
    let engine = ctx.engine.clone();
    let upper = on_disk(dir, move |_| Ok(engine.detached_upper(&name))).await;
    if let Ok(Some(upper)) = upper {
        ctx.trash.add(upper, None);
    }
    ctx.trash.add(dir.to_owned(), None);
}

impl WarmPool {
    /// Begins the start of a sandbox that is missing, unless as much is being started as there are cores.
    fn begin_start(&self, cores: usize) -> Option<(SandboxId, Kind)> {
        let mut state = self.state.lock();
        let starting = self.starting_jobs.load(Ordering::Relaxed) + state.pending.len();
        if starting >= cores {
            return None;
        }
        let (id, kind) = (SandboxId::random(), state.next_missing(self.most)?);
        state.pending.push(PendingStart {
            id,
            kind: kind.clone(),
            image_id: String::new(),
            claim: None,
        });
        Some((id, kind))
    }
}

impl State {
    /// Notes the time of a start, of which the usual one follows slowly.
    fn record_start_time(&mut self, took: Duration) {
        let usual = self.start_time.map_or(took, |usual| (usual * 7 + took) / 8);
        self.start_time = Some(usual);
    }

    /// Sets the image of a sandbox that is being started. Jobs can claim it from then on.
    fn set_image(&mut self, id: SandboxId, image_id: &str) {
        if let Some(start) = self.pending.iter_mut().find(|start| start.id == id) {
            image_id.clone_into(&mut start.image_id);
        }
    }

    /// Takes one that is not being started any more; the job that waits for it.
    fn take_claim(&mut self, id: SandboxId) -> Option<oneshot::Sender<WarmSandbox>> {
        let at = self.pending.iter().position(|start| start.id == id)?;
        self.pending.swap_remove(at).claim
    }

    /// Gives a sandbox that is ready to the job that waits for it, or keeps it.
    fn deliver(&mut self, mut warm: WarmSandbox, claim: Option<oneshot::Sender<WarmSandbox>>) {
        if let Some(claim) = claim {
            match claim.send(warm) {
                Ok(()) => return,
                // The job waits no more.
                Err(unclaimed) => warm = unclaimed,
            }
        }
        self.ready.push(warm);
    }

    fn retry_after(&mut self, kind: &Kind, delay: Duration) {
        if let Some(known) = self.kinds.iter_mut().find(|known| known.kind == *kind) {
            known.retry_at = Some(Instant::now() + delay);
        }
    }
}
