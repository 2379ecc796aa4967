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
    edge::Divided,
    job_files::place_files,
    job_shim::{JobConfig, ShimConfig},
    job_stop::cancel_requested,
    ledger::Job,
    placement::give_to,
    prepare::{PrepareError, Prepared, engine_error},
    warm::{Kind, StartMark, WarmSandbox},
};
use crate::{
    api::{
        jobs::{Effective, SandboxSpec},
        secrets::SecretValues,
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
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest wait for a warm sandbox that is being started.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of secrets, and of what is for the edge, that a warm sandbox is assigned: however they are escaped, they fit into
/// a frame with the rest of the assignment. More of them go to a new shim, which reads its config to the end.
const MAX_WARM_SECRET_BYTES: usize = 8 * 1024;

/// Job whose sandbox is being started, or has it already.
pub(super) struct Started<'a> {
    pub(super) handle: ShimHandle,
    /// Mark until the command has begun.
    pub(super) mark: Option<StartMark<'a>>,
}

/// Reason for which a job was not started.
pub(super) enum StartError {
    /// The job can't be started.
    Job(PrepareError),
    /// A warm sandbox could not be handed over; a new one can be started.
    Warm,
}

impl From<PrepareError> for StartError {
    fn from(error: PrepareError) -> Self {
        Self::Job(error)
    }
}

/// Starts a prepared job, with its files; its shim goes on without this process. In a warm sandbox only where `may_be_warm`.
pub(super) async fn start<'a>(
    ctx: &'a WorkerContext,
    live: &Arc<LiveJob>,
    (spec, secrets): (&SandboxSpec, &SecretValues),
    prepared: &Prepared<'_>,
    may_be_warm: bool,
) -> Result<Started<'a>, StartError> {
    let secrets = &Divided::new(spec, secrets).map_err(|error| {
        engine_error(format!(
            "no authority for the sandbox could be made: {error}"
        ))
    })?;
    let may_be_warm = may_be_warm && secrets.bytes() <= MAX_WARM_SECRET_BYTES;
    if may_be_warm && let Some(warm) = take_warm(ctx, &live.job, prepared).await? {
        return hand_over(ctx, live, (spec, secrets), prepared, warm).await;
    }
    place_files(ctx, live, spec, prepared.snapshot()).await?;
    let mark = Some(ctx.warm.enter_start(false));
    let started = start_new(ctx, &live.job, (spec, secrets), prepared).await;
    let handle =
        started.map_err(|error| engine_error(format!("no shim could be started: {error}")))?;
    Ok(Started { handle, mark })
}

/// Takes a warm sandbox for a job, or waits for the one that is being started. One with devices needs a new one.
async fn take_warm(
    ctx: &WorkerContext,
    job: &Job,
    prepared: &Prepared<'_>,
) -> Result<Option<WarmSandbox>, PrepareError> {
    if !prepared.gpus.is_empty() {
        return Ok(None);
    }
    let kind = prepared.kind.clone();
    let mut cancel = job.cancellation();
    tokio::select! {
        taken = timeout(CLAIM_TIMEOUT, ctx.warm.take(kind, &prepared.image.id)) => {
            Ok(taken.ok().flatten())
        }
        _ = cancel_requested(&mut cancel, None) => Err(PrepareError::Canceled),
    }
}

/// Hands a warm sandbox over to a job. Where that fails, nothing of the sandbox is left.
async fn hand_over<'a>(
    ctx: &'a WorkerContext,
    live: &Arc<LiveJob>,
    parts: (&SandboxSpec, &Divided),
    prepared: &Prepared<'_>,
    mut warm: WarmSandbox,
) -> Result<Started<'a>, StartError> {
    match try_hand_over(ctx, live, parts, prepared, &mut warm).await {
        Ok(mark) => Ok(Started {
            handle: warm.handle,
            mark: Some(mark),
        }),
        Err(error) => {
            warm.end_now().await;
            Err(error)
        }
    }
}

