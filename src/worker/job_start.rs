//! Start of a job: in a sandbox that waits for one, where there is one of its kind, and in a new one else.
//!
//! A job that takes a warm sandbox gets its workspace, its shim's socket and its shim's log by renames, each into the job's
//! own directory, and only then is the shim assigned the job. So at every moment a process that is killed leaves what
//! recovery knows: before the socket is there, a job without a shim, whose container is on record; after it, a job whose
//! shim either has the job or ends because its owner is gone.

use super::{
    artifacts,
    context::WorkerContext,
    disk_guard::LiveJob,
    job_files::place_files,
    job_shim::{JobConfig, ShimConfig},
    ledger::Job,
    placement::give_to,
    prepare::{PrepareError, Prepared, engine_error, limits_of},
    warm::{Kind, StartTurn, Warm},
};
use crate::{
    api::{
        jobs::{Effective, SandboxSpec},
        size::ByteSize,
    },
    engine::{
        ResolvedImage,
        gpus::{container_args, variables},
        labels,
    },
    sandbox::{SandboxConfig, SandboxId, shim, shim::ShimHandle},
    sandbox_init::seccomp,
    spool::Spool,
};
use std::{fs, io, path::PathBuf, sync::Arc};

/// Job whose sandbox is being started, or has it already.
pub(super) struct Started<'a> {
    pub(super) handle: ShimHandle,
    /// Mark until the command has begun.
    pub(super) turn: Option<StartTurn<'a>>,
}

/// Starts a prepared job, with its files; its shim goes on without this process.
pub(super) async fn start<'a>(
    ctx: &'a WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    prepared: &Prepared<'_>,
) -> Result<Started<'a>, PrepareError> {
    let has_files = !spec.files.is_empty() || spec.stdin.is_some();
    if let Some(kind) = kind_of(&live.job, spec, prepared)
        && let Some(warm) = ctx.warm.take(kind, &prepared.image.id, has_files).await
    {
        let turn = Some(ctx.warm.enter_start(true));
        let handle = hand_over(ctx, live, spec, prepared, warm).await?;
        return Ok(Started { handle, turn });
    }
    place_files(ctx, live, spec).await?;
    let turn = ctx.warm.enter_start(false);
    let started = start_new(ctx, &live.job, spec, prepared).await;
    let handle =
        started.map_err(|error| engine_error(format!("no shim could be started: {error}")))?;
    let turn = Some(turn);
    Ok(Started { handle, turn })
}

/// Kind of a warm sandbox that would do for the job; `None` where it needs one of its own.
fn kind_of(job: &Job, spec: &SandboxSpec, prepared: &Prepared<'_>) -> Option<Kind> {
    let image = job.accepted.image.parse().ok()?;
    prepared.gpus.is_empty().then(|| Kind {
        image,
        limits: limits_of(spec),
        inference: spec.use_inference == Some(true),
    })
}

/// Hands a warm sandbox over to a job.
async fn hand_over(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    prepared: &Prepared<'_>,
    warm: Warm,
) -> Result<ShimHandle, PrepareError> {
    let job = &live.job;
    let failed =
        |error: io::Error| engine_error(format!("a warm sandbox can't be handed over: {error}"));
    let (name, dir) = (warm.id.container_name(), warm.dir.clone());
    let moved = job.with_spool(move |spool| {
        // On record before there is a workspace, from which recovery knows that there may be a container.
        spool.write_container_name(&name)?;
        fs::rename(dir.join("workspace"), spool.workspace())?;
        shim::move_into(&dir, spool.path())?;
        fs::remove_dir_all(&dir)
    });
    moved.await.flatten().map_err(failed)?;
    if !spec.files.is_empty() || spec.stdin.is_some() {
        place_for(ctx, live, spec, warm.owner).await?;
    }
    let mut handle = warm.handle;
    let assigned = handle.assign(&job_config(ctx, job, spec, prepared));
    assigned.map_err(failed)?;
    Ok(handle)
}

/// Places the files of a job in a workspace that belongs to the image's user, as podman would have given it to them.
async fn place_for(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    owner: (u32, u32),
) -> Result<(), PrepareError> {
    let job = &live.job;
    // A file may have its name. A new one is made behind them.
    let made_way = |spool: &Spool| fs::remove_dir(spool.workspace().join(artifacts::DIRECTORY));
    let made_way = job.with_spool(made_way).await;
    made_way.flatten().map_err(engine_error)?;
    place_files(ctx, live, spec).await?;
    let given = job.with_spool(move |spool| {
        let workspace = spool.workspace();
        artifacts::make_directory(&workspace)?;
        give_to(&workspace, owner)
    });
    given.await.flatten().map_err(engine_error)
}

/// Starts the shim of a new sandbox, whose container is on record before it can exist.
async fn start_new(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    spec: &SandboxSpec,
    prepared: &Prepared<'_>,
) -> io::Result<ShimHandle> {
    let id = SandboxId::random();
    let accepted = &job.accepted;
    let labels = [
        (labels::JOB, accepted.job_id.to_string()),
        (labels::TASK, accepted.task_id.to_string()),
        (labels::ATTEMPT, accepted.attempt.to_string()),
    ];
    let mut sandbox = sandbox_config(ctx, id, &prepared.image, job.spool.path().to_owned());
    sandbox.labels = labels
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
    sandbox.limits = limits_of(spec);
    sandbox.device_args = container_args(&prepared.gpus, ctx.engine.info().rootless);
    sandbox.inference = spec.use_inference == Some(true);
    let config = ShimConfig {
        sandbox,
        job: Some(job_config(ctx, job, spec, prepared)),
    };
    ctx.init.ensure().await?;
    job.with_spool(move |spool| spool.write_container_name(&id.container_name()))
        .await
        .flatten()?;
    ShimHandle::start(job.spool.path(), ctx.init.path(), &config).await
}

/// Config of a sandbox in a directory of its own, with no limits and no devices.
pub(super) fn sandbox_config(
    ctx: &WorkerContext,
    id: SandboxId,
    image: &ResolvedImage,
    dir: PathBuf,
) -> SandboxConfig {
    SandboxConfig {
        id,
        node_uuid: ctx.node_uuid.clone(),
        engine: ctx.engine.clone(),
        init: ctx.init.path().to_owned(),
        image_id: image.id.clone(),
        image_index: image.stamp,
        workspace: dir.join("workspace"),
        scratch: dir,
        labels: Vec::new(),
        limits: Default::default(),
        device_args: Vec::new(),
        inference: false,
    }
}

fn job_config(
    ctx: &WorkerContext,
    job: &Job,
    spec: &SandboxSpec,
    prepared: &Prepared<'_>,
) -> JobConfig {
    let asked = spec.timeout_seconds;
    let timeout_seconds = ctx.access.borrow().effective_timeout_seconds(asked);
    let accepted = job.accepted.clone();
    JobConfig {
        spool: job.spool.path().to_owned(),
        effective: Effective {
            image_id: prepared.image.id.clone(),
            network: "none".to_owned(),
            runtime: ctx.engine.runtime_name().to_owned(),
            timeout_seconds,
            seccomp: Some(seccomp::NAME.to_owned()),
            cpus: spec.cpus,
            memory: spec.memory,
            pids: spec.pids,
            shm_size: spec.shm_size,
            gpus: accepted.gpus.clone(),
            workspace_limit: ctx.workspace_limit.map(ByteSize),
        },
        accepted,
        log_bytes: ctx.log_bytes,
        device_env: variables(&prepared.gpus),
        artifact_limit: ctx.artifact_limit,
        min_free: ctx.disk.min_free,
    }
}
