//! Keeper of the warm sandboxes: starts what is missing, ends what is too much.

use super::{Coming, Kind, State, Warm, WarmPool};
use crate::{
    api::jobs::PullPolicy,
    background,
    data_dir::make_private_subdir,
    engine::{ResolvedImage, labels},
    sandbox::{SandboxId, shim::ShimHandle},
    spool::Spool,
    worker::{
        context::WorkerContext, job_shim::ShimConfig, job_start::sandbox_config,
        memory_guard::available_memory,
    },
};
use std::{
    collections::HashSet,
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
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Time for a sandbox to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Delay after which a kind is tried again whose sandbox did not start.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// Keeps the pool of a worker filled until it is closed.
pub(in crate::worker) async fn keep_warm(ctx: Arc<WorkerContext>, reserve_memory: u64) {
    let pool = &ctx.warm;
    pool.is_kept.send_replace(true);
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
        if ready != reported && pool.state.lock().coming.is_empty() {
            reported = ready;
            ctx.changed.send_replace(());
        }
        tokio::select! {
            () = pool.wake.notified() => {}
            () = sleep(LOOK_INTERVAL) => {}
        }
    }
    // The last that is being started, if there is one, does.
    pool.note_end();
}

/// Ends the sandboxes of images whose names stand for others now, or for none.
async fn end_replaced(ctx: &Arc<WorkerContext>) {
    let pool = &ctx.warm;
    let images = pool
        .state
        .lock()
        .ready
        .iter()
        .map(Warm::image)
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
    let began = Instant::now();
    let started = try_start(ctx, id, &kind).await;
    let pool = &ctx.warm;
    {
        let mut state = pool.state.lock();
        let claim = state.take_claim(id);
        match started {
            Ok(warm) => {
                state.note_start(began.elapsed());
                state.arrived(warm, claim);
            }
            Err(error) => {
                tracing::info!(image = %kind.image, %error, "no warm sandbox started; trying again later");
                state.retry_later(&kind);
            }
        }
    }
    pool.wake.notify_one();
    pool.note_end();
}

async fn try_start(ctx: &Arc<WorkerContext>, id: SandboxId, kind: &Kind) -> io::Result<Warm> {
    let resolved = ctx.images.resolve(&kind.image, PullPolicy::Never, |_| ());
    let image = resolved.await.map_err(io::Error::other)?;
    let fault = ctx.images.files_fault(ctx.init.path(), &image.id).await;
    if let Some(fault) = fault.map_err(io::Error::other)? {
        return Err(io::Error::other(fault));
    }
    let dir = ctx.disk.jobs_dir.join(format!("warm-{id}"));
    ctx.warm.state.lock().set_image(id, &image.id);
    let started = start_in(ctx, kind, &image, id, &dir).await;
    if started.is_err() {
        discard(ctx, id, &dir).await;
    }
    started
}

async fn start_in(
    ctx: &Arc<WorkerContext>,
    kind: &Kind,
    image: &ResolvedImage,
    id: SandboxId,
    dir: &Path,
) -> io::Result<Warm> {
    let born = Instant::now();
    let mut sandbox = sandbox_config(ctx, id, image, dir.to_owned());
    sandbox.labels = vec![(labels::JOB.to_owned(), JOB_LABEL.to_owned())];
    sandbox.limits = kind.limits.clone();
    sandbox.inference = kind.inference;
    let workspace = sandbox.workspace.clone();
    ctx.init.ensure().await?;
    on_disk(dir, move |dir| {
        make_private_subdir(dir)?;
        // As of a job, so that the container counts as in use.
        Spool::at(dir.to_owned()).write_container_name(&id.container_name())
    })
    .await?;
    let config = ShimConfig { sandbox, job: None };
    let mut handle = ShimHandle::start(dir, ctx.init.path(), &config).await?;
    match timeout(START_TIMEOUT, handle.ready()).await {
        Ok(true) => {}
        Ok(false) => {
            return Err(io::Error::other(
                "its shim ended; see its container's image",
            ));
        }
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let owner = on_disk(&workspace, |path| fs::metadata(path)).await?;
    Ok(Warm {
        kind: kind.clone(),
        image_id: image.id.clone(),
        id,
        dir: dir.to_owned(),
        handle,
        owner: (owner.uid(), owner.gid()),
        born,
    })
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
    if let Some(upper) = ctx.engine.detached_upper(&name) {
        ctx.trash.add(upper, None);
    }
    ctx.trash.add(dir.to_owned(), None);
}

impl WarmPool {
    /// Begins the start of a sandbox that is missing, unless as much is being started as there are cores.
    fn begin_start(&self, cores: usize) -> Option<(SandboxId, Kind)> {
        let mut state = self.state.lock();
        let starting = self.starting_jobs.load(Ordering::Relaxed) + state.coming.len();
        if starting >= cores {
            return None;
        }
        let (id, kind) = (SandboxId::random(), state.next_missing(self.most)?);
        state.coming.push(Coming {
            id,
            kind: kind.clone(),
            image_id: String::new(),
            claim: None,
        });
        Some((id, kind))
    }

    /// Notes that no more sandboxes come, once the pool is closed.
    fn note_end(&self) {
        let state = self.state.lock();
        if state.is_closed && state.coming.is_empty() {
            self.is_kept.send_replace(false);
        }
    }
}

impl State {
    /// Notes the time of a start, of which the usual one follows slowly.
    fn note_start(&mut self, took: Duration) {
        let usual = self.start_time.map_or(took, |usual| (usual * 7 + took) / 8);
        self.start_time = Some(usual);
    }

    /// Sets the image of a sandbox that is being started. Jobs can claim it from then on.
    fn set_image(&mut self, id: SandboxId, image_id: &str) {
        if let Some(coming) = self.coming.iter_mut().find(|coming| coming.id == id) {
            image_id.clone_into(&mut coming.image_id);
        }
    }

    /// Takes one that is not being started any more; the job that waits for it.
    fn take_claim(&mut self, id: SandboxId) -> Option<oneshot::Sender<Warm>> {
        let at = self.coming.iter().position(|coming| coming.id == id)?;
        self.coming.swap_remove(at).claim
    }

    /// Gives a sandbox that is ready to the job that waits for it, or keeps it.
    fn arrived(&mut self, mut warm: Warm, claim: Option<oneshot::Sender<Warm>>) {
        if let Some(claim) = claim {
            match claim.send(warm) {
                Ok(()) => return,
                // The job waits no more.
                Err(unclaimed) => warm = unclaimed,
            }
        }
        self.ready.push(warm);
    }

    fn retry_later(&mut self, kind: &Kind) {
        if let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.kind == *kind) {
            wanted.retry_at = Some(Instant::now() + RETRY_DELAY);
        }
    }
}