async fn try_hand_over<'a>(
    ctx: &'a WorkerContext,
    live: &Arc<LiveJob>,
    (spec, secrets): (&SandboxSpec, &Divided),
    prepared: &Prepared<'_>,
    warm: &mut WarmSandbox,
) -> Result<StartMark<'a>, StartError> {
    let job = &live.job;
    let failed = |error: io::Error| {
        tracing::warn!(%error, "warm sandbox can't be handed over; starting a new one");
        StartError::Warm
    };
    let (name, dir) = (warm.id.container_name(), warm.dir.clone());
    let moved = job.with_spool(move |spool| {
        // On record before there is a workspace, from which recovery knows that there may be a container.
        spool.write_container_name(&name)?;
        fs::rename(dir.join("workspace"), spool.workspace())?;
        shim::move_into(&dir, spool.path())?;
        fs::remove_dir_all(&dir)
    });
    moved.await.flatten().map_err(failed)?;
    if !spec.files.is_empty() || spec.stdin.is_some() || prepared.snapshot().is_some() {
        place_for(ctx, live, spec, prepared.snapshot(), warm.owner).await?;
    }
    tracing::debug!(sandbox = %warm.id, "job takes a warm sandbox");
    let mark = ctx.warm.enter_start(true);
    let config = job_config(ctx, job, (spec, secrets), prepared);
    warm.handle.assign(&config).map_err(failed)?;
    Ok(mark)
}

/// Places the files of a job, and of its snapshot, in a workspace that belongs to the image's user, as podman would have
/// given it to them.
async fn place_for(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    snapshot: Option<&str>,
    owner: (u32, u32),
) -> Result<(), PrepareError> {
    let job = &live.job;
    // A file may have its name. A new one is made behind them.
    let made_way = |spool: &Spool| fs::remove_dir(spool.workspace().join(artifacts::DIRECTORY));
    let made_way = job.with_spool(made_way).await;
    made_way.flatten().map_err(engine_error)?;
    place_files(ctx, live, spec, snapshot).await?;
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
    parts: (&SandboxSpec, &Divided),
    prepared: &Prepared<'_>,
) -> io::Result<ShimHandle> {
    let id = SandboxId::random();
    let accepted = &job.accepted;
    let labels = [
        (labels::JOB, accepted.job_id.to_string()),
        (labels::TASK, accepted.task_id.to_string()),
        (labels::ATTEMPT, accepted.attempt.to_string()),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value));
    let (image, dir) = ((&prepared.image, &prepared.kind), job.spool.path());
    let mut sandbox = sandbox_config(ctx, id, image, dir.to_owned(), labels.to_vec());
    sandbox.device_args = container_args(&prepared.gpus, ctx.engine.info().rootless);
    let config = ShimConfig {
        sandbox,
        job: Some(job_config(ctx, job, parts, prepared)),
    };
    ctx.init.ensure().await?;
    job.with_spool(move |spool| spool.write_container_name(&id.container_name()))
        .await
        .flatten()?;
    ShimHandle::start(job.spool.path(), ctx.init.path(), &config).await
}

/// Config of a sandbox of this kind in a directory of its own, with no devices.
pub(super) fn sandbox_config(
    ctx: &WorkerContext,
    id: SandboxId,
    (image, kind): (&ResolvedImage, &Kind),
    dir: PathBuf,
    labels: Vec<(String, String)>,
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
        labels,
        limits: kind.limits.clone(),
        device_args: Vec::new(),
        inference: kind.inference,
        egress: kind.egress,
    }
}

fn job_config(
    ctx: &WorkerContext,
    job: &Job,
    (spec, secrets): (&SandboxSpec, &Divided),
    prepared: &Prepared<'_>,
) -> JobConfig {
    let asked = spec.timeout_seconds;
    let timeout_seconds = match &spec.session {
        Some(session) => session.lifetime_seconds,
        None => ctx.access.borrow().effective_timeout_seconds(asked),
    };
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
            // Counted by the worker, which adds the sums to the result.
            egress: None,
        },
        accepted,
        log_bytes: ctx.log_bytes,
        device_env: variables(&prepared.gpus),
        artifact_limit: ctx.artifact_limit,
        min_free: ctx.disk.min_free,
        secrets: secrets.for_command.clone(),
        edge: secrets.edge.clone(),
        mask: spec.mask.unwrap_or(true),
    }
}
